"""Image processor of Qwen2.5-VL: images to patches for the vision tower.

`extract_patches` cuts an image into p x p squares, each repeated T times in
time (a still image is a video of T equal frames) and flattened as (channel,
time, row, column).  Patches come in merge-block order: the m x m neighbours
that the vision tower merges into one token are next to each other.

Axes:  H W pixels   h w patches of p x p pixels   m patches per side of a block
  P = h w patches   D = 3 T p p numbers of a patch
Source: the Qwen2-VL image processor of Hugging Face transformers (Pillow
backend); the tests compare the patches bit by bit.
"""

import math
from collections.abc import Sequence

import einops
import numpy as np
from jaxtyping import Float32, UInt8

from r1router_jax.common.errors import UserError
from r1router_jax.common.images import (
  CLIP_MEAN,
  CLIP_STD,
  MAX_ASPECT,
  BadImage,
  normalize_pixels,
)


def smart_resize(
  height: int,
  width: int,
  factor: int = 28,
  min_pixels: int = 56 * 56,
  max_pixels: int = 28 * 28 * 1280,
) -> tuple[int, int]:
  """Return the size nearest to (height, width) that Qwen2-VL accepts.

  Both sides become multiples of `factor`, the area falls between the two
  bounds, and the aspect ratio is kept as well as that allows.  An image that is
  too thin raises BadImage.
  """
  if max(height, width) > MAX_ASPECT * min(height, width):
    raise BadImage(
      f"an image of {height} x {width} pixels has an aspect ratio over "
      f"{MAX_ASPECT}.  Crop it."
    )
  # Python rounds halves to even, as the original does.
  new = [round(side / factor) * factor for side in (height, width)]
  if math.prod(new) > max_pixels:
    shrink = math.sqrt(height * width / max_pixels)
    blocks = (math.floor(side / shrink / factor) for side in (height, width))
    new = [max(factor, n * factor) for n in blocks]
  elif math.prod(new) < min_pixels:
    grow = math.sqrt(min_pixels / (height * width))
    new = [math.ceil(side * grow / factor) * factor for side in (height, width)]
  return tuple(new)


def longest_side(
  blocks: int, factor: int, min_pixels: int, max_pixels: int
) -> int:
  """Return an upper bound of an image's longer side after `smart_resize`.

  The bound, and `blocks`, the length of the shorter side, are numbers of blocks
  of `factor` pixels.
  """

  def longer_side(pixels, low, high):
    """Return the longer side of that area if the shorter is in [low, high]."""
    side = min(max(math.sqrt(pixels / MAX_ASPECT) / factor, low), high)
    return min(MAX_ASPECT * side, pixels / factor**2 / side)

  # An image may keep its area, be shrunk (sides are rounded down) or be
  # enlarged (sides are rounded up).
  kept = min(max_pixels // factor**2 // blocks, MAX_ASPECT * (blocks + 1))
  shrunk = longer_side(max_pixels, blocks if blocks > 1 else 0, blocks + 1)
  enlarged = longer_side(min_pixels, blocks - 1, blocks)
  # floor + 1, not ceil: a whole number may come out a hair too large.
  return max(kept, math.floor(shrunk), math.floor(enlarged) + 1)


def extract_patches(
  image: UInt8[np.ndarray, "H W 3"],
  patch: int = 14,
  temporal: int = 2,
  merge: int = 2,
  mean: Sequence[float] = CLIP_MEAN,
  std: Sequence[float] = CLIP_STD,
) -> tuple[Float32[np.ndarray, "P D"], tuple[int, int, int]]:
  """Cut an image into normalised patches in merge-block order.

  The result is the patches, and the grid (1, h, w); `patch` is p, `temporal` T
  and `merge` m of the module's docstring, `mean` and `std` those of the three
  channels.  If a side is no multiple of p m, it raises UserError.
  """
  height, width = image.shape[:2]
  if height % (patch * merge) or width % (patch * merge):
    raise UserError(
      f"an image of {height} x {width} pixels cannot be cut into blocks of "
      f"{merge} x {merge} patches of {patch}.  Resize it to what "
      f"smart_resize(..., factor={patch * merge}) says."
    )
  # Pixel rows are (block h, patch of the block m, pixel p); so are columns.
  sizes = dict(m=merge, n=merge, p=patch, q=patch, t=temporal)
  order = "(h m p) (w n q) c -> (h w m n) (c t p q)"
  rows = einops.repeat(normalize_pixels(image, mean, std), order, **sizes)
  return rows, (1, height // patch, width // patch)
