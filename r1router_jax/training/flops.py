"""Counts the operations of a forward pass; knows the peaks of devices.

A product of [n, a] and [a, b] takes 2 n a b operations.  Only products are
counted, of tokens that are not padding, and in attention only the pairs that
the mask allows:

  decoder   2 n (D (Q + 2 K) H + Q H D + 3 D F) + 4 p Q H    of each layer
  head      2 n D V                                          of each prediction
  vision    2 n (h 3h + h h + 3 h f) + 4 p h                 of each block

with n tokens (patches) and p pairs of a query and a key that it sees.  A prompt
is run once for its group.  A backward pass costs twice the forward one, so an
update costs `FORWARD_PASSES_PER_UPDATE` forward passes, whatever is frozen or
computed again.

Axes:  D hidden   Q query heads   K key heads   H head size   F MLP
  V vocabulary   h f hidden and MLP of the vision tower
Source: arxiv.org/abs/2204.02311 (PaLM, model FLOPs utilization, appendix B).
"""

from collections.abc import Sequence

import numpy as np

from r1router_jax.models import qwen2_5_vl

FORWARD_PASSES_PER_UPDATE = 3

# Published peaks, in operations per second, of dense products in bfloat16, by
# the start of a JAX device's kind.  A chip of TPU v2 and v3 is two devices.
# Sources: cloud.google.com/tpu/docs and NVIDIA's data sheets.
PEAK_FLOPS = {
  "TPU v2": 23e12,
  "TPU v3": 61.5e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "NVIDIA A100": 312e12,
  "NVIDIA H100": 989e12,  # SXM.
  "NVIDIA H100 NVL": 835e12,
  "NVIDIA H100 PCIe": 756e12,
}


def peak_flops(kind: str) -> float | None:
  """Return the operations per second of a kind of device, None if unknown."""
  starts = [start for start in PEAK_FLOPS if kind.startswith(start)]
  # The longest start is the most specific: "NVIDIA H100 PCIe".
  return PEAK_FLOPS[max(starts, key=len)] if starts else None


def group_flops(
  config: qwen2_5_vl.Config,
  prompt_tokens: int,
  response_tokens: Sequence[int] | np.ndarray,
  images: Sequence[Sequence[int]] = (),
) -> int:
  """Count the operations of a prompt and the predictions of its responses.

  `prompt_tokens` include those of images, of which `images` has the rows and
  columns of patches; the last token of each response is no input.
  """
  lengths = np.asarray(response_tokens, np.int64)
  inputs = np.maximum(lengths - 1, 0)
  # A response token sees the prompt and the response up to itself.
  prompt_pairs = prompt_tokens * (prompt_tokens + 1) // 2
  response_pairs = inputs * prompt_tokens + inputs * (inputs + 1) // 2
  pairs = prompt_pairs + int(np.sum(response_pairs))
  flops = decoder_flops(config, prompt_tokens + int(inputs.sum()), pairs)
  flops += head_flops(config, int(lengths.sum()))
  return flops + sum(image_flops(config, *grid) for grid in images)


def decoder_flops(config: qwen2_5_vl.Config, tokens: int, pairs: int) -> int:
  """Count the operations of all decoder layers, see the module's docstring."""
  c = config
  queries, keys = c.heads * c.head_size, c.kv_heads * c.head_size
  weights = c.hidden * (2 * queries + 2 * keys + 3 * c.mlp)
  return 2 * c.layers * (tokens * weights + 2 * pairs * queries)


def head_flops(config: qwen2_5_vl.Config, predictions: int) -> int:
  """Count the operations of the logits at `predictions` positions."""
  return 2 * predictions * config.hidden * config.vocab


def image_flops(config: qwen2_5_vl.Config, rows: int, columns: int) -> int:
  """Count the operations of the vision tower and its merger on one image.

  The image has `rows` times `columns` patches.
  """
  side = config.vision.window // config.vision.patch
  # Windows at the border are smaller; their pairs are a product of both axes.
  row_pairs, column_pairs = (
    sum(min(side, length - at) ** 2 for at in range(0, length, side))
    for length in (rows, columns)
  )
  patches, window_pairs = rows * columns, row_pairs * column_pairs
  return vision_tower_flops(config, patches, patches**2, window_pairs)


def vision_tower_flops(
  config: qwen2_5_vl.Config, patches: int, pairs: int, window_pairs: int
) -> int:
  """Count the operations of the vision tower and its merger.

  `pairs` are those of patches of the same image, `window_pairs` of the same
  window.
  """
  v = config.vision
  full_blocks = len({block for block in v.full_blocks if block < v.layers})
  block_weights = 4 * v.hidden**2 + 3 * v.hidden * v.mlp
  patch_weights = 3 * v.temporal * v.patch**2 * v.hidden
  merged = v.merge**2 * v.hidden  # Width of what the merger reads.
  windowed_blocks = v.layers - full_blocks
  return 2 * (
    patches * (patch_weights + v.layers * block_weights)
    + 2 * v.hidden * (full_blocks * pairs + windowed_blocks * window_pairs)
    + patches // v.merge**2 * merged * (merged + config.hidden)
  )
