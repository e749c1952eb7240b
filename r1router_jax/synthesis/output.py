"""Writes what a teacher's tries came to: files of training rows, and a summary.

synthesize.py lists the files.  Each is complete or as it was before, and
depends on the tries alone.
"""

import collections
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from r1router_jax.common import files
from r1router_jax.data import r1_router_rows, tfds_datasets
from r1router_jax.synthesis import selection
from r1router_jax.synthesis.selection import QuestionOutcome


def write_outputs(
  workdir: pathlib.Path,
  results: Sequence[QuestionOutcome],
  seed: int,
  valid: float,
  about: Mapping[str, Any],
) -> dict[str, Any]:
  """Write the rows that passed, and the summary, which is returned.

  `valid` is the share of questions that are held out, `seed` that of the split;
  `about` holds fields of the summary beside its counts.
  """
  # 1. Split the rows.
  rows = {side: [] for side in selection.SIDES}
  for row in filter(None, (result.row for result in results)):
    rows[selection.split_side(row["group"], seed, valid)].append(row)

  # 2. Write them as JSON Lines, and from these as a TensorFlow Dataset.
  row_files = {}
  for side, kept in rows.items():
    path = workdir / f"grpo_dataset_{side}.jsonl"
    with files.atomic_write(path, "w") as file:
      file.writelines(json.dumps(row) + "\n" for row in kept)
    # TFDS knows no empty splits.
    if kept:
      row_files[side] = str(path)
  # The dataset is written in place of an earlier one.
  place = str(workdir / "tfds")
  shutil.rmtree(place, ignore_errors=True)
  if row_files:
    source = r1_router_rows.make_source(row_files, str(workdir / "pictures"))
    tfds_datasets.prepare("r1_router_rows/synthesis", place, source)

  # 3. Count.
  summary = dict(
    about,
    questions=len(results),
    tokens=sum(result.tokens for result in results),
    outcomes=count_outcomes(results),
    seed=seed,
    valid=valid,
    rows={side: len(kept) for side, kept in rows.items()},
    steps={s: sum(len(r["steps"]) for r in kept) for s, kept in rows.items()},
  )
  files.write_json(workdir / "summary.json", summary)
  return summary


def count_outcomes(results: Sequence[QuestionOutcome]) -> dict[str, dict]:
  """Return the numbers of questions and of tries that ended in each outcome."""
  ended = collections.Counter(result.outcomes[-1] for result in results)
  tries = collections.Counter(o for result in results for o in result.outcomes)
  # A question counts by its last try.  A duplicate is a question without tries.
  del tries[selection.DUPLICATE]
  names = selection.OUTCOMES
  return {o: dict(questions=ended[o], tries=tries[o]) for o in names}
