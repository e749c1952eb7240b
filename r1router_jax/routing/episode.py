"""The state of one question while the routing loop runs."""

import dataclasses
from collections.abc import Sequence

from r1router_jax.common.records import (
  TERMINAL_FAULTS,
  Answer,
  Malformed,
  Passage,
  Plan,
  Question,
  Round,
  Step,
  Trajectory,
)
from r1router_jax.protocol import format


@dataclasses.dataclass
class Episode:
  """The mutable state of one question while the routing loop runs.

  Attributes:
    question: the question.
    member: index of this episode among those of its question.
    rounds: the rounds that are done.
    final: the response to the final step, once there is one.
    faults: see `records.Trajectory`.
    tokens: number of response tokens written so far.
    truncated_tokens: number of tokens cut off passages so far.
    planning: whether another round may follow.
  """

  question: Question
  member: int = 0
  rounds: list[Round] = dataclasses.field(default_factory=list)
  final: Answer | Malformed | None = None
  faults: list[str] = dataclasses.field(default_factory=list)
  tokens: int = 0
  truncated_tokens: int = 0
  planning: bool = True

  def next_step(
    self, kind: str, sub_question: str = "", passages: Sequence[Passage] = ()
  ) -> Step:
    """Return the step of the given kind that follows the rounds so far."""
    # Prompts show sub-questions and answers, never the passages.
    history = tuple(
      (done.plan.sub_question, _answer_text(done.answer))
      for done in self.rounds
    )
    return Step(
      f"{self.question.id}/{len(self.rounds)}",
      kind,
      self.question,
      history,
      sub_question=sub_question,
      passages=tuple(passages),
    )

  def record_fault(self, kind: str, reason: str) -> None:
    """Note a fault once, and end planning if the fault is a terminal one."""
    fault = f"{kind}: {reason}"
    if fault not in self.faults:
      self.faults.append(fault)
    if kind in TERMINAL_FAULTS:
      self.planning = False

  def redirect_repeat(self, plan: Plan, kinds: Sequence[str]) -> Plan:
    """Return a plan that repeats a search with a route that was not asked yet.

    Of the `kinds` of knowledge bases that there are the first such one is
    searched; any other plan stays as it is.
    """
    asked = plan.sub_question.casefold()
    done = {
      route
      for each in self.rounds
      if each.plan.sub_question.casefold() == asked
      for route in each.plan.routes
    }
    # Captions are found by an image, and texts and tables by words.
    left = [
      kind
      for kind in kinds
      if kind not in done and (kind != "image" or self.question.image)
    ]
    if not plan.routes or not done.issuperset(plan.routes) or not left:
      return plan
    repeated = " and ".join(plan.routes)
    self.record_fault("route", f"{repeated} again, {left[0]} was searched")
    return dataclasses.replace(plan, routes=(left[0],))

  def accept_plan(self, plan: Plan | Malformed) -> bool:
    """Return whether to carry out the plan; if not, end planning."""
    if isinstance(plan, Malformed):
      # A prompt that could not be read has its fault already.
      if not self.prompt_was_rejected(plan.reason):
        self.record_fault("stuck", "no plan in all tries")
    elif not plan.routes:
      self.planning = False
    # The same search would find the same passages.
    elif _search_key(plan) in {_search_key(r.plan) for r in self.rounds}:
      self.record_fault("repeated", plan.sub_question)
    return self.planning

  def prompt_was_rejected(self, reason: str) -> bool:
    """Return whether the policy could not read a prompt for this reason."""
    return f"input: {reason}" in self.faults

  def to_trajectory(self) -> Trajectory:
    """Return a frozen copy for those who evaluate or store it."""
    return Trajectory(
      self.question,
      tuple(self.rounds),
      self.final,
      tuple(self.faults),
      self.tokens,
      self.truncated_tokens,
    )


def _search_key(plan: Plan) -> tuple[str, frozenset[str]]:
  # The order of the routes does not matter.
  return plan.sub_question.casefold(), frozenset(plan.routes)


def _answer_text(answer: Answer | Malformed) -> str:
  """Return an answer for the history: a malformed one without its tags."""
  if isinstance(answer, Answer):
    return answer.text
  # White space collapses, so that the answer stays on its line of the prompt.
  words = " ".join(format.TAG.sub(" ", answer.text).split())
  return words[: format.MAX_ANSWER]
