"""Who decides on the next route: the policy, or a baseline in its place.

The passages of a baseline are read, and its final answer given, by the same
policy, so that methods differ in their routes alone.
"""

import dataclasses
import zlib
from collections.abc import Callable

import numpy as np

from r1router_jax.common.records import KBS, Plan, Question
from r1router_jax.protocol import format

STOP = Plan("", format.NONE, "none")


@dataclasses.dataclass(frozen=True)
class Planner:
  """Who decides on a route; by default the policy.

  Attributes:
    fixed: (question, round) -> the plan, or None to have the policy write it.
    redirect: (question, round, the policy's plan) -> the plan to execute.
  """

  fixed: Callable[[Question, int], Plan | None] = lambda question, n: None
  redirect: Callable[[Question, int, Plan], Plan] = lambda question, n, plan: (
    plan
  )


def always(*kbs: str) -> Planner:
  """Asks each of `kbs` once, in a round of its own, with the question itself.

  So all three cost three retrievals and three readings, and need `max_steps`
  of 3.
  """

  def fixed(question, n):
    if n == len(kbs):
      return STOP
    return Plan("", question.text[: format.MAX_SUB_QUESTION], kbs[n])

  return Planner(fixed)


def random_route(seed: int) -> Planner:
  """The policy asks, or stops; chance says which knowledge base is asked."""

  def redirect(question, n, plan):
    if plan.route == "none":
      return plan
    rng = np.random.default_rng([seed, zlib.crc32(question.id.encode()), n])
    return dataclasses.replace(plan, route=str(rng.choice(KBS)), also=())

  return Planner(redirect=redirect)


def oracle_route() -> Planner:
  """The policy asks; the gold trace says where, and when it is enough.

  A policy that stops too early does stop: there is no sub-question to send.
  """

  def fixed(question, n):
    if question.hops is None:
      raise ValueError(
        f"Question {question.id!r} has no gold trace, so nobody knows its "
        "routes: leave the method oracle_route out, or take GeoRouter."
      )
    return STOP if n >= len(question.hops) else None

  def redirect(question, n, plan):
    if plan.route == "none":
      return plan
    return dataclasses.replace(plan, route=question.hops[n].routes[0], also=())

  return Planner(fixed, redirect)
