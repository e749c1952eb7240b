"""Tests of Qwen3 as an encoder against transformers, with random weights."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from r1router_jax.models import qwen3, safetensors_io
from r1router_jax.models.qwen2_5_vl import RuntimeConfig
from tests.tiny_encoders import QWEN3, random_tensors, write_tensors


def make_inputs():
  """Return tokens and mask of texts with 9, 4 and 1 tokens."""
  tokens = np.random.default_rng(0).integers(1, 50, (3, 9)).astype(np.int32)
  return tokens, np.arange(9) < np.array([[9], [4], [1]])


def encode(folder, tokens, mask, pooling="last"):
  config = qwen3.read_config(str(folder))
  params = qwen3.load_params(str(folder), config)
  compute = RuntimeConfig(attention="xla")
  apply = jax.jit(functools.partial(qwen3.encode, config, compute, pooling))
  found = apply({"params": params}, jnp.asarray(tokens), jnp.asarray(mask))
  return np.asarray(found)


@pytest.mark.oracle
@pytest.mark.parametrize("whole", [False, True], ids=["encoder", "decoder"])
def test_vectors_agree_with_transformers(tmp_path, whole):
  """Also with a decoder's names of tensors, and padding on the left."""
  torch = pytest.importorskip("torch")
  import transformers

  torch.manual_seed(0)
  kind = transformers.Qwen3ForCausalLM if whole else transformers.Qwen3Model
  options = {x: y for x, y in QWEN3.items() if x != "model_type"}
  model = kind(kind.config_class(**options, initializer_range=0.3)).eval()
  with torch.no_grad():  # An initial 1 would hide a norm.
    for x in model.parameters():
      x.add_(0.1 * torch.randn(x.shape))
  model.save_pretrained(tmp_path)
  tokens, mask = make_inputs()
  # The original pads on the left, where the last state is a text's last.
  flipped = np.array(
    [np.roll(row, 9 - m.sum()) for row, m in zip(tokens, mask, strict=True)]
  )
  with torch.no_grad():
    decoder = model.model if whole else model
    states = decoder(
      torch.tensor(flipped).long(), torch.tensor(mask[:, ::-1].copy()).long()
    ).last_hidden_state.numpy()
  assert_allclose(encode(tmp_path, tokens, mask), states[:, -1], atol=1e-5)
  mean = [s[9 - m.sum() :].mean(0) for s, m in zip(states, mask, strict=True)]
  assert_allclose(encode(tmp_path, tokens, mask, "mean"), mean, atol=1e-5)
  assert np.abs(states[:, -1]).max() > 0.5


@pytest.fixture
def folder(tmp_path):
  """Write a config and random weights."""
  (tmp_path / "config.json").write_text(json.dumps(QWEN3))
  config = qwen3.read_config(str(tmp_path))
  axes = qwen3.axis_sizes(config)
  write_tensors(tmp_path, random_tensors(qwen3.weight_map(config), axes))
  return tmp_path


def test_padding_does_not_change_vectors(folder):
  tokens, mask = make_inputs()
  wide = np.pad(tokens, ((0, 2), (0, 7)), constant_values=33)
  found = encode(folder, wide, np.pad(mask, ((0, 2), (0, 7))))
  assert_allclose(found[:3], encode(folder, tokens, mask), atol=1e-5)
  assert np.isfinite(found).all()


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (dict(model_type="qwen2"), "model_type is 'qwen2', not qwen3"),
    (dict(layer_types=["sliding_attention"] * 2), "layer_types"),
    (dict(use_sliding_window=True), "use_sliding_window is True"),
    (dict(attention_bias=True), "attention_bias is True"),
    (dict(rope_scaling=dict(rope_type="yarn")), "rope_type is 'yarn'"),
    (dict(hidden_size="wide"), "hidden_size is 'wide'"),
  ],
)
def test_unknown_or_damaged_config_is_refused(folder, change, words):
  (folder / "config.json").write_text(json.dumps(QWEN3 | change))
  with pytest.raises(safetensors_io.BadWeights, match=words):
    qwen3.read_config(str(folder))


def test_missing_tensor_is_named(folder):
  config = qwen3.read_config(str(folder))
  axes = qwen3.axis_sizes(config)
  tensors = random_tensors(qwen3.weight_map(config), axes)
  del tensors["model.layers.1.self_attn.k_norm.weight"]
  write_tensors(folder, tensors)
  with pytest.raises(safetensors_io.BadWeights, match="layers.1.*k_norm"):
    qwen3.load_params(str(folder), config)
