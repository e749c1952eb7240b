"""Computes log-probabilities of given tokens in checkpointed chunks, without an array [B, T, V]."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

CHUNK = 1024  # Tokens whose logits exist at one time.


def token_logp(
  states: Float[Array, "*B D"],
  targets: Int[Array, "*B"],
  vocabulary: Float[Array, "V D"],
  allowed: Bool[Array, " V"],
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
  """Log-probability of each target and entropy at its position, in nats.

  Logits of `CHUNK` tokens exist at a time, in the backward pass too.
  """
  shape, width = targets.shape, states.shape[-1]
  states, targets = states.reshape(-1, width), targets.reshape(-1)
  count = len(targets)
  size = min(CHUNK, count)
  chunks = -(-count // size)
  pad = chunks * size - count
  states = jnp.pad(states, ((0, pad), (0, 0))).reshape(chunks, size, width)
  targets = jnp.pad(targets, (0, pad)).reshape(chunks, size)

  @jax.checkpoint
  def chunk(x, target):
    logits = jnp.einsum(
      "ND,VD->NV", x, vocabulary, preferred_element_type=jnp.float32
    )
    logits = jnp.where(allowed, logits, -1e30)
    norm = jax.nn.logsumexp(logits, -1)
    logp = jnp.take_along_axis(logits, target[:, None], 1)[:, 0] - norm
    probs = jnp.exp(logits - norm[:, None])
    return logp, norm - jnp.sum(probs * logits, -1)

  logp, entropy = jax.lax.map(lambda xs: chunk(*xs), (states, targets))
  return tuple(a.reshape(-1)[:count].reshape(shape) for a in (logp, entropy))
