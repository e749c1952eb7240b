"""Reports an iteration's scalars and work, and measures the rate of the work.

Rates are taken from one line of the log to the next, over everything that
happened in between, including checkpoints and compilation:

  speed/tokens_s   tokens per second: of prompts, once for a group, and of all
                   responses that were sampled, whether or not they are learnt
                   from; in a supervised run the tokens of the batch
  speed/samples_s  responses per second, counted alike
  speed/tflops_s   10^12 operations of the model (`flops.py`) per second and
                   device: one forward pass over what was sampled, three over
                   what was learnt from, one more with a reference policy
  speed/mfu        model FLOPs utilization: the same as a fraction of the
                   device's peak in bfloat16; left out if that is not known

They count the work of this process and its devices.

Axes:  B prompts   G responses per prompt   T response tokens
"""

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from r1router_jax.common.records import Step
from r1router_jax.inputs.processor import EncodedPrompt
from r1router_jax.models import qwen2_5_vl
from r1router_jax.training import flops as flops_lib
from r1router_jax.training.batch import Batch


class WorkCounts(NamedTuple):
  """Counts of work, which can be added up."""

  tokens: int = 0  # Of prompts and responses.
  samples: int = 0  # Responses.
  flops: int = 0  # Operations of the model.

  def add(self, other: "WorkCounts") -> "WorkCounts":
    """Return the sums of the counts."""
    return WorkCounts(*(a + b for a, b in zip(self, other, strict=True)))

  def with_updates(self, updates: Iterable["WorkCounts"]) -> "WorkCounts":
    """Return a rollout's counts plus the operations of its updates.

    Tokens and samples of the updates are those of the rollout.
    """
    flops = sum(update.flops for update in updates)
    return self._replace(flops=self.flops + flops)


@dataclasses.dataclass(frozen=True)
class IterationReport:
  """The report of an algorithm about an iteration, beside its batches."""

  scalars: Mapping[str, float]  # The log has their means.
  work: WorkCounts  # That of the updates included.
  # Seconds spent in phases of the rollout.
  seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
  groups: Sequence[Mapping[str, Any]] = ()  # Some, see `sample_groups`.


def rollout_work(
  config: qwen2_5_vl.Config,
  prompts: Sequence[EncodedPrompt],
  mask: Bool[np.ndarray, "B G T"],
) -> WorkCounts:
  """Count the work of sampling a group of masked responses to each prompt."""
  # [B, G]: tokens of each response.
  lengths = mask.sum(-1)
  tokens, flops = int(lengths.sum()), 0
  for prompt, group_lengths in zip(prompts, lengths, strict=True):
    # The vision tower runs once for a group.
    grids, size = [image.grid for image in prompt.images], len(prompt.ids)
    flops += flops_lib.group_flops(config, size, group_lengths, grids)
    tokens += size
  return WorkCounts(tokens, lengths.size, flops)


def update_work(
  config: qwen2_5_vl.Config,
  batch: Batch,
  passes: int = flops_lib.FORWARD_PASSES_PER_UPDATE,
) -> WorkCounts:
  """Count the work of an update, from the rows of a batch with a response.

  Leaves are [B, ...], or [D, B, ...]; an update costs `passes` forward passes.
  """
  # 1. Join the data shards.
  prompt = batch.prompt
  mask = batch.mask.reshape(-1, *batch.mask.shape[-2:])
  rows = len(mask)
  input_tokens = prompt.mask.reshape(rows, -1).sum(-1)
  if prompt.valid.size:
    valid = prompt.valid.reshape(rows, -1, *prompt.valid.shape[-2:])
  else:
    valid = np.zeros((rows, 0, 1, 1), bool)  # No images, and no axis of them.
  patch_position = prompt.patch_position.reshape(*valid.shape, 2)
  segments = None
  if batch.packing is not None:
    segments = batch.packing.segments.reshape(rows, -1)

  # 2. Add up the rows that hold a response; the others are padding.
  work = WorkCounts()
  for row in np.flatnonzero(mask.any((1, 2))):
    lengths = mask[row].sum(-1)
    # The grid of an image is read off the positions of its patches.
    grids = [
      (1 + position[real].max(0)).tolist()
      for position, real in zip(patch_position[row], valid[row], strict=True)
      if real.any()
    ]
    tokens = int(input_tokens[row])
    if segments is None:
      cost = flops_lib.group_flops(config, tokens, lengths, grids)
      tokens += int(lengths.sum())
      samples = int(np.sum(lengths > 0))
    else:
      # A packed row's prompt holds the responses, too.
      samples, cost = _packed_work(config, segments[row], lengths, grids)
    work = work.add(WorkCounts(tokens, samples, passes * cost))
  return work


def _packed_work(
  config: qwen2_5_vl.Config,
  segments: np.ndarray,
  lengths: np.ndarray,
  grids: Sequence[Sequence[int]],
) -> tuple[int, int]:
  """Return the number of texts of a packed row, and its operations."""
  texts = np.bincount(segments)[1:]  # Tokens of each text; 0 is padding.
  # A token sees the tokens of its own text up to itself.
  pairs = int(np.sum(texts * (texts + 1) // 2))
  cost = flops_lib.decoder_flops(config, int(texts.sum()), pairs)
  cost += flops_lib.head_flops(config, int(lengths.sum()))
  cost += sum(flops_lib.image_flops(config, *grid) for grid in grids)
  return len(texts), cost


def sample_groups(
  steps: Sequence[Step],
  texts: Sequence[str],
  rewards: Float[np.ndarray, "B G"],
  advantages: Float[np.ndarray, "B G"],
) -> list[dict[str, Any]]:
  """Return the first group of each kind of step, as JSON holds it.

  The texts of a group come one after the other.
  """
  group_size = rewards.shape[1]
  # The row of the first group of each kind.
  first: dict[str, int] = {}
  for row, step in enumerate(steps):
    first.setdefault(step.kind, row)
  groups = []
  for kind, row in first.items():
    step, start = steps[row], row * group_size
    # The gold answers, or the gold plan in words.
    plan = f"{step.sub_question} ({' or '.join(step.routes)})"
    group = dict(
      id=step.id,
      kind=kind,
      question=step.question.text,
      history=[list(pair) for pair in step.history],
      sub_question=step.sub_question if kind == "answer" else "",
      gold=[plan] if kind == "plan" else list(step.answers),
      responses=list(texts[start : start + group_size]),
      rewards=rewards[row].tolist(),
      advantages=advantages[row].tolist(),
    )
    groups.append(group)
  return groups


class ThroughputMeter:
  """Counts work and returns its rate over time."""

  def __init__(self):
    devices = jax.local_devices()
    self._device_count = len(devices)
    # None for devices whose peak is not known, such as CPUs.
    self._peak_flops = flops_lib.peak_flops(devices[0].device_kind)
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
