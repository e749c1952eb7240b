"""A trajectory in the making: what the routing loop remembers of a question."""

import dataclasses
import re

from r1router_jax.common.records import (
  CUT_SHORT,
  Answer,
  Malformed,
  Plan,
  Question,
  Round,
  Step,
  Trajectory,
)
from r1router_jax.protocol import format

_TAGS = re.compile(
  "</?(?:" + "|".join({*format.PLAN_TAGS, *format.ANSWER_TAGS}) + ")>",
  re.IGNORECASE,
)


@dataclasses.dataclass
class Walk:
  """Where a question is.

  Attributes:
    question: what was asked.
    rounds: those that are done.
    final: the last step, once it is done.
    faults, tokens, cut: see `records.Trajectory`.
    planning: whether another round may follow.
  """

  question: Question
  rounds: list[Round] = dataclasses.field(default_factory=list)
  final: Answer | Malformed | None = None
  faults: list[str] = dataclasses.field(default_factory=list)
  tokens: int = 0
  cut: int = 0
  planning: bool = True

  def step(self, kind: str, **of) -> Step:
    """What it asks of the policy next."""
    return Step(
      f"{self.question.id}/{len(self.rounds)}",
      kind,
      self.question,
      tuple(
        (done.plan.sub_question, _words(done.answer)) for done in self.rounds
      ),
      **of,
    )

  def fault(self, kind: str, reason: str) -> None:
    if f"{kind}: {reason}" not in self.faults:
      self.faults.append(f"{kind}: {reason}")
    if kind in CUT_SHORT:
      self.planning = False

  def goes_on(self, plan: Plan | Malformed) -> bool:
    """Whether the plan is to be carried out; else planning ends, and why."""
    if isinstance(plan, Malformed):
      if not self.unfit(plan.reason):
        self.fault("stuck", "no plan in all tries")
    elif plan.route == "none":
      self.planning = False
    elif self.repeats(plan):
      self.fault("repeated", plan.sub_question)
    return self.planning

  def unfit(self, reason: str) -> bool:
    """Whether the policy could not read a prompt, for this reason."""
    return f"input: {reason}" in self.faults

  def repeats(self, plan: Plan) -> bool:
    """Whether the same was asked of the same knowledge bases before."""
    return _asked(plan) in {_asked(done.plan) for done in self.rounds}

  def trajectory(self) -> Trajectory:
    return Trajectory(
      self.question,
      tuple(self.rounds),
      self.final,
      tuple(self.faults),
      self.tokens,
      self.cut,
    )


def _asked(plan: Plan) -> tuple[str, frozenset[str]]:
  return plan.sub_question.casefold(), frozenset(plan.routes)


def _words(answer: Answer | Malformed) -> str:
  if isinstance(answer, Answer):
    return answer.text
  bare = " ".join(_TAGS.sub(" ", answer.text).split())
  return bare[: format.MAX_ANSWER]
