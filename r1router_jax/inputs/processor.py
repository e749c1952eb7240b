"""Conversations to padded arrays, in few static shapes.

Rotary positions of a prompt: a text token takes (c, c, c) and moves the cursor
c on by one; a picture of h x w merged tokens takes (c, c + row, c + column)
and moves it on by max(h, w).  A response goes on at the cursor.

A batch is padded to one of few prompt lengths, and each of its rows has room
for as many pictures as the row with the most has, so that few shapes are ever
compiled.

Axes:  B prompts   L prompt tokens   I pictures   N patches   C patch values
Source: transformers, models/qwen2_5_vl (`get_rope_index`).
"""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from r1router_jax.common import images
from r1router_jax.inputs import image_processor
from r1router_jax.inputs.tokenizer import PromptTooLong, Tokenizer
from r1router_jax.models import qwen2_5_vl
from r1router_jax.protocol.messages import Conversation, PassageTokens


class Picture(NamedTuple):
  """A picture as the vision tower reads it, see `images.patches`."""

  patches: np.ndarray
  grid: tuple[int, int]  # Rows and columns of patches.


@dataclasses.dataclass(frozen=True)
class Encoded:
  """One prompt as ids, with the pictures that its placeholders stand for.

  Attributes:
    ids: of its tokens.
    pictures: in their order.
    cut: tokens that its passages lost, see `tokenizer.Fitted`.
    unread: why pictures of passages are left out.
  """

  ids: list[int]
  pictures: tuple[Picture, ...] = ()
  cut: int = 0
  unread: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Packer:
  """What turns conversations into batches for one policy.

  Attributes:
    tokenizer: of the policy.
    vision: the policy's vision tower, or None where it reads texts alone.
    lengths: prompt lengths that batches are padded to, ascending.
    min_pixels, max_pixels: pictures are resized into this range.
    passage_tokens: what a prompt reads of passages, at most.
  """

  tokenizer: Tokenizer
  vision: qwen2_5_vl.VisionConfig | None
  lengths: tuple[int, ...]
  min_pixels: int
  max_pixels: int
  passage_tokens: PassageTokens = PassageTokens()

  def encode(self, conversation: Conversation) -> Encoded:
    """Reads the pictures and encodes the text.

    A passage whose picture cannot be read goes without it.

    Raises:
      inputs.images.BadImage, inputs.tokenizer.PromptTooLong: by name.
    """
    user, pictures, unread = [], [], []
    for segment in conversation.user:
      try:
        if segment.source == "picture":
          pictures.append(self._picture(segment.text))
        user.append(segment)
      except images.BadImage as error:
        if segment.of is None:
          raise
        unread.append(str(error))
    ids, shown, cut = self.tokenizer.encode(
      dataclasses.replace(conversation, user=tuple(user)),
      [self._tokens(p.grid) for p in pictures],
      self.lengths[-1],
      self.passage_tokens,
    )
    return Encoded(
      ids, tuple(itertools.compress(pictures, shown)), cut, tuple(unread)
    )

  def windows(self) -> int:
    """Room for the windows of any picture, however thin."""
    of, factor = self.vision, self.vision.patch * self.vision.merge
    sides = range(1, math.ceil(math.sqrt(self.max_pixels) / factor) + 2)
    return _power(
      max(
        qwen2_5_vl.windows(
          n * of.merge,
          of.merge
          * image_processor.longest_side(
            n, factor, self.min_pixels, self.max_pixels
          ),
          of,
        )
        for n in sides
      )
    )

  def _tokens(self, grid: tuple[int, int]) -> int:
    return grid[0] * grid[1] // self.vision.merge**2

  def _picture(self, path: str) -> Picture:
    if self.vision is None or self.tokenizer.picture < 0:
      raise images.BadImage(
        f"{path!a}: this policy reads texts alone.  Take one with a vision "
        "tower, or questions without pictures."
      )
    # Keyed by the file's state, so that a replaced picture is read anew.
    state = os.stat(path) if os.path.exists(path) else None
    return self._read(path, state and (state.st_mtime_ns, state.st_size))

  @functools.lru_cache(maxsize=4096)  # noqa: B019 (lives as long as a policy)
  def _read(self, path: str, state) -> Picture:
    del state
    v = self.vision
    pixels = images.load(path)
    size = image_processor.smart_resize(
      *pixels.shape[:2], v.patch * v.merge, self.min_pixels, self.max_pixels
    )
    rows, (_, *grid) = image_processor.patches(
      images.resize(pixels, *size), v.patch, v.temporal, v.merge
    )
    return Picture(rows, tuple(grid))

  def length(self, ids: Sequence[int]) -> int:
    """The padded length that a prompt goes into.

    Raises:
      PromptTooLong: where there is none; `encode` makes no such prompt.
      ValueError: where the prompt is empty.
    """
    if not ids:
      raise ValueError(
        "A prompt has no tokens: nothing would predict the "
        "first of its response."
      )
    for length in self.lengths:
      if length >= len(ids):
        return length
    raise PromptTooLong(
      f"A prompt of {len(ids)} tokens fits none of the lengths "
      f"{self.lengths}: raise the last of "
      "config.policy.settings.prompt_tokens."
    )

  def pack(
    self,
    batch: Sequence[Encoded],
    devices: int,
    rows: int,
    agree: Callable[[Sequence[int]], Sequence[int]] = list,
  ) -> qwen2_5_vl.Prompt:
    """Pads prompts to `devices` shares of `rows` rows; leaves are [D, ...].

    Rows beyond the batch repeat its first prompt; callers ignore them.

    Args:
      batch: of prompts.
      devices, rows: see above.
      agree: from what this batch needs (tokens of a row, pictures of a row,
        windows of a picture) to what it gets: `pods.most` where hosts pack
        parts of one batch, which have to be of one shape.

    Raises:
      ValueError: where a row's placeholders and patches do not agree.
    """
    length = max(self.length(encoded.ids) for encoded in batch)
    return self.pack_side_by_side(
      [[encoded] for encoded in batch], devices, rows, length, agree
    )

  def pack_side_by_side(
    self,
    batch: Sequence[Sequence[Encoded]],
    devices: int,
    rows: int,
    length: int,
    agree: Callable[[Sequence[int]], Sequence[int]] = list,
  ) -> qwen2_5_vl.Prompt:
    """As `pack`, with any number of texts one after another in each row.

    Positions begin anew with each text.
    """
    pictures = max(sum(len(text.pictures) for text in row) for row in batch)
    windows = max(
      (
        qwen2_5_vl.windows(*picture.grid, self.vision)
        for row in batch
        for text in row
        for picture in text.pictures
      ),
      default=0,
    )
    length, pictures, windows = agree(
      [length, pictures, windows and _power(windows)]
    )
    batch = [*batch, *[batch[0]] * (devices * rows - len(batch))]
    prompt = qwen2_5_vl.empty_prompt(
      len(batch), length, len(batch) * pictures, windows, self.vision
    )
    prompt.tokens[:] = self.tokenizer.pad
    for row, texts in enumerate(batch):
      first, picture = 0, row * pictures
      for text in texts:
        self._put(text, prompt, row, first, picture, picture - row * pictures)
        first, picture = first + len(text.ids), picture + len(text.pictures)
    return jax.tree.map(
      lambda x: x.reshape(devices, len(x) // devices, *x.shape[1:]), prompt
    )

  def _put(
    self,
    text: Encoded,
    prompt: qwen2_5_vl.Prompt,
    row: int,
    first: int,
    picture: int,
    before: int,
  ) -> None:
    """Writes a text into a row from token `first` on.

    Args:
      text: to write.
      prompt: to write it into.
      row: of the prompt.
      first: token of that row.
      picture: where its pictures go.
      before: how many of its row's pictures come before them.
    """
    room = slice(first, first + len(text.ids))
    prompt.tokens[row, room], prompt.mask[row, room] = text.ids, True
    at = np.flatnonzero(prompt.tokens[row, room] == self.tokenizer.picture)
    grids = [each.grid for each in text.pictures]
    sizes = list(map(self._tokens, grids))
    if len(at) != sum(sizes):
      raise ValueError(
        f"Row {row} of a batch has {len(at)} picture placeholders, but its "
        f"pictures of {grids} patches take {sum(sizes)}."
      )
    prompt.positions[row, :, room], prompt.start[row] = _positions(
      len(text.ids),
      at,
      [(h // self.vision.merge, w // self.vision.merge) for h, w in grids],
    )
    merged = prompt.inverse.shape[1]
    prompt.picture[row, first + at] = np.concatenate(
      [(before + i) * merged + np.arange(size) for i, size in enumerate(sizes)]
      or [at]
    )
    for i, each in enumerate(text.pictures, picture):
      prompt.patches[i, : len(each.patches)] = each.patches
      plan = qwen2_5_vl.plan_image(
        *each.grid, self.vision, windows=prompt.gather.shape[1], tokens=merged
      )
      for name, part in zip(qwen2_5_vl.PLAN, plan, strict=True):
        getattr(prompt, name)[i] = part


def _positions(
  length: int, at: np.ndarray, grids: Sequence[tuple[int, int]]
) -> tuple[Int[np.ndarray, "3 L"], int]:
  """Rotary positions of a prompt, and the next cursor.

  Args:
    length: tokens of the prompt.
    at: where its placeholders stand, those of a picture side by side.
    grids: rows and columns of merged tokens of each picture.
  """
  runs, cursor, done = [np.zeros((3, 0), int)], 0, 0

  def text(until):
    nonlocal cursor, done
    runs.append(np.tile(np.arange(cursor, cursor + until - done), (3, 1)))
    cursor, done = cursor + until - done, until

  for h, w in grids:
    text(at[0])
    row, column = np.divmod(np.arange(h * w), w)
    runs.append(cursor + np.stack([0 * row, row, column]))
    cursor, done, at = cursor + max(h, w), done + h * w, at[h * w :]
  text(length)
  return np.concatenate(runs, axis=1), int(cursor)


def _power(windows: int) -> int:
  """So many or more, a power of two, so that few shapes are compiled."""
  return 1 << (windows - 1).bit_length()


def pad_responses(
  responses: Sequence[Sequence[int] | Int[np.ndarray, " _"]],
  length: int,
  pad: int,
) -> tuple[Int[np.ndarray, "N T"], Bool[np.ndarray, "N T"]]:
  """Responses padded to `length`, and a mask of what is not padding.

  A response that is longer is cut, and so teaches no end token.
  """
  ids = np.full((len(responses), length), pad, np.int32)
  mask = np.zeros((len(responses), length), bool)
  for row, response in enumerate(responses):
    n = min(len(response), length)
    ids[row, :n], mask[row, :n] = response[:n], True
  return ids, mask
