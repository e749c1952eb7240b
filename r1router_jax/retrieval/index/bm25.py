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
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epy
from jaxtyping import Int

from r1router_jax.common.records import Query
from r1router_jax.retrieval.index.exact import (
  SearchResult,
  find_top_k,
  pad_results,
)

# Imported when used, since it imports JAX.
with epy.lazy_imports():
  import bm25s

BM25_FOLDER = "bm25"  # In the folder of the knowledge base.
FUSION_DEPTH = 100  # Passages of each list that are fused.
K1, B, _RANK_OFFSET = 1.5, 0.75, 60
_WORD = re.compile(r"\w+")


class Bm25Index:
  """An index of the words of N passages: a `bm25s.BM25` that was filled."""

  def __init__(self, bm25: Any):
    self._bm25, self.rows = bm25, bm25.scores["num_docs"]

  @classmethod
  def from_texts(cls, texts: Iterable[str]) -> "Bm25Index":
    """Index passages, at least one, which are read once."""
    vocabulary = {}
    # Words are numbered in the order of their first occurrence.
    word_ids = [
      [vocabulary.setdefault(x, len(vocabulary)) for x in _split_words(text)]
      for text in texts
    ]
    if not vocabulary:
      # Images without captions: a word that no query holds, for BM25S wants
      # one.
      word_ids[0].append(vocabulary.setdefault("", 0))
    # NumPy alone: other backends compile, or need packages.
    backends = dict(backend="numpy", csc_backend="numpy")
    bm25 = bm25s.BM25(k1=K1, b=B, method="lucene", **backends)
    corpus = bm25s.tokenization.Tokenized(word_ids, vocabulary)
    bm25.index(corpus, create_empty_token=False, show_progress=False)
    return cls(bm25)

  @classmethod
  def load(cls, folder: str) -> "Bm25Index":
    """Load what `save` wrote; arrays are mapped, and read when searched."""
    path = os.path.join(folder, BM25_FOLDER)
    # A pickle could run code of whoever wrote the folder.
    bm25 = bm25s.BM25.load(path, mmap=True, allow_pickle=False)
    return cls(bm25)

  def save(self, folder: str) -> None:
    """Write NumPy arrays and JSON below the knowledge base's folder."""
    path = os.path.join(folder, BM25_FOLDER)
    # Whoever searches the old files has mapped them, so they stay as they are.
    self._bm25.save(f"{path}.new", allow_pickle=False, show_progress=False)
    if os.path.isdir(path):
      shutil.rmtree(path)
    os.rename(f"{path}.new", path)

  def search(self, queries: Sequence[Query], k: int) -> SearchResult:
    """Return the k best rows that hold a word of each query.

    Where there are fewer, the rest is row -1 with score -inf.
    """
    results = [self._search_words(query, k) for query in queries]
    return pad_results(results, len(queries), k)

  def _search_words(self, query: Query, k: int) -> SearchResult:
    """Return a line of up to k scores and rows."""
    # 1. Words of the query that some passage holds.
    words = [] if query.image else _split_words(query.text)
    word_ids = self._bm25.get_tokens_ids(words)
    if not word_ids:
      return np.zeros((1, 0), np.float32), np.zeros((1, 0), np.int64)
    # 2. The k best of all passages with a score.
    scores = self._bm25.get_scores_from_ids(word_ids)
    matches = np.flatnonzero(scores > 0)
    best = matches[find_top_k(scores[matches], k)]
    return scores[None, best], best[None]


def reciprocal_rank_fusion(
  ranked_lists: Sequence[Int[np.ndarray, "n _"]], k: int
) -> SearchResult:
  """Fuse ranked lists, padded with -1, by the formula at the top.

  Returns the k best rows and their sums.  If sums are equal, the rows of an
  earlier list come first.
  """
  results = []
  for lists_of_query in zip(*ranked_lists, strict=True):
    sums = collections.defaultdict(float)
    for ranked in lists_of_query:
      for rank, row in enumerate(ranked[ranked >= 0].tolist(), 1):
        sums[row] += 1 / (_RANK_OFFSET + rank)
    # The sort is stable, and a dict keeps the order of insertion.
    best = sorted(sums, key=lambda row: -sums[row])[:k]
    scores = np.array([[sums[row] for row in best]])
    results.append((scores, np.array([best])))
  return pad_results(results, len(results), k)


def _split_words(text: str) -> list[str]:
  """Return the words of a text in lower case, without stop words."""
  stop_words = frozenset(bm25s.stopwords.STOPWORDS_EN)
  words = _WORD.findall(text.lower())
  return [word for word in words if word not in stop_words]
