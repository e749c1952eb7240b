"""Batches of rows by shape: each row once per epoch, in a seeded order."""

import collections

import numpy as np
import pytest

from r1router_jax.training.bucket_sampler import BucketSampler

SHAPES = [
  (size, image)
  for size in (32, 64)
  for image in (False, True)
  for _ in range(9 + size // 8)
]


def read_epoch(sampler, number):
  """Return the rows of each batch of an epoch."""
  first = number * sampler.batches_per_epoch
  return [sampler[first + i].tolist() for i in range(sampler.batches_per_epoch)]


@pytest.mark.parametrize("size", [1, 4, 7, 200])
def test_every_row_once_per_epoch(size):
  sampler = BucketSampler(SHAPES, size, 0)
  for number in (0, 1, 5):
    rows = read_epoch(sampler, number)
    assert sorted(sum(rows, [])) == list(range(len(SHAPES)))
    assert max(map(len, rows)) <= size
    # Only the last batch of an epoch may be smaller.
    assert sum(len(row) < size for row in rows) <= 1


def test_batch_depends_on_seed_and_number_alone():
  forward, backward = BucketSampler(SHAPES, 4, 3), BucketSampler(SHAPES, 4, 3)
  numbers = range(5 * forward.batches_per_epoch)
  seen = {i: forward[i].tolist() for i in numbers}
  # Read backwards, as a resumed run may start anywhere.
  for i in reversed(numbers):
    assert backward[i].tolist() == seen[i]
  assert BucketSampler(SHAPES, 4, 4)[0].tolist() != seen[0]
  assert read_epoch(forward, 0) != read_epoch(forward, 1)


def test_rows_of_a_batch_share_their_shape():
  """Only a batch at one of the three borders between shapes is mixed."""
  mixed = [
    rows
    for rows in read_epoch(BucketSampler(SHAPES, 4, 0), 2)
    if len({SHAPES[i] for i in rows}) > 1
  ]
  assert len(mixed) <= 3


def test_batches_of_an_epoch_are_shuffled():
  sampler = BucketSampler(SHAPES, 4, 0)
  order = [SHAPES[sampler[i][0]] for i in range(sampler.batches_per_epoch)]
  assert order != sorted(order)


def test_rows_of_one_shape_are_shuffled_between_epochs():
  sampler = BucketSampler([()] * 12, 3, 0)
  met = collections.Counter(
    frozenset(rows) for n in range(20) for rows in read_epoch(sampler, n)
  )
  # Of the 220 possible batches of three rows many were met.
  assert len(met) > 40


@pytest.mark.parametrize(
  "rows, size, hosts, rest",
  [(9, 4, 2, 1), (11, 4, 4, 3), (2, 8, 4, 2), (10, 4, 2, 0), (8, 4, 4, 0)],
)
def test_last_batch_has_a_row_for_each_host_or_is_rejected(
  rows, size, hosts, rest
):
  if rest:
    with pytest.raises(ValueError, match=f"is of {rest}, for {hosts} process"):
      BucketSampler([()] * rows, size, 0, hosts)
    return
  sampler = BucketSampler([()] * rows, size, 0, hosts)
  assert min(map(len, read_epoch(sampler, 0))) >= hosts


def test_sampler_without_rows_is_rejected():
  with pytest.raises(ValueError, match="config.data"):
    BucketSampler([], 4, 0)


def test_indices_are_integers():
  assert np.issubdtype(BucketSampler(SHAPES, 4, 0)[0].dtype, np.integer)
