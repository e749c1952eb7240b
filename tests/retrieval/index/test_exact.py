import concurrent.futures
import os
import shutil

import numpy as np
import pytest

from r1router_jax.retrieval.index import exact as exact_lib
from r1router_jax.retrieval.index import factory, scann_index


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
    scann_index, "EXACT_ROWS", 10_000 if request.param == "brute" else 100
  )
  monkeypatch.setattr(
    scann_index, "TREE_ROWS", 100 if request.param == "tree" else 10_000
  )
  return vectors, factory.build(vectors, "scann")


def test_exact_search_is_the_oracle(monkeypatch):
  monkeypatch.setattr(exact_lib, "_NUMBERS", 300)  # Three queries at a time.
  vectors, queries = normal(100), normal(7, seed=1)
  scores, rows = factory.build(vectors).search(queries, 5)
  np.testing.assert_array_equal(rows, oracle(vectors, queries, 5))
  np.testing.assert_allclose(
    scores, np.einsum("nE,nkE->nk", queries, vectors[rows]), rtol=1e-5
  )


def test_equal_scores_come_in_the_order_of_rows():
  vectors = np.repeat(normal(1), 50, axis=0)
  _, rows = exact_lib.ExactIndex(vectors).search(vectors[:2], 3)
  assert (np.diff(rows, axis=1) > 0).all()


def test_scann_agrees_with_exact_search(scann):
  vectors, searcher = scann
  assert isinstance(searcher, scann_index.ScannIndex)
  queries = normal(40, seed=1)
  scores, rows = searcher.search(queries, 10)
  _, wanted = exact_lib.ExactIndex(vectors).search(queries, 10)
  assert (
    np.mean([np.isin(a, b).mean() for a, b in zip(rows, wanted, strict=True)])
    > 0.8
  )
  assert (np.diff(scores, axis=1) <= 0).all()
  found = rows >= 0
  np.testing.assert_allclose(
    scores[found],
    np.einsum("nE,nkE->nk", queries, vectors[rows])[found],
    rtol=1e-3,
    atol=1e-3,
  )
  assert searcher.recall() >= 0.8


@pytest.mark.parametrize("kind", ["exact", "scann"])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_too_few_rows_are_filled_with_none(kind, rows):
  if kind == "scann":
    pytest.importorskip("scann")
  searcher = factory.build(normal(rows), kind)
  scores, found = searcher.search(normal(2, seed=1), 25)
  assert found.shape == scores.shape == (2, 25)
  assert (found[:, rows:] == -1).all() and (scores[:, rows:] == -np.inf).all()
  for row in found[:, :rows]:
    assert sorted(row) == list(range(rows))  # Row 0 once, not as filling.


def test_bad_queries_are_refused(scann):
  for searcher in (scann[1], factory.build(scann[0], "exact")):
    scores, rows = searcher.search(np.zeros((0, 16), np.float32), 4)
    assert scores.shape == rows.shape == (0, 4)
    for queries, k, words in (
      (normal(2, 15), 3, r"wanted \[n, 16\]"),
      (normal(2), 0, "k >= 1"),
      (np.full((1, 16), np.nan, np.float32), 3, "NaN"),
    ):
      with pytest.raises(ValueError, match=words):
        searcher.search(queries, k)
    # Other number types are converted.
    _, rows = searcher.search(normal(2).astype(np.float64)[:, :], 3)
    assert rows.shape == (2, 3)


def test_bad_rows_are_refused():
  vectors = normal(4)
  vectors[2, 1] = np.inf
  with pytest.raises(ValueError, match=r"rows \[2\]"):
    factory.build(vectors)
  with pytest.raises(ValueError, match="no vectors"):
    factory.build(vectors[:0])
  with pytest.raises(ValueError, match="'faiss'"):
    factory.build(normal(4), "faiss")


def test_saved_index_may_be_moved(scann, tmp_path):
  vectors, searcher = scann
  for name, saved in (("s", searcher), ("e", factory.build(vectors, "exact"))):
    folder = str(tmp_path / name)
    os.makedirs(folder)
    np.save(os.path.join(folder, "vectors.npy"), vectors)
    factory.save(saved, folder)
    shutil.move(folder, folder + "-moved")
    folder += "-moved"
    again = factory.load(folder, np.load(os.path.join(folder, "vectors.npy")))
    assert type(again) is type(saved)
    for got, wanted in zip(
      again.search(normal(9, seed=2), 5),
      saved.search(normal(9, seed=2), 5),
      strict=True,
    ):
      np.testing.assert_array_equal(got, wanted)


def test_without_scann_search_is_exact(scann, tmp_path, monkeypatch):
  vectors, searcher = scann
  factory.save(searcher, str(tmp_path))
  monkeypatch.setattr(factory, "available", lambda: False)
  assert isinstance(factory.build(vectors), exact_lib.ExactIndex)
  again = factory.load(str(tmp_path), vectors)
  assert isinstance(again, exact_lib.ExactIndex)


def test_automatic_choice(monkeypatch):
  pytest.importorskip("scann")
  monkeypatch.setattr(factory, "EXACT_ROWS", 50)
  assert isinstance(factory.build(normal(49)), exact_lib.ExactIndex)
  assert isinstance(factory.build(normal(50)), scann_index.ScannIndex)


def test_threads_share_an_index(scann):
  _, searcher = scann
  queries = [normal(1 + seed % 5, seed=seed) for seed in range(40)]
  alone = [searcher.search(q, 4) for q in queries]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    together = list(pool.map(lambda q: searcher.search(q, 4), queries))
  for a, b in zip(alone, together, strict=True):
    np.testing.assert_array_equal(a[1], b[1])


def gathered(rows, seed=0):
  """A few tight clusters, each of many rows."""
  rng = np.random.default_rng(seed)
  centres = rng.normal(size=(7, 16))
  made = centres[rng.integers(7, size=rows)]
  made += 0.01 * rng.normal(size=made.shape)
  return made.astype(np.float32)


def hard(name):
  vectors = normal(600, seed=4 if name == "zero again" else 0)
  if name == "clustered":
    return gathered(600)
  if name == "duplicated":
    return np.repeat(vectors[:20], 30, axis=0)
  if name.startswith("zero"):
    vectors[::2] = 0
    return vectors
  return vectors[: int(name)]


@pytest.mark.parametrize(
  "name", ["1", "10", "100", "clustered", "duplicated", "zero", "zero again"]
)
@pytest.mark.parametrize("tree", [False, True])
def test_recall_keeps_the_promise_of_the_probe(name, tree, monkeypatch):
  pytest.importorskip("scann")
  vectors = hard(name)
  monkeypatch.setattr(scann_index, "EXACT_ROWS", 90)
  monkeypatch.setattr(scann_index, "TREE_ROWS", 90 if tree else 10_000)
  searcher = factory.build(vectors, "scann")
  promise = searcher.recall()
  assert promise >= 0.95
  # Rows that are none of the probes, told by a slow loop.
  queries = vectors + 1e-3 * normal(len(vectors), seed=5)
  scores, rows = searcher.search(queries, 10)
  hits = total = 0
  for query, found, told in zip(queries, rows, scores, strict=True):
    exact = sorted((float(row @ query) for row in vectors), reverse=True)[:10]
    real = found[found >= 0]
    assert len(set(real)) == len(real)
    np.testing.assert_allclose(
      told[found >= 0], vectors[real] @ query, atol=1e-5
    )
    total += len(exact)
    hits += sum(score >= exact[-1] - 1e-5 for score in told[found >= 0])
  assert hits / total >= min(promise, 0.95) - 0.02  # Of 600 draws.


def test_a_probe_counts_any_of_equal_rows_and_no_filling():
  vectors = np.repeat(normal(3), [1, 12, 2], axis=0)
  probe = exact_lib.Probe.of(vectors)
  exact = exact_lib.ExactIndex(vectors)
  assert probe.recall(exact) == 1

  class Last(exact_lib.ExactIndex):
    """Finds the last of equal rows, and only the first `share` of ten."""

    def search(self, vectors, k, share=10):
      scores, rows = exact.search(vectors, k)
      scores[:, share:], rows[:, share:] = -np.inf, -1
      return scores, np.where((rows > 0) & (rows < 12), 13 - rows, rows)

  assert probe.recall(Last(vectors)) == 1
  few = Last(vectors)
  few.search = lambda vectors, k: Last.search(few, vectors, k, 7)
  assert probe.recall(few) == pytest.approx(0.7)
  assert (
    exact_lib.Probe.of(normal(4)).recall(exact_lib.ExactIndex(normal(4))) == 1
  )


def test_the_same_vectors_make_the_same_files(scann, tmp_path):
  vectors, searcher = scann
  made = []
  for name, each in (("a", searcher), ("b", factory.build(vectors, "scann"))):
    (tmp_path / name).mkdir()
    factory.save(each, str(tmp_path / name))
    made.append(
      {
        path.name: path.read_bytes()
        for path in (tmp_path / name).rglob("*")
        if path.is_file()
      }
    )
  assert len(made[0]) > 4 and made[0].keys() == made[1].keys()
  assert [name for name in made[0] if made[0][name] != made[1][name]] == []


def test_an_index_that_finds_less_than_it_did_is_refused(scann, tmp_path):
  vectors, searcher = scann
  factory.save(searcher, str(tmp_path))
  probe = exact_lib.Probe.load(str(tmp_path))
  assert factory.load(str(tmp_path), vectors).recall() == searcher.recall()
  # Other vectors' index in the same place.
  other = factory.build(normal(600, seed=9), "scann")
  factory.save(other, str(tmp_path))
  probe.save(str(tmp_path))
  with pytest.raises(ValueError, match="when it was built.  Build it again"):
    factory.load(str(tmp_path), vectors)
