"""Conversations to padded arrays, in few static shapes.

Rotary positions of a prompt: a text token takes (c, c, c) and moves the cursor
c on by one; a picture of h x w merged tokens takes (c, c + row, c + column)
and moves it on by max(h, w).  A response goes on at the cursor.

A batch is padded to one of few prompt lengths, and holds either no pictures or
room for one per row, so that few shapes are ever compiled.

Axes:  B prompts   L prompt tokens   I pictures   N patches   C patch values
Source: transformers, models/qwen2_5_vl (`get_rope_index`).
"""

import dataclasses
import functools
import os
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Bool, Int

from r1router_jax.inputs import images
from r1router_jax.inputs.tokenizer import PromptTooLong, Tokenizer
from r1router_jax.models import qwen_vl
from r1router_jax.protocol import Conversation


@dataclasses.dataclass(frozen=True)
class Encoded:
  """One prompt as ids, with the patches of its picture, if any."""

  ids: list[int]
  patches: np.ndarray | None = None
  grid: tuple[int, int] = (0, 0)  # Rows and columns of patches.


@dataclasses.dataclass(frozen=True)
class Packer:
  """What turns conversations into batches for one policy.

  Attributes:
    tokenizer: of the policy.
    vision: the policy's vision tower.
    lengths: prompt lengths that batches are padded to, ascending.
    min_pixels, max_pixels: pictures are resized into this range.
  """

  tokenizer: Tokenizer
  vision: qwen_vl.VisionConfig
  lengths: tuple[int, ...]
  min_pixels: int
  max_pixels: int

  def encode(self, conversation: Conversation) -> Encoded:
    """Reads the picture and encodes the text.

    Raises:
      inputs.images.BadImage, inputs.tokenizer.PromptTooLong: by name.
    """
    patches, grid = None, (0, 0)
    if conversation.image:
      # Keyed by the file's state, so that a replaced picture is read anew.
      state = os.stat(conversation.image) if os.path.exists(
          conversation.image) else None
      patches, grid = self._picture(
          conversation.image, state and (state.st_mtime_ns, state.st_size))
    tokens = grid[0] * grid[1] // self.vision.merge**2
    ids = self.tokenizer.encode(conversation, tokens, self.lengths[-1])
    return Encoded(ids, patches, grid)

  @functools.lru_cache(maxsize=4096)  # noqa: B019 (lives as long as a policy)
  def _picture(self, path: str, state):
    del state
    v = self.vision
    pixels = images.load(path)
    size = images.smart_resize(
        *pixels.shape[:2], v.patch * v.merge, self.min_pixels, self.max_pixels)
    rows, (_, *grid) = images.patches(
        images.resize(pixels, *size), v.patch, v.temporal, v.merge)
    return rows, tuple(grid)

  def length(self, ids: Sequence[int]) -> int:
    """The padded length that a prompt goes into.

    Raises:
      PromptTooLong: where there is none; `encode` makes no such prompt.
    """
    for length in self.lengths:
      if length >= len(ids):
        return length
    raise PromptTooLong(
        f"A prompt of {len(ids)} tokens fits none of the lengths "
        f"{self.lengths}: raise the last of "
        "config.policy.settings.prompt_tokens.")

  def pack(
      self, batch: Sequence[Encoded], devices: int, rows: int
  ) -> qwen_vl.Prompt:
    """Pads prompts to `devices` shares of `rows` rows; leaves are [D, ...].

    Rows beyond the batch repeat its first prompt; callers ignore them.

    Raises:
      ValueError: where a row's placeholders and patches do not agree.
    """
    length = max(self.length(encoded.ids) for encoded in batch)
    side = self.vision.window // self.vision.patch
    windows = max(-(-h // side) * -(-w // side)
                  for h, w in (encoded.grid for encoded in batch))
    windows = windows and 1 << (windows - 1).bit_length()
    batch = [*batch, *[batch[0]] * (devices * rows - len(batch))]
    shares = [self._share(batch[d * rows:(d + 1) * rows], length, windows)
              for d in range(devices)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *shares)

  def _share(
      self, batch: Sequence[Encoded], length: int, windows: int
  ) -> qwen_vl.Prompt:
    """One device's rows; no room for pictures where `windows` is 0."""
    v, rows = self.vision, len(batch)
    slots = (v.window // v.patch) ** 2
    merged = windows * slots // v.merge**2
    tokens = np.full((rows, length), self.tokenizer.pad, np.int32)
    mask = np.zeros((rows, length), bool)
    positions = np.zeros((3, rows, length), np.int32)
    start = np.zeros(rows, np.int32)
    picture = np.full((rows, length), -1, np.int32)
    for row, encoded in enumerate(batch):
      n = len(encoded.ids)
      tokens[row, :n], mask[row, :n] = encoded.ids, True
      at = np.flatnonzero(tokens[row] == self.tokenizer.picture)
      if len(at) != encoded.grid[0] * encoded.grid[1] // v.merge**2:
        raise ValueError(
            f"Row {row} of a batch has {len(at)} picture placeholders but a "
            f"picture of {encoded.grid} patches, merged {v.merge} x {v.merge}.")
      positions[:, row, :n], start[row] = _positions(
          n, at, encoded.grid, v.merge)
      picture[row, at] = row * merged + np.arange(len(at))
    room = rows if windows else 0
    patches = np.zeros(
        (room, windows * slots, 3 * v.temporal * v.patch**2), np.float32)
    plan = (
        np.zeros((room, windows, slots), np.int32),
        np.zeros((room, windows, slots), bool),
        np.zeros((room, windows, slots, 2), np.int32),
        np.zeros((room, merged), np.int32))
    for row, encoded in enumerate(batch):
      if encoded.patches is not None:
        patches[row, :len(encoded.patches)] = encoded.patches
        for whole, part in zip(plan, qwen_vl.plan_image(
            *encoded.grid, v, windows=windows, tokens=merged), strict=True):
          whole[row] = part
    return qwen_vl.Prompt(
        tokens, mask, positions, start, picture, patches, *plan)


def _positions(
    length: int, at: np.ndarray, grid: tuple[int, int], merge: int
) -> tuple[Int[np.ndarray, "3 L"], int]:
  """Rotary positions of a prompt whose picture stands at `at`; next cursor."""
  positions = np.tile(np.arange(length), (3, 1))
  if not len(at):
    return positions, length
  first, after = at[0], at[-1] + 1
  h, w = grid[0] // merge, grid[1] // merge
  row, column = np.divmod(np.arange(h * w), w)
  positions[:, first:after] = first + np.stack([0 * row, row, column])
  positions[:, after:] += first + max(h, w) - after
  return positions, int(length + first + max(h, w) - after)


def pad_responses(
    responses: Sequence[Sequence[int]], lengths: Sequence[int], pad: int
) -> tuple[Int[np.ndarray, "N T"], Bool[np.ndarray, "N T"]]:
  """Responses padded to the first of `lengths` that holds all of them.

  Returns the ids and a mask of the real ones.  A response longer than the last
  length is cut, and so teaches no end token.
  """
  longest = max(map(len, responses))
  tokens = next((n for n in lengths if n >= longest), lengths[-1])
  ids = np.full((len(responses), tokens), pad, np.int32)
  mask = np.zeros((len(responses), tokens), bool)
  for row, response in enumerate(responses):
    n = min(len(response), tokens)
    ids[row, :n], mask[row, :n] = response[:n], True
  return ids, mask
