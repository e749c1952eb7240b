"""An evaluation that is killed at random ends as if it had not been."""

import json
import os
import subprocess
import time

import numpy as np
import pytest

from r1router_jax.common import jsonl
from tests import commands

KILLS = int(os.environ.get("KILLS", "1"))

QUESTIONS = 8
CHUNK = 2


def command(kbs, workdir):
  return commands.command_line(
    "eval",
    f"--kb_dir={kbs}",
    f"--workdir={workdir}",
    f"--questions={QUESTIONS}",
    f"--chunk={CHUNK}",
    "--step_rewards=false",
    "--method=r1_router,ircot",
    "--temperature=1",
    "--samples=2",
  )


def read_predictions(workdir):
  return [
    {name: value for name, value in row.items() if name != "seconds"}
    for row in jsonl.read_rows(workdir / "predictions.jsonl")
  ]


def without_seconds(tree):
  if isinstance(tree, dict):
    return {
      name: without_seconds(value)
      for name, value in tree.items()
      if name != "seconds"
    }
  return (
    [without_seconds(each) for each in tree] if isinstance(tree, list) else tree
  )


@pytest.mark.slow
def test_killed_evaluation_gives_the_same_results(kbs, tmp_path):
  """`KILLS=10 pytest -m slow tests/test_eval_resume.py` kills it ten times."""
  # A run that nobody interrupts, to compare with.
  rng = np.random.default_rng(0)
  whole = tmp_path / "whole"
  killed = tmp_path / "killed"
  subprocess.run(command(kbs, whole), check=True, capture_output=True)
  # Kill it somewhere in the chunk after the next one that is saved.
  for _ in range(KILLS):
    before = len(read_predictions(killed))
    process = subprocess.Popen(
      command(kbs, killed), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while len(read_predictions(killed)) <= before:
      assert process.poll() is None, process.stderr.read()
      time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.5))
    process.kill()
    process.communicate()
  # Two methods, two samples of each question.
  count = len(read_predictions(killed))
  assert count < 4 * QUESTIONS  # It had not ended by itself.
  subprocess.run(command(kbs, killed), check=True, capture_output=True)
  assert (
    read_predictions(killed) == read_predictions(whole)
    and len(read_predictions(whole)) == 4 * QUESTIONS
  )
  # Scores are computed from all rows, saved and new.
  one, other = (
    without_seconds(json.loads((of / "scores.json").read_text()))
    for of in (whole, killed)
  )
  assert one == other and "pass@2" in one["results"][0]
