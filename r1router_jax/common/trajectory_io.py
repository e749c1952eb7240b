"""Trajectories as lines of a file that only ever grows.

A run that is killed loses at most the line it was writing; `read` skips it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from r1router_jax.common.records import (
  Answer,
  Malformed,
  Passage,
  Plan,
  Question,
  Round,
  Trajectory,
)


def to_row(trajectory: Trajectory) -> dict[str, Any]:
  """Everything that was done, and what was asked."""
  question = trajectory.question
  return dict(
    id=question.id,
    question=question.text,
    image=question.image,
    family=question.family,
    gold=list(question.answers),
    rounds=[
      dict(
        vars(done.plan),
        passages=[vars(p) for p in done.passages],
        answer=vars(done.answer),
      )
      for done in trajectory.rounds
    ],
    final=vars(trajectory.final),
    faults=list(trajectory.faults),
    tokens=trajectory.tokens,
    cut=trajectory.truncated_tokens,
  )


def from_row(row: Mapping[str, Any], question: Question) -> Trajectory:
  """The trajectory of a row, which does not hold the gold trace.

  Older rows name one route each, and do not say what was cut.
  """
  rounds = tuple(
    Round(
      Plan(
        of["thought"],
        of["sub_question"],
        of["route"],
        tuple(of.get("also", ())),
      ),
      tuple(Passage(**passage) for passage in of["passages"]),
      _answer(of["answer"]),
    )
    for of in row["rounds"]
  )
  return Trajectory(
    question,
    rounds,
    _answer(row["final"]),
    tuple(row["faults"]),
    row["tokens"],
    row.get("cut", 0),
  )


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
