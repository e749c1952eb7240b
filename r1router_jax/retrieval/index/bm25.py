"""Hybrid search: passages found by their words and by their vectors.

BM25 scores a passage d by the words of a query,

  sum over words w of  idf(w) tf / (tf + K1 (1 - B + B |d| / mean |d|)),
  idf(w) = ln(1 + (N - n_w + 1/2) / (n_w + 1/2)),

where w occurs tf times in d, in n_w of all N passages, and |d| counts words.
English stop words, as BM25S lists them, count as none.  Ranked lists, whose
scores do not compare, are fused by rank: a passage has

  sum over lists of  1 / (60 + its rank, from 1).

A query with a picture is about the picture, and its words find nothing here.

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
from r1router_jax.retrieval.index.exact import Found

FOLDER = "bm25"  # In that of the knowledge base.

DEPTH = 100  # Passages of each list that is fused.

K1, B = 1.5, 0.75

_RANK = 60

_WORD = re.compile(r"\w+")


class Words:
  """BM25 over the words of passages.

  Attributes:
    rows: N.
  """

  def __init__(self, bm25: Any):
    self._bm25, self.rows = bm25, bm25.scores["num_docs"]

  @classmethod
  def build(cls, texts: Iterable[str]) -> "Words":
    """Indexes `texts`, in the order of rows."""
    bm25s, vocabulary = _bm25s(), {}
    ids = [
      [vocabulary.setdefault(word, len(vocabulary)) for word in _split(t)]
      for t in texts
    ]
    if not vocabulary:
      raise ValueError(
        "The passages hold no words to index.  Build without --hybrid."
      )
    bm25 = bm25s.BM25(
      k1=K1, b=B, method="lucene", backend="numpy", csc_backend="numpy"
    )
    bm25.index(
      bm25s.tokenization.Tokenized(ids, vocabulary),
      create_empty_token=False,
      show_progress=False,
    )
    return cls(bm25)

  @classmethod
  def load(cls, folder: str) -> "Words":
    """What `save` wrote; the arrays stay on disk until they are searched."""
    return cls(
      _bm25s().BM25.load(
        os.path.join(folder, FOLDER), mmap=True, allow_pickle=False
      )
    )

  def save(self, folder: str) -> None:
    """Writes NumPy arrays and JSON below the knowledge base's folder."""
    self._bm25.save(
      os.path.join(folder, FOLDER), allow_pickle=False, show_progress=False
    )

  def search(self, queries: Sequence[Query], k: int) -> Found:
    """The k best rows with a word of each query; row -1 where there is none."""
    scores = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    for i, query in enumerate(queries):
      ids = [] if query.image else self._bm25.get_tokens_ids(_split(query.text))
      if not ids:
        continue
      all_scores = self._bm25.get_scores_from_ids(ids)
      best = np.flatnonzero(all_scores > 0)
      if len(best) > k:
        best = best[np.argpartition(-all_scores[best], k - 1)[:k]]
        best.sort()
      best = best[np.argsort(-all_scores[best], kind="stable")]
      scores[i, : len(best)], rows[i, : len(best)] = all_scores[best], best
    return scores, rows


def fuse(lists: Sequence[Int[np.ndarray, "n _"]], k: int) -> Found:
  """The k best rows of several ranked lists; see the head of this module.

  Args:
    lists: rows, best first, filled up with -1.
    k: rows wanted.  Where sums are equal, an earlier list counts more.
  """
  scores = np.full((len(lists[0]), k), -np.inf, np.float32)
  rows = np.full((len(lists[0]), k), -1, np.int64)
  for i, ranked in enumerate(zip(*lists, strict=True)):
    total = collections.defaultdict(float)
    for found in ranked:
      for rank, row in enumerate(found[found >= 0].tolist(), 1):
        total[row] += 1 / (_RANK + rank)
    best = sorted(total, key=lambda row: -total[row])[:k]
    rows[i, : len(best)], scores[i, : len(best)] = (
      best,
      [total[r] for r in best],
    )
  return scores, rows


def _split(text: str) -> list[str]:
  stop = _stop_words()
  return [word for word in _WORD.findall(text.lower()) if word not in stop]


@functools.cache
def _stop_words() -> frozenset[str]:
  return frozenset(_bm25s().stopwords.STOPWORDS_EN)


def _bm25s() -> ModuleType:
  try:
    import bm25s  # It starts JAX.
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      "Hybrid search needs bm25s.  Run: pip install 'r1router_jax[hybrid]'"
    ) from error
  return bm25s
