"""Processor: conversations to padded arrays, in few static shapes.

Rotary positions of a prompt: a text token takes (c, c, c) and moves the cursor
c on by one; an image of h x w merged tokens takes (c, c + row, c + column) and
moves it on by max(h, w).  A response continues at the cursor.

A batch is padded to one of few prompt lengths, and each of its rows has room
for as many images as the row with the most has, so that few shapes are ever
compiled.

Axes:  B prompts   L prompt tokens   I images   N patches   C patch values
Source: transformers, models/qwen2_5_vl (`get_rope_index`).
"""

import dataclasses
import itertools
import math
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cachetools
import jax
import numpy as np
from jaxtyping import Bool, Int

from r1router_jax.common import files, images
from r1router_jax.common.errors import UserError
from r1router_jax.inputs import image_processor
from r1router_jax.inputs.tokenizer import PromptTooLong, Tokenizer
from r1router_jax.models import qwen2_5_vl
from r1router_jax.protocol.messages import Conversation, PassageTokens

CACHE_BYTES = 1 << 30  # For images; one of 1000 x 1000 pixels takes 24 MB.


class ImagePatches(NamedTuple):
  """An image as the vision tower reads it, see `extract_patches`."""

  patches: np.ndarray
  grid: tuple[int, int]  # Rows and columns of patches.
  digest: int  # CRC-32 of its pixels.


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
  """One prompt as ids, with the images that its placeholders stand for."""

  ids: list[int]
  images: tuple[ImagePatches, ...] = ()
  truncated_tokens: int = 0  # Number of tokens that its passages lost.
  # For each image of a passage that is left out, the reason.
  unread_images: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Processor:
  """Tokenizer and image processor of one policy."""

  tokenizer: Tokenizer
  vision: qwen2_5_vl.VisionConfig | None  # None if it reads texts alone.
  lengths: tuple[int, ...]  # Batches are padded to one of them; ascending.
  min_pixels: int  # Smaller images are enlarged to this area,
  max_pixels: int  # and larger ones shrunk to this one.
  passage_tokens: PassageTokens = PassageTokens()  # The most in a prompt.
  image_mean: tuple[float, ...] = images.CLIP_MEAN  # Of its training images.
  image_std: tuple[float, ...] = images.CLIP_STD

  def encode(self, conversation: Conversation) -> EncodedPrompt:
    """Read the images and encode the text.

    A passage whose image cannot be read is shown without it, one of the
    question raises BadImage.  A prompt that is too long even without its
    passages raises PromptTooLong.
    """
    user, patches, unread = [], [], []
    for segment in conversation.user:
      if segment.source == "image":
        try:
          patches.append(self._load_image(segment.text))
        except images.BadImage as error:
          if segment.passage_ref is None:
            raise
          unread.append(str(error))
          continue
      user.append(segment)
    prompt = self.tokenizer.encode(
      dataclasses.replace(conversation, user=tuple(user)),
      [self._image_tokens(image.grid) for image in patches],
      self.lengths[-1],
      self.passage_tokens,
    )
    # The tokenizer counts tokens of images, but does not read them.
    # Images of passages that were cut away are not part of the prompt.
    kept = tuple(itertools.compress(patches, prompt.image_kept))
    return EncodedPrompt(
      prompt.ids, kept, prompt.truncated_tokens, tuple(unread)
    )

  def max_windows(self) -> int:
    """Return a number of windows that suffices for any image, however thin."""
    merge = self.vision.merge
    factor = self.vision.patch * merge
    limits = factor, self.min_pixels, self.max_pixels
    most = 0
    # The shorter side of any image is at most that of a square of the largest
    # area.
    for blocks in range(1, math.ceil(math.sqrt(self.max_pixels) / factor) + 2):
      longest = image_processor.longest_side(blocks, *limits)
      sides = blocks * merge, longest * merge
      most = max(most, qwen2_5_vl.count_windows(*sides, self.vision))
    return next_power_of_two(most)

  def _image_tokens(self, grid: tuple[int, int]) -> int:
    return grid[0] * grid[1] // self.vision.merge**2

  def _load_image(self, path: str) -> ImagePatches:
    if self.vision is None or self.tokenizer.image_id < 0:
      raise images.BadImage(
        f"{path!a}: this policy reads texts alone.  Take one with a vision "
        "tower, questions without images, or, to search by images and read "
        "their captions, set image_marker in policy.json "
        "(config.policy.overrides.image_marker), such as '[picture]'."
      )
    return self._read_image(path, files.file_state(path))

  # Of all processors together.
  @cachetools.cached(
    cachetools.LRUCache(CACHE_BYTES, lambda image: image.patches.nbytes),
    lock=threading.Lock(),
  )
  def _read_image(self, path: str, state) -> ImagePatches:
    del state  # A key of the cache.
    v = self.vision
    pixels = images.load_image(path)
    # Sides become whole blocks of merged patches.
    size = image_processor.smart_resize(
      *pixels.shape[:2], v.patch * v.merge, self.min_pixels, self.max_pixels
    )
    pixels = images.resize_image(pixels, *size)
    shape = v.patch, v.temporal, v.merge
    patches, (_, *grid) = image_processor.extract_patches(
      pixels, *shape, self.image_mean, self.image_std
    )
    return ImagePatches(patches, tuple(grid), zlib.crc32(pixels))

  def padded_length(self, ids: Sequence[int]) -> int:
    """Return the shortest of `lengths` that holds a prompt.

    If there is none, it raises PromptTooLong; for no tokens, UserError.
    """
    if not ids:
      raise UserError(
        "A prompt has no tokens: nothing would predict the first of its "
        "response."
      )
    for length in self.lengths:
      if length >= len(ids):
        return length
    raise PromptTooLong(
      f"A prompt of {len(ids)} tokens fits none of the lengths "
      f"{self.lengths}: raise the last of "
      "config.policy.overrides.prompt_tokens."
    )

  def collate(
    self,
    batch: Sequence[EncodedPrompt],
    shards: int,
    rows: int,
    agree: Callable[[Sequence[int]], Sequence[int]] = list,
  ) -> qwen2_5_vl.PromptBatch:
    """Pad and stack prompts, one per row.

    Rows beyond the batch, up to `rows` on each of D shards, repeat its first
    prompt; callers ignore them.  Leaves of the result are [D, ...].

    `agree` maps the shape that this batch needs (tokens of a row, images of a
    row, windows of an image) to the one that it gets.  If hosts collate parts
    of one batch, whose shapes have to be equal, it is
    `multihost.max_over_hosts`.  Placeholders that do not fit the images of
    their row raise UserError.
    """
    length = max(self.padded_length(prompt.ids) for prompt in batch)
    # A batch without packing is one with a single text in each row.
    return self.collate_packed(
      [[prompt] for prompt in batch], shards, rows, length, agree
    )

  def collate_packed(
    self,
    batch: Sequence[Sequence[EncodedPrompt]],
    shards: int,
    rows: int,
    length: int,
    agree: Callable[[Sequence[int]], Sequence[int]] = list,
  ) -> qwen2_5_vl.PromptBatch:
    """Pad and stack rows of `length` that each hold several texts in sequence.

    Positions begin anew with each text; for the rest see `collate`.
    """
    # Room for images and windows: a few sizes, so that few shapes are compiled.
    grids = [[x.grid for text in row for x in text.images] for row in batch]
    images_per_row, windows = max(map(len, grids)), 0
    for grid in itertools.chain(*grids):
      count = qwen2_5_vl.count_windows(*grid, self.vision)
      windows = max(windows, next_power_of_two(count))
    length, images_per_row, windows = agree([length, images_per_row, windows])

    # Real prompts as padding: an empty row would have no last token to predict
    # from.
    batch = [*batch, *[batch[0]] * (shards * rows - len(batch))]
    prompt = qwen2_5_vl.empty_prompt_batch(
      len(batch), length, len(batch) * images_per_row, windows, self.vision
    )
    prompt.tokens[:] = self.tokenizer.pad_id
    for row, texts in enumerate(batch):
      first_token = first_image = 0
      for text in texts:
        self._write_text(text, prompt, row, first_token, first_image)
        first_token += len(text.ids)
        first_image += len(text.images)
    # [shards * rows, ...] -> [shards, rows, ...]; for images too.
    return jax.tree.map(
      lambda x: x.reshape(shards, len(x) // shards, *x.shape[1:]), prompt
    )

  def _write_text(
    self,
    text: EncodedPrompt,
    prompt: qwen2_5_vl.PromptBatch,
    row: int,
    first_token: int,
    first_image: int,
  ) -> None:
    """Write a text into a row, from its `first_token` and `first_image` on."""
    room = slice(first_token, first_token + len(text.ids))
    prompt.tokens[row, room] = text.ids
    prompt.mask[row, room] = True

    # Each image needs as many placeholders as it has merged tokens.
    at = np.flatnonzero(prompt.tokens[row, room] == self.tokenizer.image_id)
    grids = [image.grid for image in text.images]
    sizes = [self._image_tokens(grid) for grid in grids]
    if len(at) != sum(sizes):
      raise UserError(
        f"Row {row} of a batch has {len(at)} image placeholders, but its "
        f"images of {grids} patches take {sum(sizes)}."
      )
    merged = [tuple(n // self.vision.merge for n in grid) for grid in grids]
    # Image tokens have positions of their own (see the top); a packed text
    # starts again at 0.
    prompt.positions[row, :, room], prompt.next_position[row] = rope_positions(
      len(text.ids), at, merged
    )

    # Placeholders point at the tokens of the row's own images, each of which
    # has room for M tokens; images of the batch are stacked row by row.
    tokens_per_image, windows = prompt.inverse.shape[1], prompt.gather.shape[1]
    images_per_row = len(prompt.patches) // len(prompt.tokens)
    for n, (image, size) in enumerate(zip(text.images, sizes, strict=True)):
      in_row = first_image + n
      here, at = first_token + at[:size], at[size:]
      tokens = in_row * tokens_per_image + np.arange(size)
      prompt.image_token[row, here] = tokens
      in_batch = row * images_per_row + in_row
      prompt.patches[in_batch, : len(image.patches)] = image.patches
      layout = self.vision, windows, tokens_per_image
      plan = qwen2_5_vl.plan_windows(*image.grid, *layout)
      for name, array in plan._asdict().items():
        getattr(prompt, name)[in_batch] = array


def rope_positions(
  length: int, placeholders: np.ndarray, grids: Sequence[tuple[int, int]]
) -> tuple[Int[np.ndarray, "3 L"], int]:
  """Compute the rotary positions of a prompt, and the next cursor.

  Placeholders of one image stand in adjacent positions; `grids` are the rows
  and columns of merged tokens of each image.
  """
  runs, cursor, done = [], 0, 0
  for h, w in grids:
    # The text up to the image.
    text = int(placeholders[0]) - done
    runs.append(_text_positions(cursor, text))
    cursor += text
    # The image: all of its tokens have one temporal position.
    row, column = np.divmod(np.arange(h * w), w)
    runs.append(cursor + np.stack([0 * row, row, column]))
    cursor += max(h, w)
    done = int(placeholders[0]) + h * w
    placeholders = placeholders[h * w :]
  runs.append(_text_positions(cursor, length - done))
  return np.concatenate(runs, axis=1), int(cursor + length - done)


def _text_positions(cursor: int, count: int) -> Int[np.ndarray, "3 T"]:
  return np.tile(np.arange(cursor, cursor + count), (3, 1))


def next_power_of_two(n: int) -> int:
  """Return the smallest power of two that is at least n."""
  return 1 << (n - 1).bit_length()


def pad_responses(
  responses: Sequence[Sequence[int] | Int[np.ndarray, " _"]],
  length: int,
  pad: int,
) -> tuple[Int[np.ndarray, "N T"], Bool[np.ndarray, "N T"]]:
  """Pad responses to `length`; return ids and a mask of what is not padding.

  A longer response is cut, and so teaches no end token.
  """
  # The mask, not the padding id, tells what a response is: it may contain that
  # id.
  mask = np.arange(length) < np.array([*map(len, responses)])[:, None]
  ids = np.full(mask.shape, pad, np.int32)
  for row, response in enumerate(responses):
    ids[row, mask[row]] = response[:length]
  return ids, mask
