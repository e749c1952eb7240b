"""The batch that a loss sees: prompts, groups of responses and advantages.

`PromptBuilder` makes the prompts of training steps.  It can rename entities in
steps of GeoRouter, so that a policy learns to read names instead of remembering
them (`copy_curriculum`).

Axes:  D data shards   B prompts   G responses per prompt   T response tokens
"""

import zlib
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from r1router_jax.common.records import Step
from r1router_jax.data import georouter
from r1router_jax.inputs.processor import EncodedPrompt
from r1router_jax.inputs.tokenizer import PromptTooLong
from r1router_jax.models import qwen2_5_vl
from r1router_jax.policy.policy import Policy
from r1router_jax.training import copy_curriculum


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


class PromptBuilder:
  """Builds the prompts of training steps, with entities renamed if asked."""

  def __init__(self, policy: Policy, renames: bool):
    self._policy = policy
    self._renamer = None
    if renames:
      countries = georouter.load_countries()
      tokenizer = policy.processor.tokenizer
      # The names of held-out countries are replaced, too, but never given.
      self._renamer = copy_curriculum.EntityRenamer(
        [country["name"] for country in countries],
        [c["name"] for c in countries if c["split"] == "train"],
        [tokenizer.decode([i]).strip() for i in tokenizer.whole_word_ids()],
      )

  def __call__(
    self, step: Step, rename_prob: float, rng: np.random.Generator
  ) -> tuple[Step, EncodedPrompt]:
    """Return the step, possibly with renamed entities, and its prompt."""
    if self._renamer and rng.random() < rename_prob:
      renamed = self._renamer(step, rng)
      try:
        return renamed, self._encode(renamed)
      except PromptTooLong:
        # Longer names did not fit: the step keeps its own.
        pass
    return step, self._encode(step)

  def _encode(self, step: Step) -> EncodedPrompt:
    policy = self._policy
    return policy.processor.encode(policy.config.build_prompt(step))
