"""Ways to answer a question: the interface of all, and R1-Router's own.

The routing loop (see `router.py`) is the same for all methods: it plans,
searches and reads round by round, then asks for the final answer.  A method
decides which prompts it asks and how responses are parsed.  Baselines are in
`baselines/`.
"""

import dataclasses
import functools

from r1router_jax.common.records import Plan, Question, Step
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

  def check_config(self, config: PromptOptions) -> None:
    """Check that a policy of this config can be asked.

    Raises:
      UserError: if it cannot.
    """

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
    parse = functools.partial(
      format.parse_response, step.kind, max_routes=config.max_routes
    )
    return PendingPrompt(episode, self.build_prompt(config, step), parse, step)
