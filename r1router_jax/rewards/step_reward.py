"""The reward of one routing step: how good is a response to a gold step?

A plan step earns half for its sub-question and half for its route, an answer or
final step earns for its answer; a malformed response earns nothing:

  plan    core = 1/2 max(0, cos(sub-question, gold)) + 1/2 [route accepted]
  answer  core = a score of the bags of tokens (`metrics.answers`)
  reward  = [well formed] max(0, w + (1 - w) core - c searches),   in [0, 1]

c is the cost of a search, 0 by default; a plan that names several routes makes
several.  A preset (`rewards.presets`) says what is well formed, which routes
are accepted, how answers are scored, and w.

A user's own reward is a function of (steps, texts) to rewards [n]; a config
names it "module:function".

Axes:  n responses   E embedding
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import cachetools
import numpy as np
from jaxtyping import Float

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Query, Step
from r1router_jax.retrieval.encoders import registry
from r1router_jax.rewards.presets import REWARD_PRESETS, PlanScoreInputs
from r1router_jax.rewards.user_function import check_numbers, import_function

_MAX_GOLDS = 1 << 14

# Texts to unit vectors [n, E], as the retriever embeds queries.
Embedder = Callable[[list[str]], Float[np.ndarray, "n E"]]


@dataclasses.dataclass(frozen=True)
class RewardComponents:
  """Rewards and what they are made of; NaN where a component does not apply."""

  total: Float[np.ndarray, " n"]
  well_formed: Float[np.ndarray, " n"]  # 1 if it could be parsed, else 0.
  route: Float[np.ndarray, " n"]  # 1 if each route of a plan is accepted.
  # Cosine of a plan's sub-question and the gold one, at least 0.
  similarity: Float[np.ndarray, " n"]
  answer: Float[np.ndarray, " n"]  # Score of an answer.
  searches: Float[np.ndarray, " n"]  # Knowledge bases that a plan searches.

  def means(self) -> dict[str, float]:
    """Return the mean of each component over the responses that have it."""
    return {
      name: float(np.nanmean(column))
      for name, column in vars(self).items()
      if not np.all(np.isnan(column))
    }


class StepReward:
  """Scores responses to gold steps by a preset, a key of `REWARD_PRESETS`.

  The embedder, of texts to unit vectors, is called at most once per batch, and
  once for each gold.  A plan may name `max_routes` routes; `search_cost` is c
  of the module's docstring.
  """

  def __init__(
    self,
    embedder: Embedder,
    preset: str = "default",
    max_routes: int = 1,
    search_cost: float = 0.0,
  ):
    if preset not in REWARD_PRESETS:
      raise UserError(
        f"unknown reward {preset!r}; known: {', '.join(REWARD_PRESETS)}, or "
        "module:function"
      )
    self.preset, self._embedder = REWARD_PRESETS[preset], embedder
    self._max_routes, self._search_cost = max_routes, search_cost
    # Of the components in the reward of a well-formed response.
    weight = self.preset.format_weight
    self.weights = dict(
      well_formed=weight,
      route=(1 - weight) / 2,
      similarity=(1 - weight) / 2,
      answer=1 - weight,
      searches=-search_cost,
    )
    # Vectors of golds by text: the latest, as renamed ones never end.
    self._gold_vectors = cachetools.LRUCache(_MAX_GOLDS)

  def __call__(
    self, steps: Sequence[Step], texts: Sequence[str]
  ) -> Float[np.ndarray, " n"]:
    """Return the reward of each text as a response to its step."""
    return self.score(steps, texts).total

  def score(
    self, steps: Sequence[Step], texts: Sequence[str]
  ) -> RewardComponents:
    """Return the rewards of texts; raise UserError if a step has no gold."""
    well_formed = np.zeros(len(texts))
    route, similarity, answer, searches = np.full((4, len(texts)), np.nan)

    # 1. Read each response; sub-questions are embedded all at once below.
    to_embed: dict[int, PlanScoreInputs] = {}
    for n, (step, text) in enumerate(zip(steps, texts, strict=True)):
      is_plan = step.kind == "plan"
      if not (step.routes and step.sub_question if is_plan else step.answers):
        raise UserError(f"{step.kind} step {step.id} has no gold to reward by")
      if is_plan:
        similarity[n] = route[n] = searches[n] = 0
        if plan := self.preset.score_plan(step, text, self._max_routes):
          well_formed[n], similarity[n] = True, plan.similarity
          route[n], searches[n] = plan.route, plan.searches
          if plan.gold_sub_question:
            to_embed[n] = plan
      else:
        score = self.preset.score_answer(step, text)
        well_formed[n] = score is not None
        answer[n] = score or 0
    # A stop has no sub-question to embed: its similarity is known.
    for n, cosine in self._sub_question_similarities(to_embed).items():
      similarity[n] = cosine

    # 2. Combine.
    # NaN tells the kinds of steps apart: plans have no answer.
    core = np.where(np.isnan(answer), (similarity + route) / 2, answer)
    weight = self.preset.format_weight
    cost = self._search_cost * np.nan_to_num(searches)
    total = well_formed * np.maximum(0, weight + (1 - weight) * core - cost)
    parts = well_formed, route, similarity, answer, searches
    return RewardComponents(total, *parts)

  def _sub_question_similarities(
    self, plans: dict[int, PlanScoreInputs]
  ) -> dict[int, float]:
    """Return the cosine of sub-question and gold, clipped to [0, 1]."""
    sub_questions = {plan.sub_question for plan in plans.values()}
    golds = {plan.gold_sub_question for plan in plans.values()}
    # Golds come again in each epoch: their vectors are kept.
    known = (sub_questions | golds) & self._gold_vectors.keys()
    vectors = {text: self._gold_vectors[text] for text in sorted(known)}
    new = sorted((sub_questions | golds) - known)
    vectors |= zip(new, self._embed_texts(new), strict=True)
    self._gold_vectors.update((gold, vectors[gold]) for gold in sorted(golds))
    cosines = {}
    for n, plan in plans.items():
      cosine = vectors[plan.sub_question] @ vectors[plan.gold_sub_question]
      cosines[n] = float(np.clip(cosine, 0, 1))
    return cosines

  def _embed_texts(self, texts: list[str]) -> Float[np.ndarray, "n E"]:
    """Embed texts and check the vectors' norms."""
    # The embedder may fail on no text at all.
    if not texts:
      return np.zeros((0, 0), np.float32)
    vectors = np.asarray(self._embedder(texts), np.float32)
    norms = np.linalg.norm(vectors, axis=-1)
    # Cosines of other vectors would reward noise, and no log would tell.
    if not np.allclose(norms, 1, atol=1e-2):
      raise UserError(
        f"the reward's embedder returned norms {norms.min():.3g} to "
        f"{norms.max():.3g}; it should return finite unit vectors"
      )
    return vectors


class UserReward:
  """Scores responses by a function of the user's, "module:function"."""

  def __init__(self, name: str):
    self._name, self._reward = name, import_function(name)
    self.weights: Mapping[str, float] = {}  # Its parts are not known.

  def score(
    self, steps: Sequence[Step], texts: Sequence[str]
  ) -> RewardComponents:
    """Return the rewards, one finite number per text, without components."""
    values, what = self._reward(steps, texts), f"The reward {self._name}"
    total = check_numbers(what, values, len(texts))
    # What the reward is made of is not known.
    components = len(dataclasses.fields(RewardComponents)) - 1
    return RewardComponents(total, *[np.full(len(texts), np.nan)] * components)


Reward = StepReward | UserReward


def make_reward(
  name: str, max_routes: int = 1, search_cost: float = 0.0
) -> Reward:
  """Return the reward of a run, by a key of `REWARD_PRESETS` or the user's.

  See `StepReward` for the options; a reward of the user's has none of them.
  """
  if ":" in name:
    return UserReward(name)
  # The text encoder of the package embeds sub-questions, loaded once.
  minilm = registry.get_embedder("minilm")

  def embed(texts):
    return minilm([Query(text) for text in texts])

  return StepReward(embed, name, max_routes, search_cost)
