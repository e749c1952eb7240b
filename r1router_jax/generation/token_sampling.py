"""How a token is drawn from logits, and how likely a given one is.

A token is drawn by inverting the cumulative distribution at a uniform number u:

  token = min { v : F(v) > u F(V) },   F(v) = sum_{w <= v} exp(logits_w / T)

How (`Method`) is data: another temperature or filter compiles nothing.

Axes:  N rows   V vocabulary   D hidden
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

BLOCK = 256  # Weights that are summed before any is looked for.


class SamplingParams(NamedTuple):
  """How tokens are drawn: numbers, or arrays with one for each row `N`.

  Filters apply one after another, each to what the last one left.

  Attributes:
    temperature: of the softmax; 0 takes the likeliest token.
    top_k: draw from the k likeliest alone; 0 from all.
    top_p: from the likeliest that together reach this probability; 1 from all.
    min_p: from those at least this share as likely as the likeliest; 0 all.
  """

  temperature: Float[Array, "*N"] | float = 1.0
  top_k: Int[Array, "*N"] | int = 0
  top_p: Float[Array, "*N"] | float = 1.0
  min_p: Float[Array, "*N"] | float = 0.0

  def validate(self) -> "SamplingParams":
    """The same as arrays.

    Raises:
      ValueError: where a number is out of its range, by name.
    """
    ranges = dict(
      temperature=(0, np.inf), top_k=(0, np.inf), top_p=(0, 1), min_p=(0, 1)
    )
    for name, (low, high) in ranges.items():
      value = np.asarray(getattr(self, name))
      if not ((low <= value) & (value <= high)).all() or (
        name == "top_p" and not value.all()
      ):
        raise ValueError(
          f"{name} is {getattr(self, name)}, wanted {low} to "
          f"{high}{', and above 0' * (name == 'top_p')}."
        )
    kinds = (np.float32, np.int32, np.float32, np.float32)
    return SamplingParams(*map(np.asarray, self, kinds))


GREEDY = SamplingParams(temperature=0.0)


def pick(
  weights: Float[Array, "N V"], u: Float[Array, " N"]
) -> Int[Array, " N"]:
  """The first id whose cumulative weight exceeds `u` times the total.

  First the block that it is in, then the id: one long cumulative sum would cost
  more than the rest of a token's drawing.
  """
  rows, width = weights.shape
  blocks = jnp.pad(weights, ((0, 0), (0, -width % BLOCK))).reshape(
    rows, -1, BLOCK
  )
  sums = blocks.sum(-1)
  ends = _ends(sums)
  block, below = _first(ends, u * ends.max(-1))
  inside = jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0]
  ends = _ends(inside)
  # What is below the block and what is within it are rounded apart.
  left = jnp.minimum(below, jnp.nextafter(ends.max(-1), 0.0))
  return block * BLOCK + _first(ends, left)[0]


def _ends(weights: Float[Array, "N W"]) -> Float[Array, "N W"]:
  """Cumulative weights, or 0 where there is no weight.

  XLA sums in a tree, so that rounding may raise the sum, or lower it, where
  nothing is added: left in, one of some millions of tokens would be forbidden.
  """
  return jnp.where(weights > 0, jnp.cumsum(weights, -1), 0)


def _first(
  ends: Float[Array, "N W"], at: Float[Array, " N"]
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
  """The first place that ends beyond `at`, and how far into it `at` is."""
  place = jnp.argmax(ends > at[:, None], -1)
  before = jnp.arange(ends.shape[1]) < place[:, None]
  begin = jnp.max(jnp.where(before, ends, 0), -1)
  return place, jnp.maximum(at - begin, 0)


def kept(
  logits: Float[Array, "N V"], method: SamplingParams
) -> Bool[Array, "N V"]:
  """Which tokens pass the filters; equal logits pass together.

  A vocabulary is sorted only where some row asks for it.
  """
  column = lambda x: jnp.broadcast_to(x, logits.shape[:1])[:, None]
  k, p = column(method.top_k), column(method.top_p)

  def by_rank(_):
    falling = -jnp.sort(-logits, -1)
    passes = (jnp.arange(logits.shape[1]) < k) | (k == 0)
    likely = jax.nn.softmax(jnp.where(passes, falling, -jnp.inf), -1)
    passes &= jnp.cumsum(likely, -1) - likely < p
    last = jnp.sum(passes, -1, keepdims=True) - 1
    return logits >= jnp.take_along_axis(falling, last, -1)

  ranked = jax.lax.cond(
    jnp.any((k > 0) | (p < 1)),
    by_rank,
    lambda _: jnp.ones_like(logits, bool),
    None,
  )
  floor = jnp.max(logits, -1, keepdims=True) + jnp.log(column(method.min_p))
  return ranked & (logits >= floor)


def draw(
  logits: Float[Array, "N V"], method: SamplingParams, u: Float[Array, " N"]
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
  """A token of each row, and its log-probability before any filter."""
  greedy = method.temperature <= 0
  logits = logits / jnp.where(greedy, 1.0, method.temperature)[:, None]
  likeliest = jnp.argmax(logits, -1)

  def drawn():
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    return pick(jnp.where(kept(logits, method), weights, 0), u)

  token = jnp.where(
    greedy, likeliest, jax.lax.cond(greedy.all(), lambda: likeliest, drawn)
  ).astype(jnp.int32)
  logp = jnp.take_along_axis(logits, token[:, None], 1)[:, 0]
  return token, logp - jax.nn.logsumexp(logits, -1)
