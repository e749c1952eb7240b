"""Step-GRPO: group-relative policy optimisation of single routing steps.

The old policy draws a group of G responses to each prompt, with rewards
r_1..r_G.  Every token of response g has the advantage

  A_g = (r_g - mean r) / (std r + EPS)

and the loss is the clipped surrogate, averaged over response tokens:

  - mean min(rho A, clip(rho, 1 - low, 1 + high) A),   rho = pi / pi_old

At rho = 1 it is 0 by construction: watch the reward, not the loss.  A group of
equal rewards teaches nothing and has advantage exactly 0.

Axes:  B prompts   G responses per prompt   T response tokens
Sources: arxiv.org/abs/2402.03300 (GRPO), arxiv.org/abs/2505.22095 (Step-GRPO),
  arxiv.org/abs/2503.14476 (token mean, clip-higher).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from r1router_jax import sampling
from r1router_jax.learning.batch import Batch
from r1router_jax.models import qwen_vl

EPS = 1e-6


def advantages(
    rewards: Float[np.ndarray, "B G"],
) -> Float[np.ndarray, "B G"]:
  """Rewards centred and scaled within their group (sample std, as in verl).

  Computed in float64: in float32 the mean of five equal numbers can differ
  from each of them, and EPS is too small to hide it.
  """
  rewards = np.asarray(rewards, np.float64)
  equal = np.ptp(rewards, axis=1, keepdims=True) == 0
  std = np.std(rewards, axis=1, keepdims=True, ddof=min(1, len(rewards[0]) - 1))
  centred = rewards - np.mean(rewards, axis=1, keepdims=True)
  return np.where(equal, 0, centred / (std + EPS)).astype(np.float32)


def surrogate(
    logp: Float[Array, "B G T"],
    old_logp: Float[Array, "B G T"],
    advantage: Float[Array, "B G"],
    mask: Bool[Array, "B G T"],
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Sum of the clipped gains, negated, and the number of clipped tokens.

  Args:
    logp: log-probability, in nats, of each response token.
    old_logp: the same under the policy that drew it; a constant.
    advantage: one number per response.
    mask: true on response tokens, up to and including the end token.
    clip_low: how far below 1 the ratio counts.
    clip_high: how far above 1 it counts.
  """
  # `where` before exp: padding may hold any number, but must not overflow.
  ratio = jnp.exp(jnp.where(mask, logp - old_logp, 0))
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  advantage = advantage[..., None]
  gain = jnp.minimum(ratio * advantage, clipped * advantage)
  beyond = mask & (clipped * advantage < ratio * advantage)
  return -jnp.sum(jnp.where(mask, gain, 0)), jnp.sum(beyond)


def loss(
    model: qwen_vl.QwenVL,
    params: dict,
    batch: Batch,
    allowed: Bool[Array, " V"],
    *,
    temperature: float,
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Array, ""], Float[Array, ""], dict]:
  """Numerator and denominator of the loss, and (sum, count) of each metric."""
  states = model.apply({"params": params}, batch.prompt, batch.response)
  vocabulary = model.apply({"params": params}, method="vocabulary")
  logp, entropy = sampling.token_logp(
      states / temperature, batch.response, vocabulary, allowed)
  total, beyond = surrogate(
      logp, batch.old_logp, batch.weight, batch.mask,
      clip_low=clip_low, clip_high=clip_high)
  count = jnp.sum(batch.mask).astype(jnp.float32)
  drift = jnp.where(batch.mask, jnp.abs(logp - batch.old_logp), 0)
  metrics = {
      "entropy": (jnp.sum(entropy * batch.mask), count),
      "clipped": (beyond.astype(jnp.float32), count),
      "logp_drift": (jnp.sum(drift), count),
  }
  return total, count, metrics
