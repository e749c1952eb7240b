"""BM25 and fusion by rank, each beside its formula written slowly."""

import json
import math
import os
import random
import re
import sys

import numpy as np
import pytest

from r1router_jax.common.records import Passage, Query
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.index import bm25, exact
from tests.retrieval.fakes import Words

bm25s = pytest.importorskip("bm25s")


def texts(seed, count=30):
  rng = random.Random(seed)
  vocabulary = [f"w{i}" for i in range(25)] + ["the", "is"]
  return [
    " ".join(rng.choices(vocabulary, k=rng.randrange(1, 30)))
    for _ in range(count)
  ] + ["", "the is", "Été, été? W1"]


def split(text):
  return [w for w in re.findall(r"\w+", text.lower()) if w not in ("the", "is")]


def oracle(documents, query):
  """The formula, a word and a document at a time."""
  documents = [split(d) for d in documents]
  mean = sum(map(len, documents)) / len(documents)
  scores = []
  for document in documents:
    score = 0.0
    for word in split(query):
      holds = sum(word in other for other in documents)
      tf = document.count(word)
      idf = math.log(1 + (len(documents) - holds + 0.5) / (holds + 0.5))
      score += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean))
    scores.append(score)
  return scores


@pytest.mark.parametrize("seed", range(3))
def test_bm25_is_the_formula(seed):
  documents = texts(seed)
  words = bm25.Words.build(documents)
  queries = [
    "w1 w2",
    "W3, w3 w4!",
    "the w5 is",
    "ÉTÉ",
    "w1 unknown",
    " ".join(f"w{i}" for i in range(9)),
  ]
  scores, rows = words.search([Query(q) for q in queries], len(documents))
  for i, query in enumerate(queries):
    wanted = oracle(documents, query)
    found = rows[i][rows[i] >= 0]
    assert sorted(found) == [d for d, s in enumerate(wanted) if s > 0]
    np.testing.assert_allclose(
      scores[i, : len(found)], [wanted[d] for d in found], rtol=1e-5
    )
    assert (np.diff(scores[i, : len(found)]) <= 0).all()
    assert (scores[i, len(found) :] == -np.inf).all()
  few, few_rows = words.search([Query(q) for q in queries], 4)
  np.testing.assert_array_equal(few, scores[:, :4])
  for i in range(len(queries)):
    for score, row in zip(few[i], few_rows[i], strict=True):
      assert row == -1 or score == scores[i][rows[i] == row]


def test_what_finds_nothing():
  words = bm25.Words.build(["red flag", "blue flag"])
  for query in (
    Query(""),
    Query("the"),
    Query("green"),
    Query("?!"),
    Query("red", "flag.png"),
  ):
    scores, rows = words.search([query], 3)
    assert (rows == -1).all() and (scores == -np.inf).all()
  assert words.search([], 3)[1].shape == (0, 3)
  with pytest.raises(ValueError, match="no words to index.*without --hybrid"):
    bm25.Words.build(["", "the", "!?"])


def test_what_is_saved_is_found_again_without_pickles(tmp_path):
  documents = texts(0)
  words = bm25.Words.build(documents)
  words.save(str(tmp_path))
  again = bm25.Words.load(str(tmp_path))
  assert again.rows == words.rows == len(documents)
  for ours, theirs in zip(
    *(w.search([Query("w1 w2 w3")], 9) for w in (words, again)), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)
  for file in os.scandir(tmp_path / "bm25"):
    if file.name.endswith(".json"):
      with open(file) as opened:
        json.load(opened)
    else:
      array = np.load(file.path, allow_pickle=False)
      assert array.dtype != object
  # An array that is a pickle is refused.
  name = tmp_path / "bm25" / "data.csc.index.npy"
  np.save(name, np.array([{}], object), allow_pickle=True)
  with pytest.raises(ValueError, match="[Pp]ickle|Python objects"):
    bm25.Words.load(str(tmp_path))


def slow_fuse(lists, k):
  """Every row by its sum, then by its place in the earliest list."""
  rows = {row for found in lists for row in found if row >= 0}

  def total(row):
    return sum(
      1 / (60 + list(found).index(row) + 1)
      for found in lists
      if row in list(found)
    )

  def place(row):
    return next(
      (i, list(found).index(row))
      for i, found in enumerate(lists)
      if row in list(found)
    )

  best = sorted(rows, key=lambda row: (-total(row), place(row)))[:k]
  return best, [total(row) for row in best]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 4, 40])
def test_fusion_is_the_formula(seed, k):
  rng = np.random.default_rng(seed)
  lists = []
  for length in (12, 8, 12):
    found = np.stack([rng.permutation(20)[:length] for _ in range(5)])
    filled = np.arange(length) >= rng.integers(0, length + 1, (5, 1))
    lists.append(np.where(filled, -1, found))
  scores, rows = bm25.fuse(lists, k)
  assert scores.shape == rows.shape == (5, k)
  for i in range(5):
    best, totals = slow_fuse([found[i] for found in lists], k)
    assert rows[i].tolist() == best + [-1] * (k - len(best))
    np.testing.assert_allclose(scores[i, : len(best)], totals, rtol=1e-6)


@pytest.fixture
def base():
  passages = [
    Passage(str(i), "text", text)
    for i, text in enumerate(
      ("flag red", "code x97 of a flag", "flag green", "flag white")
    )
  ]
  return local_kb.LocalKB(
    local_kb.Content(
      passages,
      Words(),
      exact.ExactIndex(Words()(passages)),
      bm25.Words.build(p.text for p in passages),
    )
  )


def test_a_knowledge_base_fuses_both(base):
  query = Query("red flag x97")
  dense = base.content.index.search(base.content.embedder([query]), 4)[1]
  found = base.content.words.search([query], 4)[1]
  best, totals = slow_fuse([dense[0], found[0]], 2)
  (answer,) = base.search([query], 2)
  assert [int(p.id) for p in answer] == best
  np.testing.assert_allclose([p.score for p in answer], totals, rtol=1e-6)
  # A picture's query is answered by vectors alone.
  (shown,) = base.search([Query("red flag x97", "flag.png")], 4)
  assert [int(p.id) for p in shown] == dense[0].tolist()


def test_without_bm25s_the_cure_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "bm25s", None)
  with pytest.raises(ModuleNotFoundError, match=r"r1router_jax\[hybrid\]"):
    bm25.Words.load("anywhere")
