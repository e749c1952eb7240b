import collections

import numpy as np
import pytest

from r1router_jax.training.bucket_sampler import Batches

SHAPES = [
  (size, picture)
  for size in (32, 64)
  for picture in (False, True)
  for _ in range(9 + size // 8)
]


def epoch(batches, number):
  first = number * batches.per_epoch
  return [batches[first + i].tolist() for i in range(batches.per_epoch)]


@pytest.mark.parametrize("size", [1, 4, 7, 200])
def test_every_row_once_per_epoch(size):
  batches = Batches(SHAPES, size, 0)
  for number in (0, 1, 5):
    rows = epoch(batches, number)
    assert sorted(sum(rows, [])) == list(range(len(SHAPES)))
    assert max(map(len, rows)) <= size
    assert sum(len(row) < size for row in rows) <= 1


def test_a_batch_depends_on_seed_and_number_alone():
  forward, backward = Batches(SHAPES, 4, 3), Batches(SHAPES, 4, 3)
  numbers = range(5 * forward.per_epoch)
  seen = {i: forward[i].tolist() for i in numbers}
  for i in reversed(numbers):
    assert backward[i].tolist() == seen[i]
  assert Batches(SHAPES, 4, 4)[0].tolist() != seen[0]
  assert epoch(forward, 0) != epoch(forward, 1)


def test_rows_of_a_batch_share_their_shape():
  """But for one batch at each of the three borders."""
  mixed = [
    rows
    for rows in epoch(Batches(SHAPES, 4, 0), 2)
    if len({SHAPES[i] for i in rows}) > 1
  ]
  assert len(mixed) <= 3


def test_shapes_are_not_met_in_order():
  batches = Batches(SHAPES, 4, 0)
  order = [SHAPES[batches[i][0]] for i in range(batches.per_epoch)]
  assert order != sorted(order)


def test_neighbours_change_from_epoch_to_epoch():
  batches = Batches([()] * 12, 3, 0)
  met = collections.Counter(
    frozenset(rows) for n in range(20) for rows in epoch(batches, n)
  )
  assert len(met) > 40


def test_no_rows_is_an_error():
  with pytest.raises(ValueError, match="config.data"):
    Batches([], 4, 0)


def test_indices_are_integers():
  assert np.issubdtype(Batches(SHAPES, 4, 0)[0].dtype, np.integer)
