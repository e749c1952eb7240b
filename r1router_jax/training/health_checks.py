"""Warns of signs, in the scalars that a run logs, that learning collapses.

Each check compares the newest value of one scalar with a bound, or with the
first or the highest value of the run.  It warns once per spell: at the first
line of the log that is bad after one that was not.  Whatever the checks keep
follows from the lines of the log, so a run that continues from a checkpoint
warns like an unbroken one.  A scalar that is not logged is not checked.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple


class _Values(NamedTuple):
  """The values of a scalar that checks need: each line costs the same."""

  last: float
  first: float
  highest: float


# Each tests the values of a scalar against a bound.
_TESTS: dict[str, Callable[[_Values, float], bool]] = {
  "is above": lambda values, limit: values.last > limit,
  "is below": lambda values, limit: values.last < limit,
  "shrank to": lambda values, fraction: values.last < fraction * values.first,
  "grew by": lambda values, factor: values.last > factor * values.first,
  "fell by": lambda values, drop: values.last < values.highest - drop,
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
    "samples.jsonl, and solved_groups: are they all wrong, or all right?  "
    "config.step_grpo.temperature and reward; more "
    "config.data.prompts_per_shard or a larger group_size",
  ),
  # Of trajectories: a policy that is never right is never told what is.
  ("solved_groups", "is below", 0.02): (
    "next to no group holds a right trajectory, so there is nothing to learn "
    "from",
    "samples.jsonl; easier questions, a larger config.step_grpo.group_size, a "
    "start that finds some answers (supervised training); python -m "
    "r1router_jax.check_questions tells whether the knowledge bases hold the "
    "answers",
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
  # What is learnt has to hold for questions that are not learnt from.
  ("validation/f1", "fell by", 0.2): (
    "held-out questions are answered worse than they were",
    "validation/faults and validation/routes; <workdir>/best, an earlier "
    "state; config.optim.lr (lower)",
  ),
  # The size of updates.  These checks look at the last value alone.
  ("kl", "is above", 1.0): (
    "the policy is far from its reference",
    "reward/total beside it; config.optim.lr (lower)",
  ),
  ("logp_drift", "is above", 0.1): (
    "tokens are not as likely in the update as before the iteration's first",
    "how many updates a rollout serves; config.optim.lr (lower)",
  ),
  # Logged where the two round in other ways: training/old_logprobs.py.
  ("sampler_drift", "is above", 0.1): (
    "tokens are not as likely for the trainer as for the sampler",
    "config.policy.overrides.compute.dtype; "
    "config.step_grpo.loss.importance_cap (2 weighs for it)",
  ),
  ("clipped", "is above", 0.3): (
    "the trust region cuts off many tokens",
    "logp_drift; config.optim.lr (lower)",
  ),
}


class HealthMonitor:
  """Follows the scalars of a run, from the lines that it has logged before."""

  def __init__(self, lines: Iterable[Mapping[str, Any]] = ()):
    # The values of each scalar, and the checks whose last value was bad.
    self._values: dict[str, _Values] = {}
    self._bad: set[tuple[str, str, float]] = set()
    for line in lines:
      self.find_warnings(line)

  def find_warnings(self, line: Mapping[str, Any]) -> list[str]:
    """Return a warning for each scalar that becomes bad in the next line."""
    # 1. Values so far.  A number that was not finite is logged as None.
    logged = {}
    for scalar in dict.fromkeys(scalar for scalar, *_ in HEALTH_CHECKS):
      value = line.get(scalar)
      if value is not None:
        _, first, highest = self._values.get(scalar, (value,) * 3)
        logged[scalar] = _Values(value, first, max(highest, value))
    self._values |= logged

    # 2. Of a spell only the first line warns.
    warnings = []
    for check, (meaning, advice) in HEALTH_CHECKS.items():
      scalar, test, bound = check
      if scalar not in logged:
        continue
      if not _TESTS[test](logged[scalar], bound):
        self._bad.discard(check)
      elif check not in self._bad:
        self._bad.add(check)
        value = logged[scalar].last
        warnings.append(
          f"{scalar} is {value:.3g}: {meaning}.  Look at {advice}."
        )
    return warnings
