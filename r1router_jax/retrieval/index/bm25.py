"""Hybrid search: passages found by their words and by their vectors.

BM25 scores a passage d by the words of a query,

  sum over words w of  idf(w) tf / (tf + K1 (1 - B + B |d| / mean |d|)),
  idf(w) = ln(1 + (N - n_w + 1/2) / (n_w + 1/2)),

where w occurs tf times in d and in n_w of all N passages, and |d| is the number
of words of d.  English stop words, as BM25S lists them, are left out.  Scores
of words and of vectors do not compare, so ranked lists are fused by rank: a
passage gets

  sum over lists of  1 / (60 + its rank, from 1).

A query with an image is about the image, so its words find nothing here.

Axes:  n queries   N passages   k neighbours
Sources: Robertson and Zaragoza 2009, doi.org/10.1561/1500000019 (BM25);
arxiv.org/abs/2407.03618 (BM25S, its Lucene variant); Cormack, Clarke and
Buettcher 2009, doi.org/10.1145/1571941.1572114 (reciprocal rank fusion, 60).
"""

import collections
import functools
import os
import re
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Int

from r1router_jax.common.records import Query
from r1router_jax.retrieval.index.exact import SearchResult

BM25_FOLDER = "bm25"  # In the folder of the knowledge base.
# Passages of each list that are fused.
FUSION_DEPTH = 100
K1 = 1.5
B = 0.75
_RANK_OFFSET = 60
_WORD = re.compile(r"\w+")


class Bm25Index:
  """An index of the words of passages.

  Args:
    bm25: a `bm25s.BM25` that was filled.

  Attributes:
    rows: N.
  """

  def __init__(self, bm25: Any):
    self._bm25, self.rows = bm25, bm25.scores["num_docs"]

  @classmethod
  def from_texts(cls, texts: Iterable[str]) -> "Bm25Index":
    """Index passages.

    Args:
      texts: texts of the passages in the order of rows; read once.

    Raises:
      ValueError: if no passage holds a word.
    """
    bm25s = _import_bm25s()
    vocabulary = {}
    # Words are numbered in the order of their first occurrence.
    word_ids = [
      [
        vocabulary.setdefault(word, len(vocabulary))
        for word in _split_words(text)
      ]
      for text in texts
    ]
    if not vocabulary:
      raise ValueError(
        "The passages hold no words to index.  Build without --hybrid."
      )
    # NumPy alone: other backends compile, or need packages.
    bm25 = bm25s.BM25(
      k1=K1, b=B, method="lucene", backend="numpy", csc_backend="numpy"
    )
    bm25.index(
      bm25s.tokenization.Tokenized(word_ids, vocabulary),
      create_empty_token=False,
      show_progress=False,
    )
    return cls(bm25)

  @classmethod
  def load(cls, folder: str) -> "Bm25Index":
    """Load what `save` wrote; arrays are mapped, and read when searched."""
    path = os.path.join(folder, BM25_FOLDER)
    # A pickle could run code of whoever wrote the folder.
    bm25 = _import_bm25s().BM25.load(path, mmap=True, allow_pickle=False)
    return cls(bm25)

  def save(self, folder: str) -> None:
    """Write NumPy arrays and JSON below the knowledge base's folder."""
    path = os.path.join(folder, BM25_FOLDER)
    self._bm25.save(path, allow_pickle=False, show_progress=False)

  def search(self, queries: Sequence[Query], k: int) -> SearchResult:
    """Return the k best rows that hold a word of each query.

    Where there are fewer, the rest is row -1 with score -inf.
    """
    scores = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    for i, query in enumerate(queries):
      # 1. Words of the query that some passage holds.
      if query.image:
        continue
      word_ids = self._bm25.get_tokens_ids(_split_words(query.text))
      if not word_ids:
        continue
      # 2. The k best of all passages with a score.
      all_scores = self._bm25.get_scores_from_ids(word_ids)
      best = np.flatnonzero(all_scores > 0)
      if len(best) > k:
        best = best[np.argpartition(-all_scores[best], k - 1)[:k]]
        # With rows in order, a stable sort keeps the order of equal scores.
        best.sort()
      best = best[np.argsort(-all_scores[best], kind="stable")]
      # 3. The rest of the columns stays padding.
      scores[i, : len(best)] = all_scores[best]
      rows[i, : len(best)] = best
    return scores, rows


def reciprocal_rank_fusion(
  ranked_lists: Sequence[Int[np.ndarray, "n _"]], k: int
) -> SearchResult:
  """Fuse ranked lists by the formula at the top of this module.

  Args:
    ranked_lists: rows of each list for each query, best first, padded with -1.
    k: number of rows to return.

  Returns:
    The k best rows and their sums.  If sums are equal, the rows of an earlier
    list come first.
  """
  num_queries = len(ranked_lists[0])
  scores = np.full((num_queries, k), -np.inf, np.float32)
  rows = np.full((num_queries, k), -1, np.int64)
  for i, lists_of_query in enumerate(zip(*ranked_lists, strict=True)):
    sums = collections.defaultdict(float)
    for ranked in lists_of_query:
      for rank, row in enumerate(ranked[ranked >= 0].tolist(), 1):
        sums[row] += 1 / (_RANK_OFFSET + rank)
    # The sort is stable, and a dict keeps the order of insertion.
    best = sorted(sums, key=lambda row: -sums[row])[:k]
    rows[i, : len(best)] = best
    scores[i, : len(best)] = [sums[row] for row in best]
  return scores, rows


def _split_words(text: str) -> list[str]:
  """Return the words of a text in lower case, without stop words."""
  stop_words = _stop_words()
  words = _WORD.findall(text.lower())
  return [word for word in words if word not in stop_words]


@functools.cache
def _stop_words() -> frozenset[str]:
  return frozenset(_import_bm25s().stopwords.STOPWORDS_EN)


def _import_bm25s() -> ModuleType:
  """Import bm25s, which is optional.

  Raises:
    ModuleNotFoundError: with the cure, if it is not installed.
  """
  try:
    import bm25s  # Imports JAX, if that is installed.
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      "Hybrid search needs bm25s.  Run: pip install 'r1router_jax[hybrid]'"
    ) from error
  return bm25s
