"""Warns of signs, in the scalars that a run logs, that learning collapses.

Each check looks at all values so far of one scalar.  It warns once per spell:
at the first line of the log that is bad after one that was not.  The log is all
that the checks remember, so a run that continues from a checkpoint warns like
an unbroken one.  A scalar that is not logged is not checked.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Values = Sequence[float]  # Of one scalar, the oldest first.


@dataclasses.dataclass(frozen=True)
class HealthCheck:
  """A check of one scalar.

  Attributes:
    scalar: the name of the scalar in the log.
    is_bad: returns whether the last of the values is bad.
    meaning: what a bad value says about the run.
    advice: what to look at, and what to change.
  """

  scalar: str
  is_bad: Callable[[Values], bool]
  meaning: str
  advice: str


def is_above(limit: float) -> Callable[[Values], bool]:
  """Return a test that the last value is above `limit`."""
  return lambda values: values[-1] > limit


def is_below(limit: float) -> Callable[[Values], bool]:
  """Return a test that the last value is below `limit`."""
  return lambda values: values[-1] < limit


def shrank_to(fraction: float) -> Callable[[Values], bool]:
  """Return a test that the last value is below a fraction of the first."""
  return lambda values: values[-1] < fraction * values[0]


def grew_by(factor: float) -> Callable[[Values], bool]:
  """Return a test that the last value is above a multiple of the first."""
  return lambda values: values[-1] > factor * values[0]


def fell_by(drop: float) -> Callable[[Values], bool]:
  """Return a test that the last value is more than `drop` below the best."""
  return lambda values: values[-1] < max(values) - drop


HEALTH_CHECKS = (
  # Groups of equal rewards have advantage 0.
  HealthCheck(
    "reward/std_in_group",
    is_below(0.005),
    "responses of a group earn alike, so there is next to nothing to learn",
    "samples.jsonl; config.step_grpo.temperature and reward; are the steps "
    "all easy, or all too hard?",
  ),
  HealthCheck(
    "equal_groups",
    is_above(0.95),
    "nearly all groups are of equal rewards and are left out",
    "samples.jsonl; config.step_grpo.temperature and reward; more "
    "config.data.prompts_per_shard or a larger group_size",
  ),
  # A policy that is sure of everything explores nothing; one that is sure of
  # nothing has lost its format.
  HealthCheck(
    "entropy",
    shrank_to(0.25),
    "the policy draws nearly always the same tokens",
    "config.optim.lr (lower), config.step_grpo.loss.clip_high (higher)",
  ),
  HealthCheck(
    "entropy",
    grew_by(3.0),
    "the policy forgets what to write",
    "grad_norm and samples.jsonl; config.optim.lr (lower)",
  ),
  # Lengths.
  HealthCheck(
    "truncated",
    is_above(0.5),
    "most responses end at the longest length, unfinished",
    "samples.jsonl; the last of config.policy.overrides.response_tokens",
  ),
  HealthCheck(
    "response_tokens",
    shrank_to(0.25),
    "responses shrink to almost nothing",
    "samples.jsonl: does the reward favour short ones?",
  ),
  # The format that prompts ask for.
  HealthCheck(
    "reward/well_formed",
    fell_by(0.2),
    "responses are less often well formed than they were",
    "samples.jsonl; config.optim.lr (lower)",
  ),
  # The size of updates.  These checks look at the last value alone.
  HealthCheck(
    "kl",
    is_above(1.0),
    "the policy is far from its reference",
    "reward/total beside it; config.optim.lr (lower)",
  ),
  HealthCheck(
    "logp_drift",
    is_above(0.1),
    "tokens are not as likely in the update as when they were drawn",
    "how many updates a rollout serves; do sampler and trainer run in "
    "other precisions (config.policy.overrides.compute.dtype)?",
  ),
  HealthCheck(
    "clipped",
    is_above(0.3),
    "the trust region cuts off many tokens",
    "logp_drift; config.optim.lr (lower)",
  ),
)


def find_warnings(lines: Sequence[Mapping[str, Any]]) -> list[str]:
  """Return a warning for each scalar that became bad in the last line."""
  warnings = []
  for check in HEALTH_CHECKS:
    values = [
      line[check.scalar] for line in lines if line.get(check.scalar) is not None
    ]
    # A number that was not finite is logged as None.
    if not values or lines[-1].get(check.scalar) is None:
      continue
    # Of a spell only the first line warns.
    was_bad = len(values) > 1 and check.is_bad(values[:-1])
    if check.is_bad(values) and not was_bad:
      warnings.append(
        f"{check.scalar} is {values[-1]:.3g}: {check.meaning}.  "
        f"Look at {check.advice}."
      )
  return warnings
