"""ScaNN: approximate nearest vectors, much faster than by exact search.

ScaNN quantises blocks of dimensions (asymmetric hashing), scores the codes of
all rows, and rescores the best rows exactly.  From `MIN_TREE_ROWS` rows on, a
tree first chooses the leaves to score.  The same vectors make the same index,
bit by bit.

Axes:  n queries   N rows   E width   k neighbours
Source: arxiv.org/abs/1908.10396 (ScaNN), arxiv.org/abs/2404.00774 (SOAR).
"""

import dataclasses
import importlib.util
import math
import os
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float

from r1router_jax.retrieval.index.exact import (
  ProbedIndex,
  RecallProbe,
  SearchResult,
  Vectors,
  merge_top_k,
  pad_results,
  validate_queries,
)

# Fewer rows are searched exactly, or without a tree.
MIN_SCANN_ROWS, MIN_TREE_ROWS = 20_000, 80_000

# Vectors of this width and more bear coarser codes, if more rows are rescored.
WIDE_WIDTH, RESCORED_ROWS, WIDE_RESCORED_ROWS = 768, 30, 100

# Least share of the ten nearest rows that a search should find.
TARGET_RECALL = 0.95

_FOLDER = "scann"


@dataclasses.dataclass(eq=False)
class ScannIndex(ProbedIndex):
  """A ScaNN index with settings chosen by the number and width of rows."""

  KIND = "scann"
  STORED = ("rows", "width", "leaves", "reorder")

  searcher: Any  # ScaNN's own object.
  probe: RecallProbe
  rows: int
  width: int
  reorder: int  # Number of rows that are rescored exactly.
  leaves: int = 0  # Number of leaves that are searched; 0 without a tree.

  @classmethod
  def from_vectors(cls, vectors: Vectors, probe: RecallProbe) -> "ScannIndex":
    """Quantise `vectors`, and look at as many as the probe's recall needs."""
    from scann import scann_ops_pybind

    rows, width = vectors.shape
    # In the order of the square root of the number of rows.
    num_leaves = math.isqrt(2 * rows) if rows >= MIN_TREE_ROWS else 0
    config = _make_config(vectors, num_leaves)
    searcher = scann_ops_pybind.create_searcher(vectors, config)
    reorder = WIDE_RESCORED_ROWS if width >= WIDE_WIDTH else RESCORED_ROWS
    index = cls(searcher, probe, rows, width, reorder)
    index._tune_recall(num_leaves)
    return index

  def _tune_recall(self, num_leaves: int) -> None:
    """Choose the fewest leaves, in steps of 1.5, that reach `TARGET_RECALL`.

    If all leaves do not reach it, more rows are rescored, up to a quarter; with
    more, exact search is as fast.
    """
    while True:
      # Start with half a percent of the leaves.
      self.leaves = max(1, num_leaves // 200) if num_leaves else 0
      is_short = self.measure_recall() < TARGET_RECALL
      while is_short and self.leaves < num_leaves:
        self.leaves = min(num_leaves, math.ceil(self.leaves * 1.5))
        is_short = self.measure_recall() < TARGET_RECALL
      rescores_all = self.rows < MIN_SCANN_ROWS
      if not is_short or rescores_all or 16 * self.reorder > self.rows:
        break
      # All leaves do not help: the codes are too coarse for these rows.
      self.reorder *= 4
    text = "ScaNN searches %d of %d leaves, and rescores %d rows."
    logging.info(text, self.leaves, num_leaves, self.reorder)

  def search(self, vectors: Float[np.ndarray, "n E"], k: int) -> SearchResult:
    """Return approximately the k nearest rows."""
    vectors = validate_queries(vectors, self.width, k)
    if not len(vectors):
      return pad_results([], 0, k)
    # Options are left out where the index has no tree or no codes.
    options = {"leaves_to_search": self.leaves} if self.leaves else {}
    if self.rows >= MIN_SCANN_ROWS:
      options["pre_reorder_num_neighbors"] = max(self.reorder, 2 * k)
    rows, scores = self.searcher.search_batched_parallel(
      vectors,
      final_num_neighbors=min(k, self.rows),
      # The default of 256 would leave a small batch to one thread.
      batch_size=math.ceil(len(vectors) / (os.cpu_count() or 1)),
      **options,
    )
    # ScaNN fills short answers with row 0 and score NaN.
    missing = np.isnan(scores)
    scores = np.where(missing, -np.inf, scores)
    rows = np.where(missing, -1, rows.astype(np.int64))
    return pad_results([merge_top_k([(scores, rows)], k)], len(vectors), k)

  def save(self, folder: str) -> dict:
    """Write the index to a movable folder; return what index.json keeps."""
    path = os.path.join(folder, _FOLDER)
    os.makedirs(path, exist_ok=True)
    self.searcher.serialize(path, relative_path=True)
    return super().save(folder)

  @classmethod
  def load(cls, folder: str, metadata: dict) -> "ScannIndex":
    """Load an index, given what `save` returned."""
    from scann import scann_ops_pybind

    # The vectors are not needed: `serialize` wrote a copy.
    searcher = scann_ops_pybind.load_searcher(os.path.join(folder, _FOLDER))
    fields = {name: metadata[name] for name in cls.STORED}
    return cls(searcher, RecallProbe.load(folder), **fields)


def _make_config(vectors: Vectors, num_leaves: int) -> Any:
  """Return ScaNN's configuration, with a tree if `num_leaves` is not 0."""
  from scann import scann_ops_pybind

  rows, width = vectors.shape
  builder = scann_ops_pybind.builder(vectors, 10, "dot_product")
  if num_leaves:
    builder = builder.tree(
      num_leaves=num_leaves,
      num_leaves_to_search=max(1, num_leaves // 50),
      spherical=True,
      quantize_centroids=True,
      soar_lambda=1.5,
      overretrieve_factor=2.0,
      # Small leaves would be moved, some onto one another, and the order of
      # threads would decide which of two such leaves a row goes to.
      min_partition_size=1,
    )
  if rows < MIN_SCANN_ROWS:
    # Hashing needs rows to train on.
    builder = builder.score_brute_force()
  else:
    # Wide rows have blocks of four dimensions, but then not of residuals.
    options = dict(residual_quantization=False) if width >= WIDE_WIDTH else {}
    options["anisotropic_quantization_threshold"] = 0.2
    builder = builder.score_ah(4 if width >= WIDE_WIDTH else 2, **options)
    builder = builder.reorder(WIDE_RESCORED_ROWS)
  # Random first centres differ from one build to the next.
  return builder.create_config().replace(
    "RANDOM_INITIALIZATION", "DEFAULT_KMEANS_PLUS_PLUS"
  )


def is_scann_installed() -> bool:
  """Return whether ScaNN is installed; macOS and Windows have no wheels."""
  return importlib.util.find_spec("scann") is not None
