"""Supervised rows in which several short texts stand side by side.

Prompt and response of a step are one text; a row holds as many as fit its L
tokens, each seeing itself alone, and no padding but at its end.  Rows are
filled best first, largest texts first:

  text -> the row with the least room that still holds it, or a new one

Axes:  D shares   B rows   L tokens of a row   R response tokens of a row
Source: arxiv.org/abs/2107.02027 (best-fit packing).
"""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from r1router_jax.common.records import Step
from r1router_jax.inputs.processor import Encoded
from r1router_jax.parallel import multihost
from r1router_jax.policy.policy import Policy
from r1router_jax.training import sft_targets
from r1router_jax.training.batch import Batch, Beside


class Row(NamedTuple):
  """Steps that stand side by side."""

  id: str
  steps: tuple[Step, ...]


def fill(sizes: Sequence[int], room: int, seed: int) -> list[list[int]]:
  """Which texts share a row.

  Args:
    sizes: of the texts, each at most `room`.
    room: of a row.
    seed: of the order of texts of one size.
  """
  order = np.random.default_rng(seed).permutation(len(sizes))
  order = order[np.argsort(-np.asarray(sizes)[order], kind="stable")]
  rows, left = [], []  # `left`: (room, row), ascending.
  for text in order.tolist():
    at = bisect.bisect_left(left, (sizes[text], -1))
    free, row = left.pop(at) if at < len(left) else (room, len(rows))
    if row == len(rows):
      rows.append([])
    rows[row].append(text)
    bisect.insort(left, (free - sizes[text], row))
  return rows


def rows(
  policy: Policy, steps: Sequence[Step], room: int, seed: int
) -> list[Row]:
  """All steps, in rows of at most `room` tokens.

  Raises:
    ValueError: where a step alone is longer.
  """
  sizes = [len(_text(policy, step)[0].ids) for step in steps]
  if max(sizes) > room:
    raise ValueError(
      f"Step {steps[int(np.argmax(sizes))].id} has {max(sizes)} tokens, and "
      f"config.sft.side_by_side is {room}: raise it, or lower the last of "
      "config.policy.settings.prompt_tokens."
    )
  filled = (tuple(steps[i] for i in row) for row in fill(sizes, room, seed))
  return [Row(" ".join(step.id for step in row), row) for row in filled]


def batch(
  policy: Policy, chosen: Sequence[Row], parts: int, count: int, room: int
) -> Batch:
  """A batch of `count` rows on each of `parts` shares, leaves [D, B, ...]."""
  total = parts * count
  segments = np.zeros((total, room), np.int32)
  at, texts = [[] for _ in range(total)], []
  for n, row in enumerate(chosen):
    read = [_text(policy, step) for step in row.steps]
    texts.append([text for text, _ in read])
    first = 0
    for number, (text, prompt) in enumerate(read, 1):
      end = first + len(text.ids)
      segments[n, first:end] = number
      at[n] += range(first + prompt - 1, end - 1)
      first = end
  step = -(-room // 8)  # Few lengths, so that little is compiled.
  (longest,) = multihost.most([-(-max(map(len, at)) // step) * step])
  where = np.zeros((total, longest), np.int32)
  mask = np.zeros((total, longest), bool)
  for n, places in enumerate(at):
    where[n, : len(places)], mask[n, : len(places)] = places, True
  prompt = policy.packer.pack_side_by_side(
    texts, parts, count, room, multihost.most
  )
  split = lambda a: a.reshape(parts, count, *a.shape[1:])
  where, mask = split(where), split(mask)
  response = np.take_along_axis(
    prompt.tokens, np.minimum(where + 1, room - 1), 2
  )
  return Batch(
    prompt,
    response[:, :, None],
    mask[:, :, None],
    np.ones((parts, count, 1), np.float32),
    np.zeros((parts, count, 1, longest), np.float32),
    mask.sum(2).astype(np.float32),
    Beside(split(segments), where),
  )


def _text(policy: Policy, step: Step) -> tuple[Encoded, int]:
  """Prompt and response of a step as one, and how long the prompt is."""
  prompt = policy.packer.encode(policy.settings.conversation(step))
  response = policy.packer.tokenizer.encode_response(
    sft_targets.demonstration(step)
  )
  return Encoded([*prompt.ids, *response], prompt.pictures), len(prompt.ids)
