"""Nearest vectors by inner product: exact search, and ScaNN.

Both indexes answer `search(vectors, k)` with scores and row numbers, best
first; where there are fewer than k rows, the rest is row -1 with score -inf.
Searching changes nothing, so threads may share an index.

Exact search is the oracle, and the automatic choice below `EXACT_ROWS` rows or
where ScaNN has no wheel (macOS, Windows).  ScaNN quantises blocks of dimensions
(asymmetric hashing), scores all codes, and rescores the best exactly; above
`TREE_ROWS` rows a tree first picks the leaves to score.

Axes:  n queries   N rows   E width   k neighbours
Source: arxiv.org/abs/1908.10396 (ScaNN), arxiv.org/abs/2404.00774 (SOAR).
"""

import json
import math
import os
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import logging
from jaxtyping import Float, Float32, Int

EXACT_ROWS = 20_000
TREE_ROWS = 80_000
REORDER = 100  # Rows rescored exactly.
RECALL = 0.95  # Of the ten nearest, when the leaves to search are chosen.
_PROBES = 256
_NUMBERS = 1 << 24  # Scores held at once by exact search.

Vectors = Float32[np.ndarray, "N E"]
Found = tuple[Float32[np.ndarray, "n k"], Int[np.ndarray, "n k"]]


@runtime_checkable
class Index(Protocol):
  """What both indexes offer."""

  rows: int
  width: int

  def search(self, vectors: Float[np.ndarray, "n E"], k: int) -> Found: ...

  def save(self, folder: str) -> None: ...


class ExactIndex:
  """All inner products, sorted."""

  def __init__(self, vectors: Vectors):
    self.vectors = vectors
    self.rows, self.width = vectors.shape

  def search(self, vectors: Float[np.ndarray, "n E"], k: int) -> Found:
    """The k nearest rows; equal scores come in the order of rows."""
    vectors = _check(vectors, self.width, k)
    batch = max(1, _NUMBERS // max(self.rows, 1))
    parts = [self._search(vectors[i:i + batch], min(k, self.rows))
             for i in range(0, len(vectors), batch)]
    return _pad(parts, len(vectors), k)

  def _search(self, vectors: np.ndarray, k: int) -> Found:
    scores = vectors @ self.vectors.T
    rows = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    rows.sort(axis=1)
    best = np.take_along_axis(scores, rows, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    return (np.take_along_axis(best, order, axis=1),
            np.take_along_axis(rows, order, axis=1))

  def save(self, folder: str) -> None:
    """Nothing but a note: the vectors themselves are the index."""
    _write_card(folder, dict(kind="exact", rows=self.rows, width=self.width))


class ScannIndex:
  """ScaNN with settings by number of rows and width."""

  def __init__(self, searcher: Any, rows: int, width: int, leaves: int = 0):
    """See `build`; `leaves` of the tree are searched, 0 without a tree."""
    self.searcher, self.leaves = searcher, leaves
    self.rows, self.width = rows, width
    self._threads = os.cpu_count() or 1

  @classmethod
  def build(cls, vectors: Vectors) -> "ScannIndex":
    """Quantises `vectors`; for a tree, chooses how many leaves to search."""
    from scann import scann_ops_pybind
    rows, width = vectors.shape
    builder = scann_ops_pybind.builder(vectors, 10, "dot_product")
    tree = rows >= TREE_ROWS
    all_leaves = math.isqrt(2 * rows) if tree else 0
    if tree:
      builder = builder.tree(
          num_leaves=all_leaves, num_leaves_to_search=max(1, all_leaves // 50),
          spherical=True, quantize_centroids=True, soar_lambda=1.5,
          overretrieve_factor=2.0)
    if rows < EXACT_ROWS:  # Hashing needs rows to learn from.
      builder = builder.score_brute_force()
    else:
      # Wide vectors bear coarser blocks, but then not of residuals.
      builder = (
          builder.score_ah(4, anisotropic_quantization_threshold=0.2,
                           residual_quantization=False) if width >= 768 else
          builder.score_ah(2, anisotropic_quantization_threshold=0.2))
      builder = builder.reorder(REORDER)
    index = cls(builder.build(), rows, width)
    if tree:
      index._choose_leaves(vectors, all_leaves)
    return index

  def _choose_leaves(self, vectors: Vectors, all_leaves: int) -> None:
    """The fewest leaves, in steps of 1.5, that find `RECALL` of ten."""
    probes = _probes(vectors)
    _, wanted = ExactIndex(vectors).search(probes, 10)
    self.leaves = max(1, all_leaves // 200)
    while self.leaves < all_leaves:
      if overlap(self.search(probes, 10)[1], wanted) >= RECALL:
        break
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
    vectors = _check(vectors, self.width, k)
    if not len(vectors):
      return _pad([], 0, k)
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
    return _pad([(scores, rows)], len(vectors), k)

  def save(self, folder: str) -> None:
    """Writes an index that may be moved."""
    path = os.path.join(folder, "scann")
    os.makedirs(path, exist_ok=True)
    self.searcher.serialize(path, relative_path=True)
    _write_card(folder, dict(kind="scann", rows=self.rows, width=self.width,
                             leaves=self.leaves))


def build(vectors: Vectors, kind: str = "auto") -> Index:
  """An index of `vectors`; `kind` is "auto", "exact" or "scann".

  Raises:
    ValueError: where `vectors` are none or not all finite.
  """
  if not len(vectors):
    raise ValueError("There are no vectors to index.  Give a corpus with rows.")
  bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
  if len(bad):
    raise ValueError(
        f"{len(bad)} vectors, of rows {bad[:5].tolist()}, hold NaN or infinity."
        "  Embed them again.")
  if kind == "auto":
    kind = _choose(len(vectors))
  if kind == "exact":
    return ExactIndex(vectors)
  if kind == "scann":
    return ScannIndex.build(vectors)
  raise ValueError(f"No index {kind!r}; choose auto, exact or scann.")


def load(folder: str, vectors: str) -> Index:
  """The index that `save` wrote to `folder`, over the .npy file `vectors`."""
  with open(os.path.join(folder, "index.json"), encoding="utf-8") as file:
    card = json.load(file)
  if card["kind"] == "exact" or not _has_scann():
    if card["kind"] != "exact":
      logging.info("%s: ScaNN is not installed, searching exactly.", folder)
    return ExactIndex(np.load(vectors, mmap_mode="r"))
  from scann import scann_ops_pybind
  searcher = scann_ops_pybind.load_searcher(os.path.join(folder, "scann"))
  return ScannIndex(searcher, card["rows"], card["width"], card["leaves"])


def recall(index: Index, vectors: Vectors, k: int = 10) -> float:
  """Share of the k truly nearest rows that `index` finds, for sampled rows."""
  probes = _probes(vectors)
  _, wanted = ExactIndex(vectors).search(probes, k)
  return overlap(index.search(probes, k)[1], wanted)


def overlap(found: Int[np.ndarray, "n k"], wanted: Int[np.ndarray, "n k"]
            ) -> float:
  """Share of the wanted rows that were found; -1 is no row."""
  hits = (found[:, :, None] == wanted[:, None, :]) & (wanted[:, None, :] >= 0)
  return float(hits.sum() / max(1, (wanted >= 0).sum()))


def _has_scann() -> bool:
  try:
    import scann  # noqa: F401
  except ImportError:
    return False
  return True


def _choose(rows: int) -> str:
  if rows < EXACT_ROWS:
    kind, reason = "exact", f"fewer than {EXACT_ROWS:,}"
  elif not _has_scann():
    kind, reason = "exact", "ScaNN is not installed"
  else:
    kind, reason = "scann", f"at least {EXACT_ROWS:,}"
  logging.info("Index: %s search of %s rows (%s).", kind, f"{rows:,}", reason)
  return kind


def _probes(vectors: Vectors) -> Float32[np.ndarray, "n E"]:
  """Rows spread evenly, to be asked for."""
  return vectors[np.linspace(
      0, len(vectors) - 1, min(_PROBES, len(vectors)), dtype=np.int64)]


def _check(vectors: np.ndarray, width: int, k: int
           ) -> Float32[np.ndarray, "n E"]:
  if vectors.ndim != 2 or vectors.shape[1] != width or k < 1:
    raise ValueError(
        f"The search got vectors of shape {vectors.shape} and k={k}, wanted "
        f"[n, {width}] and k >= 1.  Embed queries as the rows were.")
  if not np.isfinite(vectors).all():
    raise ValueError("A query vector holds NaN or infinity.  Embed it again.")
  return np.ascontiguousarray(vectors, np.float32)


def _pad(parts: list[tuple[np.ndarray, np.ndarray]], n: int, k: int) -> Found:
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


def _write_card(folder: str, card: dict) -> None:
  with open(os.path.join(folder, "index.json"), "w", encoding="utf-8") as file:
    json.dump(card, file)
