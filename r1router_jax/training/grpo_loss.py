"""The loss of Step-GRPO: an objective of each token, averaged over responses.

The sampler draws a group of G responses to each prompt, with the policy mu.
Every token of a response has the response's advantage A (`advantages.py`).
With

  rho = pi / pi_old   pi_old the policy before the iteration's first update
  sg[x]               x as a constant, without a gradient

`OBJECTIVES` are these losses of a token:

  grpo     - min(rho A, clip(rho, 1 - low, 1 + high) A)
  dr_grpo  as grpo, with other averages and other advantages
  gspo     as grpo, with s in place of rho, of one value for a response:
           log s = sg[mean of log rho over its tokens] + log pi - sg[log pi]
  cispo    - sg[clip(rho, 1 - low, 1 + high)] A log pi
  sapo     - 4 / tau sigmoid(tau (rho - 1)) A,  tau = 1 if A > 0, else 1.05
  dppo     - sg[min(pi / mu, 20)] A log pi,  but 0 where pi has moved too far:
           if A > 0 and pi - mu > high, or if A < 0 and pi - mu < - low

Where A < 0, `dual_clip` c bounds the first three by - c A.  Since responses
come from mu, `importance_cap` c multiplies all but dppo, which has mu already,
by sg[min(pi_old / mu, c)].  To the objective are added

  beta D - epsilon H   H the entropy of pi at this position

where D estimates the divergence from a reference policy, with
x = log pi_ref - log pi:  k2 = x^2 / 2,  k3 = exp(x) - x - 1.  (The gradient of
-x itself, k1, is 0 in expectation.)  The losses of tokens are averaged, as
`aggregate` says, over

  token_mean     all tokens, with equal weights
  sequence_mean  the tokens of each response, then over responses
  fixed_length   as if every response had `max_response_tokens` tokens

At rho = 1 the first terms do not show what is learnt: watch the reward, not the
loss.  Logs of ratios are cut at +-LOG_RATIO_BOUND, beyond which there is no
gradient either: exp would overflow at 89.  A group whose advantages are all 0
is left out of the update, unless there are penalties.  More prompts are sampled
than an update has rows for, and groups of unequal rewards fill these rows
(`rollouts.make_train_batches`).

Axes:  B prompts   G responses per prompt   T response tokens
Sources: arxiv.org/abs/2402.03300 (GRPO), arxiv.org/abs/2505.22095 (Step-GRPO),
  arxiv.org/abs/2503.14476 (token mean, clip-higher, dynamic sampling),
  arxiv.org/abs/2503.20783 (Dr. GRPO: fixed length, no std),
  arxiv.org/abs/2507.18071 (GSPO, in its form by tokens),
  arxiv.org/abs/2506.13585 (CISPO), arxiv.org/abs/2510.13786 (its bound of 5),
  arxiv.org/abs/2511.20347 (SAPO), arxiv.org/abs/2602.04879 (DPPO, binary TV),
  arxiv.org/abs/1912.09729 (dual clip),
  fengyao.notion.site/off-policy-rl (importance weights, truncated),
  joschu.net/blog/kl-approx.html (k1, k2, k3).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from jaxtyping import Array, Bool, Float

from r1router_jax.generation import logprobs
from r1router_jax.models import qwen2_5_vl
from r1router_jax.policy.config import PolicyConfig
from r1router_jax.training.batch import Batch
from r1router_jax.training.config import StepGrpoConfig

# verl's bound.
LOG_RATIO_BOUND = 20.0

DPPO_RATIO_CAP = 20.0

# SAPO's temperatures of tokens with A > 0, and of the others.
SAPO_TEMPERATURES = 1.0, 1.05

# Each estimates the divergence from x = log pi_ref - log pi.
KL_ESTIMATORS: dict[str, Callable] = {
  "k2": lambda x: x**2 / 2,
  "k3": lambda x: jnp.exp(x) - x - 1,
}

AGGREGATES = ("token_mean", "sequence_mean", "fixed_length")


@dataclasses.dataclass(frozen=True)
class GrpoLossConfig:
  """The options of the loss; see the module's docstring for the formulas."""

  temperature: float  # Of sampling; the logits of pi are divided by it.
  max_response_tokens: int  # Of the longest response that can be sampled.
  clip_low: float | None  # None where the objective has no bounds.
  clip_high: float | None
  aggregate: str  # One of `AGGREGATES`.
  kl: str  # A key of `KL_ESTIMATORS`.
  kl_coef: float  # beta; 0 needs no reference policy.
  entropy_coef: float  # epsilon
  objective: str = "grpo"  # A key of `OBJECTIVES`.
  dual_clip: float = 0.0  # 0: no bound.
  importance_cap: float = 0.0  # 0: no importance weights.
  # Whether pi_old is pi, and so rho 1: one update an iteration.
  on_policy: bool = False

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


class TokenTerms(NamedTuple):
  """The inputs of an objective, for each token; padding is 0."""

  logp: Float[Array, "B G T"]
  sampler_logp: Float[Array, "B G T"]
  log_ratio: Float[Array, "B G T"]  # log rho
  advantage: Float[Array, "B G 1"]
  mask: Bool[Array, "B G T"]


# Losses of tokens, their ratios, and which tokens were bounded.
TokenLosses = tuple[
  Float[Array, "B G T"], Float[Array, "B G T"], Bool[Array, "B G T"]
]


def _bound(log_ratio: Float[Array, "B G T"]) -> Float[Array, "B G T"]:
  return jnp.clip(log_ratio, -LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def _clip_surrogate(config: GrpoLossConfig, terms: TokenTerms) -> TokenLosses:
  ratio, advantage = jnp.exp(terms.log_ratio), terms.advantage
  clipped = jnp.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
  losses = -jnp.minimum(ratio * advantage, clipped * advantage)
  is_bounded = clipped * advantage < ratio * advantage
  if config.dual_clip:
    most = jnp.where(advantage < 0, -config.dual_clip * advantage, jnp.inf)
    is_bounded |= losses > most
    losses = jnp.minimum(losses, most)
  return losses, ratio, is_bounded


def _sequence_surrogate(
  config: GrpoLossConfig, terms: TokenTerms
) -> TokenLosses:
  # A response of padding has no token: avoid 0 / 0.
  count = jnp.maximum(jnp.sum(terms.mask, -1, keepdims=True), 1)
  mean = jnp.sum(terms.log_ratio, -1, keepdims=True) / count
  # The value of the mean, with the gradient of each token.
  own = terms.logp - jax.lax.stop_gradient(terms.logp)
  log_ratio = jax.lax.stop_gradient(mean) + own
  return _clip_surrogate(config, terms._replace(log_ratio=log_ratio))


def _clipped_weight(config: GrpoLossConfig, terms: TokenTerms) -> TokenLosses:
  ratio = jnp.exp(terms.log_ratio)
  weight = jnp.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
  losses = -jax.lax.stop_gradient(weight) * terms.advantage * terms.logp
  return losses, ratio, weight != ratio


def _soft_gate(config: GrpoLossConfig, terms: TokenTerms) -> TokenLosses:
  del config
  ratio = jnp.exp(terms.log_ratio)
  tau = jnp.where(terms.advantage > 0, *SAPO_TEMPERATURES)
  gate = 4 / tau * jax.nn.sigmoid(tau * (ratio - 1))
  return -gate * terms.advantage, ratio, jnp.zeros_like(terms.mask)


def _divergence_mask(config: GrpoLossConfig, terms: TokenTerms) -> TokenLosses:
  ratio = jnp.exp(_bound(terms.logp - terms.sampler_logp))
  moved = jnp.exp(terms.logp) - jnp.exp(terms.sampler_logp)
  is_far = jnp.where(
    terms.advantage > 0, moved > config.clip_high, moved < -config.clip_low
  )
  weight = jax.lax.stop_gradient(jnp.minimum(ratio, DPPO_RATIO_CAP))
  losses = -weight * terms.advantage * terms.logp
  return jnp.where(is_far, 0, losses), ratio, is_far


class Objective(NamedTuple):
  """An objective, with the options that it was published with."""

  token_losses: Callable[[GrpoLossConfig, TokenTerms], TokenLosses]
  clip_low: float | None
  clip_high: float | None
  aggregate: str
  advantage_norm: str = "sample_std"
  dual_clip: float = 0.0


OBJECTIVES = {
  "grpo": Objective(_clip_surrogate, 0.2, 0.28, "token_mean", dual_clip=3.0),
  "dr_grpo": Objective(
    _clip_surrogate, 0.2, 0.2, "fixed_length", "none", dual_clip=3.0
  ),
  "gspo": Objective(_sequence_surrogate, 3e-4, 4e-4, "sequence_mean"),
  "cispo": Objective(_clipped_weight, 1.0, 4.0, "token_mean"),
  "sapo": Objective(_soft_gate, None, None, "sequence_mean"),
  "dppo": Objective(_divergence_mask, 0.2, 0.2, "token_mean"),
}


def make_loss_config(
  options: StepGrpoConfig, policy: PolicyConfig
) -> GrpoLossConfig:
  """Return the options of a run's loss; what is None is the objective's own."""
  values = msgspec.structs.asdict(options.loss)
  # Done before the loss: see `advantages.py`.
  del values["truncated"]
  objective = OBJECTIVES[options.loss.objective]
  for name in ("clip_low", "clip_high", "aggregate", "dual_clip"):
    if values[name] is None:
      values[name] = getattr(objective, name)
  # In 16 bits the sampler's log-probabilities are not the trainer's.
  values["on_policy"] = computes_in_16_bits(policy) and options.minibatches == 1
  longest = policy.response_tokens[-1]
  return GrpoLossConfig(options.temperature, longest, **values)


def computes_in_16_bits(policy: PolicyConfig) -> bool:
  """Return whether a policy computes its products in 16 bits."""
  return jnp.dtype(policy.compute.dtype).itemsize == 2


def choose_advantage_norm(options: StepGrpoConfig) -> str:
  """Return the norm of a run's advantages, that of its objective by default."""
  objective = OBJECTIVES[options.loss.objective]
  return options.advantage_norm or objective.advantage_norm


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

  def mask_padding(x):
    # Before any exponential: numbers in padding must not overflow.
    return jnp.where(batch.mask, x, 0)

  # 1. Log-probabilities under pi, pi_old and mu.
  logp, old_logp = mask_padding(logp), mask_padding(batch.old_logp)
  sampler_logp, is_recomputed = old_logp, batch.sampler_logp is not None
  if is_recomputed:
    sampler_logp = mask_padding(batch.sampler_logp)
  if config.on_policy:
    old_logp = jax.lax.stop_gradient(logp)

  # 2. The objective.
  log_ratio, advantage = _bound(logp - old_logp), batch.advantage[..., None]
  terms = TokenTerms(logp, sampler_logp, log_ratio, advantage, batch.mask)
  objective = OBJECTIVES[config.objective]
  losses, ratio, is_bounded = objective.token_losses(config, terms)
  metrics = {
    "entropy": entropy,
    "clipped": is_bounded,
    "ratio": ratio,
    "ratio_variance": (ratio - 1) ** 2,
    "logp_drift": jnp.abs(logp - old_logp),
  }
  if config.on_policy or is_recomputed:
    metrics["sampler_drift"] = jnp.abs(old_logp - sampler_logp)
  if config.importance_cap:
    weight = jnp.exp(_bound(old_logp - sampler_logp))
    losses *= jnp.minimum(jax.lax.stop_gradient(weight), config.importance_cap)

  # 3. The penalties.
  if config.entropy_coef:
    losses -= config.entropy_coef * entropy
  if config.kl_coef:
    x = _bound(mask_padding(reference_logp) - logp)
    kl = KL_ESTIMATORS[config.kl](x)
    losses += config.kl_coef * kl
    metrics["kl"] = kl

  weighted = mask_padding(losses) * config.token_weights(batch.mask)
  return jnp.sum(weighted), metrics


def policy_logp(
  model: qwen2_5_vl.QwenVL,
  temperature: float,
  params: dict,
  batch: Batch,
  allowed: Bool[Array, " V"],
) -> tuple[Float[Array, "B G T"], Float[Array, "B G T"]]:
  """Compute log-probabilities and entropies of the responses, in nats.

  They are those at a temperature of sampling; see `loss` for `allowed`.
  """
  # One pass over prompts and responses; logits are made token block by token
  # block in token_logp, since [B, G, T, V] would not fit.
  states = model.apply({"params": params}, batch.prompt, batch.response)
  embedding = model.apply({"params": params}, method="output_embedding")
  return logprobs.token_logp(
    states / temperature, batch.response, embedding, allowed
  )


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
  # The reference policy: no gradient, and no pass where it costs nothing.
  known = model, config.temperature
  reference_logp = None
  if reference is not None:
    reference_logp, _ = policy_logp(*known, reference, batch, allowed)
    reference_logp = jax.lax.stop_gradient(reference_logp)
  logp, entropy = policy_logp(*known, params, batch, allowed)
  total, metrics = token_loss(config, logp, entropy, reference_logp, batch)

  # Metrics are summed over response tokens, so that microbatches can be added.
  tokens = jnp.sum(batch.mask).astype(jnp.float32)
  sums = {
    name: (jnp.sum(jnp.where(batch.mask, x, 0).astype(jnp.float32)), tokens)
    for name, x in metrics.items()
  }
  return total, jnp.sum(batch.loss_denominator), sums
