"""Training runs for tests: configs of the repository, and what a run wrote."""

import pathlib
import runpy

import pytest

from r1router_jax.common import run_log
from r1router_jax.train import train
from r1router_jax.training.config_reader import read_run_config

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"

# Credit for whole trajectories, of the policy that comes with the package: its
# rewards, with a cost of tokens, differ in most groups.
TRAJECTORIES = {
  "step_grpo.credit": "trajectory",
  "step_grpo.rollout_mode": "online",
  "step_grpo.reward": "f1",
  "step_grpo.token_cost": 0.01,
}


def load_config(name, variant="smoke", **changes):
  """Return a config of the repository with `changes` by dotted key."""
  # Like the command, which loads config files by path.
  config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](variant)
  config.update_from_flattened_dict(changes)
  return config


def make_run_config(name, variant="smoke", **changes):
  """Return the checked options of `load_config`."""
  return read_run_config(load_config(name, variant, **changes).to_dict())


def read_scalars(workdir):
  """Return the lines of metrics.jsonl without times and rates."""
  # These differ between two runs of the same seed.
  unsteady = ("seconds/", "speed/", "retrieval/")
  return [
    {name: x for name, x in line.items() if not name.startswith(unsteady)}
    for line in run_log.read_metrics(workdir)
  ]


def train_and_interrupt(config, workdir, after):
  """Train until `after` updates are logged, then stop as Ctrl-C does."""
  write = run_log.RunLog.write_scalars

  def write_or_stop(self, step, scalars):
    # The line is written first, as before a real interrupt.
    line = write(self, step, scalars)
    if step > after:
      raise KeyboardInterrupt
    return line

  with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(run_log.RunLog, "write_scalars", write_or_stop)
    train(config, workdir)
