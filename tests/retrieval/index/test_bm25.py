"""BM25 and fusion of scores agree with their formulas, written slowly."""

import json
import math
import random
import re

import numpy as np
import pytest

from r1router_jax.common.records import Passage, Query
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.index import bm25
from tests.retrieval import kb_servers


def make_texts(seed, count=30):
  rng = random.Random(seed)
  vocabulary = [f"w{i}" for i in range(25)] + ["the", "is"]
  counts = [rng.randrange(1, 30) for _ in range(count)]
  texts = [" ".join(rng.choices(vocabulary, k=k)) for k in counts]
  # No words, only stop words, and letters beyond ASCII.
  return [*texts, "", "the is", "Été, été? W1"]


def split_words(text):
  return [w for w in re.findall(r"\w+", text.lower()) if w not in ("the", "is")]


def slow_bm25(texts, query):
  """Score each text by the formula, a word at a time."""
  documents = [split_words(text) for text in texts]
  mean = sum(map(len, documents)) / len(documents)
  scores = []
  for document in documents:
    score = 0.0
    for word in split_words(query):
      holds = sum(word in other for other in documents)
      tf = document.count(word)
      idf = math.log(1 + (len(documents) - holds + 0.5) / (holds + 0.5))
      score += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean))
    scores.append(score)
  return scores


@pytest.mark.parametrize("seed", range(3))
def test_bm25_is_the_formula(seed):
  texts = make_texts(seed)
  index = bm25.Bm25Index.from_texts(texts)
  words = "w1 w2", "W3, w3 w4!", "the w5 is", "ÉTÉ", "w1 unknown"
  nine_words = " ".join(f"w{i}" for i in range(9))
  queries = [Query(text) for text in (*words, nine_words)]
  scores, rows = index.search(queries, len(texts))
  for i, query in enumerate(queries):
    expected = np.array(slow_bm25(texts, query.text))
    found = rows[i][rows[i] >= 0]
    assert sorted(found) == np.flatnonzero(expected > 0).tolist()
    own, padding = np.split(scores[i], [len(found)])
    np.testing.assert_allclose(own, expected[found], rtol=1e-5)
    assert (np.diff(own) <= 0).all() and (padding == -np.inf).all()
  # A smaller k gives the same best scores.
  for k in range(1, 9):
    top_scores, top_rows = index.search(queries, k)
    np.testing.assert_array_equal(top_scores, scores[:, :k])
    np.testing.assert_array_equal(top_rows, rows[:, :k])


@pytest.mark.parametrize("seed", range(3))
def test_equal_scores_come_in_the_order_of_rows_at_any_k(seed):
  words = np.random.default_rng(seed).integers(0, 3, (60, 2))
  texts = [f"w{a} w{b}" for a, b in words]
  index = bm25.Bm25Index.from_texts(texts)
  for query in ("w0", "w1 w2", "w2 w1 w0"):
    scores = np.round(slow_bm25(texts, query), 5)
    wanted = np.argsort(-scores, kind="stable")[: np.count_nonzero(scores)]
    assert len(np.unique(scores)) < 10  # Most are equal.
    for k in (1, 2, 5, 30, 60):
      _, rows = index.search([Query(query)], k)
      assert rows[0, : len(wanted)].tolist() == wanted[:k].tolist(), (query, k)


DECOMPOSED = "Un cafe\u0301 a\u0300 Malmo\u0308"
CHINESE = "乍得位于非洲中部，首都是恩贾梅纳。"


@pytest.mark.parametrize(
  "passage, query",
  [
    ("Un café à Malmö", "cafe\u0301"),
    (DECOMPOSED, "CAFÉ"),
    (DECOMPOSED, "malmö"),
    ("Ϊ\u0301", "ΐ"),
    ("Hauptstraße", "HAUPTSTRASSE"),
    ("ＴＯＫＹＯ ２０２０", "2020"),
    ("Tokyo 2020", "ｔｏｋｙｏ"),
    ("भारत की राजधानी दिल्ली है", "दिल्ली"),
    (CHINESE, "首都"),
    (CHINESE, "恩贾梅纳是什么？"),
    (CHINESE, "乍"),
    ("日本の首都は東京です。", "東京"),
    ("日本の首都は東京です。", "京"),
    ("がんばる", "か\u3099んば"),
    ("ﾗｰﾒﾝ屋", "ラーメン"),
    ("부산은 항구 도시이다", "부산"),
    ("iPhone15の価格は2020年", "iphone15"),
    ("𠮷野家", "𠮷野"),
  ],
)
def test_words_are_found_in_any_form_and_script(passage, query):
  others = ["a cafeteria of 20 20", "दाल की है", "中国的上海", "か", "서울은"]
  index = bm25.Bm25Index.from_texts([*others, passage])
  _, rows = index.search([Query(query)], len(others) + 1)
  assert rows[0, 0] == len(others)
  assert (rows[0, 1:] == -1).all()


def test_query_without_known_words_finds_nothing():
  index = bm25.Bm25Index.from_texts(["red flag", "blue flag"])
  queries = [Query(text) for text in ("", "the", "green", "?!")]
  for query in (*queries, Query("red", "flag.png")):
    scores, rows = index.search([query], 3)
    assert (rows == -1).all() and (scores == -np.inf).all(), query


def test_empty_batch_and_corpus_without_words(tmp_path):
  index = bm25.Bm25Index.from_texts(["red flag", "blue flag"])
  assert index.search([], 3)[1].shape == (0, 3)
  # Such as pictures without captions.
  wordless = bm25.Bm25Index.from_texts(["", "the", "!?"])
  wordless.save(str(tmp_path))
  for index in (wordless, bm25.Bm25Index.load(str(tmp_path))):
    assert index.rows == 3
    rows = index.search([Query("red flag"), Query("the"), Query("")], 2)[1]
    assert (rows == -1).all()


def test_saved_index_holds_no_pickles(tmp_path):
  texts = make_texts(0)
  index = bm25.Bm25Index.from_texts(texts)
  index.save(str(tmp_path))
  loaded = bm25.Bm25Index.load(str(tmp_path))
  assert loaded.rows == index.rows == len(texts)
  expected, found = (x.search([Query("w1 w2 w3")], 9) for x in (index, loaded))
  np.testing.assert_array_equal(expected[0], found[0])
  np.testing.assert_array_equal(expected[1], found[1])
  for path in (tmp_path / "bm25").iterdir():
    if path.suffix == ".json":
      json.loads(path.read_text())
    else:
      assert np.load(path, allow_pickle=False).dtype != object
  # An array that is a pickle is refused.
  path = tmp_path / "bm25" / "data.csc.index.npy"
  np.save(path, np.array([{}], object), allow_pickle=True)
  with pytest.raises(ValueError, match="[Pp]ickle|Python objects"):
    bm25.Bm25Index.load(str(tmp_path))


def slow_fusion(by_vector, by_words, k):
  """Sum scaled scores row by row; `by_vector` is a dict from row to score."""
  low, high = min(by_vector.values()), max(by_vector.values())
  sums = dict.fromkeys(sorted({*by_vector, *by_words}), 0.0)
  for row in sums:
    if row in by_vector and high > low:
      sums[row] += (by_vector[row] - low) / (high - low)
    if row in by_words:
      sums[row] += 0.8 * by_words[row] / max(by_words.values())
  # `sorted` keeps the order of rows among equal sums.
  best = sorted(sums, key=lambda row: -sums[row])[:k]
  return best, [sums[row] for row in best]


def as_dict(scores, rows):
  return {int(r): float(s) for s, r in zip(scores, rows, strict=True) if r >= 0}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 4, 40])
def test_fusion_is_the_formula(seed, k):
  rng = np.random.default_rng(seed)
  results = []
  for least in 1, 0:
    rows = np.stack([rng.permutation(20)[:12] for _ in range(5)])
    # Few values, so that sums are often equal.
    scores = -np.sort(-rng.integers(1, 4, (5, 12)).astype(np.float32))
    padding = np.arange(12) >= rng.integers(least, 13, (5, 1))
    scores = np.where(padding, -np.float32(np.inf), scores)
    results.append((scores, np.where(padding, -1, rows)))
  scores, rows = bm25.fuse_scores(*results, k)
  assert scores.shape == rows.shape == (5, k)
  for i in range(5):
    lists = [as_dict(s[i], r[i]) for s, r in results]
    best, totals = slow_fusion(*lists, k)
    assert rows[i].tolist() == best + [-1] * (k - len(best))
    np.testing.assert_allclose(scores[i, : len(best)], totals, rtol=1e-6)


def test_hybrid_kb_fuses_words_and_vectors():
  texts = ("flag red", "code x97 of a flag", "flag green", "flag white")
  passages = [Passage(str(i), "text", text) for i, text in enumerate(texts)]
  bm25_index = bm25.Bm25Index.from_texts(texts)
  stack = kb_servers.make_stack(passages, bm25_index=bm25_index)
  kb = local_kb.LocalKB(stack)
  query = Query("red flag x97")
  by_vector = stack.index.search(stack.embedder([query]), 4)
  by_words = stack.bm25_index.search([query], 4)
  lists = [as_dict(*(x[0] for x in result)) for result in (by_vector, by_words)]
  best, totals = slow_fusion(*lists, 2)
  (found,) = kb.search([query], 2)
  assert [int(p.id) for p in found] == best
  np.testing.assert_allclose([p.score for p in found], totals, rtol=1e-6)
  # A query with an image is answered by vectors alone.
  (found,) = kb.search([Query(query.text, "flag.png")], 4)
  assert [int(p.id) for p in found] == by_vector[1][0].tolist()
