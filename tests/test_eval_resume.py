"""An evaluation that is killed at random ends as if it had not been."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from r1router_jax.common import jsonl

KILLS = int(os.environ.get("KILLS", "1"))

QUESTIONS, CHUNK = 16, 2


def run(kbs, workdir):
  return [
    sys.executable,
    "-m",
    "r1router_jax.eval",
    f"--kb={kbs}",
    f"--workdir={workdir}",
    f"--questions={QUESTIONS}",
    f"--chunk={CHUNK}",
    "--step_rewards=false",
    "--config.methods=r1_router,ircot",
    "--config.temperature=1",
    "--config.samples=2",
  ]


def rows(workdir):
  return [
    {name: value for name, value in row.items() if name != "seconds"}
    for row in jsonl.read(workdir / "predictions.jsonl")
  ]


def untimed(tree):
  if isinstance(tree, dict):
    return {
      name: untimed(value) for name, value in tree.items() if name != "seconds"
    }
  return [untimed(each) for each in tree] if isinstance(tree, list) else tree


@pytest.mark.slow
def test_an_evaluation_that_is_killed(kbs, tmp_path):
  """`KILLS=10 pytest -m slow tests/test_eval_killed.py` kills it ten times."""
  rng, whole, killed = (
    np.random.default_rng(0),
    tmp_path / "whole",
    tmp_path / "killed",
  )
  subprocess.run(run(kbs, whole), check=True, capture_output=True)
  for _ in range(KILLS):
    before = len(rows(killed))
    process = subprocess.Popen(
      run(kbs, killed), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while len(rows(killed)) <= before:
      assert process.poll() is None, process.stderr.read()
      time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.5))
    process.kill()
    process.communicate()
  at_last = len(rows(killed))
  assert at_last < 4 * QUESTIONS  # It was not done before.
  subprocess.run(run(kbs, killed), check=True, capture_output=True)
  assert rows(killed) == rows(whole) and len(rows(whole)) == 4 * QUESTIONS
  one, other = (
    untimed(json.loads((of / "scores.json").read_text()))
    for of in (whole, killed)
  )
  assert one == other and "pass@2" in one["results"][0]
