"""Advantages: how much better a response was than others to its prompt.

The G responses to a prompt form a group, with rewards r_1..r_G, of which some
may be absent.  By `advantage_norm` the advantage of response g is

  sample_std, population_std   (r_g - mean r) / (std r + ADVANTAGE_EPS)
  none                         r_g - mean r
  leave_one_out                r_g - mean of the other rewards  (RLOO)

with means over the n members that are present.  A group of equal rewards, or
of one member, has advantages of exactly 0, so that it can be left out.

A reward of several parts, such as an answer's score and the cost of searches,
can be normalised part by part (`part_advantages`): a part of small spread is
then not drowned by one of large spread.

A response that fills its room without an end token was cut, which says little
about its quality; `TRUNCATED_RULES` are what can be done about it:

  keep      nothing
  drop      the response is in no sum of the loss; its group's means count it
  penalise  its reward is less by TRUNCATED_PENALTY

Axes:  B groups   G responses per group   T response tokens
Sources: arxiv.org/abs/2402.03300 (GRPO), arxiv.org/abs/2503.20783 (no std),
  arxiv.org/abs/2402.14740 (RLOO), arxiv.org/abs/2601.05242 (GDPO, by parts),
  arxiv.org/abs/2503.14476 (overlong responses: dropped, or a reward less by 1).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from r1router_jax.parallel import multihost

ADVANTAGE_EPS = 1e-6

# Degrees of freedom that a standard deviation loses.
_LOST_DEGREES = {"sample_std": 1, "population_std": 0}

ADVANTAGE_NORMS = (*_LOST_DEGREES, "none", "leave_one_out")

TRUNCATED_RULES = ("keep", "drop", "penalise")

TRUNCATED_PENALTY = 1.0


class Credit(NamedTuple):
  """The options by which rewards become advantages."""

  norm: str = "sample_std"  # One of `ADVANTAGE_NORMS`.
  by_part: bool = False  # Whether parts of rewards are normalised apart.
  truncated: str = "keep"  # One of `TRUNCATED_RULES`.
  end_ids: tuple[int, ...] = ()  # Of which truncated responses have none.
  # The weight of the comparison at equal states, and the discount of what
  # follows (`trajectory_rollouts.py`).
  state_weight: float = 0.0
  discount: float = 1.0


def group_advantages(
  rewards: Float[np.ndarray, "B G"],
  advantage_norm: str = "sample_std",
  present: Bool[np.ndarray, "B G"] | None = None,
) -> Float[np.ndarray, "B G"]:
  """Compute group-relative advantages: rewards centred and scaled per group.

  `advantage_norm` is one of `ADVANTAGE_NORMS`; verl takes "sample_std".
  Members that are not `present`, by default none, have advantage 0, whatever
  their rewards.
  """
  # Float64: in float32 the mean of five equal numbers can differ from each of
  # them, and ADVANTAGE_EPS is too small to hide the difference.
  rewards = np.asarray(rewards, np.float64)
  if present is None:
    present = np.ones(rewards.shape, bool)
  members = dict(axis=1, keepdims=True, where=present)
  lowest = np.min(rewards, initial=np.inf, **members)
  equal = np.max(rewards, initial=-np.inf, **members) <= lowest

  # 1. The differences from the mean.
  count = np.maximum(present.sum(1, keepdims=True), 1)
  mean = np.sum(rewards, **members) / count
  centred = np.where(present, rewards - mean, 0)

  # 2. Their scale.  A group of one has nothing to be scaled by.
  if advantage_norm in _LOST_DEGREES:
    free = np.maximum(count - _LOST_DEGREES[advantage_norm], 1)
    variance = np.sum(centred**2, axis=1, keepdims=True) / free
    centred /= np.sqrt(variance) + ADVANTAGE_EPS
  elif advantage_norm == "leave_one_out":
    # r - (n mean - r) / (n - 1) = (r - mean) n / (n - 1).
    centred *= count / np.maximum(count - 1, 1)
  # Equal rewards give exactly 0, so that the group can be left out.
  return np.where(equal, 0, centred).astype(np.float32)


def part_advantages(
  parts: Mapping[str, Float[np.ndarray, "B G"]],
  weights: Mapping[str, float],
  advantage_norm: str = "sample_std",
  present: Bool[np.ndarray, "B G"] | None = None,
) -> Float[np.ndarray, "B G"]:
  """Compute advantages of a reward whose parts are normalised apart (GDPO).

  A = sum over parts of weight A_part, with the `group_advantages` of each part
  that has a weight, divided by the standard deviation of A over the batch of
  all hosts.  The mean over the batch needs no subtraction: it is 0, since that
  of each group is.
  """
  sums = sum(
    weight * group_advantages(parts[name], advantage_norm, present)
    for name, weight in weights.items()
  )
  count = sums.size if present is None else present.sum()
  totals = [float(np.sum(sums**2)), float(count)]
  square, count = multihost.sum_over_hosts(totals)
  spread = np.sqrt(square / max(count, 1))
  return (sums / (spread + ADVANTAGE_EPS)).astype(np.float32)


def reward_advantages(
  credit: Credit,
  reward: Float[np.ndarray, "B G"],
  parts: Mapping[str, Float[np.ndarray, "B G"]],
  weights: Mapping[str, float],
  truncated: Bool[np.ndarray, "B G"],
) -> Float[np.ndarray, "B G"]:
  """Compute the advantages of rewards, or of their weighted parts."""
  if credit.truncated == "penalise":
    reward = penalise_truncated(reward, truncated)
    parts = {**parts, "truncated": truncated.astype(np.float64)}
    weights = {**weights, "truncated": -TRUNCATED_PENALTY}
  if credit.by_part:
    return part_advantages(parts, weights, credit.norm)
  return group_advantages(reward, credit.norm)


def find_truncated(
  tokens: Int[np.ndarray, "B G T"],
  mask: Bool[np.ndarray, "B G T"],
  end_ids: Sequence[int],
) -> Bool[np.ndarray, "B G"]:
  """Return which responses fill their room of T tokens without an end token.

  `mask` is True up to and including the end token.
  """
  return mask[..., -1] & ~np.isin(tokens[..., -1], end_ids)


def penalise_truncated(
  rewards: Float[np.ndarray, "B G"], truncated: Bool[np.ndarray, "B G"]
) -> Float[np.ndarray, "B G"]:
  """Return the rewards, those of truncated responses less by the penalty."""
  return rewards - TRUNCATED_PENALTY * truncated


def drop_truncated(
  advantages: Float[np.ndarray, "B G"],
  mask: Bool[np.ndarray, "B G T"],
  truncated: Bool[np.ndarray, "B G"],
) -> tuple[Float[np.ndarray, "B G"], Bool[np.ndarray, "B G T"]]:
  """Return advantages and mask without the truncated responses.

  These have advantage 0 and no token, so that they are in neither the numerator
  nor the denominator of the loss; the others keep theirs.
  """
  return np.where(truncated, 0, advantages), mask & ~truncated[..., None]
