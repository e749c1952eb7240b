"""Which ids came before, in eight bytes each.

Of an id 64 bits of its hash are kept, sorted, in a few runs each at least twice
as long as the next, so that a batch is looked up and added without a walk over
the whole.  Two of fifty million different ids share their bits with a chance
of 7e-5; the later would then be taken for a repetition.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt64


class Seen:
  """Ids by their hashes.

  Args:
    hashes: of those that came before.
  """

  def __init__(self, hashes: UInt64[np.ndarray, " N"] | None = None):
    self._runs = [] if hashes is None else [np.sort(hashes)]

  def add(self, hashes: UInt64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Adds a batch; whether each is new, also within the batch."""
    first, index = np.unique(hashes, return_index=True)
    fresh = ~np.logical_or.reduce(
      [_contains(run, first) for run in self._runs]
      or [np.zeros(len(first), bool)]
    )
    new = np.zeros(len(hashes), bool)
    new[index[fresh]] = True
    run = first[fresh]
    while self._runs and len(self._runs[-1]) < 2 * len(run):
      run = np.concatenate([self._runs.pop(), run])
      run.sort()
    self._runs.append(run)
    return new


def hashes(ids: Sequence[str]) -> UInt64[np.ndarray, " n"]:
  """64 bits of each id."""
  return np.frombuffer(
    b"".join(
      hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids
    ),
    "<u8",
  )


def _contains(
  run: UInt64[np.ndarray, " N"], asked: UInt64[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
  at = np.minimum(np.searchsorted(run, asked), max(len(run) - 1, 0))
  return run[at] == asked if len(run) else np.zeros(len(asked), bool)
