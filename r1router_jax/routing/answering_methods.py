"""Ways to answer a question: the interface of all, and R1-Router's own.

The routing loop (see `router.py`) is the same for all methods: it plans,
searches and reads round by round, then asks for the final answer.  A method
decides which prompts it asks and how responses are parsed.  Baselines are in
`baselines/`.
"""

import dataclasses
import functools
from collections.abc import Sequence

from r1router_jax.common.records import Passage, Plan, Question, Step
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
      ValueError: if it cannot.
    """

  def fixed_plan(self, question: Question, n: int) -> Plan | None:
    """Return the plan of round `n`, or None to ask the policy for it."""
    # The policy plans.
    return None

  def redirect_plan(self, question: Question, n: int, plan: Plan) -> Plan:
    """Return the plan to execute in round `n`, given the policy's own plan."""
    return plan

  def plan_prompt(
    self, config: PromptOptions, episode: Episode
  ) -> PendingPrompt:
    """Return the prompt for the next plan; an answer to it ends the episode."""
    raise NotImplementedError

  def answer_prompt(
    self,
    config: PromptOptions,
    episode: Episode,
    plan: Plan,
    passages: Sequence[Passage],
  ) -> PendingPrompt | None:
    """Return the prompt that reads passages, or None if this is not done."""
    raise NotImplementedError

  def final_prompt(
    self, config: PromptOptions, episode: Episode
  ) -> PendingPrompt:
    """Return the prompt for the answer to the question."""
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

  def plan_prompt(
    self, config: PromptOptions, episode: Episode
  ) -> PendingPrompt:
    """Return the prompt of a plan step."""
    step = episode.next_step("plan")
    parse = functools.partial(format.parse_plan, max_routes=config.max_routes)
    return PendingPrompt(episode, self.build_prompt(config, step), parse, step)

  def answer_prompt(
    self,
    config: PromptOptions,
    episode: Episode,
    plan: Plan,
    passages: Sequence[Passage],
  ) -> PendingPrompt:
    """Return the prompt of an answer step."""
    step = episode.next_step("answer", plan.sub_question, passages)
    prompt = self.build_prompt(config, step)
    return PendingPrompt(episode, prompt, format.parse_answer, step)

  def final_prompt(
    self, config: PromptOptions, episode: Episode
  ) -> PendingPrompt:
    """Return the prompt of the final step."""
    step = episode.next_step("final")
    prompt = self.build_prompt(config, step)
    return PendingPrompt(episode, prompt, format.parse_answer, step)
