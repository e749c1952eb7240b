"""Nearest vectors by inner product: exact search, and ScaNN.

Both indexes answer `search(vectors, k)` with scores and row numbers, best
first; where there are fewer than k rows, the rest is row -1 with score -inf.
Searching changes nothing, so threads may share an index.

Exact search is the oracle, and the automatic choice below `EXACT_ROWS` rows or
where ScaNN has no wheel (macOS, Windows).  ScaNN quantises blocks of dimensions
(asymmetric hashing), scores all codes, and rescores the best exactly; above
`TREE_ROWS` rows a tree first picks the leaves to score.  The same vectors make
the same index, bit by bit.

What ScaNN finds is measured with queries whose nearest rows are known, when it
is built and whenever it is loaded; see `Probe`.

Axes:  n queries   N rows   E width   k neighbours   P queries of a probe
Source: arxiv.org/abs/1908.10396 (ScaNN), arxiv.org/abs/2404.00774 (SOAR).
"""

import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from absl import logging
from jaxtyping import Float, Float32, Int

EXACT_ROWS = 20_000
TREE_ROWS = 80_000
WIDE = 768  # Width that bears coarser codes.
REORDER = 100  # Rows rescored exactly.
RECALL = 0.95  # Of the ten nearest, when the leaves to search are chosen.
_PROBES = 128  # Of each kind.
_NEAR = 1e-5  # Difference of scores that are equal but for rounding.
_WORSE = 0.02  # Recall that may be lost between building and loading.
SCANN, _PROBE = "scann", "probe.npz"  # Their names on disk.
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
  """Queries whose nearest rows are known: some rows themselves, and as many
  that lie between two of them, far from both, as questions do from answers.

  Attributes:
    vectors: of the queries, rows first.
    scores: of the ten nearest rows, by exact search.
  """

  vectors: Float32[np.ndarray, "P E"]
  scores: Float32[np.ndarray, "P 10"]

  @classmethod
  def of(cls, vectors: Vectors) -> "Probe":
    rows = vectors[np.linspace(
        0, len(vectors) - 1, min(_PROBES, len(vectors)), dtype=np.int64)]
    between = (rows + np.roll(rows, len(rows) // 2 or 1, axis=0)) / 2
    probes = np.concatenate([rows, between])
    return cls(probes, ExactIndex(vectors).search(probes, 10)[0])

  def recall(self, index: Index) -> float:
    """Share of the ten nearest rows that are found, of the worse kind of query;
    of rows with equal scores any will do."""
    scores, _ = index.search(self.vectors, self.scores.shape[1])
    there = np.isfinite(self.scores)
    tenth = self.scores.min(axis=1, keepdims=True, where=there, initial=np.inf)
    hits = scores >= tenth - _NEAR * np.maximum(1, np.abs(tenth))
    return min(float(hits[half].sum() / there[half].sum())
               for half in np.split(np.arange(len(hits)), 2))

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
          "folder and run build_kb.")
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
    parts = [self._search(vectors[i:i + batch], min(k, self.rows))
             for i in range(0, len(vectors), batch)]
    return pad(parts, len(vectors), k)

  def _search(self, vectors: np.ndarray, k: int) -> Found:
    scores = vectors @ self.vectors.T
    rows = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    rows.sort(axis=1)
    best = np.take_along_axis(scores, rows, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    return (np.take_along_axis(best, order, axis=1),
            np.take_along_axis(rows, order, axis=1))

  def recall(self) -> float:
    """Of its own rows; see `Probe`."""
    return 1.0

  def save(self, folder: str) -> dict:
    """What `indexes.load` must know: the vectors themselves are the index."""
    return dict(kind="exact", rows=self.rows, width=self.width)


class ScannIndex:
  """ScaNN with settings by number of rows and width; see `build`.

  Args:
    searcher: ScaNN's.
    rows: N.
    width: E.
    probe: to measure it with.
    leaves: of the tree to be searched, 0 without a tree.
  """

  def __init__(self, searcher: Any, rows: int, width: int, probe: Probe,
               leaves: int = 0):
    self.searcher, self.leaves = searcher, leaves
    self.rows, self.width, self.probe = rows, width, probe
    self._threads = os.cpu_count() or 1

  @classmethod
  def build(cls, vectors: Vectors) -> "ScannIndex":
    """Quantises `vectors`; for a tree, chooses how many leaves to search."""
    from scann import scann_ops_pybind
    rows, width = vectors.shape
    builder = scann_ops_pybind.builder(vectors, 10, "dot_product")
    all_leaves = math.isqrt(2 * rows) if rows >= TREE_ROWS else 0
    if all_leaves:
      builder = builder.tree(
          num_leaves=all_leaves, num_leaves_to_search=max(1, all_leaves // 50),
          spherical=True, quantize_centroids=True, soar_lambda=1.5,
          overretrieve_factor=2.0)
    if rows < EXACT_ROWS:  # Hashing needs rows to learn from.
      builder = builder.score_brute_force()
    else:
      # Of coarser blocks, but then not of residuals.
      builder = (
          builder.score_ah(4, anisotropic_quantization_threshold=0.2,
                           residual_quantization=False) if width >= WIDE else
          builder.score_ah(2, anisotropic_quantization_threshold=0.2))
      builder = builder.reorder(REORDER)
    # Its random first centres differ from one build to the next.
    config = builder.create_config().replace(
        "RANDOM_INITIALIZATION", "DEFAULT_KMEANS_PLUS_PLUS")
    index = cls(scann_ops_pybind.create_searcher(vectors, config), rows, width,
                Probe.of(vectors))
    if all_leaves:
      index._choose_leaves(all_leaves)
    return index

  def _choose_leaves(self, all_leaves: int) -> None:
    """The fewest leaves, in steps of 1.5, that find `RECALL` of ten."""
    self.leaves = max(1, all_leaves // 200)
    while self.leaves < all_leaves and self.probe.recall(self) < RECALL:
      self.leaves = min(all_leaves, math.ceil(self.leaves * 1.5))
    logging.info("ScaNN searches %d of %d leaves.", self.leaves, all_leaves)

  def search(self, vectors: Float[np.ndarray, "n E"], k: int,
             leaves: int = 0) -> Found:
    """The k nearest rows, nearly.

    Args:
      vectors: of queries.
      k: see above.
      leaves: of a tree to search; by default as many as `build` chose.
    """
    vectors = check(vectors, self.width, k)
    if not len(vectors):
      return pad([], 0, k)
    options = {
        "leaves_to_search": leaves or self.leaves} if self.leaves else {}
    if self.rows >= EXACT_ROWS:
      options["pre_reorder_num_neighbors"] = max(REORDER, 2 * k)
    rows, scores = self.searcher.search_batched_parallel(
        vectors, final_num_neighbors=min(k, self.rows),
        # The default of 256 would leave a small batch to one thread.
        batch_size=math.ceil(len(vectors) / self._threads), **options)
    # ScaNN fills short answers with row 0 and score NaN.
    missing = np.isnan(scores)
    rows = np.where(missing, -1, rows.astype(np.int64))
    scores = np.where(missing, -np.inf, scores).astype(np.float32)
    return pad([(scores, rows)], len(vectors), k)

  def recall(self) -> float:
    """Share of the ten nearest rows that are found; see `Probe`."""
    return self.probe.recall(self)

  def save(self, folder: str) -> dict:
    """Writes an index that may be moved; what `load` must know."""
    path = os.path.join(folder, SCANN)
    os.makedirs(path, exist_ok=True)
    self.searcher.serialize(path, relative_path=True)
    self.probe.save(folder)
    return dict(kind="scann", rows=self.rows, width=self.width,
                leaves=self.leaves, recall=self.recall())

  @classmethod
  def load(cls, folder: str, card: dict) -> "ScannIndex":
    """What `save` wrote to `folder`, and returned as `card`.

    Raises:
      ValueError: where it finds less than it did.
    """
    from scann import scann_ops_pybind
    searcher = scann_ops_pybind.load_searcher(os.path.join(folder, SCANN))
    index = cls(searcher, card["rows"], card["width"], Probe.load(folder),
                card["leaves"])
    index.probe.check(index, card["recall"], folder)
    return index


def available() -> bool:
  """Whether ScaNN is installed."""
  return importlib.util.find_spec("scann") is not None


def best(found: Sequence[Found], b: int) -> Best:
  """The b best of several answers; equal scores come in the order of rows."""
  scores, rows = (np.concatenate(x, axis=1) for x in zip(*found, strict=True))
  order = np.lexsort((rows, -scores))[:, :b]
  return (np.take_along_axis(scores, order, 1),
          np.take_along_axis(rows, order, 1))


def check(vectors: np.ndarray, width: int, k: int
           ) -> Float32[np.ndarray, "n E"]:
  if vectors.ndim != 2 or vectors.shape[1] != width or k < 1:
    raise ValueError(
        f"The search got vectors of shape {vectors.shape} and k={k}, wanted "
        f"[n, {width}] and k >= 1.  Embed queries as the rows were.")
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
    scores[start:start + count, :found] = part_scores
    rows[start:start + count, :found] = part_rows
    start += count
  return scores, rows
