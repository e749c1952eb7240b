"""GGUF files as checkpoints, against a slow loop and transformers."""

import dataclasses

import jax
import numpy as np
import pytest

from r1router_jax.common.errors import UserError
from r1router_jax.models import gguf_checkpoint, hf_checkpoint, qwen2_5_vl
from r1router_jax.models.safetensors_io import BadWeights
from tests import tiny_gguf, tiny_policy
from tests.tiny_gguf import HEAD_SIZE, HEADS, HIDDEN, KV_HEADS, LAYERS, MLP

ARCHITECTURES = gguf_checkpoint.ARCHITECTURES


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_config_by_hand(kind, tied, tmp_path):
  path = tmp_path / "a.gguf"
  tiny_gguf.write_gguf(path, kind, tied=tied)
  assert hf_checkpoint.read_config(path) == qwen2_5_vl.Config(
    vocab=len(tiny_gguf.make_tokens()),
    hidden=HIDDEN,
    mlp=MLP,
    layers=LAYERS,
    heads=HEADS,
    kv_heads=KV_HEADS,
    mrope_section=(HEAD_SIZE // 2, 0, 0),
    theta=1000.0,
    eps=1e-5,
    tied=tied,
    qkv_bias=kind == "qwen2",
    vision=None,
  )


def test_head_size_may_differ_from_the_hidden_size(tmp_path):
  keys = {"llama.attention.key_length": 8, "llama.rope.freq_base": None}
  tiny_gguf.write_gguf(tmp_path / "a.gguf", keys=keys)
  config = hf_checkpoint.read_config(tmp_path / "a.gguf")
  assert config.head_size == 8 and config.theta == 10_000.0


def test_rows_of_q_and_k_by_a_slow_loop(tmp_path):
  """Of each head, first numbers come before second ones."""
  for kind in ARCHITECTURES:
    stored = tiny_gguf.write_gguf(tmp_path / "a.gguf", kind)
    tensors = gguf_checkpoint.open_tensors(tmp_path / "a.gguf")
    for part, heads in (("q", HEADS), ("k", KV_HEADS)):
      rows = stored[f"blk.1.attn_{part}.weight"]
      wanted = []
      for head in range(heads):
        for which in range(2):
          for angle in range(HEAD_SIZE // 2):
            wanted.append(rows[head * HEAD_SIZE + 2 * angle + which])
      found = tensors[f"model.layers.1.self_attn.{part}_proj.weight"].read()
      np.testing.assert_array_equal(found, wanted if kind == "llama" else rows)
    found = tensors["model.layers.0.self_attn.v_proj.weight"].read()
    np.testing.assert_array_equal(found, stored["blk.0.attn_v.weight"])


def assert_refused(path, words):
  """Check that no config is made of a file, and what is said of it."""
  with pytest.raises(UserError, match=f"a.gguf: .*{words}.*Give the GGUF"):
    hf_checkpoint.read_config(path)


@pytest.mark.parametrize(
  "keys, words",
  [
    ({"llama.block_count": None}, "llama.block_count is None"),
    ({"llama.block_count": 0}, "llama.block_count is 0"),
    ({"llama.block_count": 200}, "block_count is more than its tensors"),
    ({"llama.attention.key_length": 1 << 31}, "wanted .* to 269, its longest"),
    ({"llama.embedding_length": "64"}, "embedding_length is '64'"),
    ({"llama.attention.head_count": [4, 4]}, "head_count is .*4"),
    ({"llama.attention.layer_norm_rms_epsilon": None}, "epsilon is None"),
    ({"llama.rope.freq_base": -1.0}, "freq_base is -1.0, wanted a positive"),
    ({"llama.rope.freq_base": float("nan")}, "freq_base is nan"),
    ({"llama.rope.scaling.type": "yarn"}, "scaling.type is 'yarn'"),
    ({"llama.attention.key_length": 15}, "head size is 15, wanted an even"),
  ],
)
def test_values_out_of_their_range_are_refused(keys, words, tmp_path):
  tiny_gguf.write_gguf(tmp_path / "a.gguf", keys=keys)
  assert_refused(tmp_path / "a.gguf", words)


def test_another_architecture_is_refused(tmp_path):
  tiny_gguf.write_gguf(tmp_path / "a.gguf", "gemma2")
  assert_refused(tmp_path / "a.gguf", "is 'gemma2', known: llama, qwen2")


def test_frequencies_of_llama_3_1_are_refused(tmp_path, monkeypatch):
  shapes = tiny_gguf.tensor_shapes("llama", True)
  shapes["rope_freqs.weight"] = (HEAD_SIZE // 2,)
  monkeypatch.setattr(tiny_gguf, "tensor_shapes", lambda *_: shapes)
  tiny_gguf.write_gguf(tmp_path / "a.gguf")
  assert_refused(
    tmp_path / "a.gguf", "rope_freqs.*Llama 3.1.*not supported in GGUF"
  )


def test_tensors_that_do_not_fit_the_config_are_named(tmp_path):
  path = tmp_path / "a.gguf"
  tiny_gguf.write_gguf(path)
  config = hf_checkpoint.read_config(path)
  for change, words in (
    (dict(layers=3), "9 tensors missing .*model.layers.2"),
    (dict(layers=1), "9 unknown .*model.layers.1"),
    (dict(mlp=7), "mlp.gate_proj.weight has shape .96, 64., wanted .7, 64."),
  ):
    changed = dataclasses.replace(config, **change)
    with pytest.raises(BadWeights, match=f"a.gguf.*{words}"):
      hf_checkpoint.load_params(path, changed)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("quantisation", tiny_gguf.KINDS)
def test_logits_are_those_of_transformers(kind, quantisation, tmp_path):
  torch = pytest.importorskip("torch")
  import transformers

  path = tmp_path / "a.gguf"
  tied = quantisation != "Q8_0"
  tiny_gguf.write_gguf(path, kind, quantisation, tied)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, gguf_file=path.name, dtype=torch.float32
  ).eval()
  config = hf_checkpoint.read_config(path)
  params = hf_checkpoint.load_params(path, config)
  rng = np.random.default_rng(0)
  prompt = tiny_policy.random_prompt(rng, config, 9)
  response = tiny_policy.random_responses(rng, config, 1, 1, 5)
  states = jax.jit(qwen2_5_vl.QwenVL(config).apply)(
    {"params": params}, tiny_policy.collate(config, [prompt]), response
  )
  head = params["embed"] if config.tied else params["head"]
  logits = np.asarray(states) @ head.T
  ids = torch.tensor([[*prompt.ids, *response[0, 0].tolist()]])
  with torch.no_grad():
    wanted = theirs(ids).logits[0, len(prompt.ids) - 1 : -1].numpy()
  np.testing.assert_allclose(logits[0, 0], wanted, atol=1e-4)
