"""The advantages of groups and of parts of a reward; truncated responses."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from r1router_jax.training import advantages
from r1router_jax.training.advantages import group_advantages


def test_advantages_by_hand():
  # The standard deviation is that of a sample, as in verl.
  rewards = np.array([[0.1, 0.4, 1.0], [2.0, -1.0, 0.5]])
  got = group_advantages(rewards)
  for row in range(2):
    mean = sum(rewards[row]) / 3
    std = (sum((r - mean) ** 2 for r in rewards[row]) / 2) ** 0.5  # Sample.
    assert_allclose(got[row], (rewards[row] - mean) / (std + 1e-6), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1.1, 1 / 3])
def test_equal_rewards_have_advantages_of_exactly_zero(size, value):
  assert not group_advantages(np.full((2, size), value)).any()
  # Also in float32, whose mean of equal numbers may differ from them.
  single = np.full((2, size), value, np.float32)
  assert not group_advantages(single).any()


def test_advantages_follow_their_responses_and_ignore_scale():
  rng = np.random.default_rng(0)
  rewards = rng.normal(size=(4, 6))
  order = rng.permutation(6)
  got = group_advantages(rewards)
  assert_allclose(group_advantages(rewards[:, order]), got[:, order], atol=1e-6)
  assert_allclose(got.mean(1), 0, atol=1e-6)
  assert_allclose(got.std(1, ddof=1), 1, atol=1e-4)
  assert_allclose(group_advantages(3 * rewards + 7), got, atol=1e-4)


@pytest.mark.parametrize(
  "advantage_norm, ddof", [("sample_std", 1), ("population_std", 0)]
)
def test_advantages_are_divided_by_the_standard_deviation(advantage_norm, ddof):
  rewards = np.random.default_rng(0).normal(size=(3, 5))
  got = group_advantages(rewards, advantage_norm)
  plain = group_advantages(rewards, "none")
  assert_allclose(plain, rewards - rewards.mean(1, keepdims=True), atol=1e-6)
  for row in range(3):
    spread = (np.sum(plain[row] ** 2) / (5 - ddof)) ** 0.5
    assert_allclose(got[row], plain[row] / spread, rtol=1e-4)


def advantages_slowly(rewards, norm):
  """Return the advantages of one group, member by member."""
  rewards, n = [float(r) for r in rewards], len(rewards)
  if n == 1 or len(set(rewards)) == 1:
    return [0.0] * n
  out = []
  for i, reward in enumerate(rewards):
    others = rewards[:i] + rewards[i + 1 :]
    if norm == "leave_one_out":
      out.append(reward - sum(others) / (n - 1))
      continue
    mean = sum(rewards) / n
    lost = dict(sample_std=1, population_std=0, none=0)[norm]
    std = (sum((r - mean) ** 2 for r in rewards) / (n - lost)) ** 0.5
    out.append((reward - mean) / (1 if norm == "none" else std + 1e-6))
  return out


@pytest.mark.parametrize("norm", advantages.ADVANTAGE_NORMS)
def test_absent_members_count_for_nothing(norm):
  rng = np.random.default_rng(1)
  rewards = rng.integers(0, 4, (40, 5)) / 3
  present = rng.random((40, 5)) < 0.6
  present[:6] = np.arange(5) < np.arange(6)[:, None]  # None, one, ... all.
  # Whatever stands where nobody is.
  filled = np.where(present, rewards, np.array([np.nan, 1e9, -np.inf, 0, 7]))
  got = group_advantages(filled, norm, present)
  for row in range(40):
    wanted = np.zeros(5)
    members = np.flatnonzero(present[row])
    if len(members):
      wanted[members] = advantages_slowly(rewards[row, members], norm)
    assert_allclose(got[row], wanted, rtol=1e-5, atol=1e-7)
  # A member alone is compared with nobody.
  assert not got[present.sum(1) < 2].any()
  everybody = np.ones_like(present)
  np.testing.assert_array_equal(
    group_advantages(rewards, norm, everybody), group_advantages(rewards, norm)
  )


def test_parts_are_normalised_apart_and_their_sum_over_the_batch():
  rng = np.random.default_rng(2)
  parts = {
    "answer": rng.integers(0, 2, (7, 4)).astype(float),
    "searches": rng.integers(0, 4, (7, 4)).astype(float),
    "unweighted": rng.normal(size=(7, 4)),
  }
  weights = {"answer": 1.0, "searches": -0.3}
  present = rng.random((7, 4)) < 0.8
  got = advantages.part_advantages(parts, weights, present=present)
  sums = np.zeros((7, 4))
  for name, weight in weights.items():
    for row in range(7):
      members = np.flatnonzero(present[row])
      values = advantages_slowly(parts[name][row, members], "sample_std")
      sums[row, members] += weight * np.array(values)
  # Whitened over those who are there, whose mean is 0 already.
  inside = sums[present]
  assert abs(inside.mean()) < 1e-6
  wanted = np.where(present, (sums - inside.mean()) / inside.std(), 0)
  assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
  # The scale of a part has no effect, its weight has.
  scaled = parts | {"searches": 100 * parts["searches"]}
  again = advantages.part_advantages(scaled, weights, present=present)
  assert_allclose(again, got, atol=1e-4)


def test_parts_of_equal_rewards_have_advantages_of_exactly_zero():
  parts = {"answer": np.ones((3, 4)), "tokens": np.full((3, 4), 0.1)}
  got = advantages.part_advantages(parts, {"answer": 1.0, "tokens": -0.1})
  assert not got.any()


def test_truncated_responses_fill_their_room_without_an_end_token():
  ends = (7, 2)
  tokens = np.array([[[5, 5, 5], [5, 5, 2], [5, 7, 9], [5, 2, 7]]])
  mask = np.array([[[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 1]]], bool)
  truncated = advantages.find_truncated(tokens, mask, ends)
  assert truncated.tolist() == [[True, False, False, False]]
  rewards = np.array([[0.5, 0.25, 1.0, 0.0]])
  penalised = advantages.penalise_truncated(rewards, truncated)
  assert penalised.tolist() == [[-0.5, 0.25, 1.0, 0.0]]


def test_dropped_responses_leave_the_advantages_of_their_group():
  rewards = np.array([[1.0, 0.0, 0.0], [0.2, 0.4, 0.9]])
  before = group_advantages(rewards)
  mask = np.ones((2, 3, 4), bool)
  truncated = np.array([[True, False, False], [False, False, False]])
  after, kept = advantages.drop_truncated(before, mask, truncated)
  assert after[0, 0] == 0 and not kept[0, 0].any()
  np.testing.assert_array_equal(after[~truncated], before[~truncated])
  assert kept[~truncated].all()
