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
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from r1router_jax.common.records import Query, Step
from r1router_jax.retrieval.encoders import registry
from r1router_jax.rewards.presets import REWARDS, Asked

# Texts to unit vectors, `[n, E]`: retrieval's embedder of queries.
Embedder = Callable[[list[str]], Float[np.ndarray, "n E"]]


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
      name: float(np.nanmean(column))
      for name, column in columns
      if not np.all(np.isnan(column))
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

  def __init__(
    self,
    embedder: Embedder,
    preset: str = "default",
    routes: int = 1,
    search_cost: float = 0.0,
  ):
    if preset not in REWARDS:
      raise ValueError(
        f"unknown reward {preset!r}; known: {', '.join(REWARDS)}, or "
        "module:function"
      )
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
    total = well_formed * np.maximum(
      0, weight + (1 - weight) * core - self._cost * np.nan_to_num(searches)
    )
    return Parts(total, well_formed, route, similarity, answer, searches)

  def _cosines(self, pairs: dict[int, Asked]) -> dict[int, float]:
    asked = {pair.sub_question for pair in pairs.values()}
    golds = {pair.gold for pair in pairs.values()}
    new = sorted((asked | golds) - self._golds.keys())
    vectors = dict(zip(new, self._embed(new), strict=True)) | self._golds
    self._golds |= {gold: vectors[gold] for gold in golds}
    return {
      n: float(np.clip(vectors[pair.sub_question] @ vectors[pair.gold], 0, 1))
      for n, pair in pairs.items()
    }

  def _embed(self, texts: list[str]) -> Float[np.ndarray, "n E"]:
    if not texts:
      return np.zeros((0, 0), np.float32)
    vectors = np.asarray(self._embedder(texts), np.float32)
    norms = np.linalg.norm(vectors, axis=-1)
    # Cosines of such vectors would reward noise, without a word in the log.
    if not np.allclose(norms, 1, atol=1e-2):
      raise ValueError(
        f"the reward's embedder returned norms {norms.min():.3g} to "
        f"{norms.max():.3g}; it should return finite unit vectors"
      )
    return vectors


class Own:
  """A user's reward, "module:function"; see the head of this module."""

  def __init__(self, name: str):
    module, _, function = name.partition(":")
    try:
      self._reward = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
      raise ValueError(
        f"The reward {name!r} cannot be imported ({error}).  "
        "Write module:function, as Python finds it."
      ) from error
    self._name = name

  def parts(self, steps: Sequence[Step], texts: Sequence[str]) -> Parts:
    """The rewards; what they are made of is not known."""
    total = np.asarray(self._reward(steps, texts), np.float64)
    if total.shape != (len(texts),) or not np.isfinite(total).all():
      raise ValueError(
        f"The reward {self._name} gave {total.shape} numbers; "
        f"wanted {len(texts)} finite ones."
      )
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
      raise ValueError(
        f"The reward {name} is your own, and so are its costs: "
        "set config.step_grpo.search_cost=0."
      )
    return Own(name)
  embed = registry.minilm()
  return StepReward(
    lambda texts: embed([Query(text) for text in texts]),
    name,
    routes,
    search_cost,
  )
