"""Lists the reward presets that a config can name."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from r1router_jax.common.records import Answer, Plan, Step
from r1router_jax.metrics import answers
from r1router_jax.protocol import format

SHORT = 5  # Words; a gold no longer than this is met in full or not at all.


class Asked(NamedTuple):
  """What a plan is judged by.

  Attributes:
    sub_question, gold: texts whose embeddings are compared, or "" and "" where
      `similarity` is known without.
    similarity: of the two, where they are "".
    route: 1 if each route is accepted, else 0.
    searches: how many knowledge bases it asks.
  """

  sub_question: str
  gold: str
  similarity: float
  route: float
  searches: int


@dataclasses.dataclass(frozen=True)
class Rules:
  """How responses are read and judged; each answers None for malformed text.

  Plans are also told how many routes they may name.
  """

  plan: Callable[[Step, str, int], Asked | None]
  answer: Callable[[Step, str], float | None]
  format_weight: float  # w above.


def reference_plan(step: Step, text: str, most: int) -> Asked | None:
  """A plan as the reference reads it: the first of each tag, wherever."""
  del most
  found = _first_tags(text, format.PLAN_TAGS)
  if found is None:
    return None
  _, sub_question, names = found
  routes = [name.strip() for name in names.split(",")]
  known = {name.lower(): route for route, name in format.ROUTE_NAMES.items()}
  if not all(name in known for name in routes):
    return None
  if "none" in routes and len(routes) > 1:
    return None
  # Two routes are read, but never right; nor are later accepted ones.
  right = len(routes) == 1 and known[routes[0]] == step.routes[0]
  return Asked(
    sub_question,
    step.sub_question.lower(),
    0.0,
    float(right),
    len(routes) - routes.count("none"),
  )


def reference_answer(step: Step, text: str) -> float | None:
  """Recall; all or nothing where the gold is short or has variants."""
  found = _first_tags(text, format.ANSWER_TAGS)
  if found is None:
    return None
  recall = answers.score(found[1], step.answers).recall
  if len(step.answers) == 1 and len(step.answers[0].split(" ")) > SHORT:
    return recall
  return float(recall == 1)


def default_plan(step: Step, text: str, most: int) -> Asked | None:
  """A plan by the protocol; a stop is right or wrong, nothing between."""
  plan = format.parse_plan(text, most)
  if not isinstance(plan, Plan):
    return None
  route = float({*plan.routes} <= {*step.routes})
  gold_stops = step.sub_question.lower() == format.NONE.lower()
  if gold_stops or plan.route == "none":
    both = gold_stops and plan.route == "none"
    return Asked("", "", float(both), route, _searches(plan))
  return Asked(
    plan.sub_question, step.sub_question, 0.0, route, _searches(plan)
  )


def default_answer(step: Step, text: str) -> float | None:
  """F1 against the best variant; all or nothing where that one is short."""
  answer = format.parse_answer(text)
  if not isinstance(answer, Answer):
    return None
  best = 0.0
  for gold in step.answers:
    f1 = answers.score(answer.text, [gold]).f1
    short = len(gold.split()) <= SHORT
    best = max(best, float(f1 == 1) if short else f1)
  return best


REWARDS = {
  "reference": Rules(reference_plan, reference_answer, format_weight=0.0),
  "default": Rules(default_plan, default_answer, format_weight=0.1),
}


def _searches(plan: Plan) -> int:
  return 0 if plan.route == "none" else len(plan.routes)


def _first_tags(text: str, tags: Sequence[str]) -> list[str] | None:
  """What the first pair of each tag holds, lower-cased, in any order."""
  text, found = text.lower(), []
  for tag in tags:
    _, opened, rest = text.partition(f"<{tag}>")
    inside, closed, _ = rest.partition(f"</{tag}>")
    if not (opened and closed):
      return None
    found.append(inside.strip())
  return found
