"""The targets of supervised fine-tuning: a response to each gold step.

Targets are written from the gold, or are the responses of the teacher where a
row holds them, thoughts included.  `overask_target` imitates a teacher that
does not know when to stop and asks again although the answer is known.  (Of
R1-Router's 119 published rows 66 use all three retrievals, and 54 repeat a
sub-question.)
"""

import re

import numpy as np

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS, Answer, Malformed, Plan, Step
from r1router_jax.protocol import format, thoughts


def sft_target(step: Step) -> str:
  """Return the response that the warm start teaches for a step.

  Its white space is normalised in the way that the parser does it.  A malformed
  response of a teacher raises UserError.
  """
  # A published row holds what its teacher wrote.
  if step.response:
    return _teacher_target(step)
  if step.kind == "plan":
    # Of several accepted routes the first is taught.
    route = step.routes[0]
    sub_question = _join_lines(step.sub_question)
    routes = () if route == "none" else (route,)
    return format.render_plan(Plan(thoughts.PLAN[route], sub_question, routes))
  answer = Answer(_answer_thought(step), _join_lines(step.answers[0]))
  return format.render_answer(answer)


def _teacher_target(step: Step) -> str:
  """Return the teacher's response, parsed and rendered again."""
  # As many routes as there are knowledge bases: the teacher may name several.
  parsed = format.parse_response(step.kind, step.response, max_routes=len(KBS))
  if isinstance(parsed, Malformed):
    raise UserError(
      f"Step {step.id}: the response {parsed.text!r:.60} is not "
      f"of the protocol ({parsed.reason}).  Leave it out."
    )
  if step.kind == "plan":
    return format.render_plan(parsed)
  return format.render_answer(parsed)


def overask_target(step: Step, rng: np.random.Generator) -> str:
  """Return a plan that asks the last sub-question again, of a wrong KB.

  The gold of the step is to stop.  If it does not say which knowledge bases
  hold the answer, the error is a UserError.
  """
  if not step.question.hops:
    raise UserError(
      f"Step {step.id} has no gold hops, so nobody knows which knowledge "
      "base cannot tell: set config.sft.overask_prob to 0."
    )
  # The hop whose sub-question was answered last.
  known = step.question.hops[len(step.history) - 1].routes
  route = str(rng.choice([kb for kb in KBS if kb not in known]))
  sub_question, _ = step.history[-1]
  return format.render_plan(Plan(thoughts.PLAN[route], sub_question, (route,)))


def _answer_thought(step: Step) -> str:
  """Return the thought before an answer, with the values that it rests on.

  A comparison names both values, the larger one first; a check of one value
  names it; any other answer is read from the passages.
  """
  # Rows without gold hops do not tell what their answers rest on.
  if not step.question.hops and (step.history or step.kind == "answer"):
    return thoughts.GIVEN
  values = [answer for _, answer in step.history]
  if step.kind == "final" and len(values) == 2:
    # A comparison of two looked-up numbers.
    numbers = [_parse_number(value) for value in values]
    if None not in numbers:
      (_, low), (_, high) = sorted(zip(numbers, values, strict=True))
      return f"{high} > {low}"
  # A check of one looked-up value.
  yes_no = step.answers[0] in ("yes", "no")
  if step.kind == "final" and len(values) == 1 and yes_no:
    return f"it is {values[0]}"
  return thoughts.READ


def _join_lines(text: str) -> str:
  return " ".join(text.split())


def _parse_number(text: str) -> float | None:
  plain = text.replace(",", "")
  return float(plain) if re.fullmatch(r"\d+(\.\d+)?", plain) else None
