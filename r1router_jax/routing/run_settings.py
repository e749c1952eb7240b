"""Holds the settings that the trajectories of a saved run depend on."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax

from r1router_jax.common import records
from r1router_jax.generation.token_sampling import SamplingParams
from r1router_jax.policy.config import PromptOptions
from r1router_jax.retrieval.knowledge_base import KnowledgeBase
from r1router_jax.routing.baselines import registry
from r1router_jax.routing.router import OnPart, OnStep, RolloutOptions


@dataclasses.dataclass(frozen=True)
class RunSettings:
  """Everything that trajectories depend on, beside policy, question, passages.

  Saved rows hold these fields, so that a row is only reused under the same.

  Attributes:
    method: how questions are answered, a key of `registry.METHODS`.
    seed: seed of every random draw.
    max_steps: searches before the final answer, at most.
    k: passages that a search returns from each knowledge base.
    temperature: temperature at which tokens are sampled; 0 is greedy.
    top_k: number of likeliest tokens to sample from; 0 is all.
    top_p: probability that the tokens sampled from reach together.
    sample: index of this sample, if each question is answered several times.
  """

  method: str
  seed: int = 0
  max_steps: int = records.MAX_HOPS
  k: int = 1
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  sample: int = 0

  @classmethod
  def for_policy(
    cls, config: PromptOptions, method: str, *, k: int, **values: Any
  ) -> "RunSettings":
    """Return settings; if k is 0, with as many passages as the policy reads."""
    return cls(method, k=k or config.passages, **values)

  @property
  def random_key(self) -> jax.Array:
    """The key of all random draws of this sample."""
    # Sample 0 has the key of a run with a single sample, so that both give
    # the same answers.
    key = jax.random.key(self.seed)
    return jax.random.fold_in(key, self.sample) if self.sample else key

  @property
  def sampling(self) -> SamplingParams:
    """The parameters by which tokens are sampled."""
    return SamplingParams(self.temperature, self.top_k, self.top_p)

  def rollout_options(
    self, on_step: OnStep | None = None, on_part: OnPart | None = None
  ) -> RolloutOptions:
    """Return the options of a routing loop with these settings."""
    return RolloutOptions(
      method=registry.make_method(self.method, self.seed),
      max_steps=self.max_steps,
      k=self.k,
      sampling=self.sampling,
      on_step=on_step,
      on_part=on_part,
    )


def text_digest(text: str) -> str:
  """Return 16 hexadecimal digits that tell `text` from any other."""
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def kbs_digest(kbs: Mapping[str, KnowledgeBase]) -> str:
  """Return a digest of what the knowledge bases say of themselves."""
  return text_digest(json.dumps([base.meta for base in kbs.values()]))
