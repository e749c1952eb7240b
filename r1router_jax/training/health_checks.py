"""Warns of signs, in the scalars that a run logs, that learning collapses.

Each check looks at all values so far of one scalar.  It warns once per spell:
at the first line of the log that is bad after one that was not.  The log is all
that the checks remember, so a run that continues from a checkpoint warns like
an unbroken one.  A scalar that is not logged is not checked.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Each tests the values of a scalar, the oldest first, against a bound.
_TESTS: dict[str, Callable[[Sequence[float], float], bool]] = {
  "is above": lambda values, limit: values[-1] > limit,
  "is below": lambda values, limit: values[-1] < limit,
  "shrank to": lambda values, fraction: values[-1] < fraction * values[0],
  "grew by": lambda values, factor: values[-1] > factor * values[0],
  "fell by": lambda values, drop: values[-1] < max(values) - drop,
}

# A scalar of the log, a key of `_TESTS` and its bound: what a bad value says
# about the run, and what to look at, and to change.
HEALTH_CHECKS = {
  # Groups of equal rewards have advantage 0.
  ("reward/std_in_group", "is below", 0.005): (
    "responses of a group earn alike, so there is next to nothing to learn",
    "samples.jsonl; config.step_grpo.temperature and reward; are the steps "
    "all easy, or all too hard?",
  ),
  ("equal_groups", "is above", 0.95): (
    "nearly all groups are of equal rewards and are left out",
    "samples.jsonl; config.step_grpo.temperature and reward; more "
    "config.data.prompts_per_shard or a larger group_size",
  ),
  # A policy that is sure of everything explores nothing; one that is sure of
  # nothing has lost its format.
  ("entropy", "shrank to", 0.25): (
    "the policy draws nearly always the same tokens",
    "config.optim.lr (lower), config.step_grpo.loss.clip_high (higher)",
  ),
  ("entropy", "grew by", 3.0): (
    "the policy forgets what to write",
    "grad_norm and samples.jsonl; config.optim.lr (lower)",
  ),
  # Lengths.
  ("truncated", "is above", 0.5): (
    "most responses end at the longest length, unfinished",
    "samples.jsonl; the last of config.policy.overrides.response_tokens",
  ),
  ("response_tokens", "shrank to", 0.25): (
    "responses shrink to almost nothing",
    "samples.jsonl: does the reward favour short ones?",
  ),
  # The format that prompts ask for.
  ("reward/well_formed", "fell by", 0.2): (
    "responses are less often well formed than they were",
    "samples.jsonl; config.optim.lr (lower)",
  ),
  # The size of updates.  These checks look at the last value alone.
  ("kl", "is above", 1.0): (
    "the policy is far from its reference",
    "reward/total beside it; config.optim.lr (lower)",
  ),
  ("logp_drift", "is above", 0.1): (
    "tokens are not as likely in the update as when they were drawn",
    "how many updates a rollout serves; do sampler and trainer run in "
    "other precisions (config.policy.overrides.compute.dtype)?",
  ),
  ("clipped", "is above", 0.3): (
    "the trust region cuts off many tokens",
    "logp_drift; config.optim.lr (lower)",
  ),
}


def find_warnings(lines: Sequence[Mapping[str, Any]]) -> list[str]:
  """Return a warning for each scalar that became bad in the last line."""
  warnings = []
  for (scalar, test, bound), (meaning, advice) in HEALTH_CHECKS.items():
    logged = [line.get(scalar) for line in lines]
    # A number that was not finite is logged as None.
    if not logged or logged[-1] is None:
      continue
    values = [value for value in logged if value is not None]
    # Of a spell only the first line warns.
    is_bad = _TESTS[test]
    was_bad = len(values) > 1 and is_bad(values[:-1], bound)
    if is_bad(values, bound) and not was_bad:
      warnings.append(
        f"{scalar} is {values[-1]:.3g}: {meaning}.  Look at {advice}."
      )
  return warnings
