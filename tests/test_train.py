"""The learning loop, run for a few updates as a user would run it."""

import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from r1router_jax.common import cli, run_log
from r1router_jax.policy import policy
from r1router_jax.train import train
from r1router_jax.training import optimizer
from tests import two_processes

KILLS = int(os.environ.get("KILLS", 2))  # Each costs some ten seconds.

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def config(name, variant="smoke", **changes):
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config(variant)
  c.update_from_flattened_dict(changes)
  return c


def scalars(workdir):
  """Every number that was written, but for times and rates."""
  return [
    {
      name: x
      for name, x in line.items()
      if not name.startswith(("seconds/", "speed/", "retrieval/"))
    }
    for line in run_log.read(workdir)
  ]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
  """A warm start of 8 updates."""
  folder = tmp_path_factory.mktemp("started")
  train(config("sft", **{"total_steps": 8, "sft.recall_steps": 4}), folder)
  return folder


@pytest.mark.slow
def test_same_seed_same_numbers(started, tmp_path):
  train(config("sft", **{"total_steps": 8, "sft.recall_steps": 4}), tmp_path)
  assert len(scalars(started)) == 8
  assert scalars(tmp_path) == scalars(started)


@pytest.mark.long
def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
  whole = train(config("sft"), tmp_path / "whole")
  # Same schedule, but stopped half way, as a kill after the checkpoint would.
  broken = config("sft")
  stopped = tmp_path / "broken"
  with pytest.raises(KeyboardInterrupt):
    _train_and_stop(broken, stopped, after=2)
  resumed = train(broken, stopped)
  assert scalars(stopped) == scalars(tmp_path / "whole")
  jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


def _train_and_stop(c, workdir, after):
  """Trains until `after` updates are written, then as if Ctrl-C was pressed."""
  write = run_log.Telemetry.write

  def interrupt(self, step, numbers):
    write(self, step, numbers)
    if step > after:
      raise KeyboardInterrupt

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run_log.Telemetry, "write", interrupt)
    train(c, workdir)


@pytest.mark.slow
def test_step_grpo_moves_the_policy_and_repeats_itself(started, tmp_path):
  changes = {"policy.start_from": str(started / "policy"), "data.kb": ""}
  runs = [
    train(config("step_grpo", **changes), tmp_path / name) for name in "ab"
  ]
  assert scalars(tmp_path / "a") == scalars(tmp_path / "b")
  for line in scalars(tmp_path / "a"):
    assert 0 <= line["reward/total"] <= 1
    # Sampler and trainer agree.
    assert line.get("logp_drift", 0) < 1e-4
    assert ("logp_drift" in line) == (line["equal_groups"] < 1)
  for line in run_log.read(tmp_path / "a"):
    phases = ("data", "rollout", "reward", "update")
    assert all(line[f"seconds/{phase}"] > 0 for phase in phases)
    assert line["speed/tokens_s"] > line["speed/samples_s"] > 0
    assert line["speed/tflops_s"] > 0 and "speed/mfu" not in line
  before = policy.load(started / "policy")
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(runs[0].params))
  assert jax.tree.structure(before.params) == jax.tree.structure(runs[0].params)


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, variant",
  [
    ("sft", "tiny"),
    ("sft", "overask"),
    ("step_grpo", "tiny"),
    ("georouter", "tiny"),
  ],
)
def test_every_variant_starts(name, variant, tmp_path):
  trained = train(
    config(name, variant, **{"total_steps": 0, "data.kb": ""}), tmp_path
  )
  assert policy.load(tmp_path / "policy").settings == trained.settings


def test_the_reference_preset_is_the_references():
  """The numbers that its files give, arxiv.org/abs/2505.22095."""
  c = config("step_grpo", "reference")
  assert (c.step_grpo.group_size, c.step_grpo.temperature) == (5, 1.0)
  loss = c.step_grpo.loss
  assert loss.clip_low == loss.clip_high == 0.2
  assert (loss.aggregate, loss.entropy_coef, loss.kl_coef) == (
    "sequence_mean",
    1e-3,
    0,
  )
  assert c.step_grpo.reward == "reference" and c.step_grpo.rename == 0
  tx = optimizer.schedule(
    c.optim.lr, c.total_steps, c.optim.warmup, c.optim.final
  )
  np.testing.assert_allclose([tx(0), tx(100), tx(329)], 1e-6)
  assert (c.optim.weight_decay, c.optim.clip_norm) == (0.01, 1.0)


def test_a_config_finds_the_one_beside_it(tmp_path):
  """Config files are loaded by path, from any folder."""
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "r1router_jax.train",
      "--config",
      f"{CONFIGS / 'georouter.py'}:huge",
      "--workdir=x",
    ],
    capture_output=True,
    text=True,
    check=False,
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(CONFIGS.parent)},
  )
  assert done.returncode == 2 and "'huge' of step_grpo: take" in done.stderr


@pytest.mark.slow
def test_batches_that_stay_bad_end_the_run_and_are_kept(tmp_path):
  c = config(
    "sft",
    **{
      "max_skipped": 2,
      "optim.lr": float("inf"),
      "optim.muon_lr": float("inf"),
    },
  )
  with pytest.raises(FloatingPointError, match="2 updates in a row") as error:
    train(c, tmp_path)
  (kept,) = (tmp_path / "skipped").iterdir()
  assert str(kept) in str(error.value)
  with np.load(kept) as batch:
    assert batch["response"].shape == batch["mask"].shape
    assert len(batch["examples"])


@pytest.mark.slow
def test_sigterm_saves_and_says_so(tmp_path):
  """And another config or other data are told from the same."""
  command = [
    sys.executable,
    "-m",
    "r1router_jax.train",
    "--config",
    f"{CONFIGS / 'sft.py'}:smoke",
    "--config.total_steps=100000",
    "--workdir",
    str(tmp_path),
  ]
  run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
  while not run_log.read(tmp_path):
    assert run.poll() is None, run.stderr.read()
    time.sleep(0.1)
  run.send_signal(signal.SIGTERM)
  _, said = run.communicate(timeout=100)
  assert run.returncode == cli.PREEMPTED
  (step,) = re.findall(r"saved after iteration (\d+)", said)
  assert (tmp_path / "checkpoints" / step).is_dir()
  done = subprocess.run(
    [*command, "--config.seed=1"], capture_output=True, text=True, check=False
  )
  assert done.returncode == cli.USAGE
  assert "whose seed was 0, and now it is 1" in done.stderr


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_if_it_had_not_been(started, tmp_path):
  """SIGKILL at random moments, also while a checkpoint is being written."""
  rng, steps = np.random.default_rng(0), 20 + 2 * KILLS

  def command(name):
    return [
      sys.executable,
      "-m",
      "r1router_jax.train",
      "--config",
      f"{CONFIGS / 'step_grpo.py'}:smoke",
      "--config.data.kb=",
      f"--config.policy.start_from={started / 'policy'}",
      f"--config.total_steps={steps}",
      "--config.every.checkpoint=1",
      f"--workdir={tmp_path / name}",
    ]

  one_device = os.environ | {"XLA_FLAGS": ""}
  subprocess.run(
    command("whole"), check=True, capture_output=True, env=one_device
  )
  for _ in range(KILLS):
    before = len(run_log.read(tmp_path / "killed"))
    run = subprocess.Popen(
      command("killed"), stderr=subprocess.PIPE, env=one_device
    )
    while len(run_log.read(tmp_path / "killed")) <= before:
      assert run.poll() is None, run.stderr.read()
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.2))
    run.kill()
    run.communicate()
  subprocess.run(
    command("killed"), check=True, capture_output=True, env=one_device
  )
  assert scalars(tmp_path / "killed") == scalars(tmp_path / "whole")
  lines = (tmp_path / "killed" / run_log.FILE).read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == list(
    range(1, steps + 1)
  )
  whole, killed = (
    run_log.read_samples(tmp_path / name) for name in ("whole", "killed")
  )
  assert whole == killed and {g["step"] for g in whole} == {
    line["step"] for line in map(json.loads, lines)
  }
  whole, killed = (
    (tmp_path / name / "policy" / "model.safetensors").read_bytes()
    for name in ("whole", "killed")
  )
  assert whole == killed


MESH = {"parallel": "fsdp", "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}


@pytest.mark.long
def test_weights_split_over_a_mesh_learn_alike(tmp_path):
  """Rows of an update are as many: 8 shares of 4, of devices apart or not.

  With Muon, or along `tensor`, XLA's collectives for CPUs wait for each other
  at times.
  """
  adam = {"optim.name": "adamw"}
  whole = train(config("sft", **adam), tmp_path / "whole")
  split = train(
    config(
      "sft", **adam, **{"parallel": "fsdp", "mesh.data": 2, "mesh.fsdp": 4}
    ),
    tmp_path / "split",
  )
  embed = split.params["embed"]
  assert embed.addressable_shards[0].data.size == embed.size // 4
  for one, other in zip(
    *map(scalars, (tmp_path / "whole", tmp_path / "split")), strict=True
  ):
    np.testing.assert_allclose(one["nll"], other["nll"], rtol=1e-4)
  for one, other in zip(
    *(
      jax.tree.leaves(
        policy.load(tmp_path / name / "policy", dtype=np.float32).params
      )
      for name in ("whole", "split")
    ),
    strict=True,
  ):
    assert np.mean(np.abs(one - other)) < 1e-3 * np.mean(np.abs(one)) + 1e-5
  assert whole.settings == split.settings


@pytest.mark.long
def test_every_option_at_once(started, tmp_path):
  """On a mesh, with penalties, two updates an iteration and passes of a row."""
  trained = train(
    config(
      "step_grpo",
      **MESH,
      **{
        "policy.start_from": str(started / "policy"),
        "data.kb": "",
        "rollout_mesh.tensor": 2,
        "micro_rows": 1,
        "validation.every": 1,
        "validation.steps": 8,
        "step_grpo.minibatches": 2,
        "step_grpo.refill": 1,
        "step_grpo.learn_rows": 2,
        "step_grpo.loss.kl_coef": 0.1,
        "step_grpo.loss.entropy_coef": 0.01,
        "step_grpo.normalise": "none",
        "step_grpo.loss.aggregate": "sequence_mean",
      },
    ),
    tmp_path,
  )
  first, last = scalars(tmp_path)
  assert abs(first["kl"]) < 0.1 and first["refills"] in (0, 1)
  assert 0 <= first["validation/total"] <= 1
  assert trained.mesh.shape == {"data": 4, "tensor": 2}
  best = policy.load(tmp_path / "best", dtype=np.float32)
  assert best.settings == trained.settings
  assert not last["skipped"]


CHILD = """
import sys
from r1router_jax import pods
pods.join_pod()
from tests import test_train
c = test_train.config("sft", **{
    "data.batch_rows": 4, "parallel": "fsdp", "mesh.data": 2, "mesh.fsdp": 2})
try:
  test_train._train_and_stop(c, sys.argv[1], after=2)
except KeyboardInterrupt:
  pass
test_train.train(c, sys.argv[1])
print("done")
"""


@pytest.mark.long
def test_two_hosts_train_as_one_and_go_on_where_they_were(tmp_path):
  """Rows of an update are as many: 8 shares of 2 here, 4 of 4 there."""
  train(config("sft", **{"data.batch_rows": 2}), tmp_path / "one")
  workdir = tmp_path / "two"
  assert all(
    "done" in text
    for text in two_processes.run(CHILD, tmp_path, str(workdir), timeout=500)
  )
  one, two = scalars(tmp_path / "one"), scalars(workdir)
  assert [line["step"] for line in two] == [1, 2, 3, 4]
  for name in ("nll", "recall", "grad_norm"):
    np.testing.assert_allclose(
      *([line[name] for line in lines] for lines in (one, two)), rtol=2e-4
    )
  policy.load(workdir / "policy")


def test_what_does_not_fit_the_devices_is_said(tmp_path):
  with pytest.raises(ValueError, match="config.mesh .*does not tile 8 devices"):
    train(config("sft", **{"mesh.data": 4}), tmp_path)


@pytest.mark.slow
def test_adapters_learn_and_become_part_of_the_weights(started, tmp_path):
  changes = {
    "policy.start_from": str(started / "policy"),
    "policy.induction": False,
    "policy.lora.rank": 2,
    "trainable": "lora_",
    "total_steps": 2,
  }
  trained = train(config("sft", **changes), tmp_path)
  before, after = (
    policy.load(folder / "policy").params["layers"]
    for folder in (started, tmp_path)
  )
  assert "lora_a" in trained.params["layers"]["q"]
  assert "lora_a" not in after["q"]
  assert np.abs(after["q"]["w"] - before["q"]["w"]).max() > 0
  np.testing.assert_array_equal(
    after["mlp"]["up"]["w"], before["mlp"]["up"]["w"]
  )


@pytest.mark.slow
def test_the_command(tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "r1router_jax.train",
      f"--config={CONFIGS / 'sft.py'}:smoke",
      "--config.total_steps=1",
      f"--workdir={tmp_path}",
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert str(tmp_path / "policy") in done.stdout
  assert json.loads((tmp_path / "config.json").read_text())["total_steps"] == 1


@pytest.mark.parametrize(
  "flag, says",
  [
    ("--config.total_stepz=1", "total_steps"),
    ("--config.policy.start_from=nowhere", "no folder nowhere"),
    ("--config.data.kb=nowhere", "nowhere"),
  ],
)
def test_bad_input_is_one_clear_line(flag, says, tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "r1router_jax.train",
      f"--config={CONFIGS / 'sft.py'}:smoke",
      f"--workdir={tmp_path}",
      flag,
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert says in done.stderr and "Traceback" not in done.stderr
