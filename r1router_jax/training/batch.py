"""The batch that a loss sees: prompts, groups of responses and advantages.

Axes:  D data shards   B prompts   G responses per prompt   T response tokens
"""

import zlib
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from r1router_jax.models import qwen2_5_vl


class PackedLayout(NamedTuple):
  """The layout of rows that hold several texts each (sequence packing)."""

  # 1-based number of the text that each token belongs to; 0 for padding.
  segments: Int[Array, "B L"]
  # Positions whose hidden states predict the R response tokens of a row.
  target_positions: Int[Array, "B R"]


class Batch(NamedTuple):
  """The prompts and responses of one update, or one device's shard of them."""

  prompt: qwen2_5_vl.PromptBatch
  response: Int[Array, "B G T"]  # Sampled or gold; padded after the end token.
  mask: Bool[Array, "B G T"]  # True up to and including the end token.
  advantage: Float[Array, "B G"]  # 1 for a gold response.
  # Under the policy before the iteration's updates: as the sampler computed it,
  # or the trainer (`old_logprobs.py`).
  old_logp: Float[Array, "B G T"]
  # What each prompt adds to the denominator of the loss.
  loss_denominator: Float[Array, " B"]
  # A packed row has one response made of those of its texts; None where a row
  # is one text.
  packing: PackedLayout | None = None
  # The sampler's log-probabilities where `old_logp` has the trainer's.
  sampler_logp: Float[Array, "B G T"] | None = None


def split_microbatches(batch: Batch, micro_batch_size: int) -> Batch:
  """Reshape leaves [D, B, ...] to [D, M, m, ...], M microbatches of m prompts.

  `micro_batch_size` is m, or 0 for all B; B has to be a multiple of it.
  """
  size = batch.loss_denominator.shape[1]
  count = size // (micro_batch_size or size)
  # The leading axis of images is a multiple of B.
  return jax.tree.map(
    lambda x: x.reshape(len(x), count, x.shape[1] // count, *x.shape[2:]), batch
  )


def pad_to_shards(
  array: np.ndarray, data_shards: int, rows_per_shard: int
) -> np.ndarray:
  """Pad [n, ...] with zeros and reshape it to [D, B, ...]."""
  # Rows of zeros have no mask, and so no loss.
  total = data_shards * rows_per_shard
  padded = np.zeros((total, *array.shape[1:]), array.dtype)
  padded[: len(array)] = array
  return padded.reshape(data_shards, rows_per_shard, *array.shape[1:])


def example_rng(seed: int, index: int, name: str) -> np.random.Generator:
  """Return the generator for one example, by its id, of one iteration.

  It depends on neither the host nor the place in the batch.
  """
  # crc32, since Python's hash of a string changes from run to run.
  return np.random.default_rng((seed, index, zlib.crc32(name.encode())))
