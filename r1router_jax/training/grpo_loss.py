"""The loss of Step-GRPO: what a group of responses to one step teaches.

The old policy draws a group of G responses to each prompt, with rewards
r_1..r_G.  Every token of response g has the advantage

  A_g = (r_g - mean r) / (std r + EPS)

(sample or population std, or no division) and the loss of a token is

  - min(rho A, clip(rho, 1 - low, 1 + high) A) + beta D - epsilon H,
  rho = pi / pi_old,   H the entropy of pi at this position

where D estimates the divergence from a reference policy, with
x = log pi_ref - log pi:  k1 = -x,  k2 = x^2 / 2,  k3 = exp(x) - x - 1.
Losses of tokens are averaged, by `aggregate`, over

  token_mean     all tokens alike
  sequence_mean  the tokens of each response, then responses
  fixed_length   as if each response had the longest one's tokens

At rho = 1 the first term is 0 by construction: watch the reward, not the loss.
A group of equal rewards has advantage exactly 0, so without penalties it is
left out of the update: more prompts are drawn than an update has rows for, and
those that teach fill them; `refill` draws again where they do not.

Axes:  B prompts   G responses per prompt   T response tokens
Sources: arxiv.org/abs/2402.03300 (GRPO), arxiv.org/abs/2505.22095 (Step-GRPO),
  arxiv.org/abs/2503.14476 (token mean, clip-higher, refilling),
  arxiv.org/abs/2503.20783 (fixed length, no std),
  joschu.net/blog/kl-approx.html (k1, k2, k3).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from r1router_jax.generation import logprobs
from r1router_jax.models import qwen2_5_vl
from r1router_jax.training.batch import Batch

EPS = 1e-6

NORMS = {"std1": 1, "std0": 0, "none": None}  # Degrees of freedom lost.


# Of log pi_ref - log pi.
DIVERGENCES: dict[str, Callable] = {
  "k1": lambda x: -x,
  "k2": lambda x: x**2 / 2,
  "k3": lambda x: jnp.exp(x) - x - 1,
}


@dataclasses.dataclass(frozen=True)
class Objective:
  """What is minimised; see the module's docstring.

  Attributes:
    temperature: of sampling, and so of pi.
    longest: tokens of the longest response.
    clip_low, clip_high: how far the ratio counts.
    aggregate: "token_mean", "sequence_mean" or "fixed_length".
    kl: a key of `DIVERGENCES`.
    kl_coef: beta; 0 does without a reference policy.
    entropy_coef: epsilon.
  """

  temperature: float
  longest: int
  clip_low: float
  clip_high: float
  aggregate: str
  kl: str
  kl_coef: float
  entropy_coef: float

  def __post_init__(self):
    for name, known in (("aggregate", _SIZES), ("kl", DIVERGENCES)):
      if getattr(self, name) not in known:
        raise ValueError(
          f"config.step_grpo.loss.{name} is {getattr(self, name)!r}: take "
          f"one of {', '.join(known)}."
        )

  @property
  def penalises(self) -> bool:
    """Whether a group of equal rewards has a gradient, too."""
    return self.kl_coef != 0 or self.entropy_coef != 0

  def size(self, mask: Bool[np.ndarray, "B G T"]) -> Float[np.ndarray, " B"]:
    """What the responses to a prompt add to the loss's denominator."""
    return _SIZES[self.aggregate](mask).astype(np.float64)

  def weights(self, mask: Bool[Array, "B G T"]) -> Float[Array, "B G T"]:
    """What the loss of each token counts."""
    if self.aggregate == "token_mean":
      return mask.astype(jnp.float32)
    tokens = (
      self.longest
      if self.aggregate == "fixed_length"
      else (jnp.maximum(jnp.sum(mask, -1, keepdims=True), 1))
    )
    return mask / tokens


_SIZES = {
  "token_mean": lambda mask: mask.sum((1, 2)),
  "sequence_mean": lambda mask: mask.any(2).sum(1),
  "fixed_length": lambda mask: mask.any(2).sum(1),
}


def advantages(
  rewards: Float[np.ndarray, "B G"], normalise: str = "std1"
) -> Float[np.ndarray, "B G"]:
  """Rewards centred and scaled within their group.

  Computed in float64: in float32 the mean of five equal numbers can differ
  from each of them, and EPS is too small to hide it.

  Args:
    rewards: of each response.
    normalise: a key of `NORMS`; "std1" is verl's.
  """
  rewards = np.asarray(rewards, np.float64)
  equal = np.ptp(rewards, axis=1, keepdims=True) == 0
  centred = rewards - np.mean(rewards, axis=1, keepdims=True)
  if NORMS[normalise] is not None:
    lost = min(NORMS[normalise], len(rewards[0]) - 1)
    centred /= np.std(rewards, axis=1, keepdims=True, ddof=lost) + EPS
  return np.where(equal, 0, centred).astype(np.float32)


def of_tokens(
  objective: Objective,
  logp: Float[Array, "B G T"],
  entropy: Float[Array, "B G T"],
  reference: Float[Array, "B G T"] | None,
  batch: Batch,
) -> tuple[Float[Array, ""], dict[str, Float[Array, "B G T"]]]:
  """The loss's numerator, and metrics of each token.

  Args:
    objective: what is minimised.
    logp: log-probability, in nats, of each response token.
    entropy: in nats, where it was written.
    reference: its log-probability under the reference policy, or None.
    batch: of responses; padding may hold any number.
  """
  # `where` before exp: what padding holds must not overflow.
  apart = lambda other: jnp.where(batch.mask, logp - other, 0)
  ratio = jnp.exp(apart(batch.old_logp))
  clipped = jnp.clip(ratio, 1 - objective.clip_low, 1 + objective.clip_high)
  advantage = batch.weight[..., None]
  each = -jnp.minimum(ratio * advantage, clipped * advantage)
  metrics = {
    "entropy": entropy,
    "clipped": clipped * advantage < ratio * advantage,
    "ratio": ratio,
    "ratio_variance": (ratio - 1) ** 2,
    "logp_drift": jnp.abs(apart(batch.old_logp)),
  }
  if objective.entropy_coef:
    each -= objective.entropy_coef * entropy
  if objective.kl_coef:
    kl = DIVERGENCES[objective.kl](-apart(reference))
    each += objective.kl_coef * kl
    metrics["kl"] = kl
  counted = jnp.where(batch.mask, each, 0) * objective.weights(batch.mask)
  return jnp.sum(counted), metrics


def loss(
  model: qwen2_5_vl.QwenVL,
  objective: Objective,
  params: dict,
  reference: dict | None,
  batch: Batch,
  allowed: Bool[Array, " V"],
) -> tuple[Float[Array, ""], Float[Array, ""], dict]:
  """Numerator and denominator of the loss, and (sum, count) of each metric.

  Args:
    model, objective: see there.
    params: of the policy.
    reference: of the reference policy, or None where it costs nothing.
    batch: of responses.
    allowed: false on ids that are never written.
  """

  def seen(params):
    states = model.apply({"params": params}, batch.prompt, batch.response)
    vocabulary = model.apply({"params": params}, method="vocabulary")
    return logprobs.token_logp(
      states / objective.temperature, batch.response, vocabulary, allowed
    )

  before = (
    None if reference is None else (jax.lax.stop_gradient(seen(reference)[0]))
  )
  total, metrics = of_tokens(objective, *seen(params), before, batch)
  tokens = jnp.sum(batch.mask).astype(jnp.float32)
  return (
    total,
    jnp.sum(batch.count),
    {
      name: (jnp.sum(jnp.where(batch.mask, x, 0).astype(jnp.float32)), tokens)
      for name, x in metrics.items()
    },
  )
