"""CLIP beside transformers' with the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from r1router_jax.models import clip

TINY = clip.ClipConfig(
  picture=clip.Tower(24, 3, 3),
  text=clip.Tower(16, 2, 4),
  side=12,
  patch=4,
  vocab=40,
  tokens=7,
  width=10,
)


def example():
  """The end token is the last id; one text is cut, one is empty."""
  rng = np.random.default_rng(0)
  tokens = np.zeros((3, TINY.tokens), np.int32)
  for row, length in enumerate((7, 4, 2)):
    tokens[row, :length] = [38, *rng.integers(1, 38, length - 2), 39]
  pixels = rng.normal(size=(3, TINY.side, TINY.side, 3)).astype(np.float32)
  return pixels, tokens


def init():
  return clip.Clip(TINY).init(jax.random.key(0), *map(jnp.asarray, example()))[
    "params"
  ]


def published(model):
  """A transformers CLIP under the names of OpenAI."""
  state = {name: x.numpy() for name, x in model.state_dict().items()}
  out = {
    "visual.conv1.weight": state[
      "vision_model.embeddings.patch_embedding.weight"
    ],
    "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
    "visual.positional_embedding": state[
      "vision_model.embeddings.position_embedding.weight"
    ],
    "visual.proj": state["visual_projection.weight"].T,
    "token_embedding.weight": state[
      "text_model.embeddings.token_embedding.weight"
    ],
    "positional_embedding": state[
      "text_model.embeddings.position_embedding.weight"
    ],
    "text_projection": state["text_projection.weight"].T,
    "logit_scale": state["logit_scale"],
  }
  moved = [
    ("vision_model.pre_layrnorm", "visual.ln_pre"),
    ("vision_model.post_layernorm", "visual.ln_post"),
    ("text_model.final_layer_norm", "ln_final"),
  ]
  for theirs, ours, layers in (
    ("vision_model", "visual.", TINY.picture.layers),
    ("text_model", "", TINY.text.layers),
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
  return {
    f"clip_model.{name}": np.ascontiguousarray(x) for name, x in out.items()
  }


@pytest.mark.oracle
def test_agrees_with_transformers(tmp_path):
  torch = pytest.importorskip("torch")
  import transformers

  tower = lambda t: dict(
    hidden_size=t.width,
    num_hidden_layers=t.layers,
    num_attention_heads=t.heads,
    intermediate_size=4 * t.width,
    hidden_act="quick_gelu",
  )
  torch.manual_seed(0)
  model = transformers.CLIPModel(
    transformers.CLIPConfig(
      vision_config=dict(
        tower(TINY.picture), image_size=TINY.side, patch_size=TINY.patch
      ),
      text_config=dict(
        tower(TINY.text),
        vocab_size=TINY.vocab,
        max_position_embeddings=TINY.tokens,
        eos_token_id=39,
      ),
      projection_dim=TINY.width,
    )
  ).eval()
  with torch.no_grad():  # An initial 0 or 1 would hide a bias or a norm.
    for x in model.parameters():
      x.add_(0.3 * torch.randn(x.shape))
  path = str(tmp_path / "model.safetensors")
  save_file(published(model), path)
  params = clip.load(path, TINY)
  pixels, tokens = example()
  with torch.no_grad():
    seen = model.vision_model(torch.tensor(pixels).permute(0, 3, 1, 2))
    read = model.text_model(torch.tensor(tokens).long())
    wanted = (
      model.visual_projection(seen.pooler_output).numpy(),
      model.text_projection(read.pooler_output).numpy(),
    )
  got = [
    np.asarray(
      clip.Clip(TINY).apply({"params": params}, jnp.asarray(x), method=name)
    )
    for name, x in (("picture", pixels), ("text", tokens))
  ]
  assert np.abs(wanted[0]).max() > 0.5 and np.abs(wanted[1]).max() > 0.5
  for ours, theirs in zip(got, wanted, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_score_fusion_is_a_sum():
  params = init()
  pixels, tokens = map(jnp.asarray, example())
  model = clip.Clip(TINY)
  apply = lambda *of, **how: model.apply({"params": params}, *of, **how)
  np.testing.assert_allclose(
    apply(pixels, tokens),
    apply(pixels, method="picture") + apply(tokens, method="text"),
    atol=1e-6,
  )


def test_what_stands_after_the_end_is_not_read():
  params = init()
  _, tokens = example()
  other = np.where((np.arange(7) > 3) & (np.arange(3)[:, None] == 1), 5, tokens)
  read = [
    np.asarray(
      clip.Clip(TINY).apply({"params": params}, jnp.asarray(x), method="text")
    )
    for x in (tokens, other)
  ]
  np.testing.assert_allclose(*read, atol=1e-6)
