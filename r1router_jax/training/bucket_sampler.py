"""Seeded batches of training rows, bucketed by shape.

The rows of batch i depend on (seed, i) alone, so a resumed run reads what an
unbroken one would.  Within an epoch rows are sorted by shape and cut into
batches, and the batches are shuffled: every row is seen once, and little is
padding.
"""

import functools
from collections.abc import Sequence

import numpy as np

from r1router_jax.common.errors import UserError


class BucketSampler:
  """Chooses the rows of each batch, in an order that the seed gives.

  Rows have a shape, any sortable tuple, which those of a batch share, except in
  batches at the border between two shapes.  A batch has `size` rows, or fewer
  at the end of an epoch, but not fewer than `hosts`, which share it.
  """

  def __init__(
    self, shapes: Sequence[tuple], size: int, seed: int, hosts: int = 1
  ):
    if not shapes:
      raise UserError(
        "There are no training rows: config.data names a split without "
        "questions."
      )
    if 0 < (rest := len(shapes) % size) < hosts:
      raise UserError(
        f"The last batch of {len(shapes)} rows is of {rest}, for {hosts} "
        f"processes: take {rest} rows less, by config.data.split."
      )
    # Each shape by its rank, so that the rows can be sorted as an array.
    ranks = {shape: rank for rank, shape in enumerate(sorted(set(shapes)))}
    self._shape = np.array([ranks[shape] for shape in shapes])
    self._size, self._seed = size, seed
    self.batches_per_epoch = -(-len(shapes) // size)

  def __getitem__(self, i: int) -> np.ndarray:
    """Return the indices of the rows of batch `i`, for any i >= 0."""
    epoch, position = divmod(i, self.batches_per_epoch)
    return self._make_epoch(epoch)[position]

  @functools.lru_cache(maxsize=2)  # noqa: B019 (one object per run)
  def _make_epoch(self, epoch: int) -> list[np.ndarray]:
    """Return all batches of an epoch, in order."""
    rng = np.random.default_rng((self._seed, epoch))
    order = rng.permutation(len(self._shape))
    # A stable sort keeps the random order among rows of one shape.
    order = order[np.argsort(self._shape[order], kind="stable")]
    starts = range(0, len(order), self._size)
    batches = [order[start : start + self._size] for start in starts]
    return [batches[j] for j in rng.permutation(len(batches))]
