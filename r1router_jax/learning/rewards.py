"""Reward of one routing step: how good is a response to a gold step's prompt?

A plan step earns half for its sub-question and half for its route, an answer or
final step earns for its answer; a malformed response earns nothing:

  plan    core = 1/2 max(0, cos(sub-question, gold)) + 1/2 [route accepted]
  answer  core = a rule over the bags of tokens of `metrics.py`
  reward  = [well formed] max(0, w + (1 - w) core - c searches),   in [0, 1]

c is the cost of a search, 0 unless told otherwise; a plan that names several
routes makes several.

`REWARDS["reference"]` is what R1-Router executes: tags are read laxly, only the
first accepted route counts, stopping is compared as the word "none", answers
by recall, w = 0.  A list of every candidate thus earns 1, and stopping where
one should search half of the route's share or more.

`REWARDS["default"]` mends that: tags are read by `protocol`, any accepted route
counts, a stop is right or wrong, answers are compared by F1, w = 0.1.  A plan
that may name several routes is right where each of them is accepted: a second
accepted one earns nothing, and one that is not loses the first one's share.

Your own is a function of (steps, texts) to rewards [n], named module:function.

`Step.answers` are spellings of one gold.  The reference's rule for several
golds, all or nothing whatever their length, applies to them as it stands.

Axes:  n responses   E embedding.
Sources: arxiv.org/abs/2505.22095 (R1-Router), its reward_score/step.py.
"""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from r1router_jax import metrics, protocol
from r1router_jax.records import Answer, Plan, Query, Step
from r1router_jax.retrieval import embedders

# Texts to unit vectors, `[n, E]`: retrieval's embedder of queries.
Embedder = Callable[[list[str]], Float[np.ndarray, "n E"]]

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


@dataclasses.dataclass(frozen=True)
class Parts:
  """Rewards with what they are made of, NaN where a part does not apply."""

  total: Float[np.ndarray, " n"]
  well_formed: Float[np.ndarray, " n"]
  route: Float[np.ndarray, " n"]
  similarity: Float[np.ndarray, " n"]
  answer: Float[np.ndarray, " n"]
  searches: Float[np.ndarray, " n"]

  def means(self) -> dict[str, float]:
    """The mean of each part where it applies, for logs."""
    columns = vars(self).items()
    return {
        name: float(np.nanmean(column)) for name, column in columns
        if not np.all(np.isnan(column))}


def reference_plan(step: Step, text: str, most: int) -> Asked | None:
  """A plan as the reference reads it: the first of each tag, wherever."""
  del most
  found = _first_tags(text, protocol.PLAN_TAGS)
  if found is None:
    return None
  _, sub_question, names = found
  routes = [name.strip() for name in names.split(",")]
  known = {name.lower(): route for route, name in protocol.ROUTE_NAMES.items()}
  if not all(name in known for name in routes):
    return None
  if "none" in routes and len(routes) > 1:
    return None
  # Two routes are read, but never right; nor are later accepted ones.
  right = len(routes) == 1 and known[routes[0]] == step.routes[0]
  return Asked(sub_question, step.sub_question.lower(), 0.0, float(right),
               len(routes) - routes.count("none"))


def reference_answer(step: Step, text: str) -> float | None:
  """Recall; all or nothing where the gold is short or has variants."""
  found = _first_tags(text, protocol.ANSWER_TAGS)
  if found is None:
    return None
  recall = metrics.score(found[1], step.answers).recall
  if len(step.answers) == 1 and len(step.answers[0].split(" ")) > SHORT:
    return recall
  return float(recall == 1)


def default_plan(step: Step, text: str, most: int) -> Asked | None:
  """A plan by the protocol; a stop is right or wrong, nothing between."""
  plan = protocol.parse_plan(text, most)
  if not isinstance(plan, Plan):
    return None
  route = float({*plan.routes} <= {*step.routes})
  gold_stops = step.sub_question.lower() == protocol.NONE.lower()
  if gold_stops or plan.route == "none":
    both = gold_stops and plan.route == "none"
    return Asked("", "", float(both), route, _searches(plan))
  return Asked(
      plan.sub_question, step.sub_question, 0.0, route, _searches(plan))


def default_answer(step: Step, text: str) -> float | None:
  """F1 against the best variant; all or nothing where that one is short."""
  answer = protocol.parse_answer(text)
  if not isinstance(answer, Answer):
    return None
  best = 0.0
  for gold in step.answers:
    f1 = metrics.score(answer.text, [gold]).f1
    short = len(gold.split()) <= SHORT
    best = max(best, float(f1 == 1) if short else f1)
  return best


REWARDS = {
    "reference": Rules(reference_plan, reference_answer, format_weight=0.0),
    "default": Rules(default_plan, default_answer, format_weight=0.1),
}


@runtime_checkable
class Reward(Protocol):
  """What rewards responses to gold steps."""

  def parts(self, steps: Sequence[Step], texts: Sequence[str]) -> Parts: ...


class StepReward:
  """Rewards responses to gold steps; calls its embedder once per batch.

  Args:
    embedder: texts to unit vectors; gold sub-questions are embedded only once.
    preset: one of `REWARDS`.
    routes: how many routes a plan may name, see `settings.Settings`.
    search_cost: c above.
  """

  def __init__(self, embedder: Embedder, preset: str = "default",
               routes: int = 1, search_cost: float = 0.0):
    if preset not in REWARDS:
      raise ValueError(
          f"unknown reward {preset!r}; known: {', '.join(REWARDS)}, or "
          "module:function")
    self.rules, self._cost = REWARDS[preset], search_cost
    self._embedder, self._routes = embedder, routes
    self._golds: dict[str, np.ndarray] = {}

  def __call__(
      self, steps: Sequence[Step], texts: Sequence[str]
  ) -> Float[np.ndarray, " n"]:
    """The reward of each text as a response to its step."""
    return self.parts(steps, texts).total

  def parts(self, steps: Sequence[Step], texts: Sequence[str]) -> Parts:
    """The rewards, and what they are made of."""
    well_formed = np.zeros(len(texts))
    route, similarity, answer, searches = np.full((4, len(texts)), np.nan)
    pairs = {}  # Position of each plan whose sub-question is to be embedded.
    for n, (step, text) in enumerate(zip(steps, texts, strict=True)):
      plan = step.kind == "plan"
      if not (step.routes and step.sub_question if plan else step.answers):
        raise ValueError(f"{step.kind} step {step.id} has no gold to reward by")
      if plan:
        asked = self.rules.plan(step, text, self._routes)
        well_formed[n] = asked is not None
        similarity[n] = asked.similarity if asked else 0
        route[n] = asked.route if asked else 0
        searches[n] = asked.searches if asked else 0
        if asked and asked.gold:
          pairs[n] = asked
      else:
        earned = self.rules.answer(step, text)
        well_formed[n] = earned is not None
        answer[n] = earned or 0
    for n, cosine in self._cosines(pairs).items():
      similarity[n] = cosine
    core = np.where(np.isnan(answer), (similarity + route) / 2, answer)
    weight = self.rules.format_weight
    total = well_formed * np.maximum(0, weight + (1 - weight) * core
                                     - self._cost * np.nan_to_num(searches))
    return Parts(total, well_formed, route, similarity, answer, searches)

  def _cosines(self, pairs: dict[int, Asked]) -> dict[int, float]:
    asked = {pair.sub_question for pair in pairs.values()}
    golds = {pair.gold for pair in pairs.values()}
    new = sorted((asked | golds) - self._golds.keys())
    vectors = dict(zip(new, self._embed(new), strict=True)) | self._golds
    self._golds |= {gold: vectors[gold] for gold in golds}
    return {
        n: float(np.clip(vectors[pair.sub_question] @ vectors[pair.gold], 0, 1))
        for n, pair in pairs.items()}

  def _embed(self, texts: list[str]) -> Float[np.ndarray, "n E"]:
    if not texts:
      return np.zeros((0, 0), np.float32)
    vectors = np.asarray(self._embedder(texts), np.float32)
    norms = np.linalg.norm(vectors, axis=-1)
    # Cosines of such vectors would reward noise, without a word in the log.
    if not np.allclose(norms, 1, atol=1e-2):
      raise ValueError(
          f"the reward's embedder returned norms {norms.min():.3g} to "
          f"{norms.max():.3g}; it should return finite unit vectors")
    return vectors


class Own:
  """A user's reward, "module:function"; see the head of this module."""

  def __init__(self, name: str):
    module, _, function = name.partition(":")
    try:
      self._reward = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
      raise ValueError(f"The reward {name!r} cannot be imported ({error}).  "
                       "Write module:function, as Python finds it.") from error
    self._name = name

  def parts(self, steps: Sequence[Step], texts: Sequence[str]) -> Parts:
    """The rewards; what they are made of is not known."""
    total = np.asarray(self._reward(steps, texts), np.float64)
    if total.shape != (len(texts),) or not np.isfinite(total).all():
      raise ValueError(f"The reward {self._name} gave {total.shape} numbers; "
                       f"wanted {len(texts)} finite ones.")
    unknown = np.full(len(texts), np.nan)
    return Parts(total, *[unknown] * (len(dataclasses.fields(Parts)) - 1))


def make(name: str, routes: int = 1, search_cost: float = 0.0) -> Reward:
  """The reward of a run; similarities are those of the package's text encoder.

  Args:
    name: one of `REWARDS`, or "module:function", which knows of no cost.
    routes, search_cost: see `StepReward`.
  """
  if ":" in name:
    if search_cost:
      raise ValueError(f"The reward {name} is your own, and so are its costs: "
                       "set config.step_grpo.search_cost=0.")
    return Own(name)
  embed = embedders.minilm()
  return StepReward(lambda texts: embed([Query(text) for text in texts]), name,
                    routes, search_cost)


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
