"""Nearest vectors by inner product: the interface of indexes, and exact search.

An index answers `search(vectors, k)` with scores and row numbers, best first;
if there are fewer than k rows, the rest is row -1 with score -inf.  A search
changes nothing, so threads may share an index.

Equal scores come in the order of rows, whatever else is searched for.

Exact search is the reference for all others.  Their recall is measured when
they are built and whenever they are loaded, see `RecallProbe`.

Axes:  n queries   N rows   E width   k neighbours   P queries of a probe
"""

import functools
import os
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped

from r1router_jax.common.errors import UserError

_NUM_PROBES = 128  # Queries of each sort.
_PROBE_FILE = "probe.npz"

# Relative difference of scores that are equal but for rounding.
_SCORE_TOLERANCE = 1e-5
_MAX_SCORES = 1 << 24  # That exact search holds in memory at once.
_ROW_BATCH = 1 << 14  # Rows that are converted at once.

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
  """Queries whose nearest rows are known, as many of each sort.

  Rows of each order of magnitude of length are a sort.  Another lies midway
  between two rows, far from both, as questions are from their answers.  A last
  one may be questions of users.
  """

  vectors: Float32[np.ndarray, "P E"]
  scores: Float32[np.ndarray, "P _"]  # Of the nearest rows, by exact search.
  num_sorts: int

  @classmethod
  def from_vectors(
    cls, vectors: Vectors, queries: Float32[np.ndarray, "n E"] | None = None
  ) -> "RecallProbe":
    """Make a probe of rows, and of queries, that are spread evenly over all."""
    lengths = row_lengths(vectors)
    # All rows are equally near to a query of zeros, so that any result would
    # count as right.
    rows = np.flatnonzero(lengths) if lengths.any() else np.arange(len(vectors))
    powers = np.round(np.log10(np.maximum(lengths[rows], np.float32(1e-38))))
    each = [vectors[_spread(rows[powers == x])] for x in np.unique(powers)]
    # Half of the list away from each row is another one.
    some = vectors[_spread(rows)]
    each.append((some + np.roll(some, _NUM_PROBES // 2, axis=0)) / 2)
    if queries is not None:
      each.append(_spread(queries))
    probes = np.concatenate(each)
    scores, _ = ExactIndex(vectors).search(probes, 11)
    return cls(probes, scores, len(each))

  def measure_recall(self, index: Index) -> float:
    """Return the share of the nearest rows but the first that an index finds.

    The first is the query itself if that is a row.  The worst sort of query
    counts.  Rows with equal scores are as good as each other.
    """
    # Scores are compared, not rows: of equal rows any may be found.
    scores, _ = index.search(self.vectors, self.scores.shape[1])
    # Fewer rows exist where a score is -inf.
    exists = np.isfinite(self.scores)
    last = self.scores.min(axis=1, keepdims=True, where=exists, initial=np.inf)
    # Relative to the scores, which may be of any size.
    size = np.where(exists, np.abs(self.scores), 0).max(axis=1, keepdims=True)
    hits = scores >= last - _SCORE_TOLERANCE * size
    parts = (np.split(x[:, 1:], self.num_sorts) for x in (hits, exists))
    counts = [(hit.sum(), all_.sum()) for hit, all_ in zip(*parts, strict=True)]
    return min((float(hit / all_) for hit, all_ in counts if all_), default=1.0)

  def save(self, folder: str) -> None:
    """Write the probe to `folder`."""
    np.savez(os.path.join(folder, _PROBE_FILE), **self._asdict())

  @classmethod
  def load(cls, folder: str) -> "RecallProbe":
    """Return the probe that `save` wrote to `folder`."""
    with np.load(os.path.join(folder, _PROBE_FILE)) as file:
      # Older probes do not say that they have two sorts.
      num_sorts = int(file.get("num_sorts", 2))
      return cls(file["vectors"], file["scores"], num_sorts)


def _spread(values: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "P ..."]:
  """Return values for the probes of a sort, some twice if there are few."""
  places = np.linspace(0, len(values) - 1, _NUM_PROBES)
  return values[places.round().astype(int)]


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
    products, results = vectors @ self.vectors.T, []
    for query, product in zip(vectors, products, strict=True):
      # BLAS rounds a row by its place and by the other queries.  So all rows
      # that may be among the best are multiplied anew, equal ones alike.
      slack = self._rounding * np.linalg.norm(query)
      kth = np.partition(product - slack, -k)[-k]
      rows = np.flatnonzero(product + slack >= kth)
      parts = np.split(rows, range(_ROW_BATCH, len(rows), _ROW_BATCH))
      exact = [(self.vectors[x].astype(float) * query).sum(1) for x in parts]
      scores = np.concatenate(exact).astype(np.float32)
      best = find_top_k(scores, k)
      results.append((scores[None, best], rows[None, best]))
    return pad_results(results, len(vectors), k)

  @functools.cached_property
  def _rounding(self) -> Float32[np.ndarray, " N"]:
    """The error of each row's product with a vector of length 1, at most."""
    error = self.width * np.finfo(np.float32).eps
    return row_lengths(self.vectors) * np.float32(error)

  def measure_recall(self) -> float:
    """Return 1: exact search defines what the nearest rows are."""
    return 1.0

  def save(self, folder: str) -> dict:
    """Return what index.json keeps; the vectors themselves are the index."""
    del folder
    return {"kind": "exact", "rows": self.rows, "width": self.width}


def row_lengths(vectors: Vectors) -> Float32[np.ndarray, " N"]:
  """Return the length of each row, which may be mapped from a file."""
  # Unlike NumPy's norm this makes no copy.
  return np.sqrt(np.einsum("NE,NE->N", vectors, vectors))


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
