"""Signs that learning collapses, read off the scalars that a run logs.

Each monitor looks at one scalar, at all its values so far, the oldest first.
It warns once per spell: at the first line that is bad after one that was not.
There is nothing to remember but the lines, so a run that goes on warns as if it
had not been interrupted, and a scalar that is not logged is not watched.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Values = Sequence[float]


@dataclasses.dataclass(frozen=True)
class Monitor:
  """One thing that can go wrong.

  Attributes:
    scalar: its name in the log.
    bad: whether the last value is bad.
    says: what that means.
    look: what to look at.
  """

  scalar: str
  bad: Callable[[Values], bool]
  says: str
  look: str


def above(limit: float) -> Callable[[Values], bool]:
  return lambda values: values[-1] > limit


def below(limit: float) -> Callable[[Values], bool]:
  return lambda values: values[-1] < limit


def shrunk(share: float) -> Callable[[Values], bool]:
  """Below a share of the first value."""
  return lambda values: values[-1] < share * values[0]


def grown(times: float) -> Callable[[Values], bool]:
  """Above so many times the first value."""
  return lambda values: values[-1] > times * values[0]


def fallen(drop: float) -> Callable[[Values], bool]:
  """So far below the greatest value."""
  return lambda values: values[-1] < max(values) - drop


MONITORS = (
  Monitor(
    "reward/std_in_group",
    below(0.005),
    "responses of a group earn alike, so there is next to nothing to learn",
    "samples.jsonl; config.step_grpo.temperature and reward; are the steps "
    "all easy, or all too hard?",
  ),
  Monitor(
    "equal_groups",
    above(0.95),
    "nearly all groups are of equal rewards and are left out",
    "the same; more config.data.batch_rows or a larger group_size",
  ),
  Monitor(
    "entropy",
    shrunk(0.25),
    "the policy draws nearly always the same tokens",
    "config.optim.lr (lower), config.step_grpo.loss.clip_high (higher)",
  ),
  Monitor(
    "entropy",
    grown(3.0),
    "the policy forgets what to write",
    "grad_norm and samples.jsonl; config.optim.lr (lower)",
  ),
  Monitor(
    "truncated",
    above(0.5),
    "most responses end at the longest length, unfinished",
    "samples.jsonl; the last of config.policy.settings.response_tokens",
  ),
  Monitor(
    "response_tokens",
    shrunk(0.25),
    "responses shrink to almost nothing",
    "samples.jsonl: does the reward favour short ones?",
  ),
  Monitor(
    "reward/well_formed",
    fallen(0.2),
    "responses are less often well formed than they were",
    "samples.jsonl; config.optim.lr (lower)",
  ),
  Monitor(
    "kl",
    above(1.0),
    "the policy is far from its reference",
    "reward/total beside it; config.optim.lr (lower)",
  ),
  Monitor(
    "logp_drift",
    above(0.1),
    "tokens are not as likely in the update as when they were drawn",
    "how many updates a rollout serves; do sampler and trainer run in "
    "other precisions (settings.compute.dtype)?",
  ),
  Monitor(
    "clipped",
    above(0.3),
    "the trust region cuts off many tokens",
    "logp_drift; config.optim.lr (lower)",
  ),
)


def warnings(lines: Sequence[Mapping[str, Any]]) -> list[str]:
  """What to warn of at the last line: what was not bad a line before."""
  said = []
  for monitor in MONITORS:
    values = [
      line[monitor.scalar]
      for line in lines
      if line.get(monitor.scalar) is not None
    ]
    if not values or lines[-1].get(monitor.scalar) is None:
      continue
    if monitor.bad(values) and not (values[:-1] and monitor.bad(values[:-1])):
      said.append(
        f"{monitor.scalar} is {values[-1]:.3g}: {monitor.says}.  "
        f"Look at {monitor.look}."
      )
  return said
