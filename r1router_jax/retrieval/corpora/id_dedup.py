"""A compact set of the ids that came before, to find rows that repeat an id.

Each id is kept as 64 bits of its hash.  The hashes are sorted within a few
runs, each at least twice as long as the next, so that a batch is looked up and
added without a pass over all of them.  Two of fifty million different ids have
the same hash with a probability of 7e-5; the later one would then be taken for
a repetition.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt64


class IdSet:
  """A set of ids, by their hashes.

  Args:
    hashes: hashes of ids that are in the set from the start.
  """

  def __init__(self, hashes: UInt64[np.ndarray, " N"] | None = None):
    self._runs = [] if hashes is None else [np.sort(hashes)]

  def add(self, hashes: UInt64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Add a batch of ids, and return whether each is new.

    An id that occurs twice in the batch is new the first time only.
    """
    # `first` is the position in the batch of the first of equal hashes.
    unique, first = np.unique(hashes, return_index=True)
    known = np.zeros(len(unique), bool)
    for run in self._runs:
      known |= _contains_sorted(run, unique)
    is_new = np.zeros(len(hashes), bool)
    is_new[first[~known]] = True

    # Merge shorter runs into the new one, so that lengths at least double.
    run = unique[~known]
    while self._runs and len(self._runs[-1]) < 2 * len(run):
      run = np.concatenate([self._runs.pop(), run])
      run.sort()
    self._runs.append(run)
    return is_new


def hash_ids(ids: Sequence[str]) -> UInt64[np.ndarray, " n"]:
  """Return 64 bits of the hash of each id."""
  digests = (hashlib.blake2b(id.encode(), digest_size=8).digest() for id in ids)
  return np.frombuffer(b"".join(digests), "<u8")


def _contains_sorted(
  run: UInt64[np.ndarray, " N"], values: UInt64[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
  """Return whether each value is in a sorted array."""
  if not len(run):
    return np.zeros(len(values), bool)
  # A value larger than all has position len(run), which is out of bounds.
  position = np.minimum(np.searchsorted(run, values), len(run) - 1)
  return run[position] == values
