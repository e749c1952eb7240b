import concurrent.futures
import os
import shutil

import numpy as np
import pytest

from r1router_jax.retrieval import index


def normal(rows, width=16, seed=0):
  vectors = np.random.default_rng(seed).normal(size=(rows, width))
  return vectors.astype(np.float32)


def oracle(vectors, queries, k):
  """Rows by falling score, one query and one row at a time."""
  answers = []
  for query in queries:
    scores = [float(np.dot(query, row)) for row in vectors]
    answers.append(sorted(range(len(scores)), key=lambda r: -scores[r])[:k])
  return np.array(answers)


@pytest.fixture(params=["brute", "hashed", "tree"])
def scann(request, monkeypatch):
  """ScaNN's three settings, at a tenth of a thousandth of their sizes."""
  pytest.importorskip("scann")
  vectors = normal(600)
  monkeypatch.setattr(
      index, "EXACT_ROWS", 10_000 if request.param == "brute" else 100)
  monkeypatch.setattr(
      index, "TREE_ROWS", 100 if request.param == "tree" else 10_000)
  return vectors, index.build(vectors, "scann")


def test_exact_search_is_the_oracle(monkeypatch):
  monkeypatch.setattr(index, "_NUMBERS", 300)  # Three queries at a time.
  vectors, queries = normal(100), normal(7, seed=1)
  scores, rows = index.build(vectors).search(queries, 5)
  np.testing.assert_array_equal(rows, oracle(vectors, queries, 5))
  np.testing.assert_allclose(
      scores, np.einsum("nE,nkE->nk", queries, vectors[rows]), rtol=1e-5)


def test_equal_scores_come_in_the_order_of_rows():
  vectors = np.repeat(normal(1), 50, axis=0)
  _, rows = index.ExactIndex(vectors).search(vectors[:2], 3)
  assert (np.diff(rows, axis=1) > 0).all()


def test_scann_agrees_with_exact_search(scann):
  vectors, searcher = scann
  assert isinstance(searcher, index.ScannIndex)
  queries = normal(40, seed=1)
  scores, rows = searcher.search(queries, 10)
  _, wanted = index.ExactIndex(vectors).search(queries, 10)
  assert index.overlap(rows, wanted) > 0.8
  assert (np.diff(scores, axis=1) <= 0).all()
  found = rows >= 0
  np.testing.assert_allclose(
      scores[found],
      np.einsum("nE,nkE->nk", queries, vectors[rows])[found], rtol=1e-3,
      atol=1e-3)
  assert index.recall(searcher, vectors) >= 0.9


@pytest.mark.parametrize("kind", ["exact", "scann"])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_too_few_rows_are_filled_with_none(kind, rows):
  if kind == "scann":
    pytest.importorskip("scann")
  scores, found = index.build(normal(rows), kind).search(normal(2, seed=1), 25)
  assert found.shape == scores.shape == (2, 25)
  assert (found[:, rows:] == -1).all() and (scores[:, rows:] == -np.inf).all()
  for row in found[:, :rows]:
    assert sorted(row) == list(range(rows))  # Row 0 once, not as filling.


def test_bad_queries_are_refused(scann):
  for searcher in (scann[1], index.build(scann[0], "exact")):
    scores, rows = searcher.search(np.zeros((0, 16), np.float32), 4)
    assert scores.shape == rows.shape == (0, 4)
    for queries, k, words in (
        (normal(2, 15), 3, r"wanted \[n, 16\]"),
        (normal(2), 0, "k >= 1"),
        (np.full((1, 16), np.nan, np.float32), 3, "NaN")):
      with pytest.raises(ValueError, match=words):
        searcher.search(queries, k)
    # Other number types are converted.
    _, rows = searcher.search(normal(2).astype(np.float64)[:, :], 3)
    assert rows.shape == (2, 3)


def test_bad_rows_are_refused():
  vectors = normal(4)
  vectors[2, 1] = np.inf
  with pytest.raises(ValueError, match=r"rows \[2\]"):
    index.build(vectors)
  with pytest.raises(ValueError, match="no vectors"):
    index.build(vectors[:0])
  with pytest.raises(ValueError, match="'faiss'"):
    index.build(normal(4), "faiss")


def test_saved_index_may_be_moved(scann, tmp_path):
  vectors, searcher = scann
  for name, saved in (("s", searcher), ("e", index.build(vectors, "exact"))):
    folder = str(tmp_path / name)
    os.makedirs(folder)
    np.save(os.path.join(folder, "vectors.npy"), vectors)
    saved.save(folder)
    shutil.move(folder, folder + "-moved")
    folder += "-moved"
    again = index.load(folder, os.path.join(folder, "vectors.npy"))
    assert type(again) is type(saved)
    for got, wanted in zip(again.search(normal(9, seed=2), 5),
                           saved.search(normal(9, seed=2), 5), strict=True):
      np.testing.assert_array_equal(got, wanted)


def test_without_scann_search_is_exact(scann, tmp_path, monkeypatch):
  vectors, searcher = scann
  np.save(tmp_path / "vectors.npy", vectors)
  searcher.save(str(tmp_path))
  monkeypatch.setattr(index, "_has_scann", lambda: False)
  assert isinstance(index.build(vectors), index.ExactIndex)
  again = index.load(str(tmp_path), str(tmp_path / "vectors.npy"))
  assert isinstance(again, index.ExactIndex)


def test_automatic_choice(monkeypatch):
  pytest.importorskip("scann")
  monkeypatch.setattr(index, "EXACT_ROWS", 50)
  assert isinstance(index.build(normal(49)), index.ExactIndex)
  assert isinstance(index.build(normal(50)), index.ScannIndex)


def test_threads_share_an_index(scann):
  _, searcher = scann
  queries = [normal(1 + seed % 5, seed=seed) for seed in range(40)]
  alone = [searcher.search(q, 4) for q in queries]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    together = list(pool.map(lambda q: searcher.search(q, 4), queries))
  for a, b in zip(alone, together, strict=True):
    np.testing.assert_array_equal(a[1], b[1])


def test_overlap_counts_rows_and_not_filling():
  found = np.array([[1, 2, -1], [3, 4, 5]])
  wanted = np.array([[2, 9, -1], [5, 4, 3]])
  assert index.overlap(found, wanted) == 4 / 5
