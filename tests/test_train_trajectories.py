"""Runs that learn from whole trajectories, as a user would run them."""

import os
import subprocess
import time

import jax
import numpy as np
import pytest

from r1router_jax.common import run_log
from r1router_jax.policy import policy
from r1router_jax.train import train
from tests import commands
from tests.train_runs import CONFIGS, TRAJECTORIES, load_config, read_scalars

# Eight questions and 64 rows of an update, on eight devices or on one.
ON_EIGHT = {"data.prompts_per_shard": 1, "step_grpo.update_batch_size": 8}
ON_ONE = {"data.prompts_per_shard": 8, "step_grpo.update_batch_size": 64}

SPLIT = {"parallel": "fsdp", "mesh.data": 2, "mesh.fsdp": 4}

STEPS = int(os.environ.get("SOAK_STEPS", 500))  # Iterations of the long run.


def command_flags(workdir, **options):
  """Return the command `train` of a smoke run."""
  flags = [f"--config.{name}={x}" for name, x in options.items()]
  config = CONFIGS / "step_grpo.py:smoke"
  return "train", f"--config={config}", f"--workdir={workdir}", *flags


@pytest.mark.long
@pytest.mark.parametrize("credit", ["trajectory", "gigpo"])
def test_layouts_of_devices_learn_alike(credit, kbs, tmp_path):
  """On eight devices, on eight that split weights, and on one."""
  options = TRAJECTORIES | {
    "step_grpo.credit": credit,
    "step_grpo.group_size": 4,
    "data.kb_dir": str(kbs),
  }
  on_eight = options | ON_EIGHT
  whole = train(load_config("step_grpo", **on_eight), tmp_path / "pmap")
  split = train(
    load_config("step_grpo", **on_eight, **SPLIT), tmp_path / "fsdp"
  )
  embed = split.params["embed"]
  assert embed.addressable_shards[0].data.size == embed.size // 4
  commands.run_command(
    *command_flags(tmp_path / "one", **options, **ON_ONE),
    env=os.environ | commands.ONE_DEVICE,
    check=True,
  )

  # The same trajectories, and so the same rewards; losses agree.
  one, *others = (read_scalars(tmp_path / x) for x in ("one", "pmap", "fsdp"))
  assert len(one) == 2 and one[0]["grad_norm"] > 0
  for lines in others:
    for ours, theirs in zip(lines, one, strict=True):
      assert ours.keys() == theirs.keys()
      for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-5)
  trained, *others = (
    policy.load(tmp_path / name / "policy", dtype=np.float32).params
    for name in ("one", "pmap", "fsdp")
  )
  for params in others:
    for a, b in zip(*map(jax.tree.leaves, (trained, params)), strict=True):
      assert np.mean(np.abs(a - b)) < 1e-3 * np.mean(np.abs(a)) + 1e-5
  assert whole.config == split.config


def read_resident_mib(pid):
  """Return the memory of a process in RAM without pages of files, or None."""
  with open(f"/proc/{pid}/status") as file:
    for line in file:
      if line.startswith("RssAnon:"):
        return int(line.split()[1]) / 1024
  return None  # It has ended meanwhile.


@pytest.mark.long
def test_memory_of_a_long_run_stays_flat(kbs, tmp_path):
  options = TRAJECTORIES | {
    "data.kb_dir": kbs,
    "total_steps": STEPS,
    "checkpoint_every": 50,
  }
  run = subprocess.Popen(
    commands.command_line(*command_flags(tmp_path, **options)),
    stderr=subprocess.DEVNULL,
    env=os.environ | {"XLA_FLAGS": ""},  # Optimized, on one device.
  )
  used = {}  # MiB after each iteration that was seen.
  while run.poll() is None:
    lines = run_log.read_metrics(tmp_path)
    mib = read_resident_mib(run.pid)
    if lines and mib is not None:
      used[lines[-1]["step"]] = mib
    time.sleep(0.2)
  assert run.returncode == 0 and max(used) > STEPS - 5
  # By then every shape is compiled, and the caches of prompts are warm.
  early = [used[n] for n in used if STEPS // 5 <= n < STEPS // 5 + 20]
  late = [used[n] for n in used if n > STEPS - 20]
  assert np.median(late) < 1.05 * np.median(early), used
