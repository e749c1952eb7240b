"""The loss of Step-GRPO, which compares the responses to one routing step.

The policy that sampled (pi_old) draws a group of G responses to each prompt,
with rewards r_1..r_G.  Every token of response g has the advantage

  A_g = (r_g - mean r) / (std r + ADVANTAGE_EPS)

(sample or population std, or no division) and the loss of a token is

  - min(rho A, clip(rho, 1 - low, 1 + high) A) + beta D - epsilon H,
  rho = pi / pi_old,   H the entropy of pi at this position

where D estimates the divergence from a reference policy, with
x = log pi_ref - log pi:  k1 = -x,  k2 = x^2 / 2,  k3 = exp(x) - x - 1.
The losses of tokens are averaged, as `aggregate` says, over

  token_mean     all tokens, with equal weights
  sequence_mean  the tokens of each response, then over responses
  fixed_length   as if every response had `max_response_tokens` tokens

At rho = 1 the first term is 0 by construction: watch the reward, not the loss.
A group of equal rewards has advantage exactly 0, so without penalties it is
left out of the update.  More prompts are sampled than an update has rows for,
and groups of unequal rewards fill these rows (`rollouts.make_train_batches`).

Axes:  B prompts   G responses per prompt   T response tokens
Sources: arxiv.org/abs/2402.03300 (GRPO), arxiv.org/abs/2505.22095 (Step-GRPO),
  arxiv.org/abs/2503.14476 (token mean, clip-higher, dynamic sampling),
  arxiv.org/abs/2503.20783 (fixed length, no std),
  joschu.net/blog/kl-approx.html (k1, k2, k3).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from r1router_jax.common.errors import UserError
from r1router_jax.generation import logprobs
from r1router_jax.models import qwen2_5_vl
from r1router_jax.training.batch import Batch

ADVANTAGE_EPS = 1e-6

# Degrees of freedom that the standard deviation loses; None: no division.
ADVANTAGE_NORMS = {"sample_std": 1, "population_std": 0, "none": None}

# Each estimates the divergence from x = log pi_ref - log pi.
KL_ESTIMATORS: dict[str, Callable] = {
  "k1": lambda x: -x,
  "k2": lambda x: x**2 / 2,
  "k3": lambda x: jnp.exp(x) - x - 1,
}

AGGREGATES = ("token_mean", "sequence_mean", "fixed_length")


@dataclasses.dataclass(frozen=True)
class GrpoLossConfig:
  """The options of the loss; see the module's docstring for the formulas.

  The ratio is clipped `clip_low` below and `clip_high` above 1.
  """

  temperature: float  # Of sampling; the logits of pi are divided by it.
  max_response_tokens: int  # Of the longest response that can be sampled.
  clip_low: float
  clip_high: float
  aggregate: str  # One of `AGGREGATES`.
  kl: str  # A key of `KL_ESTIMATORS`.
  kl_coef: float  # beta; 0 needs no reference policy.
  entropy_coef: float  # epsilon

  def __post_init__(self):
    for name, known in (("aggregate", AGGREGATES), ("kl", KL_ESTIMATORS)):
      if getattr(self, name) not in known:
        raise UserError(
          f"config.step_grpo.loss.{name} is {getattr(self, name)!r}: take "
          f"one of {', '.join(known)}."
        )

  @property
  def has_penalty(self) -> bool:
    """Return whether groups of equal rewards have a gradient, too."""
    return self.kl_coef != 0 or self.entropy_coef != 0

  def loss_denominator(
    self, mask: Bool[np.ndarray, "B G T"]
  ) -> Float[np.ndarray, " B"]:
    """Return what each group adds to the denominator of the loss."""
    # Tokens, or responses that are not padding.
    is_token_mean = self.aggregate == "token_mean"
    count = mask.sum((1, 2)) if is_token_mean else mask.any(2).sum(1)
    return count.astype(np.float64)

  def token_weights(self, mask: Bool[Array, "B G T"]) -> Float[Array, "B G T"]:
    """Return the weight of each token's loss in the numerator."""
    if self.aggregate == "token_mean":
      return mask.astype(jnp.float32)
    if self.aggregate == "fixed_length":
      return mask / self.max_response_tokens
    # A response of padding has no token: avoid 0 / 0.
    return mask / jnp.maximum(jnp.sum(mask, -1, keepdims=True), 1)


def group_advantages(
  rewards: Float[np.ndarray, "B G"], advantage_norm: str = "sample_std"
) -> Float[np.ndarray, "B G"]:
  """Compute group-relative advantages: rewards centred and scaled per group.

  `advantage_norm` is a key of `ADVANTAGE_NORMS`; verl takes "sample_std".
  """
  # Float64: in float32 the mean of five equal numbers can differ from each of
  # them, and ADVANTAGE_EPS is too small to hide the difference.
  rewards = np.asarray(rewards, np.float64)
  equal = np.ptp(rewards, axis=1, keepdims=True) == 0
  centred = rewards - np.mean(rewards, axis=1, keepdims=True)
  ddof = ADVANTAGE_NORMS[advantage_norm]
  if ddof is not None:
    # A group of one response has a standard deviation of 0, not of 0 / 0.
    ddof = min(ddof, rewards.shape[1] - 1)
    centred /= np.std(rewards, axis=1, keepdims=True, ddof=ddof) + ADVANTAGE_EPS
  # Equal rewards give exactly 0, so that the group can be left out.
  return np.where(equal, 0, centred).astype(np.float32)


def token_loss(
  config: GrpoLossConfig,
  logp: Float[Array, "B G T"],
  entropy: Float[Array, "B G T"],
  reference_logp: Float[Array, "B G T"] | None,
  batch: Batch,
) -> tuple[Float[Array, ""], dict[str, Float[Array, "B G T"]]]:
  """Compute the numerator of the loss, and metrics of each token.

  Log-probabilities and entropies are in nats, those of the reference policy
  None if `config.kl_coef` is 0; padding may hold any number.
  """

  def log_ratio(other):
    # Masked before the exponential: numbers in padding must not overflow.
    return jnp.where(batch.mask, logp - other, 0)

  # The clipped surrogate.
  ratio = jnp.exp(log_ratio(batch.old_logp))
  clipped = jnp.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
  advantage = batch.advantage[..., None]
  losses = -jnp.minimum(ratio * advantage, clipped * advantage)
  metrics = {
    "entropy": entropy,
    "clipped": clipped * advantage < ratio * advantage,
    "ratio": ratio,
    "ratio_variance": (ratio - 1) ** 2,
    "logp_drift": jnp.abs(log_ratio(batch.old_logp)),
  }

  # The penalties.
  if config.entropy_coef:
    losses -= config.entropy_coef * entropy
  if config.kl_coef:
    kl = KL_ESTIMATORS[config.kl](-log_ratio(reference_logp))
    losses += config.kl_coef * kl
    metrics["kl"] = kl

  weighted = jnp.where(batch.mask, losses, 0) * config.token_weights(batch.mask)
  return jnp.sum(weighted), metrics


def loss(
  model: qwen2_5_vl.QwenVL,
  config: GrpoLossConfig,
  params: dict,
  reference: dict | None,
  batch: Batch,
  allowed: Bool[Array, " V"],
) -> tuple[Float[Array, ""], Float[Array, ""], dict]:
  """Compute numerator and denominator of the loss, and (sum, count) of metrics.

  `reference` are the parameters of the reference policy, None without a
  divergence term; `allowed` is False for token ids that are never sampled.
  """

  def logp_and_entropy(params):
    # One pass over prompts and responses; logits are made token block by token
    # block in token_logp, since [B, G, T, V] would not fit.
    states = model.apply({"params": params}, batch.prompt, batch.response)
    embedding = model.apply({"params": params}, method="output_embedding")
    return logprobs.token_logp(
      states / config.temperature, batch.response, embedding, allowed
    )

  # The reference policy: no gradient, and no pass where it costs nothing.
  reference_logp = None
  if reference is not None:
    reference_logp = jax.lax.stop_gradient(logp_and_entropy(reference)[0])
  logp, entropy = logp_and_entropy(params)
  total, metrics = token_loss(config, logp, entropy, reference_logp, batch)

  # Metrics are summed over response tokens, so that microbatches can be added.
  tokens = jnp.sum(batch.mask).astype(jnp.float32)
  sums = {
    name: (jnp.sum(jnp.where(batch.mask, x, 0).astype(jnp.float32)), tokens)
    for name, x in metrics.items()
  }
  return total, jnp.sum(batch.loss_denominator), sums
