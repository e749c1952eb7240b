"""Hybrid search: passages found by their words and by their vectors.

BM25 scores a passage d by the words of a query,

  sum over words w of  idf(w) tf / (tf + K1 (1 - B + B |d| / mean |d|)),
  idf(w) = ln(1 + (N - n_w + 1/2) / (n_w + 1/2)),

where w occurs tf times in d and in n_w of all N passages, and |d| is the number
of words of d.  English stop words, as BM25S lists them, are left out.  Letters
that differ by case, or that Unicode calls compatible, are the same.  Of a run
of Chinese, Japanese or Korean characters each pair of neighbours is a word, and
in passages each character, too, for queries of a single one.  Of the 100 best
passages by words w and by vectors v, each gets

  (v - min v) / (max v - min v) + 0.8 w / max w,

where what a list does not hold adds nothing.  Scores of words and of vectors
do not compare, but scaled so they do, and keep by how much a passage is better
than the next, which ranks lose.

A query with an image is about the image, so its words find nothing here.

Axes:  n queries   N passages   k neighbours
Sources: Robertson and Zaragoza 2009, doi.org/10.1561/1500000019 (BM25);
arxiv.org/abs/2407.03618 (BM25S, its Lucene variant); arxiv.org/abs/2210.11934
(fusion of scaled scores, and why not of ranks); unicode.org/reports/tr15 (forms
of characters).
"""

import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epy

from r1router_jax.common.records import Query
from r1router_jax.retrieval.index.exact import (
  MergedResult,
  SearchResult,
  find_top_k,
  pad_results,
)

# Imported when used, since it imports JAX.
with epy.lazy_imports():
  import bm25s

BM25_FOLDER = "bm25"  # In the folder of the knowledge base.
FUSION_DEPTH = 100  # Passages of each list that are fused.
K1, B = 1.5, 0.75
WORDS_WEIGHT = 0.8
# Raise it when texts are split into other words.
WORDS_VERSION = 2

# Vowel signs of Indian scripts, and accents that no letter includes.
_MARKS = "".join(
  c for c in map(chr, range(1 << 16)) if unicodedata.category(c) in ("Mn", "Mc")
)
_WORD = re.compile(rf"\w[\w{_MARKS}]*")
# Kana and iteration marks, ideographs, Hangul.
_CJK = "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
_CJK += "\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
_CJK_CHARACTER = re.compile(f"[{_CJK}]")
_RUN = re.compile(f"([{_CJK}]+)|([^{_CJK}]+)")


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
      [vocabulary.setdefault(x, len(vocabulary)) for x in words]
      for words in (_split_words(text, adds_characters=True) for text in texts)
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
    self._bm25.save(path, allow_pickle=False, show_progress=False)

  def search(self, queries: Sequence[Query], k: int) -> SearchResult:
    """Return the k best rows that hold a word of each query.

    Where there are fewer, the rest is row -1 with score -inf.
    """
    results = [self._search_words(query, k) for query in queries]
    return pad_results(results, len(queries), k)

  def _search_words(self, query: Query, k: int) -> SearchResult:
    """Return a line of up to k scores and rows."""
    # 1. Words of the query that some passage holds.
    words = []
    if not query.image:
      words = _split_words(query.text, adds_characters=False)
    word_ids = self._bm25.get_tokens_ids(words)
    if not word_ids:
      return np.zeros((1, 0), np.float32), np.zeros((1, 0), np.int64)
    # 2. The k best of all passages with a score.
    scores = self._bm25.get_scores_from_ids(word_ids)
    matches = np.flatnonzero(scores > 0)
    best = matches[find_top_k(scores[matches], k)]
    return scores[None, best], best[None]


def fuse_scores(
  by_vector: MergedResult, by_words: MergedResult, k: int
) -> SearchResult:
  """Fuse two results, padded with row -1, by the formula at the top.

  Returns the k best rows and their sums; equal sums are in the order of rows.
  """
  results = []
  for vector_scores, vector_rows, word_scores, word_rows in zip(
    *by_vector, *by_words, strict=True
  ):
    # 1. Both lists without padding, their scores scaled.
    found, worded = vector_rows >= 0, word_rows >= 0
    similar, words = vector_scores[found], word_scores[worded]
    if len(similar):
      similar = (similar - similar.min()) / (np.ptp(similar) or 1)
    if len(words):
      words = WORDS_WEIGHT * words / words.max()

    # 2. Sums by row, and the k best of them.
    both = np.concatenate([vector_rows[found], word_rows[worded]])
    rows, where = np.unique(both, return_inverse=True)
    sums = np.bincount(where, np.concatenate([similar, words]), len(rows))
    best = np.lexsort((rows, -sums))[:k]
    results.append((sums[None, best], rows[None, best]))
  return pad_results(results, len(results), k)


def _split_words(text: str, adds_characters: bool) -> list[str]:
  """Return the words of a text in their one form, without stop words.

  `adds_characters` is for passages, see the top of this module.
  """
  # Case folding may take letters apart.
  text = unicodedata.normalize("NFKC", text).casefold()
  words = _WORD.findall(unicodedata.normalize("NFKC", text))
  if _CJK_CHARACTER.search(text):
    words = [x for word in words for x in _split_runs(word, adds_characters)]
  stop_words = frozenset(bm25s.stopwords.STOPWORDS_EN)
  return [word for word in words if word not in stop_words]


def _split_runs(word: str, adds_characters: bool) -> Iterator[str]:
  """Yield the words of what stands between spaces and punctuation marks."""
  for characters, other in _RUN.findall(word):
    if other:
      yield other
    yield from map("".join, itertools.pairwise(characters))
    if adds_characters or len(characters) == 1:
      yield from characters
