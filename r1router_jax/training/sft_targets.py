"""What a supervised start teaches: a response to each gold step.

Demonstrations may also come from a teacher that does not know when to stop:
where the answer is known it asks again.  (Of R1-Router's 119 published rows 66
spend all three retrievals, and 54 repeat a sub-question.)  Where a row keeps
what its teacher wrote, that is taught, thoughts and all.
"""

import re

import numpy as np

from r1router_jax.common.records import KBS, Answer, Malformed, Plan, Step
from r1router_jax.protocol import format

THOUGHTS = {
  "text": "look in the text",
  "image": "look at the picture",
  "table": "look in the table",
  "none": "enough is known",
}

READING = "it says so"  # The passages hold the answer.

# R1-Router's rows keep no thoughts, nor whether passages hold the answer.
UNTOLD = "answer from what is given"


def demonstration(step: Step) -> str:
  """The response that the warm start teaches for a step.

  Its white space is that which the parser leaves.

  Raises:
    ValueError: where a teacher's response is not of the protocol.
  """
  if step.response:
    return _taught(step)
  if step.kind == "plan":
    return format.render_plan(
      Plan(THOUGHTS[step.routes[0]], _line(step.sub_question), step.routes[0])
    )
  return format.render_answer(Answer(_reading(step), _line(step.answers[0])))


def _taught(step: Step) -> str:
  """What its teacher wrote."""
  said = format.parse(step.kind, step.response, routes=len(KBS))
  if isinstance(said, Malformed):
    raise ValueError(
      f"Step {step.id}: the response {said.text!r:.60} is not "
      f"of the protocol ({said.reason}).  Leave it out."
    )
  return (format.render_plan if step.kind == "plan" else format.render_answer)(
    said
  )


def overasking(step: Step, rng: np.random.Generator) -> str:
  """Asks the last sub-question again, of a knowledge base that cannot tell.

  Raises:
    ValueError: where the step does not say which can.
  """
  if not step.question.hops:
    raise ValueError(
      f"Step {step.id} has no gold hops, so nobody knows which knowledge "
      "base cannot tell: set config.sft.overask to 0."
    )
  known = step.question.hops[len(step.history) - 1].routes
  route = str(rng.choice([kb for kb in KBS if kb not in known]))
  return format.render_plan(Plan(THOUGHTS[route], step.history[-1][0], route))


def _reading(step: Step) -> str:
  """What an answer rests on: the value to check, or two, the larger first."""
  if not step.question.hops and (step.history or step.kind == "answer"):
    return UNTOLD
  values = [answer for _, answer in step.history]
  if step.kind == "final" and len(values) == 2:
    numbers = [_number(value) for value in values]
    if None not in numbers:
      low, high = sorted(zip(numbers, values, strict=True))
      return f"{high[1]} > {low[1]}"
  if (
    step.kind == "final"
    and len(values) == 1
    and step.answers[0] in ("yes", "no")
  ):
    return f"it is {values[0]}"
  return READING


def _line(text: str) -> str:
  return " ".join(text.split())


def _number(text: str) -> float | None:
  plain = text.replace(",", "")
  return float(plain) if re.fullmatch(r"\d+(\.\d+)?", plain) else None
