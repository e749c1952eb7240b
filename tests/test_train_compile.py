"""Compilation of a run for this machine, and for TPUs that are not there."""

import importlib.util
import math

import jax
import pytest

from r1router_jax import train_compile
from tests.commands import run_command
from tests.train_runs import CONFIGS, make_run_config

STEP_GRPO = f"--config={CONFIGS / 'step_grpo.py'}:smoke"


@pytest.mark.slow
def test_dry_run_compiles_both_programs():
  done = run_command("train_compile", STEP_GRPO, "--topology=cpu:2")
  assert done.returncode == 0, done.stderr
  # Columns: topology, program, GiB, limit, arguments, fits.
  rows = [
    line.split("|")
    for line in done.stdout.splitlines()
    if line.startswith("| cpu:2")
  ]
  assert [row[2].strip() for row in rows] == ["rollout", "update"]
  for row in rows:
    peak, arguments = float(row[3]), float(row[5])
    assert 0 < arguments <= peak + 0.01 and row[6].strip() == "yes"
  assert "Prompts of 160 tokens" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu is not installed: pip install -e '.[tpu]'",
)
def test_compiles_for_a_tpu_that_is_not_there():
  done = run_command("train_compile", STEP_GRPO, "--topology=v5e:2x2")
  assert done.returncode == 0, done.stderr
  # One row for each program.
  assert done.stdout.count("| v5e:2x2 ") == 2
  assert done.stdout.count("15.75") == 2  # GiB of a v5e chip.


@pytest.mark.parametrize(
  "flags, message",
  [
    (
      ["--topology=cpu:4", "--config.rollout_mesh.tensor=3"],
      "config.rollout_mesh {'data': -1, 'tensor': 3} does not tile 4 devices",
    ),
    ([f"--config={CONFIGS / 'sft.py'}:smoke"], "is of Step-GRPO"),
  ],
)
def test_wrong_option_is_one_clear_line(flags, message):
  done = run_command("train_compile", STEP_GRPO, *flags)
  assert done.returncode == 2 and message in done.stderr
  assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
  "attention, kernel", [("auto", "xla"), ("cudnn", "cudnn")]
)
def test_only_auto_attention_depends_on_the_devices(attention, kernel):
  config = make_run_config(
    "step_grpo", "7b", **{"policy.overrides.compute.attention": attention}
  )
  policy = train_compile.read_policy_config(config, "cpu")
  assert policy.compute.attention == kernel


def test_batch_has_the_shapes_of_the_largest_microbatches():
  changes = {"step_grpo.update_batch_size": 2, "micro_batch_size": 1}
  config = make_run_config("step_grpo", "tiny", **changes)
  policy = train_compile.read_policy_config(config)
  batch = train_compile.abstract_microbatches(config, policy, 8)
  group, tokens = config.step_grpo.group_size, policy.response_tokens[-1]
  assert batch.response.shape == batch.old_logp.shape == (2, 8, group, tokens)
  assert batch.prompt.tokens.shape == (2, 8, policy.prompt_tokens[-1])
  assert batch.prompt.patches.shape[:2] == (2, 8)  # An image of each prompt.


def test_missing_libtpu_is_named_with_its_cure(monkeypatch):
  # As on a machine without the extra `tpu`.
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"pip install 'r1router_jax\[tpu\]'"):
    train_compile.find_devices("v5e:4x4")


@pytest.mark.parametrize("topology", ["cpu:9", "cpu:", "cpu:x"])
def test_missing_cpu_devices_are_named(topology):
  with pytest.raises(ValueError, match="has 8 CPU devices"):
    train_compile.find_devices(topology)
  assert len(train_compile.find_devices("cpu:8")) == jax.device_count()


def test_refused_program_is_reported_with_the_memory_it_wanted():
  # A message of the TPU compiler.
  wanted = train_compile._wanted_gib(
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.29G "
    "of 15.75G hbm. Exceeded hbm capacity by 1.54G."
  )
  assert wanted == 17.29
  assert train_compile._wanted_gib("RESOURCE_EXHAUSTED: no figures") == math.inf
  memory = train_compile.ProgramMemory("update", wanted, math.nan, 15.75)
  assert not memory.fits
  columns = train_compile.format_row("v5e:2x4", memory).split("|")
  assert [column.strip() for column in columns[3:7]] == [
    "17.29",
    "15.75",
    "-",
    "NO",
  ]
