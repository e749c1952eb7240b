"""Nearest vectors by inner product: what an index is, and exact search.

An index answers `search(vectors, k)` with scores and row numbers, best first;
where there are fewer than k rows, the rest is row -1 with score -inf.
Searching changes nothing, so threads may share an index.

Exact search is the oracle of all others.  What these find is measured with
queries whose nearest rows are known, when they are built and whenever they are
loaded; see `Probe`.

Axes:  n queries   N rows   E width   k neighbours   P queries of a probe
"""

import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from absl import logging
from jaxtyping import Float, Float32, Int

_PROBES = 128  # Of each kind.

_PROBE = "probe.npz"

_NEAR = 1e-5  # Difference of scores that are equal but for rounding.

_WORSE = 0.02  # Recall that may be lost between building and loading.

_NUMBERS = 1 << 24  # Scores held at once by exact search.


Vectors = Float32[np.ndarray, "N E"]

Found = tuple[Float32[np.ndarray, "n k"], Int[np.ndarray, "n k"]]

Best = tuple[Float32[np.ndarray, "n b"], Int[np.ndarray, "n b"]]


@runtime_checkable
class Index(Protocol):
  """What all indexes offer."""

  rows: int
  width: int

  def search(self, vectors: Float[np.ndarray, "n E"], k: int) -> Found: ...


@runtime_checkable
class Stored(Index, Protocol):
  """An index that is kept in a folder."""

  def recall(self) -> float: ...

  def save(self, folder: str) -> dict: ...


class Probe(NamedTuple):
  """Queries whose nearest rows are known: some rows, not of zeros, and as many
  that lie between two of them, far from both, as questions do from answers.

  Attributes:
    vectors: of the queries, rows first.
    scores: of the ten nearest rows, by exact search.
  """

  vectors: Float32[np.ndarray, "P E"]
  scores: Float32[np.ndarray, "P 10"]

  @classmethod
  def of(cls, vectors: Vectors) -> "Probe":
    rows = vectors[
      np.linspace(
        0, len(vectors) - 1, min(_PROBES, len(vectors)), dtype=np.int64
      )
    ]
    # To a query of zeros all rows are equally near, and whatever is found good.
    rows = rows[rows.any(axis=1)] if rows.any() else rows
    between = (rows + np.roll(rows, len(rows) // 2 or 1, axis=0)) / 2
    probes = np.concatenate([rows, between])
    return cls(probes, ExactIndex(vectors).search(probes, 10)[0])

  def recall(self, index: Index) -> float:
    """Share of the ten nearest rows that are found, of the worse kind of query;
    of rows with equal scores any will do.
    """
    scores, _ = index.search(self.vectors, self.scores.shape[1])
    there = np.isfinite(self.scores)
    tenth = self.scores.min(axis=1, keepdims=True, where=there, initial=np.inf)
    hits = scores >= tenth - _NEAR * np.maximum(1, np.abs(tenth))
    return min(
      float(hits[half].sum() / there[half].sum())
      for half in np.split(np.arange(len(hits)), 2)
    )

  def save(self, folder: str) -> None:
    np.savez(os.path.join(folder, _PROBE), **self._asdict())

  @classmethod
  def load(cls, folder: str) -> "Probe":
    with np.load(os.path.join(folder, _PROBE)) as file:
      return cls(file["vectors"], file["scores"])

  def check(self, index: Index, before: float, folder: str) -> None:
    """Says what an index finds.

    Raises:
      ValueError: where that is less than `before`, when it was built.
    """
    found = self.recall(index)
    if found < before - _WORSE:
      raise ValueError(
        f"{folder}: the index finds {found:.3f} of the ten nearest rows, and "
        f"found {before:.3f} when it was built.  Build it again: delete the "
        "folder and run build_kb."
      )
    logging.info("%s: recall@10 against exact search %.3f.", folder, found)


class ExactIndex:
  """All inner products, sorted."""

  def __init__(self, vectors: Vectors):
    self.vectors = vectors
    self.rows, self.width = vectors.shape

  def search(self, vectors: Float[np.ndarray, "n E"], k: int) -> Found:
    """The k nearest rows; equal scores come in the order of rows."""
    vectors = check(vectors, self.width, k)
    batch = max(1, _NUMBERS // max(self.rows, 1))
    parts = [
      self._search(vectors[i : i + batch], min(k, self.rows))
      for i in range(0, len(vectors), batch)
    ]
    return pad(parts, len(vectors), k)

  def _search(self, vectors: np.ndarray, k: int) -> Found:
    scores = vectors @ self.vectors.T
    rows = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    rows.sort(axis=1)
    best = np.take_along_axis(scores, rows, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    return (
      np.take_along_axis(best, order, axis=1),
      np.take_along_axis(rows, order, axis=1),
    )

  def recall(self) -> float:
    """Of its own rows; see `Probe`."""
    return 1.0

  def save(self, folder: str) -> dict:
    """What `indexes.load` must know: the vectors themselves are the index."""
    return dict(kind="exact", rows=self.rows, width=self.width)


def best(found: Sequence[Found], b: int) -> Best:
  """The b best of several answers; equal scores come in the order of rows."""
  scores, rows = (np.concatenate(x, axis=1) for x in zip(*found, strict=True))
  order = np.lexsort((rows, -scores))[:, :b]
  return (
    np.take_along_axis(scores, order, 1),
    np.take_along_axis(rows, order, 1),
  )


def check(
  vectors: np.ndarray, width: int, k: int
) -> Float32[np.ndarray, "n E"]:
  if vectors.ndim != 2 or vectors.shape[1] != width or k < 1:
    raise ValueError(
      f"The search got vectors of shape {vectors.shape} and k={k}, wanted "
      f"[n, {width}] and k >= 1.  Embed queries as the rows were."
    )
  if not np.isfinite(vectors).all():
    raise ValueError("A query vector holds NaN or infinity.  Embed it again.")
  return np.ascontiguousarray(vectors, np.float32)


def pad(parts: list[tuple[np.ndarray, np.ndarray]], n: int, k: int) -> Found:
  """Parts of an answer, one below the other, filled up to k columns."""
  scores = np.full((n, k), -np.inf, np.float32)
  rows = np.full((n, k), -1, np.int64)
  start = 0
  for part_scores, part_rows in parts:
    count, found = part_scores.shape
    scores[start : start + count, :found] = part_scores
    rows[start : start + count, :found] = part_rows
    start += count
  return scores, rows
