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

import numpy as np
from jaxtyping import Float, Int

from r1router_jax.inputs import images
from r1router_jax.inputs.tokenizer import Tokenizer
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
    """The padded length that a prompt goes into."""
    return next(n for n in self.lengths if n >= len(ids))

  def pack(
      self, batch: Sequence[Encoded], length: int, rows: int
  ) -> qwen_vl.Prompt:
    """Pads encoded prompts to `rows` rows of `length` tokens.

    Rows beyond the batch repeat its first prompt; callers ignore them.

    Raises:
      ValueError: where a row's placeholders and patches do not agree.
    """
    v = self.vision
    batch = [*batch, *[batch[0]] * (rows - len(batch))]
    tokens = np.full((rows, length), self.tokenizer.pad, np.int32)
    mask = np.zeros((rows, length), bool)
    positions = np.zeros((3, rows, length), np.int32)
    start = np.zeros(rows, np.int32)
    picture = np.full((rows, length), -1, np.int32)
    pictured = [e for e in batch if e.patches is not None]
    most = max((len(e.patches) for e in pictured), default=0)
    room = rows if pictured else 0
    side = v.window // v.patch
    windows = max((-(-h // side) * -(-w // side)
                   for h, w in (e.grid for e in pictured)), default=1)
    merged = most // v.merge**2
    width = 3 * v.temporal * v.patch**2
    patches = np.zeros((room, most, width), np.float32)
    plans = []
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
      if room:
        if encoded.patches is not None:
          patches[row, :len(encoded.patches)] = encoded.patches
        plans.append(qwen_vl.plan_image(
            *encoded.grid, v, windows=windows, tokens=merged))
    slots = side**2
    empty = (np.zeros((0, windows, slots), np.int32),
             np.zeros((0, windows, slots), bool),
             np.zeros((0, windows, slots, 2), np.int32),
             np.zeros((0, merged), np.int32))
    plan = tuple(map(np.stack, zip(*plans, strict=True))) if plans else empty
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
    responses: Sequence[Sequence[int]], tokens: int, pad: int
) -> tuple[Int[np.ndarray, "N T"], Float[np.ndarray, "N T"]]:
  """Responses cut or padded to `tokens`, and a mask of the real ones."""
  ids = np.full((len(responses), tokens), pad, np.int32)
  mask = np.zeros((len(responses), tokens), bool)
  for row, response in enumerate(responses):
    n = min(len(response), tokens)
    ids[row, :n], mask[row, :n] = response[:n], True
  return ids, mask
