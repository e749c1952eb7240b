"""Training, run for a few updates as a user would run it."""

import json
import os
import re
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

from r1router_jax.common import cli, run_log
from r1router_jax.common.errors import UserError
from r1router_jax.policy import policy
from r1router_jax.train import train
from r1router_jax.training import optimizer, sft
from tests import commands, two_processes
from tests.train_runs import (
  CONFIGS,
  TRAJECTORIES,
  load_config,
  read_scalars,
  train_and_interrupt,
)

KILLS = int(os.environ.get("KILLS", 1))  # Each takes about ten seconds.

EIGHT_UPDATES = {"total_steps": 8, "sft.recall_warmup_steps": 4}

# A mesh that splits rows and weights over eight devices.
MESH = {"parallel": "fsdp", "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}


def train_flags(config, workdir, *flags):
  """Return the command `train` and flags for it."""
  return "train", f"--config={CONFIGS / config}", f"--workdir={workdir}", *flags


@pytest.fixture(scope="module")
def warm_start(tmp_path_factory):
  """The workdir of a warm start of eight updates."""
  folder = tmp_path_factory.mktemp("warm_start")
  train(load_config("sft", **EIGHT_UPDATES), folder)
  return folder


@pytest.mark.slow
def test_equal_seeds_give_equal_scalars(warm_start, tmp_path):
  train(load_config("sft", **EIGHT_UPDATES), tmp_path)
  # One line of the log per update.
  assert len(read_scalars(warm_start)) == 8
  assert read_scalars(tmp_path) == read_scalars(warm_start)


@pytest.mark.long
def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
  whole = train(load_config("sft"), tmp_path / "whole")
  # The same schedule, stopped half way, after a checkpoint.
  stopped = tmp_path / "stopped"
  train_and_interrupt(load_config("sft"), stopped, after=2)
  resumed = train(load_config("sft"), stopped)
  assert read_scalars(stopped) == read_scalars(tmp_path / "whole")
  jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


@pytest.mark.slow
def test_step_grpo_repeats_itself(warm_start, tmp_path):
  changes = {"policy.start_from": str(warm_start / "policy"), "data.kb_dir": ""}
  # Two runs of the same config.
  runs = [
    train(load_config("step_grpo", **changes), tmp_path / name) for name in "ab"
  ]
  assert read_scalars(tmp_path / "a") == read_scalars(tmp_path / "b")
  for line in read_scalars(tmp_path / "a"):
    assert 0 <= line["reward/total"] <= 1
    # Sampler and trainer agree.
    assert line.get("logp_drift", 0) < 1e-4
    assert ("logp_drift" in line) == (line["equal_groups"] < 1)
  # Times and rates of every line.
  for line in run_log.read_metrics(tmp_path / "a"):
    phases = ("data", "rollout", "reward", "update")
    assert all(line[f"seconds/{phase}"] > 0 for phase in phases)
    assert line["speed/tokens_s"] > line["speed/samples_s"] > 0
    assert line["speed/tflops_s"] > 0 and "speed/mfu" not in line
  # The trained parameters have the structure of the start.
  before = policy.load(warm_start / "policy")
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
  # Set-up, and a policy without any update.
  config = load_config(name, variant, **{"total_steps": 0, "data.kb_dir": ""})
  config.data.generated = min(config.data.generated, 120)
  trained = train(config, tmp_path)
  assert policy.load(tmp_path / "policy").config == trained.config


def test_reference_variant_has_the_values_of_the_paper():
  # Those that its paper, arxiv.org/abs/2505.22095, and its files give.
  c = load_config("step_grpo", "reference")
  loss = c.step_grpo.loss
  assert (c.step_grpo.group_size, c.step_grpo.reward) == (5, "reference")
  assert (loss.clip_low, loss.clip_high) == (0.2, 0.2)
  assert (loss.aggregate, loss.kl_coef) == ("sequence_mean", 0)
  rate = optimizer.lr_schedule(
    c.optim.lr, c.total_steps, c.optim.warmup, c.optim.final
  )
  np.testing.assert_allclose([rate(0), rate(100), rate(329)], 1e-6)


def test_config_finds_its_base_from_any_folder(tmp_path):
  done = commands.run_command(
    *train_flags("georouter.py:huge", "x"),
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(CONFIGS.parent)},
  )
  assert done.returncode == 2 and "'huge' of step_grpo: take" in done.stderr


@pytest.mark.slow
def test_too_many_skipped_updates_end_the_run_and_keep_the_batch(tmp_path):
  c = load_config(
    "sft",
    **{
      "max_skipped": 2,
      # The first update makes parameters so large that all later losses are
      # infinite.
      "optim.lr": 1e9,
      "optim.muon_lr": 1e9,
      "checkpoint_every": 1,
    },
  )
  with pytest.raises(FloatingPointError, match="2 updates in a row") as error:
    train(c, tmp_path)
  (kept,) = (tmp_path / "skipped").iterdir()
  assert str(kept) in str(error.value)
  with np.load(kept) as batch:
    assert batch["response"].shape == batch["mask"].shape
    assert len(batch["examples"])
  # What may be why nothing can be learnt is not saved while it is skipped.
  assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]


@pytest.mark.slow
@pytest.mark.parametrize(
  "error", [ZeroDivisionError("0 / 0"), UserError("No server."), None]
)
def test_error_in_a_draw_loses_nothing(error, tmp_path, monkeypatch, caplog):
  """An error of a reward or a server, or SIGTERM between two draws."""
  make_batches = sft.Sft.make_batches

  def failing_batches(self, params, examples_for, iteration):
    if iteration == 3:
      if error:
        raise error
      os.kill(os.getpid(), signal.SIGTERM)
      examples_for(iteration)
    return make_batches(self, params, examples_for, iteration)

  options = EIGHT_UPDATES | {"checkpoint_every": 50}
  with monkeypatch.context() as patch:
    patch.setattr(sft.Sft, "make_batches", failing_batches)
    kind = type(error) if error else cli.Preempted
    with pytest.raises(kind), caplog.at_level("WARNING"):
      train(load_config("sft", **options), tmp_path)
  assert "The same command goes on after iteration 3." in caplog.text
  assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["3"]
  train(load_config("sft", **options), tmp_path)
  assert [line["step"] for line in read_scalars(tmp_path)] == [*range(1, 9)]


@pytest.mark.slow
def test_sigterm_saves_and_another_seed_is_rejected(tmp_path):
  command = commands.command_line(
    *train_flags("sft.py:smoke", tmp_path, "--config.total_steps=100000")
  )
  run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
  # The first line of the log says that training has begun.
  while not run_log.read_metrics(tmp_path):
    assert run.poll() is None, run.stderr.read()
    time.sleep(0.1)
  run.send_signal(signal.SIGTERM)
  _, stderr = run.communicate(timeout=100)
  assert run.returncode == cli.PREEMPTED
  (step,) = re.findall(r"goes on after iteration (\d+)", stderr)
  assert (tmp_path / "checkpoints" / step).is_dir()

  # The workdir belongs to a run with other batches, whose options it keeps.
  with pytest.raises(UserError, match="whose seed was 0, and now it is 1"):
    train(load_config("sft", seed=1, total_steps=100000), tmp_path)
  assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
  "credit",
  [
    "step",
    pytest.param("trajectory", marks=pytest.mark.long),
    pytest.param("gigpo", marks=pytest.mark.long),
  ],
)
def test_killed_run_ends_like_an_unbroken_one(
  credit, warm_start, kbs, tmp_path
):
  """SIGKILL at random moments, also while a checkpoint is being written."""
  rng, steps = np.random.default_rng(0), 8 + 4 * KILLS
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  changes = {"policy.start_from": warm_start / "policy", "data.kb_dir": ""}
  if credit != "step":
    changes = TRAJECTORIES | {"step_grpo.credit": credit, "data.kb_dir": kbs}
  changes |= {"total_steps": steps, "checkpoint_every": 1}
  flags = [f"--config.{name}={x}" for name, x in changes.items()]
  command = train_flags("step_grpo.py:smoke", killed, *flags)
  options = dict(env=os.environ | commands.ONE_DEVICE, check=True)
  done = commands.run_command(
    *train_flags("step_grpo.py:smoke", whole, *flags), **options
  )
  # What a command leaves behind, beside the weights.
  assert str(whole / "policy") in done.stdout
  assert json.loads((whole / "config.json").read_text())["total_steps"] == steps

  # Each start logs at least one more line before it is killed.
  for _ in range(KILLS):
    before = len(run_log.read_metrics(killed))
    run = subprocess.Popen(
      commands.command_line(*command),
      stderr=subprocess.PIPE,
      env=options["env"],
    )
    while len(run_log.read_metrics(killed)) <= before:
      assert run.poll() is None, run.stderr.read()
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.2))
    run.kill()
    run.communicate()
    assert run.returncode == -signal.SIGKILL
  commands.run_command(*command, **options)

  # Every file is that of the unbroken run, and no step was logged twice.
  assert read_scalars(killed) == read_scalars(whole)
  lines = (killed / run_log.METRICS_FILE).read_text().splitlines()
  logged = [json.loads(line)["step"] for line in lines]
  assert logged == list(range(1, steps + 1))
  samples = run_log.read_samples(killed)
  assert samples == run_log.read_samples(whole)
  assert {group["step"] for group in samples} == set(logged)
  weights = (
    (folder / "policy" / "model.safetensors").read_bytes()
    for folder in (whole, killed)
  )
  assert len(set(weights)) == 1


@pytest.mark.long
def test_fsdp_learns_like_pmap(tmp_path):
  """Both have eight data shards of four rows.

  It trains with AdamW and without the axis `tensor`: otherwise XLA's
  collectives for CPUs wait for each other at times.
  """
  adam = {"optim.name": "adamw"}
  # The same run, with weights whole and split over four devices.
  whole = train(load_config("sft", **adam), tmp_path / "whole")
  split = train(
    load_config(
      "sft", **adam, **{"parallel": "fsdp", "mesh.data": 2, "mesh.fsdp": 4}
    ),
    tmp_path / "split",
  )
  # The embedding is split.
  embed = split.params["embed"]
  assert embed.addressable_shards[0].data.size == embed.size // 4
  # Losses agree, and so do the trained weights.
  lines = (read_scalars(tmp_path / name) for name in ("whole", "split"))
  for one, other in zip(*lines, strict=True):
    np.testing.assert_allclose(one["nll"], other["nll"], rtol=1e-4)
  saved = (
    policy.load(tmp_path / name / "policy", dtype=np.float32).params
    for name in ("whole", "split")
  )
  for one, other in zip(*map(jax.tree.leaves, saved), strict=True):
    assert np.mean(np.abs(one - other)) < 1e-3 * np.mean(np.abs(one)) + 1e-5
  assert whole.config == split.config


@pytest.mark.long
def test_every_option_at_once(warm_start, tmp_path):
  """On a mesh, with penalties, two updates and microbatches of one row."""
  trained = train(
    load_config(
      "step_grpo",
      **MESH,
      **{
        "policy.start_from": str(warm_start / "policy"),
        "data.kb_dir": "",
        "rollout_mesh.tensor": 2,
        "micro_batch_size": 1,
        "validation.every": 1,
        "validation.steps": 8,
        "step_grpo.minibatches": 2,
        "step_grpo.max_resample_rounds": 1,
        "step_grpo.update_batch_size": 2,
        "step_grpo.loss.kl_coef": 0.1,
        "step_grpo.loss.entropy_coef": 0.01,
        "step_grpo.advantage_norm": "none",
        "step_grpo.loss.aggregate": "sequence_mean",
      },
    ),
    tmp_path,
  )
  # At the first update the policy is still its reference.
  first, last = read_scalars(tmp_path)
  assert abs(first["kl"]) < 0.1 and first["refills"] in (0, 1)
  assert 0 <= first["validation/total"] <= 1
  assert trained.mesh.shape == {"data": 4, "tensor": 2}
  best = policy.load(tmp_path / "best", dtype=np.float32)
  assert best.config == trained.config
  assert not last["skipped"]


CHILD = """
import sys
from r1router_jax.parallel import multihost
multihost.initialize_distributed()
from r1router_jax.train import train
from tests import train_runs
config = train_runs.load_config("sft", **{
    "data.batch_size_per_device": 4,
    "parallel": "fsdp", "mesh.data": 2, "mesh.fsdp": 2})
train_runs.train_and_interrupt(config, sys.argv[1], after=2)
train(config, sys.argv[1])
print("done")
"""


@pytest.mark.long
def test_two_hosts_train_like_one_and_resume(tmp_path):
  """One host has eight shards of two rows, two hosts four shards of four."""
  one_host, two_hosts = tmp_path / "one", tmp_path / "two"
  # Both see 16 rows per update.
  train(load_config("sft", **{"data.batch_size_per_device": 2}), one_host)
  outputs = two_processes.run_two_processes(
    CHILD, tmp_path, str(two_hosts), timeout=500
  )
  assert all("done" in output for output in outputs)
  one, two = read_scalars(one_host), read_scalars(two_hosts)
  assert [line["step"] for line in two] == [1, 2, 3, 4]
  for name in ("nll", "recall", "grad_norm"):
    np.testing.assert_allclose(
      *([line[name] for line in lines] for lines in (one, two)), rtol=2e-4
    )
  policy.load(two_hosts / "policy")


def test_mesh_that_does_not_tile_the_devices_is_rejected(tmp_path):
  with pytest.raises(ValueError, match="config.mesh .*does not tile 8 devices"):
    train(load_config("sft", **{"mesh.data": 4}), tmp_path)


@pytest.mark.slow
def test_adapters_learn_and_are_merged_into_the_saved_weights(
  warm_start, tmp_path
):
  changes = {
    "policy.start_from": str(warm_start / "policy"),
    "policy.induction": False,
    "policy.lora.rank": 2,
    "trainable_regex": "lora_",
    "total_steps": 2,
  }
  trained = train(load_config("sft", **changes), tmp_path)
  # The saved policy has weights without adapters.
  before, after = (
    policy.load(folder / "policy").params["layers"]
    for folder in (warm_start, tmp_path)
  )
  assert "lora_a" in trained.params["layers"]["q"]
  assert "lora_a" not in after["q"]
  assert np.abs(after["q"]["w"] - before["q"]["w"]).max() > 0
  np.testing.assert_array_equal(
    after["mlp"]["up"]["w"], before["mlp"]["up"]["w"]
  )
  # The adapters alone, with their base, are the same policy.
  opened = policy.load(tmp_path / "adapter").params["layers"]
  for name in "qkvo":
    np.testing.assert_allclose(opened[name]["w"], after[name]["w"], atol=1e-6)


def test_missing_knowledge_base_is_named(tmp_path):
  config = load_config("sft", **{"data.kb_dir": "nowhere"})
  with pytest.raises(ValueError, match="nowhere holds no finished"):
    train(config, tmp_path)
