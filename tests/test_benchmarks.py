"""The benchmarks run; what they say of a machine is not for tests."""

import json
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_our_sampler_shared_and_apart():
  done = subprocess.run(
      [sys.executable, BENCHMARKS / "sampling.py", "--engines=ours,apart",
       "--shapes=tiny", "--groups=2", "--prompts=16", "--new=4"],
      capture_output=True, text=True, check=False, timeout=300)
  assert done.returncode == 0, done.stderr[-2000:]
  machine, ours, apart = map(json.loads, done.stdout.splitlines())
  assert machine["gflops"] > 0 and machine["gb_s"] > 0
  assert (ours["engine"], apart["engine"]) == ("ours", "apart")
  assert ours["faster"] == 1 and apart["faster"] > 0
  assert 0 < ours["compiles"] < 40  # As many as there are kinds of programs.
