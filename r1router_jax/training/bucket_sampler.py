"""Seeded batches of training rows, in few shapes.

The rows of batch i depend on (seed, i) alone, so a resumed run reads what an
unbroken one would.  Within an epoch rows are sorted by shape, cut into batches,
and the batches are shuffled: every row is seen once, and little is padding.
"""

import functools
from collections.abc import Sequence

import numpy as np


class Batches:
  """Which rows make up each batch.

  Args:
    shapes: of each row, anything sortable; rows of a batch share it, but for
      batches at the border between two shapes.
    size: rows per batch; the last batch of an epoch may be smaller.
    seed: of the order.
  """

  def __init__(self, shapes: Sequence[tuple], size: int, seed: int):
    if not shapes:
      raise ValueError(
        "There are no training rows: config.data names a split "
        "without questions."
      )
    distinct = sorted(set(shapes))
    self._shape = np.array([distinct.index(shape) for shape in shapes])
    self._size, self._seed = size, seed
    self.per_epoch = -(-len(shapes) // size)

  def __getitem__(self, i: int) -> np.ndarray:
    """Indices of the rows of batch `i`, for any i >= 0."""
    epoch, at = divmod(i, self.per_epoch)
    return self._epoch(epoch)[at]

  @functools.lru_cache(maxsize=2)  # noqa: B019 (one object per run)
  def _epoch(self, epoch: int) -> list[np.ndarray]:
    rng = np.random.default_rng((self._seed, epoch))
    order = rng.permutation(len(self._shape))
    order = order[np.argsort(self._shape[order], kind="stable")]
    batches = [
      order[i : i + self._size] for i in range(0, len(order), self._size)
    ]
    return [batches[j] for j in rng.permutation(len(batches))]
