"""Nearest vectors by inner product: the interface of indexes, and exact search.

An index answers `search(vectors, k)` with scores and row numbers, best first;
if there are fewer than k rows, the rest is row -1 with score -inf.  A search
changes nothing, so threads may share an index.

Exact search is the reference for all others.  Their recall is measured when
they are built and whenever they are loaded, see `RecallProbe`.

Axes:  n queries   N rows   E width   k neighbours   P queries of a probe
"""

import os
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from absl import logging
from jaxtyping import Float, Float32, Int

from r1router_jax.common.errors import UserError

_NUM_PROBES = 128  # Queries of each of the two sorts.
_PROBE_FILE = "probe.npz"

# Relative difference of scores that are equal but for rounding.
_SCORE_TOLERANCE = 1e-5
_MAX_RECALL_LOSS = 0.02  # Between building and loading an index.
_MAX_SCORES = 1 << 24  # That exact search holds in memory at once.

Vectors = Float32[np.ndarray, "N E"]

# Scores and rows of the k best for each query.
SearchResult = tuple[Float32[np.ndarray, "n k"], Int[np.ndarray, "n k"]]

# The same; the number of columns differs from that of the results merged.
MergedResult = tuple[Float32[np.ndarray, "n m"], Int[np.ndarray, "n m"]]


@runtime_checkable
class Index(Protocol):
  """The interface of all indexes, of N rows and of width E."""

  rows: int
  width: int

  def search(self, vectors: Float[np.ndarray, "n E"], k: int) -> SearchResult:
    """Return scores and rows of the k nearest, see the top of this module."""

  def measure_recall(self) -> float:
    """Return the share of the ten nearest rows that a search finds."""

  def save(self, folder: str) -> dict:
    """Write the index to `folder`; return what index.json keeps."""


class RecallProbe(NamedTuple):
  """Queries whose nearest rows are known.

  The first half are rows of the index.  The other half lie midway between two
  rows, far from both, as questions are from their answers.
  """

  vectors: Float32[np.ndarray, "P E"]
  scores: Float32[np.ndarray, "P 10"]  # Of the nearest rows, by exact search.

  @classmethod
  def from_vectors(cls, vectors: Vectors) -> "RecallProbe":
    """Make a probe of rows that are spread evenly over all."""
    count = min(_NUM_PROBES, len(vectors))
    # 1. Rows of the index.
    rows = vectors[np.linspace(0, len(vectors) - 1, count, dtype=np.int64)]
    # All rows are equally near to a query of zeros, so that any result would
    # count as right.
    rows = rows[rows.any(axis=1)] if rows.any() else rows
    # 2. Points between each row and one that is half of the list away.
    midpoints = (rows + np.roll(rows, len(rows) // 2 or 1, axis=0)) / 2
    probes = np.concatenate([rows, midpoints])
    return cls(probes, ExactIndex(vectors).search(probes, 10)[0])

  def measure_recall(self, index: Index) -> float:
    """Return the share of the ten nearest rows that an index finds.

    The worse of the two sorts of query counts.  Rows with equal scores are as
    good as each other.
    """
    # Scores are compared, not rows: of equal rows any may be found.
    scores, _ = index.search(self.vectors, self.scores.shape[1])
    # Fewer than ten rows exist where a score is -inf.
    exists = np.isfinite(self.scores)
    tenth = self.scores.min(axis=1, keepdims=True, where=exists, initial=np.inf)
    tolerance = _SCORE_TOLERANCE * np.maximum(1, np.abs(tenth))
    hits = scores >= tenth - tolerance
    halves = np.split(np.arange(len(hits)), 2)
    return min(float(hits[half].sum() / exists[half].sum()) for half in halves)

  def save(self, folder: str) -> None:
    """Write the probe to `folder`."""
    np.savez(os.path.join(folder, _PROBE_FILE), **self._asdict())

  @classmethod
  def load(cls, folder: str) -> "RecallProbe":
    """Return the probe that `save` wrote to `folder`."""
    with np.load(os.path.join(folder, _PROBE_FILE)) as file:
      return cls(file["vectors"], file["scores"])


class ProbedIndex:
  """An index that may miss rows, with the probe that tells how many.

  `STORED` names its attributes that index.json keeps.
  """

  KIND: ClassVar[str]
  STORED: ClassVar[tuple[str, ...]]
  probe: RecallProbe

  def measure_recall(self) -> float:
    """Return the share of the ten nearest rows found, see `RecallProbe`."""
    return self.probe.measure_recall(self)

  def save(self, folder: str) -> dict:
    """Write the probe; return what index.json keeps."""
    self.probe.save(folder)
    fields = {name: getattr(self, name) for name in self.STORED}
    return {"kind": self.KIND, **fields, "recall": self.measure_recall()}

  def check_recall(self, built_recall: float, folder: str) -> None:
    """Measure and log the recall of an index that was loaded from a folder.

    Raises a UserError if it is lower than when the index was built.
    """
    recall = self.measure_recall()
    if recall < built_recall - _MAX_RECALL_LOSS:
      raise UserError(
        f"{folder}: the index finds {recall:.3f} of the ten nearest rows, and "
        f"found {built_recall:.3f} when it was built.  Build it again: delete "
        "the folder and run build_kb."
      )
    logging.info("%s: recall@10 against exact search %.3f.", folder, recall)


class ExactIndex:
  """An index that computes all inner products and sorts them."""

  def __init__(self, vectors: Vectors):
    self.vectors = vectors  # They may be mapped from a file.
    self.rows, self.width = vectors.shape

  def search(self, vectors: Float[np.ndarray, "n E"], k: int) -> SearchResult:
    """Return the k nearest rows; equal scores come in the order of rows."""
    vectors = validate_queries(vectors, self.width, k)
    # A batch of queries at a time bounds the memory for scores.
    size = max(1, _MAX_SCORES // max(self.rows, 1))
    starts = range(0, len(vectors), size)
    batches = [vectors[start : start + size] for start in starts]
    results = [self._search_batch(x, min(k, self.rows)) for x in batches]
    return pad_results(results, len(vectors), k)

  def _search_batch(self, vectors: np.ndarray, k: int) -> SearchResult:
    scores = vectors @ self.vectors.T
    rows = np.array([find_top_k(line, k) for line in scores])
    return np.take_along_axis(scores, rows, 1), rows

  def measure_recall(self) -> float:
    """Return 1: exact search defines what the nearest rows are."""
    return 1.0

  def save(self, folder: str) -> dict:
    """Return what index.json keeps; the vectors themselves are the index."""
    del folder
    return {"kind": "exact", "rows": self.rows, "width": self.width}


def find_top_k(scores: Float[np.ndarray, " N"], k: int) -> np.ndarray:
  """Return the rows of the k best scores, equal ones in the order of rows."""
  k = min(k, len(scores))
  if not k:
    return np.zeros(0, np.int64)
  # Only the best are sorted, and all that equal the last of them.
  kth = np.partition(scores, -k)[-k]
  best = np.flatnonzero(scores >= kth)
  return best[np.argsort(-scores[best], kind="stable")[:k]]


def merge_top_k(results: Sequence[SearchResult], k: int) -> MergedResult:
  """Return the k best of several results for the same queries.

  Equal scores come in the order of rows.
  """
  scores, rows = (np.concatenate(x, axis=1) for x in zip(*results, strict=True))
  # The last key of lexsort is the first to sort by.
  order = np.lexsort((rows, -scores))[:, :k]
  scores, rows = (np.take_along_axis(x, order, 1) for x in (scores, rows))
  return scores, rows


def validate_queries(
  vectors: np.ndarray, width: int, k: int
) -> Float32[np.ndarray, "n E"]:
  """Return queries in contiguous float32; raise a UserError if invalid."""
  if vectors.ndim != 2 or vectors.shape[1] != width or k < 1:
    raise UserError(
      f"The search got vectors of shape {vectors.shape} and k={k}, wanted "
      f"[n, {width}] and k >= 1.  Embed queries as the rows were."
    )
  if not np.isfinite(vectors).all():
    raise UserError("A query vector holds NaN or infinity.  Embed it again.")
  return np.ascontiguousarray(vectors, np.float32)


def pad_results(
  results: Sequence[tuple[np.ndarray, np.ndarray]], num_queries: int, k: int
) -> SearchResult:
  """Concatenate results of consecutive queries and pad them to k columns."""
  # A result may have fewer columns than k; the rest stays padding.
  scores = np.full((num_queries, k), -np.inf, np.float32)
  rows = np.full((num_queries, k), -1, np.int64)
  start = 0
  for part_scores, part_rows in results:
    stop, columns = start + len(part_scores), part_scores.shape[1]
    scores[start:stop, :columns] = part_scores
    rows[start:stop, :columns] = part_rows
    start = stop
  return scores, rows
