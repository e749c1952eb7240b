"""Log-probabilities and entropies of given tokens, in chunks.

Logits of all positions, [B, T, V], would not fit in memory with a vocabulary of
150,000 tokens; those of `CHUNK` positions do.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

CHUNK = 1024  # Number of tokens whose logits exist at one time.


def token_logp(
  states: Float[Array, "*B D"],
  targets: Int[Array, "*B"],
  vocabulary: Float[Array, "V D"],
  allowed: Bool[Array, " V"],
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
  """Compute the log-probability of targets and the entropy of each position.

  Both are in nats.  `vocabulary` is the output embedding; ids that are not
  allowed have no probability.
  """
  shape, width = targets.shape, states.shape[-1]
  states, targets = states.reshape(-1, width), targets.reshape(-1)

  # Cut the tokens into chunks of equal size; the last one is padded.
  count = len(targets)
  size = min(CHUNK, count)
  chunks = -(-count // size)
  pad = chunks * size - count
  states = jnp.pad(states, ((0, pad), (0, 0))).reshape(chunks, size, width)
  targets = jnp.pad(targets, (0, pad)).reshape(chunks, size)

  @jax.checkpoint  # The backward pass computes the logits again, by chunk.
  def chunk_logp(x, target):
    logits = jnp.einsum(
      "ND,VD->NV", x, vocabulary, preferred_element_type=jnp.float32
    )
    # Finite, or the entropy of a forbidden token would be 0 times infinity.
    logits = jnp.where(allowed, logits, -1e30)
    norm = jax.nn.logsumexp(logits, -1)
    logp = jnp.take_along_axis(logits, target[:, None], 1)[:, 0] - norm
    probs = jnp.exp(logits - norm[:, None])
    return logp, norm - jnp.sum(probs * logits, -1)

  # `map`, not `vmap`: chunks run one after another, so that one exists at a
  # time.
  logp, entropy = jax.lax.map(lambda xs: chunk_logp(*xs), (states, targets))
  return tuple(a.reshape(-1)[:count].reshape(shape) for a in (logp, entropy))
