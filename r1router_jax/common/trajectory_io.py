"""Trajectories as rows of a JSON Lines file, and examples for a report.

Rows are appended by `jsonl.append_rows`.  A run that is killed loses at most
the line that was being written, which `jsonl.read_rows` skips.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from r1router_jax.common.files import is_below
from r1router_jax.common.records import (
  KBS,
  Answer,
  Malformed,
  Passage,
  Plan,
  Question,
  Round,
  Trajectory,
)
from r1router_jax.common.schema import Count, NotNegative, one_of


class _AnswerRow(msgspec.Struct):
  text: str
  thought: str | None = None
  reason: str | None = None  # Of a malformed response, which has no thought.

  def __post_init__(self):
    if (self.thought is None) == (self.reason is None):
      raise ValueError("wanted either a thought or a reason")


class _RoundRow(msgspec.Struct):
  thought: str
  sub_question: str
  route: one_of(*KBS)
  passages: list[Passage]
  answer: _AnswerRow
  also: list[one_of(*KBS)] = []  # Rows of older versions have none.


class TrajectoryRow(msgspec.Struct):
  """The schema of fields that `to_row` makes, and of the seconds it took."""

  id: str
  question: str
  rounds: list[_RoundRow]
  final: _AnswerRow
  faults: list[str]
  tokens: Count
  seconds: NotNegative
  cut: Count = 0


def to_row(trajectory: Trajectory) -> dict[str, Any]:
  """Convert a trajectory and its question, without gold hops, to a JSON row."""
  question = trajectory.question
  return dict(
    id=question.id,
    question=question.text,
    image=question.image,
    family=question.family,
    gold=list(question.answers),
    rounds=[_round_to_row(each) for each in trajectory.rounds],
    final=vars(trajectory.final),
    faults=list(trajectory.faults),
    tokens=trajectory.tokens,
    # The key keeps the name that it had in the first files.
    cut=trajectory.truncated_tokens,
  )


def _round_to_row(done: Round) -> dict[str, Any]:
  """Return the fields of a round, whose plan has at least one route."""
  plan = done.plan
  return dict(
    thought=plan.thought,
    sub_question=plan.sub_question,
    route=plan.routes[0],
    also=plan.routes[1:],
    passages=[vars(p) for p in done.passages],
    answer=vars(done.answer),
  )


def from_row(
  row: Mapping[str, Any], question: Question, image_folders: Sequence[str]
) -> Trajectory:
  """Build the trajectory of a row; rows do not hold their question's gold hops.

  A file may come from elsewhere: passages keep their images if these are below
  one of the folders, of which "" is none.  Rows written by older versions name
  one route per plan and have no "cut".
  """

  def parse_passage(fields: Mapping[str, Any]) -> Passage:
    passage = Passage(**fields)
    inside = any(x and is_below(passage.image, x) for x in image_folders)
    return passage if inside else dataclasses.replace(passage, image="")

  rounds = []
  for fields in row["rounds"]:
    routes = (fields["route"], *fields.get("also", ()))
    plan = Plan(fields["thought"], fields["sub_question"], routes)
    passages = tuple(map(parse_passage, fields["passages"]))
    rounds.append(Round(plan, passages, _parse_answer(fields["answer"])))
  final, faults = _parse_answer(row["final"]), tuple(row["faults"])
  cut = row.get("cut", 0)
  return Trajectory(question, tuple(rounds), final, faults, row["tokens"], cut)


def select_examples(
  trajectories: Sequence[Trajectory], right: Sequence[bool], count: int
) -> list[Trajectory]:
  """Select `count` trajectories of all families, right and wrong in turn."""
  # Queues by family: one of wrong and one of right trajectories.
  waiting = {}
  for trajectory, is_right in zip(trajectories, right, strict=True):
    family = trajectory.question.family
    waiting.setdefault(family, ([], []))[bool(is_right)].append(trajectory)
  selected, turn = [], 0
  while len(selected) < min(count, len(trajectories)):
    for i, queues in enumerate(waiting.values()):
      # Neighbouring families start with different sides, and each family
      # changes sides every turn; an empty side gives way to the other.
      side = (i + turn) % 2
      queue = queues[side] or queues[1 - side]
      if queue and len(selected) < count:
        selected.append(queue.pop(0))
    turn += 1
  return selected


def _parse_answer(fields: Mapping[str, str]) -> Answer | Malformed:
  """Build an answer, or a malformed response, which has a reason."""
  kind = Malformed if "reason" in fields else Answer
  return kind(**fields)
