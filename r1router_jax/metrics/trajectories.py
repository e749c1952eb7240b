"""Scores of trajectories: one number per question and column.

  recall      recall of the final answer, the "F1-Recall" of the paper
  f1, exact   F1 and exact match of the final answer (`metrics.answers`); a
              malformed answer counts as 0, unless its raw text is to be scored,
              as R1-Router does
  default_*   best recall, F1 and exact match by the default rules
  route       share of plan positions at which an accepted route was chosen; NaN
              if the gold trace is unknown
  retrieval   share of gold hops for which a passage with the answer was found,
              in any round; NaN if the gold trace names no passages
  format      1 if every response followed the protocol
  retrievals  number of searches: one per round and route
  tokens      number of tokens in all responses
  cut         tokens cut from passages so that answer prompts fitted

Questions with NaN in a column do not enter its mean: see `drop_nan`.

Plan positions are those of the gold trace, one per hop and one for the stop
after them, or of the trajectory if that is longer: a needless round counts as
wrong, and so does a hop that was never planned.  After `max_steps` hops there
is no stop to choose.  Only a stop that the policy chose is a stop; planning
that a fault ended is not.  A plan that names several routes is right if each of
them is accepted: a second route costs a retrieval and never earns more.

Axes:  N questions
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from r1router_jax.common.records import (
  FORMAT_FAULTS,
  TERMINAL_FAULTS,
  Answer,
  Trajectory,
)
from r1router_jax.metrics import answers, official

# Columns with numbers in [0, 1], and others.
RATES = tuple(
  "recall f1 exact default_recall default_f1 default_exact official_exact "
  "official_f1 route retrieval format".split()
)
COUNTS = ("retrievals", "tokens", "cut")

_PART = re.compile(r"#\d+$")

Columns = dict[str, Float[np.ndarray, " N"]]


def score_trajectories(
  trajectories: Sequence[Trajectory], **options: Any
) -> Columns:
  """Return a number per trajectory, by column; see `score_trajectory`."""
  rows = [score_trajectory(each, **options) for each in trajectories]
  return {
    name: np.array([row[name] for row in rows], np.float64)
    for name in (*RATES, *COUNTS)
  }


def drop_nan(column: Float[np.ndarray, " N"]) -> Float[np.ndarray, " M"]:
  """Return the numbers of the questions that a column applies to."""
  return column[~np.isnan(column)]


def evidence_recall(trajectory: Trajectory) -> float:
  """Return the share of gold hops whose evidence was found, or NaN."""
  seen = {p.id for done in trajectory.rounds for p in done.passages}
  # Evidence may be a document, of which "id#0" is a part.
  seen |= {_PART.sub("", name) for name in seen}
  hops = [hop for hop in trajectory.question.hops or () if hop.evidence]
  if not hops:
    return float("nan")
  return float(np.mean([bool(seen & {*hop.evidence}) for hop in hops]))


def chosen_routes(
  trajectory: Trajectory, max_steps: int
) -> list[tuple[str, ...]]:
  """Return the routes of each plan; those of a chosen stop are ("none",)."""
  chosen = [done.plan.routes for done in trajectory.rounds]
  # A stop is a choice of its own, unless a fault ended the planning.
  was_ended = trajectory.fault_kinds & {*TERMINAL_FAULTS}
  if len(chosen) < max_steps and not was_ended:
    chosen.append(("none",))
  return chosen


def route_correctness(trajectory: Trajectory, max_steps: int) -> list[bool]:
  """Return, for each plan position, whether all its routes were accepted."""
  accepted = [hop.routes for hop in trajectory.question.hops][:max_steps]
  chosen = chosen_routes(trajectory, max_steps)
  if len(accepted) < max_steps:
    accepted.append(("none",))
  # Both lists are padded: a missing round and a needless one are both wrong.
  length = max(len(accepted), len(chosen))
  accepted += [("none",)] * (length - len(accepted))
  chosen += [()] * (length - len(chosen))
  return [
    bool(named) and {*named} <= {*routes}
    for named, routes in zip(chosen, accepted, strict=True)
  ]


def score_trajectory(
  trajectory: Trajectory, *, max_steps: int, score_malformed: bool = False
) -> dict[str, float]:
  """Return the scores of one trajectory, by column.

  Args:
    trajectory: the trajectory.
    max_steps: number of rounds after which no stop can be chosen.
    score_malformed: whether to score the raw text of a malformed answer.
  """
  final, question = trajectory.final, trajectory.question
  text = final.text if score_malformed or isinstance(final, Answer) else ""
  # The same text by both sets of rules, and by those of the benchmark.
  task = text, question.answers, question.interval
  scores, default = answers.score_answer(*task), answers.score_default(*task)
  by_authors = official.score_official(text, question)
  route = float("nan")
  if question.hops is not None:
    route = float(np.mean(route_correctness(trajectory, max_steps)))
  return dict(
    recall=scores.recall,
    f1=scores.f1,
    exact=scores.exact,
    default_recall=default.max_recall,
    default_f1=default.f1,
    default_exact=default.exact,
    official_exact=by_authors.exact,
    official_f1=by_authors.f1,
    route=route,
    retrieval=evidence_recall(trajectory),
    format=float(not trajectory.fault_kinds & {*FORMAT_FAULTS}),
    retrievals=sum(len(done.plan.routes) for done in trajectory.rounds),
    tokens=trajectory.tokens,
    cut=trajectory.truncated_tokens,
  )
