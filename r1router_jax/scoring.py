"""What trajectories are worth: a number per question and column.

  recall      recall of the final answer, the "F1-Recall" of the paper
  f1, exact   of the final answer, see metrics.py; malformed counts as 0
  route       share of its plan positions at which the route was accepted
  format      1 where every response was of the protocol
  retrievals  searches: each round's, one per route that its plan named
  tokens      written in all responses
  cut         tokens that passages lost so that answer prompts fitted

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

from r1router_jax import metrics
from r1router_jax.records import Answer, Trajectory

# Kinds of fault, see router.py.
CUT_SHORT = ("stuck", "repeated", "input")  # They end planning.
FORMAT = ("plan", "answer", "final")  # Responses not of the protocol.

RATES = ("recall", "f1", "exact", "route", "format")  # In [0, 1].
COUNTS = ("retrievals", "tokens", "cut")

Columns = dict[str, Float[np.ndarray, " N"]]


def score(trajectories: Sequence[Trajectory], *, max_steps: int) -> Columns:
  """All columns, a number per trajectory."""
  rows = [_score(trajectory, max_steps) for trajectory in trajectories]
  return {name: np.array([row[name] for row in rows], np.float64)
          for name in (*RATES, *COUNTS)}


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
  return [bool(named) and {*named} <= {*routes}
          for named, routes in zip(chosen, accepted, strict=True)]


def _score(trajectory: Trajectory, max_steps: int) -> dict[str, float]:
  final = trajectory.final
  text = final.text if isinstance(final, Answer) else ""
  scores = metrics.score(text, trajectory.question.answers)
  kinds = {fault.partition(":")[0] for fault in trajectory.faults}
  return dict(
      recall=scores.recall, f1=scores.f1, exact=scores.exact,
      route=float(np.mean(routes_right(trajectory, max_steps))),
      format=float(not kinds & {*FORMAT}),
      retrievals=sum(len(done.plan.routes) for done in trajectory.rounds),
      tokens=trajectory.tokens, cut=trajectory.cut)
