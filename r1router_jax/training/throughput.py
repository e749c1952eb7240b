"""Counts the work of an iteration, and measures its rate.

Rates are taken from one line of the log to the next, over everything that
happened in between, including checkpoints and compilation:

  speed/tokens_s   tokens per second: of prompts, once for a group, and of all
                   responses that were sampled, whether or not they are learnt
                   from; in a supervised run the tokens of the batch
  speed/samples_s  responses per second, counted alike
  speed/tflops_s   10^12 operations of the model per second and device: one
                   forward pass over what was sampled, three over what was
                   learnt from, one more with a reference policy, and
                   one more for log-probabilities before the updates
  speed/mfu        model FLOPs utilization: the same as a fraction of the
                   device's peak in bfloat16; left out if that is not known

They count the work of this process and its devices.  A product of [n, a] and
[a, b] takes 2 n a b operations.  Only products are counted, of tokens that are
not padding, and in attention only the pairs that the mask allows:

  decoder   2 n (D (Q + 2 K) H + Q H D + 3 D F) + 4 p Q H    of each layer
  head      2 n D V                                          of each prediction
  vision    2 n (h 3h + h h + 3 h f) + 4 p h                 of each block

with n tokens (patches) and p pairs of a query and a key that it sees.  A prompt
is run once for its group.

Axes:  B prompts   G responses per prompt   D hidden   Q query heads
  K key heads   H head size   F MLP   V vocabulary
  h f hidden and MLP of the vision tower
Source: arxiv.org/abs/2204.02311 (PaLM, model FLOPs utilization, appendix B).
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from r1router_jax.inputs.processor import EncodedPrompt
from r1router_jax.models import qwen2_5_vl

# A backward pass costs twice the forward one, whatever is frozen or computed
# again.
FORWARD_PASSES_PER_UPDATE = 3

# Published peaks, in operations per second, of dense products in bfloat16, by
# the start of a JAX device's kind.  A chip of TPU v2 and v3 is two devices.
# Sources: cloud.google.com/tpu/docs and NVIDIA's data sheets.
PEAK_FLOPS = {
  "TPU v2": 23e12,
  "TPU v3": 61.5e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
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


class WorkCounts(NamedTuple):
  """Counts of work, which can be added up."""

  tokens: int = 0  # Of prompts and responses.
  samples: int = 0  # Responses.
  flops: int = 0  # Operations of the model.

  def add(self, other: "WorkCounts") -> "WorkCounts":
    """Return the sums of the counts."""
    return WorkCounts(*(a + b for a, b in zip(self, other, strict=True)))


@dataclasses.dataclass(frozen=True)
class IterationReport:
  """The report of an algorithm about an iteration, beside its batches."""

  scalars: Mapping[str, float]  # The log has their means.
  work: WorkCounts  # That of the updates included.
  # Seconds spent in phases of the rollout.
  seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
  groups: Sequence[Mapping[str, Any]] = ()  # Some, as JSON holds them.


def count_work(
  config: qwen2_5_vl.Config,
  prompts: Sequence[EncodedPrompt],
  lengths: Int[np.ndarray, "B G"],
  passes: int = 1,
) -> WorkCounts:
  """Count the work of forward passes over prompts and their responses.

  `lengths` are the numbers of tokens of the responses.
  """
  c, sizes = config, np.array([len(prompt.ids) for prompt in prompts], int)
  sizes = sizes[:, None]  # [B, 1]
  # The last token of a response is no input.  A token of the prompt or of the
  # response sees the prompt and its own response up to itself.
  inputs = np.maximum(lengths - 1, 0)
  pairs = sizes * (sizes + 1) // 2
  pairs = pairs.sum() + (inputs * sizes + inputs * (inputs + 1) // 2).sum()
  queries, keys = c.heads * c.head_size, c.kv_heads * c.head_size
  weights = c.hidden * (2 * queries + 2 * keys + 3 * c.mlp)
  tokens = int(sizes.sum() + inputs.sum())
  flops = 2 * c.layers * (tokens * weights + 2 * int(pairs) * queries)
  flops += 2 * int(lengths.sum()) * c.hidden * c.vocab
  # The vision tower runs once for a group.
  images = (image for prompt in prompts for image in prompt.images)
  flops += sum(image_flops(config, image.grid) for image in images)
  tokens = int(sizes.sum() + lengths.sum())
  samples = int(np.count_nonzero(lengths))  # Not the padding of groups.
  return WorkCounts(tokens, samples, passes * flops)


def image_flops(config: qwen2_5_vl.Config, grid: tuple[int, int]) -> int:
  """Count the operations of the vision tower and its merger on one image.

  The image has a grid of (rows, columns) of patches.
  """
  v, patches = config.vision, math.prod(grid)
  # Windows at the border are smaller; their pairs are a product of both axes.
  side = v.window // v.patch
  window_pairs = math.prod(
    sum(min(side, length - at) ** 2 for at in range(0, length, side))
    for length in grid
  )
  full_blocks = len({block for block in v.full_blocks if block < v.layers})
  pairs = full_blocks * patches**2 + (v.layers - full_blocks) * window_pairs
  block_weights = 4 * v.hidden**2 + 3 * v.hidden * v.mlp
  patch_weights = 3 * v.temporal * v.patch**2 * v.hidden
  merged = v.merge**2 * v.hidden  # Width of what the merger reads.
  return 2 * (
    patches * (patch_weights + v.layers * block_weights)
    + 2 * v.hidden * pairs
    + patches // v.merge**2 * merged * (merged + config.hidden)
  )


class ThroughputMeter:
  """Counts work and returns its rate over time."""

  def __init__(self):
    devices = jax.local_devices()
    self._device_count = len(devices)
    # None for devices whose peak is not known, such as CPUs.
    self._peak_flops = peak_flops(devices[0].device_kind)
    self._start = time.perf_counter()
    self._work = WorkCounts()

  def add_work(self, work: WorkCounts) -> None:
    """Count work for the next rates."""
    self._work = self._work.add(work)

  def read_rates(self) -> dict[str, float]:
    """Return the rates since the last call, or since the meter was made."""
    now = time.perf_counter()
    # The next rates begin where these end.
    seconds = now - self._start
    tokens, samples, flops = (count / seconds for count in self._work)
    self._start, self._work = now, WorkCounts()
    # Utilization is of one device, rates of tokens are of all.
    device_flops = flops / self._device_count
    rates = dict(tokens_s=tokens, samples_s=samples)
    rates["tflops_s"] = device_flops / 1e12
    if self._peak_flops is not None:
      rates["mfu"] = device_flops / self._peak_flops
    return {f"speed/{name}": rate for name, rate in rates.items()}
