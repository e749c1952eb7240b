"""Make one vector of the states of a text's tokens.

  "cls"   the state of the first token
  "mean"  the mean state of the tokens
  "last"  the state of the last token: a decoder's only one that saw all others

Axes:  B texts   L tokens   D hidden size
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

POOLINGS = ("cls", "mean", "last")


def pool_states(
  states: Float[Array, "B L D"], mask: Bool[Array, "B L"], pooling: str
) -> Float[Array, "B D"]:
  """Return one of `POOLINGS`; tokens are padded on the right."""
  if pooling == "cls":
    return states[:, 0]
  count = jnp.sum(mask, axis=1, keepdims=True)
  if pooling == "mean":
    # A text without tokens has a zero vector, not 0 / 0.
    total = jnp.sum(states, axis=1, where=mask[..., None])
    return total / jnp.maximum(count, 1)
  last = jnp.maximum(count - 1, 0)[..., None]
  return jnp.take_along_axis(states, last, axis=1)[:, 0]
