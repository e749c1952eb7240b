"""The benchmarks run to their end; their figures are not tested."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_sampling_benchmark():
  done = subprocess.run(
    [
      sys.executable,
      BENCHMARKS / "sampling.py",
      "--engines=ours,apart",
      "--shapes=tiny",
      "--groups=2",
      "--prompts=16",
      "--new=4",
    ],
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  machine, ours, apart = map(json.loads, done.stdout.splitlines())
  assert machine["gflops"] > 0 and machine["gb_s"] > 0
  assert (ours["engine"], apart["engine"]) == ("ours", "apart")
  assert ours["faster"] == 1 and apart["faster"] > 0
  assert 0 < ours["compiles"] < 40  # As many as there are kinds of programs.


@pytest.mark.slow
def test_train_step_benchmark():
  done = subprocess.run(
    [
      sys.executable,
      BENCHMARKS / "train_step.py",
      "--engines=ours",
      "--shapes=tiny",
      "--prompts=2",
      "--group=2",
      "--prompt=16",
      "--new=4",
      "--memory=",
    ],
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  _, ours = map(json.loads, done.stdout.splitlines())
  parts = ("served_s", "rollout_s", "reward_s", "update_s")
  assert all(ours[part] > 0 for part in parts)
  assert abs(ours["total_s"] - sum(ours[part] for part in parts)) < 0.01
  assert 0 < ours["update_of_matmul"] < 1 and ours["faster"] == 1


@pytest.mark.long
@pytest.mark.oracle
def test_process_per_stage_benchmark(kbs):
  done = subprocess.run(
    [
      sys.executable,
      BENCHMARKS / "process_per_stage.py",
      f"--kb={kbs}",
      "--questions=3",
      "--ways=transformers",
    ],
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  one, stages = map(json.loads, done.stdout.splitlines())
  assert (one["same"], stages["same"]) == (1, 1)
  assert one["slower"] == 1 and stages["slower"] > 1


@pytest.mark.slow
@pytest.mark.skipif(
  "R1ROUTER_REFERENCE" not in os.environ,
  reason="R1ROUTER_REFERENCE names no question files",
)
def test_scoring_benchmark():
  done = subprocess.run(
    [
      sys.executable,
      BENCHMARKS / "scoring.py",
      "--every=8",
      f"--reference={os.environ['R1ROUTER_REFERENCE']}",
    ],
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout)
  assert found["questions"] == 31 and found["right"] > 5
  assert found["faster"] > 50
