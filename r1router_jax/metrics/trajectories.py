"""What trajectories are worth: a number per question and column.

  recall      recall of the final answer, the "F1-Recall" of the paper
  f1, exact   of the final answer, see metrics.py; malformed counts as 0, unless
              its raw text is to be scored, as R1-Router does
  default_*   best recall, F1 and exact match by the default rules there
  route       share of its plan positions at which the route was accepted; NaN
              where nobody knows the gold trace
  retrieval   share of gold hops of which a passage with the answer was found,
              in whichever round; NaN where the gold trace names no passages
  format      1 where every response was of the protocol
  retrievals  searches: each round's, one per route that its plan named
  tokens      written in all responses
  cut         tokens that passages lost so that answer prompts fitted

Questions that are NaN in a column are no part of its mean: see `counted`.

Plan positions are those of the gold trace, one per hop and the stop after
them, or of the trajectory where that is longer: a needless round counts as
wrong, and so does a hop that was never planned.  With `max_steps` hops there
is no stop to choose.  Only a stop that the planner chose is a stop; planning
cut short by a fault is not.  A plan that names several routes is right where
each of them is accepted: what it asks beyond the first costs a retrieval, and
never earns more.

Axes:  N questions
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from r1router_jax.common.records import CUT_SHORT, FORMAT, Answer, Trajectory
from r1router_jax.metrics import answers

RATES = (  # In [0, 1].
  "recall",
  "f1",
  "exact",
  "default_recall",
  "default_f1",
  "default_exact",
  "route",
  "retrieval",
  "format",
)

COUNTS = ("retrievals", "tokens", "cut")


Columns = dict[str, Float[np.ndarray, " N"]]


def score(
  trajectories: Sequence[Trajectory], *, max_steps: int, raw: bool = False
) -> Columns:
  """All columns, a number per trajectory; `raw` scores malformed answers."""
  rows = [_score(trajectory, max_steps, raw) for trajectory in trajectories]
  return {
    name: np.array([row[name] for row in rows], np.float64)
    for name in (*RATES, *COUNTS)
  }


def counted(column: Float[np.ndarray, " N"]) -> Float[np.ndarray, " M"]:
  """The numbers of the questions that a column is about."""
  return column[~np.isnan(column)]


def of(columns: Columns, n: int) -> dict[str, float]:
  """What question `n` scored, for a row of JSON; a NaN is left out."""
  return {
    name: float(column[n])
    for name, column in columns.items()
    if not np.isnan(column[n])
  }


def found_evidence(trajectory: Trajectory) -> float:
  """Share of gold hops with evidence of which some was found, or NaN."""
  seen = {p.id for done in trajectory.rounds for p in done.passages}
  hops = [hop for hop in trajectory.question.hops or () if hop.evidence]
  if not hops:
    return float("nan")
  return float(np.mean([bool(seen & {*hop.evidence}) for hop in hops]))


def routes_right(trajectory: Trajectory, max_steps: int) -> list[bool]:
  """Whether all routes were accepted, at each plan position."""
  accepted = [hop.routes for hop in trajectory.question.hops][:max_steps]
  chosen = [done.plan.routes for done in trajectory.rounds]
  kinds = {fault.partition(":")[0] for fault in trajectory.faults}
  if len(chosen) < max_steps and not kinds & {*CUT_SHORT}:
    chosen.append(("none",))
  if len(accepted) < max_steps:
    accepted.append(("none",))
  length = max(len(accepted), len(chosen))
  accepted += [("none",)] * (length - len(accepted))
  chosen += [()] * (length - len(chosen))
  return [
    bool(named) and {*named} <= {*routes}
    for named, routes in zip(chosen, accepted, strict=True)
  ]


def _score(
  trajectory: Trajectory, max_steps: int, raw: bool
) -> dict[str, float]:
  final = trajectory.final
  text = final.text if raw or isinstance(final, Answer) else ""
  question = trajectory.question
  scores, default = (
    rules(text, question.answers, question.interval)
    for rules in (answers.score, answers.score_default)
  )
  kinds = {fault.partition(":")[0] for fault in trajectory.faults}
  return dict(
    recall=scores.recall,
    f1=scores.f1,
    exact=scores.exact,
    default_recall=default.max_recall,
    default_f1=default.f1,
    default_exact=default.exact,
    route=float("nan")
    if question.hops is None
    else float(np.mean(routes_right(trajectory, max_steps))),
    retrieval=found_evidence(trajectory),
    format=float(not kinds & {*FORMAT}),
    retrievals=sum(len(done.plan.routes) for done in trajectory.rounds),
    tokens=trajectory.tokens,
    cut=trajectory.truncated_tokens,
  )
