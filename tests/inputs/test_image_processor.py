"""Patches of images, against slow loops and transformers' bits."""

import numpy as np
import pytest
from PIL import Image

from r1router_jax.common import images
from r1router_jax.inputs import image_processor
from r1router_jax.inputs.image_processor import extract_patches, smart_resize


@pytest.mark.parametrize(
  "factor, least, most",
  [(28, 3136, 1_003_520), (28, 7056, 7056), (8, 64, 1024)],
)
def test_longest_side_is_a_tight_bound(factor, least, most):
  """Against many sizes, the thinnest among them."""
  # Half of the images are as thin as allowed, where the bound is reached.
  rng, longest = np.random.default_rng(0), {}
  for ratio in [*np.exp(rng.uniform(0, np.log(200), 3000)), *[200] * 3000]:
    short = int(np.exp(rng.uniform(0, 8)))
    size = smart_resize(short, int(short * ratio), factor, least, most)
    blocks, beside = sorted(side // factor for side in size)
    longest[blocks] = max(longest.get(blocks, 0), beside)
  bounds = {
    n: image_processor.longest_side(n, factor, least, most) for n in longest
  }
  assert all(longest[n] <= bounds[n] for n in longest)
  # Most bounds are reached.
  assert sum(longest[n] == bounds[n] for n in longest) > len(longest) / 2


SIZES = [(480, 640), (37, 41), (10, 300), (300, 10), (1000, 333), (224, 224)]
SIZES += [(1500, 2100), (28, 28), (1, 1), (64, 64)]


@pytest.mark.oracle
@pytest.mark.parametrize("size", SIZES)
def test_patches_equal_transformers_bit_for_bit(size):
  pytest.importorskip("torch")
  from transformers.models.qwen2_vl import (
    image_processing_pil_qwen2_vl as oracle,
  )

  # The limits of the published processor.
  limits = dict(min_pixels=3136, max_pixels=1_003_520)
  image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
  wanted = oracle.Qwen2VLImageProcessorPil(**limits)(
    [Image.fromarray(image)], return_tensors="np"
  )
  resized = images.resize_image(image, *smart_resize(*size, 28, **limits))
  rows, grid = extract_patches(resized)
  assert [list(grid)] == wanted["image_grid_thw"].tolist()
  np.testing.assert_array_equal(rows, wanted["pixel_values"])


def test_patches_against_slow_loops():
  image = np.random.default_rng(1).integers(0, 256, (8, 16, 3), dtype=np.uint8)
  rows, grid = extract_patches(image, patch=2, temporal=2, merge=2)
  wanted = []
  # Blocks of 4 x 4 pixels, and in each its four patches of 2 x 2.
  for top in range(0, 8, 4):
    for left in range(0, 16, 4):
      for y in (top, top + 2):
        for x in (left, left + 2):
          square = image[y : y + 2, x : x + 2] / 255
          square = (square - images.CLIP_MEAN) / images.CLIP_STD
          wanted.append(
            np.concatenate(
              [np.tile(square[..., c].reshape(-1), 2) for c in range(3)]
            )
          )
  assert grid == (1, 4, 8)
  np.testing.assert_allclose(rows, wanted, rtol=1e-5, atol=1e-6)


def test_sizes_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match="30 x 28.*factor=28"):
    extract_patches(np.zeros((30, 28, 3), np.uint8))
  with pytest.raises(images.BadImage, match="aspect"):
    smart_resize(10, 4000)
