"""Ways to answer a question: the interface of all, and R1-Router's own.

The routing loop (see `router.py`) is the same for all methods: it plans,
searches and reads round by round, then asks for the final answer.  A method
decides which prompts it asks and how responses are parsed.

`AlwaysRoute`, `RandomRoute` and `OracleRoute` are R1-Router with another one
choosing the routes in the policy's place.  Passages are read, and final answers
given, by the same policy, so that they differ in their routes alone.  Baselines
with prompts of their own are in `baselines/`.
"""

import dataclasses
import functools
import zlib

import numpy as np

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS, Plan, Question, Step
from r1router_jax.policy.config import PromptOptions
from r1router_jax.protocol import format
from r1router_jax.protocol.messages import Conversation
from r1router_jax.routing.episode import Episode
from r1router_jax.routing.policy_requests import PendingPrompt

# The plan that searches nothing more.
STOP = Plan("", format.NONE, ())


@dataclasses.dataclass(frozen=True)
class AnsweringMethod:
  """The decisions of one method in the routing loop.

  Attributes:
    stop: texts that end a response, besides the end token.
    repairs_plans: whether a policy whose plan failed twice is shown its error.
  """

  stop: tuple[str, ...] = ()
  repairs_plans: bool = False

  def fixed_plan(self, question: Question, n: int) -> Plan | None:
    """Return the plan of round `n`, or None to ask the policy for it."""
    # The policy plans.
    return None

  def redirect_plan(self, question: Question, n: int, plan: Plan) -> Plan:
    """Return the plan to execute in round `n`, given the policy's search."""
    return plan

  def step_prompt(
    self, config: PromptOptions, episode: Episode, step: Step
  ) -> PendingPrompt | None:
    """Return the prompt of the next step, or None if passages are not read.

    An answer to the prompt of a plan ends the episode.

    Raises:
      UserError: if a policy of this config cannot be asked.
    """
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class R1Router(AnsweringMethod):
  """R1-Router: the policy plans, reads and answers by the protocol's prompts.

  An answer step sees its sub-question and passages alone, plan and final steps
  the question with all sub-questions and answers.
  """

  # Only its own protocol has words for a repair.
  repairs_plans: bool = True

  def build_prompt(self, config: PromptOptions, step: Step) -> Conversation:
    """Return the prompt of a step."""
    return config.build_prompt(step)

  def step_prompt(
    self, config: PromptOptions, episode: Episode, step: Step
  ) -> PendingPrompt:
    """Return the prompt of a step, which is reported with its responses."""
    limit = dict(max_routes=config.max_routes)
    parse = functools.partial(format.parse_response, step.kind, **limit)
    return PendingPrompt(episode, self.build_prompt(config, step), parse, step)


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

  @staticmethod
  def check_question(question: Question) -> None:
    """Raise a UserError for a question without a gold trace."""
    if question.hops is None:
      raise UserError(
        f"Question {question.id!r} has no gold trace, so nobody knows its "
        "routes: leave the method oracle_route out, or ask questions with hops."
      )

  def fixed_plan(self, question: Question, n: int) -> Plan | None:
    """Stop after the last gold hop; until then the policy plans."""
    self.check_question(question)
    return STOP if n >= len(question.hops) else None

  def redirect_plan(self, question: Question, n: int, plan: Plan) -> Plan:
    """Return the plan with the preferred gold route."""
    return dataclasses.replace(plan, routes=question.hops[n].routes[:1])
