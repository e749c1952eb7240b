"""Trajectories as lines of a file that only ever grows.

A run that is killed loses at most the line it was writing; `read` skips it.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from r1router_jax.records import (
    Answer,
    Malformed,
    Passage,
    Plan,
    Question,
    Round,
    Trajectory,
)


def append(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
  """Adds a line for each row, all in one go."""
  path = pathlib.Path(path)
  torn = False
  if path.exists() and path.stat().st_size:
    with path.open("rb") as file:
      file.seek(-1, os.SEEK_END)
      torn = file.read() != b"\n"
  text = "".join(json.dumps(row) + "\n" for row in rows)
  with path.open("a", encoding="utf-8") as file:
    file.write("\n" * torn + text)
    file.flush()
    os.fsync(file.fileno())


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The rows of the file, none where there is no file."""
  rows = []
  path = pathlib.Path(path)
  for line in path.open(encoding="utf-8") if path.exists() else ():
    try:
      rows.append(json.loads(line))
    except ValueError:
      continue  # Torn when a run was killed.
  return [row for row in rows if isinstance(row, dict)]


def to_row(trajectory: Trajectory) -> dict[str, Any]:
  """Everything that was done, and what was asked."""
  question = trajectory.question
  return dict(
      id=question.id, question=question.text, image=question.image,
      family=question.family, gold=list(question.answers),
      rounds=[dict(
          vars(done.plan), passages=[vars(p) for p in done.passages],
          answer=vars(done.answer)) for done in trajectory.rounds],
      final=vars(trajectory.final), faults=list(trajectory.faults),
      tokens=trajectory.tokens, cut=trajectory.cut)


def from_row(row: Mapping[str, Any], question: Question) -> Trajectory:
  """The trajectory of a row, which does not hold the gold trace.

  Older rows name one route each, and do not say what was cut.
  """
  rounds = tuple(
      Round(Plan(of["thought"], of["sub_question"], of["route"],
                 tuple(of.get("also", ()))),
            tuple(Passage(**passage) for passage in of["passages"]),
            _answer(of["answer"])) for of in row["rounds"])
  return Trajectory(question, rounds, _answer(row["final"]),
                    tuple(row["faults"]), row["tokens"], row.get("cut", 0))


def replace(path: str | os.PathLike, value: Any) -> None:
  """Writes a JSON file that is either whole or as it was before."""
  path = pathlib.Path(path)
  draft = path.with_name(path.name + ".partial")
  draft.write_text(json.dumps(value, indent=1), encoding="utf-8")
  os.replace(draft, path)


def pick(
    trajectories: Sequence[Trajectory], right: Sequence[bool], count: int
) -> list[Trajectory]:
  """A few of every family, right and wrong by turns as far as there are."""
  waiting = {}  # By family, then by right and wrong.
  for trajectory, good in zip(trajectories, right, strict=True):
    family = trajectory.question.family
    waiting.setdefault(family, ([], []))[bool(good)].append(trajectory)
  picked, turn = [], 0
  while len(picked) < min(count, len(trajectories)):
    for i, pair in enumerate(waiting.values()):
      side = (i + turn) % 2
      wanted = pair[side] or pair[1 - side]
      if wanted and len(picked) < count:
        picked.append(wanted.pop(0))
    turn += 1
  return picked


def _answer(fields: Mapping[str, str]) -> Answer | Malformed:
  kind = Malformed if "reason" in fields else Answer
  return kind(**fields)
