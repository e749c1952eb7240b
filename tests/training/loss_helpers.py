"""Loss options that tests of training share."""

import jax.numpy as jnp

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
