"""Tests of SigLIP 2 against transformers, with the same random weights."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.models import safetensors_io, siglip
from tests.tiny_encoders import SIGLIP, random_tensors, write_tensors


def make_inputs(config):
  """Return pixels and tokens."""
  rng = np.random.default_rng(0)
  pixels = rng.normal(size=(3, config.image_size, config.image_size, 3))
  tokens = rng.integers(0, config.vocab, (3, config.max_tokens))
  return pixels.astype(np.float32), tokens.astype(np.int32)


def encode(config, params, inputs, method):
  apply = functools.partial(siglip.Siglip(config).apply, method=method)
  return np.asarray(jax.jit(apply)({"params": params}, jnp.asarray(inputs)))


@pytest.mark.oracle
def test_vectors_agree_with_transformers(tmp_path):
  torch = pytest.importorskip("torch")
  import transformers

  torch.manual_seed(0)
  towers = {x: y for x, y in SIGLIP.items() if x != "model_type"}
  model = transformers.SiglipModel(transformers.SiglipConfig(**towers)).eval()
  with torch.no_grad():  # An initial 0 or 1 would hide a bias or a norm.
    for x in model.parameters():
      x.add_(0.3 * torch.randn(x.shape))
  model.save_pretrained(tmp_path)
  config = siglip.read_config(str(tmp_path))
  params = siglip.load_params(str(tmp_path), config)
  pixels, tokens = make_inputs(config)
  with torch.no_grad():
    # transformers has the colours first: [B H W 3] -> [B 3 H W].
    shown = torch.tensor(pixels).permute(0, 3, 1, 2)
    wanted = (
      model.vision_model(shown).pooler_output.numpy(),
      model.text_model(torch.tensor(tokens).long()).pooler_output.numpy(),
    )
  got = [encode(config, params, pixels, "encode_image")]
  got.append(encode(config, params, tokens, "encode_text"))
  for ours, theirs in zip(got, wanted, strict=True):
    assert np.abs(theirs).max() > 0.5
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(SIGLIP))
  return tmp_path


def test_absent_fields_are_those_of_the_base_model(folder):
  (folder / "config.json").write_text('{"model_type": "siglip"}')
  base = siglip.TowerConfig(768, 12, 12, 3072, 1e-6)
  wanted = siglip.SiglipConfig(base, base, 224, 16, 32_000, 64, 768)
  assert siglip.read_config(str(folder)) == wanted
  assert wanted.num_patches == 196


@pytest.mark.parametrize(
  ("place", "change", "words"),
  [
    (None, dict(model_type="siglip2"), "model_type is 'siglip2', not siglip"),
    ("text_config", dict(hidden_act="gelu"), "text_config.hidden_act"),
    ("text_config", dict(num_attention_heads=5), "text_config: its heads"),
    ("text_config", dict(projection_size=4), "do not fit"),
    ("vision_config", dict(image_size=1), "do not fit"),
    ("vision_config", dict(layer_norm_eps=0), "layer_norm_eps is 0"),
    ("vision_config", dict(image_size=[16, 16]), "vision_config.image_size"),
  ],
)
def test_unknown_or_damaged_config_is_refused(folder, place, change, words):
  tree = json.loads(json.dumps(SIGLIP))
  (tree[place] if place else tree).update(change)
  (folder / "config.json").write_text(json.dumps(tree))
  with pytest.raises(safetensors_io.BadWeights, match=words):
    siglip.read_config(str(folder))


def test_missing_and_unknown_tensors_are_named(folder):
  config = siglip.read_config(str(folder))
  axes = siglip.axis_sizes(config)
  tensors = random_tensors(siglip.WEIGHT_MAP, axes)
  tensors["vision_model.extra"] = tensors.pop("vision_model.head.probe")
  write_tensors(folder, tensors)
  with pytest.raises(safetensors_io.BadWeights, match="head.probe.*extra"):
    siglip.load_params(str(folder), config)
