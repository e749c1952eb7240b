"""ScaNN: nearest vectors nearly, much faster than by exact search.

It quantises blocks of dimensions (asymmetric hashing), scores all codes, and
rescores the best exactly; above `TREE_ROWS` rows a tree first picks the leaves
to score.  The same vectors make the same index, bit by bit.

Axes:  n queries   N rows   E width   k neighbours
Source: arxiv.org/abs/1908.10396 (ScaNN), arxiv.org/abs/2404.00774 (SOAR).
"""

import importlib.util
import math
import os
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float

from r1router_jax.retrieval.index.exact import Found, Probe, Vectors, check, pad

EXACT_ROWS = 20_000

TREE_ROWS = 80_000

WIDE = 768  # Width that bears coarser codes.

REORDER, WIDE_REORDER = 30, 100  # Rows rescored exactly.

RECALL = 0.95  # Of the ten nearest, at least.

_FOLDER = "scann"


class ScannIndex:
  """ScaNN with settings by number of rows and width; see `build`.

  Args:
    searcher: ScaNN's.
    rows: N.
    width: E.
    probe: to measure it with.
    reorder: rows rescored exactly.
    leaves: of the tree to be searched, 0 without a tree.
  """

  def __init__(
    self,
    searcher: Any,
    rows: int,
    width: int,
    probe: Probe,
    reorder: int,
    leaves: int = 0,
  ):
    self.searcher, self.reorder, self.leaves = searcher, reorder, leaves
    self.rows, self.width, self.probe = rows, width, probe
    self._threads = os.cpu_count() or 1

  @classmethod
  def build(cls, vectors: Vectors) -> "ScannIndex":
    """Quantises `vectors`; chooses how much of them to look at."""
    from scann import scann_ops_pybind

    rows, width = vectors.shape
    builder = scann_ops_pybind.builder(vectors, 10, "dot_product")
    all_leaves = math.isqrt(2 * rows) if rows >= TREE_ROWS else 0
    if all_leaves:
      builder = builder.tree(
        num_leaves=all_leaves,
        num_leaves_to_search=max(1, all_leaves // 50),
        spherical=True,
        quantize_centroids=True,
        soar_lambda=1.5,
        overretrieve_factor=2.0,
        # Small leaves would be moved, some onto one another, and which of
        # such two a row goes to depends on threads.
        min_partition_size=1,
      )
    if rows < EXACT_ROWS:  # Hashing needs rows to learn from.
      builder = builder.score_brute_force()
    else:
      # Of coarser blocks, but then not of residuals.
      builder = (
        builder.score_ah(
          4, anisotropic_quantization_threshold=0.2, residual_quantization=False
        )
        if width >= WIDE
        else builder.score_ah(2, anisotropic_quantization_threshold=0.2)
      )
      builder = builder.reorder(WIDE_REORDER)
    # Its random first centres differ from one build to the next.
    config = builder.create_config().replace(
      "RANDOM_INITIALIZATION", "DEFAULT_KMEANS_PLUS_PLUS"
    )
    index = cls(
      scann_ops_pybind.create_searcher(vectors, config),
      rows,
      width,
      Probe.of(vectors),
      WIDE_REORDER if width >= WIDE else REORDER,
    )
    index._choose(all_leaves)
    return index

  def _choose(self, all_leaves: int) -> None:
    """The fewest leaves, in steps of 1.5, that find `RECALL` of ten; where all
    do not, more rows are rescored.
    """
    while True:
      self.leaves = max(1, all_leaves // 200) if all_leaves else 0
      while (short := self.recall() < RECALL) and self.leaves < all_leaves:
        self.leaves = min(all_leaves, math.ceil(self.leaves * 1.5))
      if not short or self.reorder >= self.rows or self.rows < EXACT_ROWS:
        break
      self.reorder = min(4 * self.reorder, self.rows)
    logging.info(
      "ScaNN searches %d of %d leaves, and rescores %d rows.",
      self.leaves,
      all_leaves,
      self.reorder,
    )

  def search(
    self, vectors: Float[np.ndarray, "n E"], k: int, leaves: int = 0
  ) -> Found:
    """The k nearest rows, nearly.

    Args:
      vectors: of queries.
      k: see above.
      leaves: of a tree to search; by default as many as `build` chose.
    """
    vectors = check(vectors, self.width, k)
    if not len(vectors):
      return pad([], 0, k)
    options = {"leaves_to_search": leaves or self.leaves} if self.leaves else {}
    if self.rows >= EXACT_ROWS:
      options["pre_reorder_num_neighbors"] = max(self.reorder, 2 * k)
    rows, scores = self.searcher.search_batched_parallel(
      vectors,
      final_num_neighbors=min(k, self.rows),
      # The default of 256 would leave a small batch to one thread.
      batch_size=math.ceil(len(vectors) / self._threads),
      **options,
    )
    # ScaNN fills short answers with row 0 and score NaN.
    rows, missing = rows.astype(np.int64), np.isnan(scores)
    if missing.any():
      rows[missing], scores[missing] = -1, -np.inf
    return (
      (scores, rows)
      if scores.shape[1] == k
      else pad([(scores, rows)], len(vectors), k)
    )

  def recall(self) -> float:
    """Share of the ten nearest rows that are found; see `Probe`."""
    return self.probe.recall(self)

  def save(self, folder: str) -> dict:
    """Writes an index that may be moved; what `load` must know."""
    path = os.path.join(folder, _FOLDER)
    os.makedirs(path, exist_ok=True)
    self.searcher.serialize(path, relative_path=True)
    self.probe.save(folder)
    return dict(
      kind="scann",
      rows=self.rows,
      width=self.width,
      leaves=self.leaves,
      reorder=self.reorder,
      recall=self.recall(),
    )

  @classmethod
  def load(cls, folder: str, card: dict) -> "ScannIndex":
    """What `save` wrote to `folder`, and returned as `card`.

    Raises:
      ValueError: where it finds less than it did.
    """
    from scann import scann_ops_pybind

    searcher = scann_ops_pybind.load_searcher(os.path.join(folder, _FOLDER))
    index = cls(
      searcher,
      card["rows"],
      card["width"],
      Probe.load(folder),
      card["reorder"],
      card["leaves"],
    )
    index.probe.check(index, card["recall"], folder)
    return index


def available() -> bool:
  """Whether ScaNN is installed; it has no wheels for macOS and Windows."""
  return importlib.util.find_spec("scann") is not None
