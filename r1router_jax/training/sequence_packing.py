"""Sequence packing for supervised batches: several short texts in one row.

Prompt and response of a step form one text.  A row holds as many texts as fit
its L tokens, and padding only at its end; each text attends to itself alone.
Rows are filled by best fit, longest texts first:

  text -> the row with the least free space that still holds it, or a new one

Axes:  D data shards   B rows   L tokens of a row   R response tokens of a row
Source: arxiv.org/abs/2107.02027 (best-fit packing).
"""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from r1router_jax.common import row_files
from r1router_jax.common.records import Step
from r1router_jax.inputs.processor import EncodedPrompt, pad_responses
from r1router_jax.parallel import multihost
from r1router_jax.policy.policy import Policy
from r1router_jax.training import sft_targets
from r1router_jax.training.batch import Batch, PackedLayout

# A prompt, and the tokens of the response to it.
PromptAndResponse = tuple[EncodedPrompt, list[int]]


class PackedExample(NamedTuple):
  """The steps that share a row."""

  id: str
  steps: tuple[Step, ...]


def best_fit_bins(
  sizes: Sequence[int], capacity: int, seed: int
) -> list[list[int]]:
  """Assign texts to rows by best fit and return the texts of each row.

  Sizes and capacity are numbers of tokens; the seed gives the order among texts
  of one size.
  """
  # Longest first; texts of one size in random order.
  order = np.random.default_rng(seed).permutation(len(sizes))
  order = order[np.argsort(-np.asarray(sizes)[order], kind="stable")]
  bins, free = [], []  # `free`: pairs (free tokens, row), ascending.
  for text in order.tolist():
    size = sizes[text]
    # The row with the least room that is enough.
    best = bisect.bisect_left(free, (size, -1))
    if best == len(free):
      free.append((capacity, len(bins)))
      bins.append([])
    room, row = free.pop(best)
    bins[row].append(text)
    # The row goes back to its place in the order of free room.
    bisect.insort(free, (room - size, row))
  return bins


def pack_examples(
  policy: Policy, steps: Sequence[Step], packed_length: int, seed: int
) -> list[PackedExample]:
  """Pack all steps into rows of at most `packed_length` tokens.

  Steps that alone are longer are left out, counted and named in the log; if
  none is left, the error is a UserError.
  """
  # Encoded once to be measured, and again when the batch is made: the encoded
  # texts of a whole data set would not be kept in memory.
  pairs = (encode_gold_step(policy, step) for step in steps)
  sizes = [len(prompt.ids) + len(response) for prompt, response in pairs]
  skipped, kept = row_files.SkipLog("packed rows"), []
  for step, size in zip(steps, sizes, strict=True):
    if size <= packed_length:
      kept.append((step, size))
    else:
      skipped(
        f"{step.id} has {size} tokens, and config.sft.packed_length is "
        f"{packed_length}: raise it, or lower the last of "
        "config.policy.overrides.prompt_tokens."
      )
  skipped.finish(len(kept))
  steps, sizes = zip(*kept, strict=True)
  packed = []
  for row in best_fit_bins(sizes, packed_length, seed):
    chosen = tuple(steps[i] for i in row)
    packed.append(PackedExample(" ".join(step.id for step in chosen), chosen))
  return packed


def make_packed_batch(
  policy: Policy,
  rows: Sequence[Sequence[PromptAndResponse]],
  data_shards: int,
  rows_per_shard: int,
  packed_length: int,
) -> Batch:
  """Make a batch of at most D * B packed rows, with leaves [D, B, ...].

  Rows beyond those given are padding; `packed_length` is L.
  """
  shape = data_shards, rows_per_shard
  segments = np.zeros((*shape, packed_length), np.int32)
  positions, texts = [[] for _ in range(data_shards * rows_per_shard)], []

  # 1. The texts of each row, and the positions that predict response tokens.
  for n, row in enumerate(rows):
    start, row_texts = 0, []
    for number, (prompt, response) in enumerate(row, 1):
      ids = [*prompt.ids, *response]
      row_texts.append(EncodedPrompt(ids, prompt.images))
      end = start + len(ids)
      segments[np.unravel_index(n, shape)][start:end] = number
      # The state at one position predicts the token at the next.
      positions[n] += range(start + len(prompt.ids) - 1, end - 1)
      start = end
    texts.append(row_texts)

  # 2. Positions as an array [D, B, R]; eighths of L, so that few R are
  # compiled.
  unit = -(-packed_length // 8)
  longest = -(-max(map(len, positions)) // unit) * unit
  (longest,) = multihost.max_over_hosts([longest])
  arrays = pad_responses(positions, longest, 0)
  targets, mask = (x.reshape(*shape, longest) for x in arrays)

  # 3. The batch; a row has one response made of those of its texts.
  prompt = policy.processor.collate_packed(
    texts, *shape, packed_length, multihost.max_over_hosts
  )
  # The token after each position; padding has position 0.
  following = np.minimum(targets + 1, packed_length - 1)
  return Batch(
    prompt,
    np.take_along_axis(prompt.tokens, following, 2)[:, :, None],
    mask[:, :, None],
    np.ones((*shape, 1), np.float32),
    np.zeros((*shape, 1, longest), np.float32),
    mask.sum(2).astype(np.float32),
    PackedLayout(segments, targets),
  )


def encode_gold_step(policy: Policy, step: Step) -> PromptAndResponse:
  """Return the prompt of a step, and the tokens of its target."""
  prompt = policy.processor.encode(policy.config.build_prompt(step))
  target = sft_targets.sft_target(step)
  return prompt, policy.encode_target(target)
