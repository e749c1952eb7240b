"""Reward presets: how responses are read and compared with the gold.

A preset reads plans and answers; `step_reward.StepReward` turns what was read
into rewards.

"reference" is what R1-Router executes: tags are read laxly, only the first
accepted route counts, stopping is compared as the word "none", answers are
compared by recall, and a good format earns nothing by itself.  A list of every
candidate thus earns 1, and stopping where one should search can still earn the
sub-question's half.

"default" mends that: tags are read by `protocol.format`, any accepted route
counts, a stop is right or wrong, answers are compared by F1, by the default
rules of `metrics.answers`, and a good format earns 0.1.  A plan that may name
several routes is right if each of them is accepted: a second accepted one earns
nothing more, and one that is not accepted loses the route's half.

`Step.answers` are spellings of one gold.  The reference's rule for several
golds, all or nothing whatever their length, is applied to them unchanged.

Source: arxiv.org/abs/2505.22095 (R1-Router), its reward_score/step.py.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from r1router_jax.common.records import Answer, Plan, Step
from r1router_jax.metrics import answers
from r1router_jax.protocol import format

# A gold of at most this many words has to be met in full.
SHORT_GOLD_WORDS = 5


class PlanScoreInputs(NamedTuple):
  """The parts of a plan that its score depends on.

  The sub-questions are to be compared by their embeddings; both are "" if
  `similarity`, else unused, is known without.
  """

  sub_question: str
  gold_sub_question: str
  similarity: float
  route: float  # 1 if each route of the plan is accepted, else 0.
  searches: int  # Knowledge bases that the plan searches.


@dataclasses.dataclass(frozen=True)
class RewardPreset:
  """The functions that read and score responses, and the reward of a format.

  They return None if the text is malformed; answers score in [0, 1], and plans
  may name a number of routes.
  """

  score_plan: Callable[[Step, str, int], PlanScoreInputs | None]
  score_answer: Callable[[Step, str], float | None]
  format_weight: float  # Of any well-formed response, w of `step_reward`.


def score_reference_plan(
  step: Step, text: str, max_routes: int
) -> PlanScoreInputs | None:
  """Score a plan as the reference does, by the first of each tag anywhere."""
  del max_routes
  contents = _first_tags(text, format.PLAN_TAGS)
  if contents is None:
    return None
  _, sub_question, names = contents
  # Every name has to be known, and "none" stands alone.
  routes = [name.strip() for name in names.split(",")]
  known = {name.lower(): route for route, name in format.ROUTE_NAMES.items()}
  if not known.keys() >= set(routes) or ("none" in routes and len(routes) > 1):
    return None
  # Two routes are well formed, but never right; nor are later accepted ones.
  right = float(len(routes) == 1 and known[routes[0]] == step.routes[0])
  gold, searches = step.sub_question.lower(), len(routes) - routes.count("none")
  return PlanScoreInputs(sub_question, gold, 0.0, right, searches)


def score_reference_answer(step: Step, text: str) -> float | None:
  """Score an answer by recall, or 0 and 1 for a gold short or with variants."""
  contents = _first_tags(text, format.ANSWER_TAGS)
  if contents is None:
    return None
  recall = answers.score_answer(contents[1], step.answers).recall
  # Words are split at single spaces, as in the reference.
  words = len(step.answers[0].split(" "))
  if len(step.answers) == 1 and words > SHORT_GOLD_WORDS:
    return recall
  return float(recall == 1)


def score_default_plan(
  step: Step, text: str, max_routes: int
) -> PlanScoreInputs | None:
  """Score a plan of the protocol; to stop or not is either right or wrong."""
  plan = format.parse_plan(text, max_routes)
  if not isinstance(plan, Plan):
    return None
  # A plan that stops has no routes, where the gold of a stop says "none".
  route = float({*(plan.routes or ("none",))} <= {*step.routes})
  gold_stops = step.sub_question.lower() == format.NONE.lower()
  compared, similarity = (plan.sub_question, step.sub_question), 0.0
  if gold_stops or not plan.routes:
    # There is no sub-question to compare where either of the two stops.
    compared = "", ""
    similarity = float(gold_stops and not plan.routes)
  return PlanScoreInputs(*compared, similarity, route, len(plan.routes))


def score_default_answer(step: Step, text: str) -> float | None:
  """Score an answer by F1 with the best variant; by 0 or 1 if that is short."""
  answer = format.parse_answer(text)
  if not isinstance(answer, Answer):
    return None
  # Each variant is compared on its own terms: short ones in full.
  best = 0.0
  for gold in step.answers:
    f1 = answers.score_default(answer.text, [gold]).f1
    short = len(gold.split()) <= SHORT_GOLD_WORDS
    best = max(best, float(f1 == 1) if short else f1)
  return best


REWARD_PRESETS = {
  "reference": RewardPreset(score_reference_plan, score_reference_answer, 0.0),
  "default": RewardPreset(score_default_plan, score_default_answer, 0.1),
}


def _first_tags(text: str, tags: Sequence[str]) -> list[str] | None:
  """Return the lower-cased content of the first pair of each tag, or None.

  The tags may come in any order, with any text between them.
  """
  text, contents = text.lower(), []
  for tag in tags:
    # partition leaves `opened` or `closed` empty where the tag is missing.
    _, opened, rest = text.partition(f"<{tag}>")
    content, closed, _ = rest.partition(f"</{tag}>")
    if not (opened and closed):
      return None
    contents.append(content.strip())
  return contents
