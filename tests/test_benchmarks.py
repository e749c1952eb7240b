"""The benchmarks run to their end; their figures are not tested."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


def run_benchmark(name, *flags):
  """Run a benchmark and return the JSON lines that it prints."""
  done = subprocess.run(
    [sys.executable, BENCHMARKS / f"{name}.py", *flags],
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_sampling_benchmark():
  machine, ours, unshared = run_benchmark(
    "sampling",
    "--engines=ours,unshared",
    "--shapes=tiny",
    "--groups=2",
    "--prompts=16",
    "--new=4",
  )
  assert machine["gflops"] > 0 and machine["gb_s"] > 0
  assert (ours["engine"], unshared["engine"]) == ("ours", "unshared")
  # Factors are multiples of the first engine's time.
  assert ours["faster"] == 1 and unshared["faster"] > 0
  # A program for each kind of step, whatever the number of tokens.
  assert 0 < ours["compiles"] < 40


@pytest.mark.slow
def test_train_step_benchmark():
  _, ours = run_benchmark(
    "train_step",
    "--engines=ours",
    "--shapes=tiny",
    "--prompts=2",
    "--group=2",
    "--prompt=16",
    "--new=4",
    "--memory=",
  )
  # An iteration is made of its parts.
  parts = ("served_s", "rollout_s", "reward_s", "update_s")
  assert all(ours[part] > 0 for part in parts)
  # Figures have four digits.
  total = sum(ours[part] for part in parts)
  assert ours["total_s"] == pytest.approx(total, rel=0.01)
  assert ours["update_of_matmul"] > 0 and ours["faster"] == 1


@pytest.mark.slow
def test_routing_benchmark(kbs):
  rows = run_benchmark("routing", f"--kb_dir={kbs}", "--questions=2")
  # The loops, each without and with a delay.
  assert [row["loop"] for row in rows] == ["host", "host", "halves", "halves"]
  assert [row["delay"] > 0 for row in rows] == [False, True, False, True]
  assert all(row["per_s"] > 0 for row in rows)


@pytest.mark.slow
def test_ask_benchmark(kbs):
  flags = f"--kb_dir={kbs}", "--alone=1", "--together=2"
  opened, *rows = run_benchmark("ask", *flags)
  assert opened["open_s"] > 0
  assert [row["at_a_time"] for row in rows] == [1, 1, 2, 2]
  for row in rows:
    # A question is made of its phases, and begins with a plan.
    phases = ("embed_s", "search_s", "prefill_s", "decode_s", "host_s")
    seconds = sum(row[phase] for phase in phases)
    assert seconds == pytest.approx(row["question_s"], abs=0.01)
    whole = row["question_s"] * row["questions"]
    assert 0 < row["plan_s"] <= whole and row["tokens"] > 0
  # What is compiled once is not compiled again.
  assert rows[1]["compile_s"] == rows[3]["compile_s"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--alone=0", "--together=0"])
def test_ask_benchmark_without_a_question_is_refused(flag):
  command = [sys.executable, BENCHMARKS / "ask.py", flag]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 2 and "at least 1" in done.stderr


@pytest.mark.long
def test_trajectory_benchmark(kbs):
  flags = f"--kb_dir={kbs}", "--questions=1", "--runs=1"
  rows = run_benchmark("trajectory", *flags)
  assert [row["loop"] for row in rows] == ["host", "host", "halves", "halves"]
  assert [row["delay"] > 0 for row in rows] == [False, True, False, True]
  for row in rows:
    # An iteration is made of its phases.
    phases = ("sample_s", "search_s", "reward_s", "rest_s", "update_s")
    seconds = sum(row[phase] for phase in phases)
    wanted = pytest.approx(row["trajectories"] / row["per_s"], rel=0.01)
    assert seconds == wanted and row["of_model"] < 1


@pytest.mark.long
@pytest.mark.oracle
def test_process_per_stage_benchmark(kbs):
  one, stages = run_benchmark(
    "process_per_stage",
    f"--kb_dir={kbs}",
    "--questions=3",
    "--samplers=transformers",
  )
  # Stages change nothing but the time.
  assert (one["same"], stages["same"]) == (1, 1)
  assert one["slower"] == 1 and stages["slower"] > 1


@pytest.mark.slow
@pytest.mark.skipif(
  "R1ROUTER_REFERENCE" not in os.environ,
  reason="R1ROUTER_REFERENCE names no question files",
)
def test_scoring_benchmark():
  reference = os.environ["R1ROUTER_REFERENCE"]
  (found,) = run_benchmark("scoring", "--every=8", f"--reference={reference}")
  # Every eighth of the 248 numeric questions.
  assert found["questions"] == 31 and found["right"] > 5
  assert found["faster"] > 50
