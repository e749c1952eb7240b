"""Renders and parses the tagged text that a policy writes."""

import re
from collections.abc import Sequence

from r1router_jax.common.records import Answer, Malformed, Plan
from r1router_jax.protocol.messages import neutralise

ROUTE_NAMES = {
  "text": "Text Retriever",
  "image": "Text Image Retriever",
  "table": "Table Retriever",
  "none": "None",
}

NONE = "None"  # The sub-question of a plan that asks nothing more.

PLAN_TAGS = ("think", "sub-question", "ret")

ANSWER_TAGS = ("think", "answer")

MAX_SUB_QUESTION = 512  # In characters; the rest is cut, as in a search box.

MAX_ANSWER = 2048  # In characters.


_TAG = re.compile(r"</?(?:think|sub-question|ret|answer)>", re.IGNORECASE)

_ROUTES = {name.lower(): route for route, name in ROUTE_NAMES.items()}


def route_names(plan: Plan) -> str:
  """The routes of a plan as a policy should write them."""
  return ", ".join(ROUTE_NAMES[route] for route in plan.routes)


def render_plan(plan: Plan) -> str:
  """The text a policy should write for `plan`."""
  return _render(
    PLAN_TAGS, (plan.thought, plan.sub_question, route_names(plan))
  )


def render_answer(answer: Answer) -> str:
  """The text a policy should write for `answer`."""
  return _render(ANSWER_TAGS, (answer.thought, answer.text))


def parse_plan(text: str, routes: int = 1) -> Plan | Malformed:
  """Reads the response to a plan step, which names at most `routes` routes."""
  parts = _parse(text, PLAN_TAGS)
  if isinstance(parts, str):
    return Malformed(text, parts)
  thought, sub_question, names = parts
  route, *also = named = [
    _ROUTES.get(name.strip()) for name in names.lower().split(",")
  ]
  several = (
    len(named) > routes
    or len({*named}) < len(named)
    or (also and "none" in named)
  )
  if several or None in named:
    fault = "several routes" if several else "unknown route"
    most = (
      "one of"
      if routes == 1
      else (f"up to {routes} of, each once and {NONE} alone")
    )
    known = ", ".join(ROUTE_NAMES.values())
    return Malformed(text, f"{fault} {names[:60]!r}; write {most}: {known}")
  if not sub_question:
    return Malformed(text, "the sub-question is empty")
  stops = sub_question.lower() == NONE.lower()
  if stops != (route == "none"):
    return Malformed(
      text,
      f"sub-question {sub_question[:60]!r} goes with route "
      f"{ROUTE_NAMES[route]!r}; both are None, or neither",
    )
  return Plan(
    thought,
    NONE if stops else sub_question[:MAX_SUB_QUESTION],
    route,
    tuple(also),
  )


def parse(kind: str, text: str, routes: int = 1) -> Plan | Answer | Malformed:
  """Reads the response to a step of any kind; see `parse_plan`."""
  return parse_plan(text, routes) if kind == "plan" else parse_answer(text)


def parse_answer(text: str) -> Answer | Malformed:
  """Reads the response to an answer or final step."""
  parts = _parse(text, ANSWER_TAGS)
  if isinstance(parts, str):
    return Malformed(text, parts)
  thought, answer = parts
  if not answer:
    return Malformed(text, "the answer is empty")
  return Answer(thought, answer[:MAX_ANSWER])


def _render(tags: Sequence[str], texts: Sequence[str]) -> str:
  return "".join(
    f"<{tag}>{neutralise(text)}</{tag}>"
    for tag, text in zip(tags, texts, strict=True)
  )


def _parse(text: str, tags: Sequence[str]) -> list[str] | str:
  """What stands between each pair of tags, or the reason why it cannot be.

  White space is trimmed and runs of it become one space, so that no answer
  can pretend to be the next line of a prompt.
  """
  wanted = [form.format(tag) for tag in tags for form in ("<{}>", "</{}>")]
  found = [tag.lower() for tag in _TAG.findall(text)]
  if found != wanted:
    shown = " ".join(found[:8]) or "none"
    return f"tags are {shown}; wanted {' '.join(wanted)}"
  pieces = [" ".join(piece.split()) for piece in _TAG.split(text)]
  if any(pieces[::2]):
    return "text stands outside the tags"
  return pieces[1::2]
