"""Turns images into patches for the vision tower."""

import math

import einops
import numpy as np
from jaxtyping import Float32, UInt8

from r1router_jax.common.images import (
  MAX_ASPECT,
  MEAN,
  STD,
  BadImage,
  normalise,
)


def smart_resize(
  height: int,
  width: int,
  factor: int = 28,
  min_pixels: int = 56 * 56,
  max_pixels: int = 28 * 28 * 1280,
) -> tuple[int, int]:
  """The size nearest to (height, width) that Qwen2-VL accepts.

  Both sides become multiples of `factor`, the area falls between the two
  bounds, the aspect ratio is kept as well as that allows.
  """
  if max(height, width) > MAX_ASPECT * min(height, width):
    raise BadImage(
      f"a picture of {height} x {width} pixels has an aspect ratio over "
      f"{MAX_ASPECT}.  Crop it."
    )
  new_height = round(height / factor) * factor
  new_width = round(width / factor) * factor
  if new_height * new_width > max_pixels:
    shrink = math.sqrt(height * width / max_pixels)
    new_height = max(factor, math.floor(height / shrink / factor) * factor)
    new_width = max(factor, math.floor(width / shrink / factor) * factor)
  elif new_height * new_width < min_pixels:
    grow = math.sqrt(min_pixels / (height * width))
    new_height = math.ceil(height * grow / factor) * factor
    new_width = math.ceil(width * grow / factor) * factor
  return new_height, new_width


def longest_side(
  blocks: int, factor: int, min_pixels: int, max_pixels: int
) -> int:
  """Most blocks of `factor` pixels beside a shorter side of `blocks`.

  No picture, however thin, has more after `smart_resize`.
  """

  def most(pixels, low, high):
    """The longer side of such an area whose shorter one is in between."""
    side = min(max(math.sqrt(pixels / MAX_ASPECT) / factor, low), high)
    return min(MAX_ASPECT * side, pixels / factor**2 / side)

  kept = min(max_pixels // factor**2 // blocks, MAX_ASPECT * (blocks + 1))
  shrunk = most(max_pixels, blocks if blocks > 1 else 0, blocks + 1)
  grown = most(min_pixels, blocks - 1, blocks)
  # Rounded up, also where a whole number comes out a hair too large.
  return max(kept, math.floor(shrunk), math.floor(grown) + 1)


def patches(
  image: UInt8[np.ndarray, "H W 3"],
  patch: int = 14,
  temporal: int = 2,
  merge: int = 2,
  mean: tuple[float, float, float] = MEAN,
  std: tuple[float, float, float] = STD,
) -> tuple[Float32[np.ndarray, "P D"], tuple[int, int, int]]:
  """The picture's normalised patches in merge-block order, and its grid.

  Args:
    image: both sides multiples of `patch * merge`, see `smart_resize`.
    patch: p, pixels per side of a patch.
    temporal: T, equal frames in a patch.
    merge: m, patches per side of the block that becomes one token.
    mean: subtracted from each channel, after scaling to [0, 1].
    std: what each channel is then divided by.

  Returns:
    The patches, and the grid (1, h, w).
  """
  height, width = image.shape[:2]
  if height % (patch * merge) or width % (patch * merge):
    raise ValueError(
      f"a picture of {height} x {width} pixels cannot be cut into blocks of "
      f"{merge} x {merge} patches of {patch}.  Resize it to what "
      f"smart_resize(..., factor={patch * merge}) says."
    )
  rows = einops.repeat(
    normalise(image, mean, std),
    "(h m p) (w n q) c -> (h w m n) (c t p q)",
    m=merge,
    n=merge,
    p=patch,
    q=patch,
    t=temporal,
  )
  return rows, (1, height // patch, width // patch)
