"""Trajectories as rows of a JSON Lines file, and examples for a report.

Rows are appended by `jsonl.append_rows`.  A run that is killed loses at most
the line that was being written, which `jsonl.read_rows` skips.
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
  """Convert a trajectory and its question, without gold hops, to a JSON row."""
  question = trajectory.question
  return dict(
    id=question.id,
    question=question.text,
    image=question.image,
    family=question.family,
    gold=list(question.answers),
    rounds=[
      dict(
        _plan_to_row(round_.plan),
        passages=[vars(p) for p in round_.passages],
        answer=vars(round_.answer),
      )
      for round_ in trajectory.rounds
    ],
    final=vars(trajectory.final),
    faults=list(trajectory.faults),
    tokens=trajectory.tokens,
    # The key keeps the name that it had in the first files.
    cut=trajectory.truncated_tokens,
  )


def _plan_to_row(plan: Plan) -> dict[str, Any]:
  """Return a plan under the keys of a row: its first route, then the others.

  Only plans that were carried out are written, so there is a first route.
  """
  return dict(
    thought=plan.thought,
    sub_question=plan.sub_question,
    route=plan.routes[0],
    also=plan.routes[1:],
  )


def from_row(row: Mapping[str, Any], question: Question) -> Trajectory:
  """Build the trajectory of a row.

  Rows written by older versions name one route per plan and have no "cut".

  Args:
    row: a row made by `to_row`.
    question: the question of the row; rows do not hold its gold hops.
  """
  rounds = tuple(
    Round(
      Plan(
        fields["thought"],
        fields["sub_question"],
        (fields["route"], *fields.get("also", ())),
      ),
      tuple(Passage(**passage) for passage in fields["passages"]),
      _parse_answer(fields["answer"]),
    )
    for fields in row["rounds"]
  )
  return Trajectory(
    question,
    rounds,
    _parse_answer(row["final"]),
    tuple(row["faults"]),
    row["tokens"],
    # Rows of the first files do not say it.
    row.get("cut", 0),
  )


def select_examples(
  trajectories: Sequence[Trajectory], right: Sequence[bool], count: int
) -> list[Trajectory]:
  """Select trajectories of all families, right and wrong ones in turn.

  Args:
    trajectories: the trajectories to choose from.
    right: whether the answer of each trajectory is right.
    count: number of trajectories to select, if there are that many.
  """
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
