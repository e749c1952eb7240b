"""R1-Router with another one choosing the routes in the policy's place.

Passages are read, and final answers given, by the same policy, so that these
baselines differ from R1-Router in their routes alone.
"""

import dataclasses
import zlib

import numpy as np

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS, Plan, Question
from r1router_jax.protocol import format
from r1router_jax.routing.answering_methods import STOP, R1Router


@dataclasses.dataclass(frozen=True)
class AlwaysRoute(R1Router):
  """Ask each of `kbs` once, in a round of its own, with the question itself.

  All three cost three searches and three readings, and need `max_steps` of 3.

  Attributes:
    kbs: the knowledge bases, in the order of the rounds.
  """

  kbs: tuple[str, ...] = ()

  def fixed_plan(self, question: Question, n: int) -> Plan:
    """Return the question as a search of the next knowledge base."""
    if n == len(self.kbs):
      return STOP
    return Plan("", question.text[: format.MAX_SUB_QUESTION], (self.kbs[n],))


@dataclasses.dataclass(frozen=True)
class RandomRoute(R1Router):
  """Draw the knowledge base of each plan at random; the policy asks and stops.

  Attributes:
    seed: seed of the draws, which also depend on question and round.
  """

  seed: int = 0

  def redirect_plan(self, question: Question, n: int, plan: Plan) -> Plan:
    """Return the plan with a random route."""
    # CRC-32 and not `hash`, which differs from process to process.
    entropy = [self.seed, zlib.crc32(question.id.encode()), n]
    route = str(np.random.default_rng(entropy).choice(KBS))
    return dataclasses.replace(plan, routes=(route,))


@dataclasses.dataclass(frozen=True)
class OracleRoute(R1Router):
  """Take routes, and the time to stop, from the gold trace; the policy asks.

  A policy that stops too early does stop: there is no sub-question to send.
  """

  def fixed_plan(self, question: Question, n: int) -> Plan | None:
    """Stop after the last gold hop; until then the policy plans."""
    if question.hops is None:
      raise UserError(
        f"Question {question.id!r} has no gold trace, so nobody knows its "
        "routes: leave the method oracle_route out, or take GeoRouter."
      )
    return STOP if n >= len(question.hops) else None

  def redirect_plan(self, question: Question, n: int, plan: Plan) -> Plan:
    """Return the plan with the preferred gold route."""
    return dataclasses.replace(plan, routes=question.hops[n].routes[:1])
