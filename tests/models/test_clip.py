"""Tests of CLIP against transformers, with the same random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from r1router_jax.models import clip
from tests.tiny_encoders import CLIP


def make_inputs():
  """Return pixels and tokens; one text fills L tokens, one is empty."""
  rng = np.random.default_rng(0)
  tokens = np.zeros((3, CLIP.max_tokens), np.int32)
  for row, length in enumerate((7, 4, 2)):
    tokens[row, :length] = [38, *rng.integers(1, 38, length - 2), 39]
  pixels = rng.normal(size=(3, CLIP.image_size, CLIP.image_size, 3))
  return pixels.astype(np.float32), tokens


def init_params():
  inputs = map(jnp.asarray, make_inputs())
  return jax.jit(clip.Clip(CLIP).init)(jax.random.key(0), *inputs)["params"]


def encode(params, inputs, method):
  apply = jax.jit(functools.partial(clip.Clip(CLIP).apply, method=method))
  return np.asarray(apply({"params": params}, jnp.asarray(inputs)))


def openai_tensors(model):
  """Return the weights of a transformers CLIP under OpenAI's names."""
  # Tensors that only have another name, or are transposed.
  state = {name: x.numpy() for name, x in model.state_dict().items()}
  image, text = "vision_model.embeddings.", "text_model.embeddings."
  out = {
    "visual.conv1.weight": state[image + "patch_embedding.weight"],
    "visual.class_embedding": state[image + "class_embedding"],
    "visual.positional_embedding": state[image + "position_embedding.weight"],
    "visual.proj": state["visual_projection.weight"].T,
    "token_embedding.weight": state[text + "token_embedding.weight"],
    "positional_embedding": state[text + "position_embedding.weight"],
    "text_projection": state["text_projection.weight"].T,
    "logit_scale": state["logit_scale"],
  }
  # Norms and linear layers, whose weight and bias have another name.
  moved = [
    ("vision_model.pre_layrnorm", "visual.ln_pre"),
    ("vision_model.post_layernorm", "visual.ln_post"),
    ("text_model.final_layer_norm", "ln_final"),
  ]
  # Layers of both towers; OpenAI stacks query, key and value.
  for theirs, ours, layers in (
    ("vision_model", "visual.", CLIP.image.layers),
    ("text_model", "", CLIP.text.layers),
  ):
    for n in range(layers):
      old = f"{theirs}.encoder.layers.{n}"
      new = f"{ours}transformer.resblocks.{n}"
      moved += [
        (f"{old}.layer_norm1", f"{new}.ln_1"),
        (f"{old}.layer_norm2", f"{new}.ln_2"),
        (f"{old}.self_attn.out_proj", f"{new}.attn.out_proj"),
        (f"{old}.mlp.fc1", f"{new}.mlp.c_fc"),
        (f"{old}.mlp.fc2", f"{new}.mlp.c_proj"),
      ]
      for kind in ("weight", "bias"):
        out[f"{new}.attn.in_proj_{kind}"] = np.concatenate(
          [state[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
        )
  for old, new in moved:
    for kind in ("weight", "bias"):
      out[f"{new}.{kind}"] = state[f"{old}.{kind}"]
  return {f"clip_model.{k}": np.ascontiguousarray(x) for k, x in out.items()}


@pytest.mark.oracle
def test_vectors_agree_with_transformers(tmp_path):
  torch = pytest.importorskip("torch")
  import transformers

  def tower(config):
    return dict(
      hidden_size=config.hidden,
      num_hidden_layers=config.layers,
      num_attention_heads=config.heads,
      intermediate_size=4 * config.hidden,
      hidden_act="quick_gelu",
    )

  torch.manual_seed(0)
  model = transformers.CLIPModel(
    transformers.CLIPConfig(
      vision_config=dict(
        tower(CLIP.image),
        image_size=CLIP.image_size,
        patch_size=CLIP.patch_size,
      ),
      text_config=dict(
        tower(CLIP.text),
        vocab_size=CLIP.vocab,
        max_position_embeddings=CLIP.max_tokens,
        eos_token_id=39,
      ),
      projection_dim=CLIP.width,
    )
  ).eval()
  with torch.no_grad():  # An initial 0 or 1 would hide a bias or a norm.
    for x in model.parameters():
      x.add_(0.3 * torch.randn(x.shape))
  # Load the weights through a file under OpenAI's names.
  path = str(tmp_path / "model.safetensors")
  save_file(openai_tensors(model), path)
  params = clip.load_params(path, CLIP)
  pixels, tokens = make_inputs()
  with torch.no_grad():
    # transformers has the colours first: [B H W 3] -> [B 3 H W].
    seen = model.vision_model(torch.tensor(pixels).permute(0, 3, 1, 2))
    read = model.text_model(torch.tensor(tokens).long())
    wanted = (
      model.visual_projection(seen.pooler_output).numpy(),
      model.text_projection(read.pooler_output).numpy(),
    )
  got = [encode(params, pixels, "encode_image")]
  got.append(encode(params, tokens, "encode_text"))
  # Vectors near 0 would agree with anything.
  assert np.abs(wanted[0]).max() > 0.5 and np.abs(wanted[1]).max() > 0.5
  for ours, theirs in zip(got, wanted, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_score_fusion_is_the_sum_of_both_vectors():
  params = init_params()
  pixels, tokens = map(jnp.asarray, make_inputs())
  image = encode(params, pixels, "encode_image")
  both = jax.jit(clip.Clip(CLIP).apply)({"params": params}, pixels, tokens)
  wanted = image + encode(params, tokens, "encode_text")
  np.testing.assert_allclose(both, wanted, atol=1e-6)


def test_tokens_after_the_end_do_not_count():
  params = init_params()
  _, tokens = make_inputs()
  # Other tokens in the padding of the second text.
  other = np.where((np.arange(7) > 3) & (np.arange(3)[:, None] == 1), 5, tokens)
  vectors = [encode(params, x, "encode_text") for x in (tokens, other)]
  np.testing.assert_allclose(*vectors, atol=1e-6)
