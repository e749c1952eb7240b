"""Render and parse the tagged text that a policy writes.

A plan step writes

  <think>..</think><sub-question>..</sub-question><ret>Table Retriever</ret>

and an answer step or the final step `<think>..</think><answer>..</answer>`.
"""

import re
from collections.abc import Sequence

from r1router_jax.common.records import Answer, Malformed, Plan
from r1router_jax.protocol.messages import escape_control_tags

# The name under which a plan names each knowledge base; "none" asks nothing.
ROUTE_NAMES = {
  "text": "Text Retriever",
  "image": "Text Image Retriever",
  "table": "Table Retriever",
  "none": "None",
}

NONE = "None"  # The sub-question of a plan that asks nothing more.

PLAN_TAGS = ("think", "sub-question", "ret")

ANSWER_TAGS = ("think", "answer")

# Longer texts are cut, as a search box does, so that prompts stay bounded.
MAX_SUB_QUESTION = 512  # In characters.

MAX_ANSWER = 2048  # In characters.

# Any tag of the protocol, in any case.
TAG = re.compile(r"</?(?:think|sub-question|ret|answer)>", re.IGNORECASE)

_OPENING_TAG = re.compile(r"<(?:think|sub-question|ret|answer)>")

_ROUTES = {name.lower(): route for route, name in ROUTE_NAMES.items()}


def route_names(plan: Plan) -> str:
  """Return the routes of a plan as a policy should write them."""
  return ", ".join(ROUTE_NAMES[route] for route in plan.routes or ("none",))


def render_plan(plan: Plan) -> str:
  """Return the text that a policy should write for `plan`."""
  texts = plan.thought, plan.sub_question, route_names(plan)
  return _render(PLAN_TAGS, texts)


def render_answer(answer: Answer) -> str:
  """Return the text that a policy should write for `answer`."""
  return _render(ANSWER_TAGS, (answer.thought, answer.text))


def space_tags(text: str) -> str:
  """Return a response with a space after each opening tag.

  Most tokenizers have other tokens for a name behind a space than behind a tag:
  with the space, what is copied from a passage has the passage's tokens.
  """
  return _OPENING_TAG.sub(r"\g<0> ", text)


def parse_plan(text: str, max_routes: int = 1) -> Plan | Malformed:
  """Parse the response to a plan step, which may name some routes.

  The plan is without routes if it asks nothing more.
  """
  parts = _split_at_tags(text, PLAN_TAGS)
  if isinstance(parts, str):
    return Malformed(text, parts)
  thought, sub_question, names = parts
  routes = _parse_routes(names, max_routes)
  if isinstance(routes, str):
    return Malformed(text, routes)
  if not sub_question:
    return Malformed(text, "the sub-question is empty")
  # A plan that stops says so twice: in its sub-question and in its route.
  stops = sub_question.lower() == NONE.lower()
  if stops != (routes == ("none",)):
    route, shown = ROUTE_NAMES[routes[0]], sub_question[:60]
    reason = f"sub-question {shown!r} goes with route {route!r}; both are None"
    return Malformed(text, f"{reason}, or neither")
  if stops:
    return Plan(thought, NONE, ())
  return Plan(thought, sub_question[:MAX_SUB_QUESTION], routes)


def parse_response(
  kind: str, text: str, max_routes: int = 1
) -> Plan | Answer | Malformed:
  """Parse the response to a step of any kind; see `parse_plan`."""
  return parse_plan(text, max_routes) if kind == "plan" else parse_answer(text)


def parse_answer(text: str) -> Answer | Malformed:
  """Parse the response to an answer step or to the final step."""
  parts = _split_at_tags(text, ANSWER_TAGS)
  if isinstance(parts, str):
    return Malformed(text, parts)
  thought, answer = parts
  if not answer:
    return Malformed(text, "the answer is empty")
  return Answer(thought, answer[:MAX_ANSWER])


def _render(tags: Sequence[str], texts: Sequence[str]) -> str:
  return "".join(
    f"<{tag}>{escape_control_tags(text)}</{tag}>"
    for tag, text in zip(tags, texts, strict=True)
  )


def _parse_routes(names: str, max_routes: int) -> tuple[str, ...] | str:
  """Return the keys of comma-separated route names, or why they are none."""
  routes = tuple(_ROUTES.get(name.strip()) for name in names.lower().split(","))
  # `None` stands for an unknown name from here on.
  has_repeats = len(set(routes)) < len(routes)
  stops_and_asks = len(routes) > 1 and "none" in routes
  if len(routes) > max_routes or has_repeats or stops_and_asks:
    fault = "several routes"
  elif None in routes:
    fault = "unknown route"
  else:
    return routes
  # The policy reads this reason when it is asked to repair its plan.
  limit = "one of"
  if max_routes > 1:
    limit = f"up to {max_routes} of, each once and {NONE} alone"
  known = ", ".join(ROUTE_NAMES.values())
  return f"{fault} {names[:60]!r}; write {limit}: {known}"


def _split_at_tags(text: str, tags: Sequence[str]) -> list[str] | str:
  """Return the text inside each pair of tags, or why there is no such text.

  White space is trimmed and runs of it become one space, so that no answer
  can pretend to be the next line of a prompt.
  """
  # Tags must be exactly those of the protocol, once each and in order.
  wanted = [form.format(tag) for tag in tags for form in ("<{}>", "</{}>")]
  found = [tag.lower() for tag in TAG.findall(text)]
  if found != wanted:
    shown = " ".join(found[:8]) or "none"
    return f"tags are {shown}; wanted {' '.join(wanted)}"
  pieces = [" ".join(piece.split()) for piece in TAG.split(text)]
  # Pieces alternate: outside of tags, inside, outside, ..
  if any(pieces[::2]):
    return "text stands outside the tags"
  return pieces[1::2]
