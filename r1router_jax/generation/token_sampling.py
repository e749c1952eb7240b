"""Sample tokens from logits, with temperature and filters.

A token is sampled by inverting the cumulative distribution at a uniform number
u:

  token = min { v : F(v) > u F(V) },   F(v) = sum_{w <= v} exp(logits_w / T)

Temperature and filters (`SamplingParams`) are arrays, not static arguments:
other values compile nothing.

Axes:  N rows   V vocabulary
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from r1router_jax.common.errors import UserError

CDF_BLOCK = 256  # Weights that are summed together before any is looked up.


class SamplingParams(NamedTuple):
  """Temperature and filters: numbers, or arrays with one for each row.

  Tokens that may be sampled are the `top_k` likeliest (0: all), and of these
  the likeliest that together reach the probability `top_p` (1: all).
  """

  temperature: Float[Array, "*N"] | float = 1.0  # 0 takes the likeliest token.
  top_k: Int[Array, "*N"] | int = 0
  top_p: Float[Array, "*N"] | float = 1.0

  def validate(self) -> "SamplingParams":
    """Return the values as arrays; raise UserError at one out of range."""
    # Divided logits stay finite, int32 holds top_k, top_p leaves a token.
    ranges = (1e-3, 1e3), (1, 2**31 - 1), (1e-6, 1)
    for name, (low, high) in zip(self._fields, ranges, strict=True):
      value = np.asarray(getattr(self, name))
      valid, wanted = (low <= value) & (value <= high), f"{low} to {high}"
      if name != "top_p":
        valid, wanted = valid | (value == 0), f"0, or {wanted}"
      if name == "top_k":
        valid, wanted = valid & (value % 1 == 0), f"a whole number, {wanted}"
      if not valid.all():
        raise UserError(f"{name} is {getattr(self, name)}, wanted {wanted}.")
    # Fixed dtypes: a Python int or float would compile another program.
    kinds = np.float32, np.int32, np.float32
    return SamplingParams(*map(np.asarray, self, kinds))


GREEDY = SamplingParams(temperature=0.0)


def sample_inverse_cdf(
  weights: Float[Array, "N V"], u: Float[Array, " N"]
) -> Int[Array, " N"]:
  """Return the first id whose cumulative weight exceeds `u` times the total.

  The search finds the block of `CDF_BLOCK` ids first, then the id in it: one
  long cumulative sum would cost more than the rest of sampling a token.
  """
  rows, width = weights.shape
  padded = jnp.pad(weights, ((0, 0), (0, -width % CDF_BLOCK)))
  # [N, V] -> [N, blocks, CDF_BLOCK]; padding has weight 0.
  blocks = padded.reshape(rows, -1, CDF_BLOCK)

  # 1. The block, and how much weight is left to find within it.
  ends = _cumulative_weights(blocks.sum(-1))
  block, left = _first_above(ends, u * ends.max(-1))

  # 2. The id within the block.
  weights = jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0]
  ends = _cumulative_weights(weights)
  # The sum of a block and the last cumulative sum within it round differently:
  # without the bound, `left` might exceed every end, and id 0 would be taken.
  left = jnp.minimum(left, jnp.nextafter(ends.max(-1), 0.0))
  return block * CDF_BLOCK + _first_above(ends, left)[0]


def _cumulative_weights(weights: Float[Array, "N W"]) -> Float[Array, "N W"]:
  """Compute cumulative weights, with 0 wherever the weight itself is 0.

  XLA sums in a tree, so that rounding may raise or lower the sum where nothing
  is added: without the zeros, one of some millions of tokens would be a
  forbidden one.
  """
  return jnp.where(weights > 0, jnp.cumsum(weights, -1), 0)


def _first_above(
  ends: Float[Array, "N W"], threshold: Float[Array, " N"]
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
  """Return the index of the first of `ends` above the threshold, and the rest.

  The rest is the threshold less the largest end before that index.
  """
  index = jnp.argmax(ends > threshold[:, None], -1)
  # The largest end before it, not the last: ends are 0 where weights are.
  before = jnp.arange(ends.shape[1]) < index[:, None]
  begin = jnp.max(jnp.where(before, ends, 0), -1)
  return index, jnp.maximum(threshold - begin, 0)


def filter_mask(
  logits: Float[Array, "N V"], sampling: SamplingParams
) -> Bool[Array, "N V"]:
  """Return which tokens pass the filters; equal logits pass together."""

  def as_column(x):
    return jnp.broadcast_to(x, logits.shape[:1])[:, None]

  k, p = as_column(sampling.top_k), as_column(sampling.top_p)

  def by_rank():
    descending = -jnp.sort(-logits, -1)
    kth = jnp.clip(k, 1, logits.shape[1]) - 1
    passes = descending >= jnp.take_along_axis(descending, kth, -1)
    passes |= k == 0
    # top_p counts the probability that top_k has left.
    probs = jax.nn.softmax(jnp.where(passes, descending, -jnp.inf), -1)
    # Of a large vocabulary the rounded sum reaches 1 before the last token.
    passes &= (jnp.cumsum(probs, -1) - probs < p) | (p >= 1)
    last = jnp.sum(passes, -1, keepdims=True) - 1
    return logits >= jnp.take_along_axis(descending, last, -1)

  # Sorting a vocabulary is slow: it is done only if some row needs ranks.
  return jax.lax.cond(
    jnp.any((k > 0) | (p < 1)), by_rank, lambda: jnp.ones_like(logits, bool)
  )


def _find_likeliest(logits: Float[Array, "N V"]) -> Int[Array, " N"]:
  """Return the first id of the largest logit of each row.

  Both reductions run in vector instructions on CPUs.  `jnp.argmax` is computed
  number by number there: 7 of 113 ms of a decode step, of 64 rows with 49,152
  logits each.
  """
  largest = logits == logits.max(-1, keepdims=True)
  last = logits.shape[-1] - 1
  # In a row with NaN nothing is the largest: any id will do, see `failed`.
  return jnp.min(jnp.where(largest, jnp.arange(last + 1), last), -1)


def sample_tokens(
  logits: Float[Array, "N V"], sampling: SamplingParams, u: Float[Array, " N"]
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
  """Sample one token per row; logits are -inf on forbidden ids.

  Returns the tokens that the uniform random numbers `u` select, and their
  log-probabilities at the temperature before any filter.
  """
  greedy = sampling.temperature <= 0
  # Greedy rows divide by 1: their log-probabilities are at temperature 1.
  logits = logits / jnp.where(greedy, 1.0, sampling.temperature)[:, None]
  likeliest = _find_likeliest(logits)

  def sample_filtered():
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    weights = jnp.where(filter_mask(logits, sampling), weights, 0)
    return sample_inverse_cdf(weights, u)

  # Weights are summed only if some row is not greedy.
  sampled = jax.lax.cond(greedy.all(), lambda: likeliest, sample_filtered)
  token = jnp.where(greedy, likeliest, sampled).astype(jnp.int32)
  logp = jnp.take_along_axis(logits, token[:, None], 1)[:, 0]
  return token, logp - jax.nn.logsumexp(logits, -1)
