"""What became of questions that a teacher was asked: files of rows, a summary.

  <out>/grpo_dataset_train.jsonl, grpo_dataset_valid.jsonl   see `synthesis`
  <out>/pictures                                             of their questions
  <out>/tfds         grpo_rows/synthesis, the same as a TensorFlow Dataset
  <out>/summary.json

Files are whole or as they were before, and the same for the same tries.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from r1router_jax.common import jsonl
from r1router_jax.data import r1_router_rows_tfds
from r1router_jax.synthesis import selection


@dataclasses.dataclass(frozen=True)
class Found:
  """What became of a question.

  Attributes:
    outcomes: of each try, in order; of a duplicate that alone.
    row: that of the last try, where it is kept.
    tokens: that all tries wrote.
  """

  outcomes: tuple[str, ...]
  row: dict[str, Any] | None = None
  tokens: int = 0


def write(
  out: pathlib.Path,
  found: Sequence[Found],
  seed: int,
  valid: float,
  about: Mapping[str, Any],
) -> dict[str, Any]:
  """Writes what passed.

  Args:
    out: the folder.
    found: of each question.
    seed: of the split.
    valid: share of questions that are held out.
    about: what the summary says beside its counts.

  Returns:
    The summary.
  """
  sides = {side: [] for side in selection.SIDES}
  for each in found:
    if each.row is not None:
      sides[selection.side(each.row["group"], seed, valid)].append(each.row)
  paths = {side: out / f"grpo_dataset_{side}.jsonl" for side in sides}
  for side, path in paths.items():
    draft = path.with_name(path.name + ".partial")
    draft.write_text("".join(json.dumps(row) + "\n" for row in sides[side]))
    os.replace(draft, path)
  _tfds(out, {side: str(path) for side, path in paths.items() if sides[side]})
  summary = dict(
    about,
    questions=len(found),
    tokens=sum(each.tokens for each in found),
    outcomes=outcomes(found),
    seed=seed,
    valid=valid,
    rows={side: len(rows) for side, rows in sides.items()},
    steps={
      side: sum(len(row["steps"]) for row in rows)
      for side, rows in sides.items()
    },
  )
  jsonl.replace(out / "summary.json", summary)
  return summary


def outcomes(found: Sequence[Found]) -> dict[str, dict[str, int]]:
  """How many questions, and tries, ended in each of `synthesis.OUTCOMES`."""
  return {
    outcome: dict(
      questions=sum(each.outcomes[-1] == outcome for each in found),
      tries=sum(
        each.outcomes.count(outcome)
        for each in found
        if outcome != selection.DUPLICATE
      ),
    )
    for outcome in selection.OUTCOMES
  }


def _tfds(out: pathlib.Path, files: Mapping[str, str]) -> None:
  """Writes the rows anew as a TensorFlow Dataset, which knows no other way."""
  shutil.rmtree(out / "tfds", ignore_errors=True)
  if files:
    tfds.disable_progress_bar()
    r1_router_rows_tfds.GrpoRows(
      config=r1_router_rows_tfds.Files(
        name="synthesis", files=files, pictures=str(out / "pictures")
      ),
      data_dir=out / "tfds",
    ).download_and_prepare()
