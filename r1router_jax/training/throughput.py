"""What an iteration says of itself, beside its batch.

Rates are taken from one line of the log to the next, over all that happened in
between, checkpoints and compilation too:

  speed/tokens_s   tokens of prompts, once for a group, and of responses, all
                   that were sampled whether or not they teach, a second; in a
                   supervised run those of the batch
  speed/samples_s  responses likewise
  speed/tflops_s   operations of the model (`flops.py`) a second and device, in
                   10^12: one forward pass over what was sampled, three over
                   what was learnt from, one more with a reference policy
  speed/mfu        the same as a share of what the device can do in bfloat16;
                   left out where that is not known, as of a CPU

They are those of this process and its devices.

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
from r1router_jax.inputs.processor import Encoded
from r1router_jax.models import qwen2_5_vl
from r1router_jax.training import flops as flops_lib
from r1router_jax.training.batch import Batch


class Work(NamedTuple):
  """Counts that add up, see the module's docstring."""

  tokens: int = 0
  samples: int = 0
  flops: int = 0

  def taught(self, learnt: Iterable["Work"]) -> "Work":
    """The same with the operations of updates from some of the tokens."""
    return self._replace(flops=self.flops + sum(w.flops for w in learnt))


@dataclasses.dataclass(frozen=True)
class Account:
  """What `make_batches` returns with its batches.

  Attributes:
    scalars: by name; the log has their means.
    work: what was done, or is to be done by the update.
    seconds: spent in phases of its own, by name.
    groups: some of what was sampled, as `shown` has it.
  """

  scalars: Mapping[str, float]
  work: Work
  seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
  groups: Sequence[Mapping[str, Any]] = ()


def sampled(
  config: qwen2_5_vl.Config,
  prompts: Sequence[Encoded],
  mask: Bool[np.ndarray, "B G T"],
) -> Work:
  """The work of drawing a group of responses to each prompt."""
  lengths = mask.sum(-1)
  return Work(
    sum(len(prompt.ids) for prompt in prompts) + int(lengths.sum()),
    lengths.size,
    sum(
      flops_lib.group(
        config,
        len(prompt.ids),
        own,
        [picture.grid for picture in prompt.pictures],
      )
      for prompt, own in zip(prompts, lengths, strict=True)
    ),
  )


def learnt(
  config: qwen2_5_vl.Config, batch: Batch, passes: int = flops_lib.TRAIN
) -> Work:
  """The work of an update from the rows of a batch that hold a response.

  Args:
    config: of the model.
    batch: may have an axis of devices before its rows.
    passes: forward passes that an update costs.
  """
  mask = batch.mask.reshape(-1, *batch.mask.shape[-2:])
  rows = len(mask)
  prompts = batch.prompt.mask.reshape(rows, -1).sum(-1)
  valid = (
    batch.prompt.valid.reshape(rows, -1, *batch.prompt.valid.shape[-2:])
    if (batch.prompt.valid.size)
    else np.zeros((rows, 0, 1, 1), bool)
  )
  place = batch.prompt.place.reshape(*valid.shape, 2)
  segments = (
    None if batch.beside is None else (batch.beside.segments.reshape(rows, -1))
  )
  work = Work()
  for row in np.flatnonzero(mask.any((1, 2))):
    lengths = mask[row].sum(-1)
    grids = [
      (1 + at[seen].max(0)).tolist()
      for at, seen in zip(place[row], valid[row], strict=True)
      if seen.any()
    ]
    if segments is None:
      cost = flops_lib.group(config, int(prompts[row]), lengths, grids)
    else:
      texts = np.bincount(segments[row])[1:]
      prompts[row] -= lengths.sum()
      cost = flops_lib.decoder(
        config, int(texts.sum()), int(np.sum(texts * (texts + 1) // 2))
      )
      cost += flops_lib.head(config, int(lengths.sum())) + sum(
        flops_lib.picture(config, *grid) for grid in grids
      )
    work = Work(
      work.tokens + int(prompts[row] + lengths.sum()),
      work.samples
      + (int(np.sum(lengths > 0)) if segments is None else len(texts)),
      work.flops + passes * cost,
    )
  return work


def shown(
  steps: Sequence[Step],
  texts: Sequence[str],
  rewards: Float[np.ndarray, "B G"],
  advantages: Float[np.ndarray, "B G"],
) -> list[dict[str, Any]]:
  """The first group of each kind of step, ready for a file.

  Args:
    steps: what was asked, as the policy read it.
    texts: the responses, those of a group side by side.
    rewards, advantages: of each response.
  """
  first, size = {}, rewards.shape[1]
  for n, step in enumerate(steps):
    first.setdefault(step.kind, n)
  return [
    dict(
      id=steps[n].id,
      kind=kind,
      question=steps[n].question.text,
      history=[list(pair) for pair in steps[n].history],
      sub_question=steps[n].sub_question if kind == "answer" else "",
      gold=list(steps[n].answers)
      if kind != "plan"
      else [f"{steps[n].sub_question} ({' or '.join(steps[n].routes)})"],
      responses=list(texts[n * size : (n + 1) * size]),
      rewards=rewards[n].tolist(),
      advantages=advantages[n].tolist(),
    )
    for kind, n in first.items()
  ]


class Meter:
  """Counts work, and says how fast it was done."""

  def __init__(self):
    devices = jax.local_devices()
    self._devices, self._peak = (
      len(devices),
      flops_lib.peak(devices[0].device_kind),
    )
    self._start, self._work = time.perf_counter(), Work()

  def add(self, work: Work) -> None:
    self._work = Work(*map(sum, zip(self._work, work, strict=True)))

  def rates(self) -> dict[str, float]:
    """The rates since the last call, or since the meter was made."""
    now = time.perf_counter()
    tokens, samples, operations = (
      count / (now - self._start) for count in self._work
    )
    self._start, self._work = now, Work()
    each = operations / self._devices
    rates = {
      "speed/tokens_s": tokens,
      "speed/samples_s": samples,
      "speed/tflops_s": each / 1e12,
    }
    return (
      rates if self._peak is None else rates | {"speed/mfu": each / self._peak}
    )
