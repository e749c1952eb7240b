"""Plans: a dry run on this machine, and a TPU that is not there."""

import importlib.util
import math
import pathlib
import subprocess
import sys

import jax
import pytest

from r1router_jax import train_compile

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def command(*arguments):
  return subprocess.run(
    [
      sys.executable,
      "-m",
      "r1router_jax.train_compile",
      f"--config={CONFIGS / 'step_grpo.py'}:smoke",
      *arguments,
    ],
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.slow
def test_a_dry_run_compiles_both_programs():
  done = command("--topology=cpu:2")
  assert done.returncode == 0, done.stderr
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
def test_a_tpu_that_is_not_there():
  done = command("--topology=v5e:2x2")
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("| v5e:2x2 ") == 2
  assert done.stdout.count("15.75") == 2  # GiB of a v5e chip.


@pytest.mark.parametrize(
  "flags, says",
  [
    (
      ["--topology=cpu:4", "--config.rollout_mesh.tensor=3"],
      "config.rollout_mesh {'data': -1, 'tensor': 3} does not tile 4 devices",
    ),
    ([f"--config={CONFIGS / 'sft.py'}:smoke"], "is of Step-GRPO"),
  ],
)
def test_what_cannot_be_planned_is_one_clear_line(flags, says):
  done = command(*flags)
  assert done.returncode == 2 and says in done.stderr
  assert "Traceback" not in done.stderr


def test_an_attention_that_the_config_names_is_kept():
  """Only "auto" depends on the devices."""
  spec = importlib.util.spec_from_file_location(
    "step_grpo", CONFIGS / "step_grpo.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config("7b")
  for asked, got in (("auto", "xla"), ("cudnn", "cudnn")):
    config.policy.settings.compute.attention = asked
    known = train_compile.settings_for(config, train_compile.devices("cpu:8"))
    assert known.compute.attention == got


def test_without_libtpu_it_says_how_to_get_it(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"pip install 'r1router_jax\[tpu\]'"):
    train_compile.devices("v5e:4x4")


@pytest.mark.parametrize("topology", ["cpu:9", "cpu:", "cpu:x"])
def test_cpus_that_are_not_there(topology):
  with pytest.raises(ValueError, match="has 8 CPU devices"):
    train_compile.devices(topology)
  assert len(train_compile.devices("cpu:8")) == jax.device_count()


def test_what_does_not_fit_is_said_in_figures():
  wanted = train_compile._needed(
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.29G "
    "of 15.75G hbm. Exceeded hbm capacity by 1.54G."
  )
  assert wanted == 17.29
  assert train_compile._needed("RESOURCE_EXHAUSTED: no figures") == math.inf
  fit = train_compile.Fit("update", wanted, math.nan, 15.75)
  assert not fit.fits
  assert train_compile.row("v5e:2x4", fit).split("|")[3:7] == [
    "     17.29 ",
    "   15.75 ",
    "         - ",
    " NO   ",
  ]
