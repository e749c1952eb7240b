"""Checkpoints brought to another form by the command."""

import dataclasses
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from r1router_jax.models import safetensors_io
from r1router_jax.policy import policy
from tests import tiny_policy


def command(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "r1router_jax.convert", *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
  )


def test_precision_is_changed_and_the_rest_kept(tmp_path):
  made = policy.Policy(
    tiny_policy.SETTINGS,
    tiny_policy.TOKENIZER,
    tiny_policy.params(tiny_policy.SPOKEN),
  )
  made.save(tmp_path / "a")
  (tmp_path / "a" / "generation_config.json").write_text("{}")
  done = command(f"--source={tmp_path / 'a'}", f"--to={tmp_path / 'b'}")
  assert done.returncode == 0, done.stderr
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
  assert again.settings == made.settings
  jax.tree.map(
    lambda ours, theirs: np.testing.assert_array_equal(
      ours[0], np.asarray(theirs[0], ml_dtypes.bfloat16)
    ),
    again.params,
    made.params,
  )
  # What is there is not written over.
  done = command(f"--source={tmp_path / 'a'}", f"--to={tmp_path / 'b'}")
  assert done.returncode == 2 and "Name a new folder" in done.stderr


def test_what_float16_cannot_hold_is_named(tmp_path):
  params = jax.tree.map(
    lambda x: x * 1e5, tiny_policy.params(tiny_policy.SPOKEN)
  )
  made = policy.Policy(tiny_policy.SETTINGS, tiny_policy.TOKENIZER, params)
  made.save(tmp_path / "a")
  with pytest.raises(
    safetensors_io.BadWeights, match="beyond float16.  Take bfloat16"
  ):
    policy.convert(str(tmp_path / "a"), tmp_path / "b", np.float16)


def test_a_broken_source_is_named(tmp_path):
  made = policy.Policy(
    dataclasses.replace(tiny_policy.SETTINGS, model=tiny_policy.CONFIG),
    tiny_policy.TOKENIZER,
    tiny_policy.params(tiny_policy.CONFIG),
  )
  made.save(tmp_path / "a")
  weights = tmp_path / "a" / "model.safetensors"
  weights.write_bytes(weights.read_bytes()[:-4])
  done = command(f"--source={tmp_path / 'a'}", f"--to={tmp_path / 'b'}")
  assert done.returncode == 2 and "model.safetensors: not an" in done.stderr
  assert "Traceback" not in done.stderr
