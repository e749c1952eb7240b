"""What a forward pass costs, counted in operations, and what devices can do.

A product of [n, a] and [a, b] takes 2 n a b operations.  Only products are
counted, of real tokens, and of attention only the pairs that it may look at:

  decoder   2 n (D (Q + 2 K) H + Q H D + 3 D F) + 4 p Q H    of each layer
  head      2 n D V                                          of each prediction
  vision    2 n (h 3h + h h + 3 h f) + 4 p h                 of each block

with n tokens (patches) and p pairs of a query and a key that it sees.  A prompt
is run once for its group.  A backward pass costs twice the forward one, so an
update costs `TRAIN` of it, whatever is frozen or computed again.

Axes:  D hidden   Q query heads   K key heads   H head size   F MLP
  V vocabulary   h f hidden and MLP of the vision tower
Source: arxiv.org/abs/2204.02311 (PaLM, model FLOPs utilisation, appendix B).
"""

from collections.abc import Sequence

import numpy as np

from r1router_jax.models import qwen2_5_vl

TRAIN = 3


# Published peaks of JAX devices in bfloat16, dense, by the start of their kind;
# of TPU v2 and v3 a chip is two devices.  Sources: cloud.google.com/tpu/docs
# and NVIDIA's data sheets.
PEAKS = {
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


def peak(kind: str) -> float | None:
  """Operations a second of a device of this kind, None where unknown."""
  known = [start for start in PEAKS if kind.startswith(start)]
  return PEAKS[max(known, key=len)] if known else None


def group(
  config: qwen2_5_vl.Config,
  prompt: int,
  responses: Sequence[int] | np.ndarray,
  pictures: Sequence[Sequence[int]] = (),
) -> int:
  """A prompt, and what predicts each token of its responses.

  Args:
    config: the model.
    prompt: its tokens, those of pictures included.
    responses: tokens of each; the last of them is no input.
    pictures: rows and columns of patches of each.
  """
  lengths = np.asarray(responses, np.int64)
  inputs = np.maximum(lengths - 1, 0)
  pairs = prompt * (prompt + 1) // 2 + int(
    np.sum(inputs * prompt + inputs * (inputs + 1) // 2)
  )
  return (
    decoder(config, prompt + int(inputs.sum()), pairs)
    + head(config, int(lengths.sum()))
    + sum(picture(config, *grid) for grid in pictures)
  )


def decoder(config: qwen2_5_vl.Config, tokens: int, pairs: int) -> int:
  """All layers on so many tokens that see so many keys together."""
  c = config
  queries, keys = c.heads * c.head_size, c.kv_heads * c.head_size
  weights = c.hidden * (2 * queries + 2 * keys + 3 * c.mlp)
  return 2 * c.layers * (tokens * weights + 2 * pairs * queries)


def head(config: qwen2_5_vl.Config, predictions: int) -> int:
  """The logits of so many positions."""
  return 2 * predictions * config.hidden * config.vocab


def picture(config: qwen2_5_vl.Config, rows: int, columns: int) -> int:
  """The vision tower and its merger on a picture of so many patches."""
  side = config.vision.window // config.vision.patch
  high, wide = (
    sum(min(side, length - at) ** 2 for at in range(0, length, side))
    for length in (rows, columns)
  )
  return tower(config, rows * columns, (rows * columns) ** 2, high * wide)


def tower(
  config: qwen2_5_vl.Config, patches: int, pairs: int, near: int
) -> int:
  """The same for patches with so many pairs, `near` of them in a window."""
  v = config.vision
  full = len({block for block in v.full_blocks if block < v.layers})
  weights = 4 * v.hidden**2 + 3 * v.hidden * v.mlp
  wide = v.merge**2 * v.hidden
  return 2 * (
    patches * (3 * v.temporal * v.patch**2 * v.hidden + v.layers * weights)
    + 2 * v.hidden * (full * pairs + (v.layers - full) * near)
    + patches // v.merge**2 * wide * (wide + config.hidden)
  )
