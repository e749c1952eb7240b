"""Loss options that tests of training share, and a slow loss."""

import jax.numpy as jnp
import numpy as np

from r1router_jax.training import grpo_loss
from tests import tiny_policy

# All token ids of the tiny policy but one.
ALLOWED = jnp.arange(tiny_policy.MODEL_CONFIG.vocab) != 5


def make_loss_config(**changes):
  options = dict(
    temperature=0.8,
    max_response_tokens=7,
    clip_low=0.2,
    clip_high=0.28,
    aggregate="token_mean",
    kl="k3",
    kl_coef=0.0,
    entropy_coef=0.0,
  )
  return grpo_loss.GrpoLossConfig(**options | changes)


def objective_slowly(config, logp, old, mu, a):
  """Return loss and gradient of each token of a response, and if bounded."""
  if config.on_policy:
    old = logp
  low, high = config.clip_low, config.clip_high
  out = []
  for t in range(len(logp)):
    rho = np.exp(logp[t] - old[t])
    if config.objective in ("grpo", "dr_grpo", "gspo"):
      if config.objective == "gspo":
        rho = np.exp(np.mean(logp - old))
      bound = min(max(rho, 1 - low), 1 + high)
      loss, bounded = -min(rho * a, bound * a), bound * a < rho * a
      if config.dual_clip and a < 0 and loss > -config.dual_clip * a:
        loss, bounded = -config.dual_clip * a, True
      slope = 0 if bounded else -rho * a
    elif config.objective == "cispo":
      weight = min(max(rho, 1 - low), 1 + high)
      loss, slope, bounded = -weight * a * logp[t], -weight * a, weight != rho
    elif config.objective == "sapo":
      tau = 1.0 if a > 0 else 1.05
      gate = 1 / (1 + np.exp(-tau * (rho - 1)))
      loss, bounded = -4 / tau * gate * a, False
      slope = -4 * gate * (1 - gate) * rho * a
    else:
      moved = np.exp(logp[t]) - np.exp(mu[t])
      bounded = moved > high if a > 0 else moved < -low
      slope = 0 if bounded else -min(np.exp(logp[t] - mu[t]), 20) * a
      loss = slope * logp[t]
    cap = config.importance_cap
    weight = min(np.exp(old[t] - mu[t]), cap) if cap else 1
    out.append((weight * loss, weight * slope, bounded))
  return out


def loss_oracle(config, logp, entropy, reference, batch):
  """Compute the formulas of the module token by token, in float64.

  Returns numerator, its gradient by log-probabilities, number of bounded
  tokens, and denominator.
  """
  logp, entropy, reference, old_logp, advantages = (
    np.asarray(x, np.float64)
    for x in (logp, entropy, reference, batch.old_logp, batch.advantage)
  )
  mu = old_logp
  if batch.sampler_logp is not None:
    mu = np.asarray(batch.sampler_logp, np.float64)
  mask = np.asarray(batch.mask)
  total, grad, clipped, responses = 0.0, np.zeros(mask.shape), 0, 0
  for b, g in np.ndindex(mask.shape[:2]):
    tokens = int(mask[b, g].sum())
    responses += tokens > 0
    rows = [x[b, g, :tokens] for x in (logp, old_logp, mu)]
    each = objective_slowly(config, *rows, advantages[b, g])
    for t, (loss, slope, bounded) in enumerate(each):
      at = b, g, t
      clipped += bounded
      x = reference[at] - logp[at]
      kl = dict(k2=x * x / 2, k3=np.exp(x) - x - 1)[config.kl]
      loss += config.kl_coef * kl - config.entropy_coef * entropy[at]
      slope -= config.kl_coef * dict(k2=x, k3=np.exp(x) - 1)[config.kl]
      # A penalty counts for each token, and the token by its weight.
      most = config.max_response_tokens
      weights = dict(token_mean=1, sequence_mean=tokens, fixed_length=most)
      total += loss / weights[config.aggregate]
      grad[at] = slope / weights[config.aggregate]
  size = mask.sum() if config.aggregate == "token_mean" else responses
  return total, grad, clipped, size
