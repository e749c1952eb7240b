"""Exact search, ScaNN, and the probe that measures what ScaNN finds."""

import concurrent.futures

import numpy as np
import pytest

from r1router_jax.retrieval.index import (
  exact,
  factory,
  scann_index,
  sharded_index,
)


def make_vectors(rows, width=16, seed=0):
  vectors = np.random.default_rng(seed).normal(size=(rows, width))
  return vectors.astype(np.float32)


def slow_search(vectors, queries, k):
  """Return rows by falling score, one query and one row at a time."""
  answers = []
  for query in queries:
    scores = [float(np.dot(query, row)) for row in vectors]
    answers.append(sorted(range(len(scores)), key=lambda r: -scores[r])[:k])
  return np.array(answers)


def score_rows(vectors, queries, rows):
  """Return the inner products [n, k] of queries and the rows found."""
  return np.einsum("nE,nkE->nk", queries, vectors[rows])


@pytest.fixture(params=["brute", "hashed", "tree"])
def scann(request, monkeypatch):
  """Return 600 vectors and ScaNN's index of them, in each of its settings."""
  pytest.importorskip("scann")
  min_scann_rows = 10_000 if request.param == "brute" else 100
  min_tree_rows = 100 if request.param == "tree" else 10_000
  monkeypatch.setattr(scann_index, "MIN_SCANN_ROWS", min_scann_rows)
  monkeypatch.setattr(scann_index, "MIN_TREE_ROWS", min_tree_rows)
  vectors = make_vectors(600)
  return vectors, factory.build_index(vectors, "scann")


def test_exact_search_is_exact(monkeypatch):
  # Three queries at a time.
  monkeypatch.setattr(exact, "_MAX_SCORES", 300)
  vectors, queries = make_vectors(100), make_vectors(7, seed=1)
  scores, rows = factory.build_index(vectors).search(queries, 5)
  np.testing.assert_array_equal(rows, slow_search(vectors, queries, 5))
  expected = score_rows(vectors, queries, rows)
  np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_equal_scores_come_in_the_order_of_rows():
  scores = np.round(np.random.default_rng(0).normal(size=300), 1)
  for k in (1, 3, 49, 60):
    # Python's sort is stable.
    expected = sorted(range(300), key=lambda row: -scores[row])[:k]
    assert exact.find_top_k(scores, k).tolist() == expected


@pytest.mark.parametrize(
  "rows, width, copies",
  [(50, 384, 50), (60, 512, 2), (400, 512, 4), (2000, 384, 3), (9, 1, 3)],
)
def test_twins_keep_their_order_whatever_k_batch_and_shards(
  rows, width, copies, monkeypatch
):
  """BLAS rounds equal rows differently, by their place and the batch."""
  monkeypatch.setattr(exact, "_ROW_BATCH", 100)
  vectors = np.tile(make_vectors(-(-rows // copies), width), (copies, 1))[:rows]
  queries = make_vectors(24, width, seed=1)
  products = queries.astype(float) @ vectors.astype(float).T
  # The first differences in 64 bits are far larger than 1e-9.
  expected = np.argsort(-products.round(9), axis=1, kind="stable")[:, :5]
  index = exact.ExactIndex(vectors)
  np.testing.assert_array_equal(index.search(queries, 5)[1], expected)
  for query, wanted in zip(queries, expected, strict=True):
    for k in (1, 3):
      found = index.search(query[None], k)[1]
      np.testing.assert_array_equal(found, wanted[None, :k])
  half = rows // 2
  parts = (0, vectors[:half]), (half, vectors[half:])
  shards = [(start, exact.ExactIndex(part)) for start, part in parts]
  sharded = sharded_index.ShardedIndex(shards, rows, collective=False)
  np.testing.assert_array_equal(sharded.search(queries, 5)[1], expected)


def test_scann_agrees_with_exact_search(scann):
  vectors, index = scann
  assert isinstance(index, scann_index.ScannIndex)
  queries = make_vectors(40, seed=1)
  scores, rows = index.search(queries, 10)
  _, expected = exact.ExactIndex(vectors).search(queries, 10)
  hits = [np.isin(a, b).mean() for a, b in zip(rows, expected, strict=True)]
  assert np.mean(hits) > 0.8
  assert (np.diff(scores, axis=1) <= 0).all()
  found, products = rows >= 0, score_rows(vectors, queries, rows)
  np.testing.assert_allclose(
    scores[found], products[found], rtol=1e-3, atol=1e-3
  )
  assert index.measure_recall() >= 0.8


@pytest.mark.parametrize("kind", ["exact", "scann"])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_missing_rows_are_padded(kind, rows):
  if kind == "scann":
    pytest.importorskip("scann")
  index = factory.build_index(make_vectors(rows), kind)
  scores, found = index.search(make_vectors(2, seed=1), 25)
  assert found.shape == scores.shape == (2, 25)
  assert (found[:, rows:] == -1).all() and (scores[:, rows:] == -np.inf).all()
  # Row 0, which ScaNN pads with, comes once.
  for found_rows in found[:, :rows]:
    assert sorted(found_rows) == list(range(rows))


def test_invalid_queries_are_rejected(scann):
  vectors, index = scann
  for each in (index, factory.build_index(vectors, "exact")):
    scores, rows = each.search(np.zeros((0, 16), np.float32), 4)
    assert scores.shape == rows.shape == (0, 4)
    for queries, k, message in (
      (make_vectors(2, 15), 3, r"wanted \[n, 16\]"),
      (make_vectors(2), 0, "k >= 1"),
      (np.full((1, 16), np.nan, np.float32), 3, "NaN"),
    ):
      with pytest.raises(ValueError, match=message):
        each.search(queries, k)
    # Other number types are converted.
    _, rows = each.search(make_vectors(2).astype(np.float64), 3)
    assert rows.shape == (2, 3)


def test_invalid_rows_and_kinds_are_rejected():
  vectors = make_vectors(4)
  vectors[2, 1] = np.inf
  with pytest.raises(ValueError, match=r"rows \[2\]"):
    factory.build_index(vectors)
  # A score of such rows would overflow.
  with pytest.raises(ValueError, match=r"rows \[0, 1\].*too large"):
    factory.build_index(np.full((2, 16), 1e19, np.float32))
  with pytest.raises(ValueError, match="no vectors"):
    factory.build_index(vectors[:0])
  with pytest.raises(ValueError, match="'faiss'"):
    factory.build_index(make_vectors(4), "faiss")


def test_saved_index_may_be_moved(scann, tmp_path):
  vectors, index = scann
  queries = make_vectors(9, seed=2)
  for name, saved in (("s", index), ("e", factory.build_index(vectors))):
    folder = tmp_path / name
    folder.mkdir()
    factory.save_index(saved, str(folder))
    moved = folder.rename(tmp_path / f"{name}-moved")
    loaded = factory.load_index(str(moved), vectors)
    assert type(loaded) is type(saved)
    pairs = zip(
      loaded.search(queries, 5), saved.search(queries, 5), strict=True
    )
    for found, expected in pairs:
      np.testing.assert_array_equal(found, expected)


def test_without_scann_search_is_exact(scann, tmp_path, monkeypatch):
  vectors, index = scann
  factory.save_index(index, str(tmp_path))
  monkeypatch.setattr(factory, "is_scann_installed", lambda: False)
  assert isinstance(factory.build_index(vectors), exact.ExactIndex)
  loaded = factory.load_index(str(tmp_path), vectors)
  assert isinstance(loaded, exact.ExactIndex)


def test_auto_chooses_scann_for_many_rows(monkeypatch):
  pytest.importorskip("scann")
  monkeypatch.setattr(factory, "MIN_SCANN_ROWS", 50)
  for rows, kind in ((49, exact.ExactIndex), (50, scann_index.ScannIndex)):
    assert isinstance(factory.build_index(make_vectors(rows)), kind)


def test_threads_share_an_index(scann):
  _, index = scann
  batches = [make_vectors(1 + seed % 5, seed=seed) for seed in range(40)]
  expected = [index.search(queries, 4) for queries in batches]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda queries: index.search(queries, 4), batches))
  for a, b in zip(expected, found, strict=True):
    np.testing.assert_array_equal(a[1], b[1])


def make_hard_vectors(name):
  """Return vectors that are hard to index, or the first `name` of many."""
  vectors = make_vectors(600, seed=4 if name == "zero again" else 0)
  if name == "clustered":  # A few tight clusters of many rows each.
    centres = make_vectors(7, seed=6)
    return np.repeat(centres, 86, axis=0)[:600] + 0.01 * vectors
  if name == "duplicated":
    return np.repeat(vectors[:20], 30, axis=0)
  if name.startswith("zero"):
    vectors[::2] = 0
    return vectors
  return vectors[: int(name)]


@pytest.mark.parametrize(
  "name", ["1", "10", "100", "clustered", "duplicated", "zero", "zero again"]
)
@pytest.mark.parametrize("has_tree", [False, True])
def test_recall_is_what_the_probe_promises(name, has_tree, monkeypatch):
  pytest.importorskip("scann")
  vectors = make_hard_vectors(name)
  min_tree_rows = 90 if has_tree else 10_000
  monkeypatch.setattr(scann_index, "MIN_SCANN_ROWS", 90)
  monkeypatch.setattr(scann_index, "MIN_TREE_ROWS", min_tree_rows)
  index = factory.build_index(vectors, "scann")
  promise = index.measure_recall()
  assert promise >= 0.95
  # Queries that are not those of the probe.
  queries = vectors + 1e-3 * make_vectors(len(vectors), seed=5)
  all_scores, all_rows = index.search(queries, 10)
  hits = total = 0
  for query, rows, scores in zip(queries, all_rows, all_scores, strict=True):
    products = (float(row @ query) for row in vectors)
    best = sorted(products, reverse=True)[:10]
    found, found_scores = rows[rows >= 0], scores[rows >= 0]
    assert len(set(found)) == len(found)
    np.testing.assert_allclose(found_scores, vectors[found] @ query, atol=1e-5)
    total += len(best)
    hits += sum(score >= best[-1] - 1e-5 for score in found_scores)
  # 600 queries allow for two percent of noise.
  assert hits / total >= min(promise, 0.95) - 0.02


def test_probe_counts_any_of_equal_rows_and_no_padding():
  vectors = np.repeat(make_vectors(3), [1, 12, 2], axis=0)
  probe = exact.RecallProbe.from_vectors(vectors)
  index = exact.ExactIndex(vectors)
  assert probe.measure_recall(index) == 1

  class LastOfEqualRows(exact.ExactIndex):
    """An index that finds the last of equal rows, at most `limit` of ten."""

    def __init__(self, limit):
      super().__init__(vectors)
      self.limit = limit

    def search(self, queries, k):
      scores, rows = index.search(queries, k)
      scores[:, self.limit :], rows[:, self.limit :] = -np.inf, -1
      return scores, np.where((rows > 0) & (rows < 12), 13 - rows, rows)

  assert probe.measure_recall(LastOfEqualRows(11)) == 1
  # The nearest does not count: it may be the query itself.
  assert probe.measure_recall(LastOfEqualRows(7)) == pytest.approx(0.6)
  # Fewer than ten rows are all found.
  few = make_vectors(4)
  probe = exact.RecallProbe.from_vectors(few)
  assert probe.measure_recall(exact.ExactIndex(few)) == 1


def test_same_vectors_make_the_same_files(scann, tmp_path):
  vectors, index = scann
  contents = []
  second = factory.build_index(vectors, "scann")
  for name, each in (("a", index), ("b", second)):
    folder = tmp_path / name
    folder.mkdir()
    factory.save_index(each, str(folder))
    files = [path for path in folder.rglob("*") if path.is_file()]
    contents.append({path.name: path.read_bytes() for path in files})
  assert len(contents[0]) > 4 and contents[0].keys() == contents[1].keys()
  differing = [n for n in contents[0] if contents[0][n] != contents[1][n]]
  assert differing == []


def test_index_that_lost_recall_gives_way_to_exact_search(
  scann, tmp_path, caplog
):
  vectors, index = scann
  folder = str(tmp_path)
  factory.save_index(index, folder)
  probe = exact.RecallProbe.load(folder)
  recall = factory.load_index(folder, vectors).measure_recall()
  assert recall == index.measure_recall()
  # An index of other vectors is put in the same place.
  other = factory.build_index(make_vectors(600, seed=9), "scann")
  factory.save_index(other, folder)
  probe.save(folder)
  assert isinstance(factory.load_index(folder, vectors), exact.ExactIndex)
  assert "Search is exact, and slower." in caplog.text


class ForgetfulIndex(exact.ExactIndex):
  """An index that finds some rows never, as coarse codes may do."""

  def __init__(self, vectors, is_lost):
    super().__init__(vectors)
    self.is_lost = is_lost

  def search(self, queries, k):
    scores, rows = super().search(queries, self.rows)
    scores[self.is_lost[rows]] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return tuple(np.take_along_axis(x, best, 1) for x in (scores, rows))


def make_units(rows, seed=0):
  """Return vectors of length 1 without a negative number."""
  vectors = np.abs(make_vectors(rows, seed=seed))
  return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("size", [1e-15, 1e-3, 1, 1e6])
def test_recall_does_not_depend_on_the_unit_of_vectors(size):
  vectors = make_vectors(300) * np.float32(size)
  probe = exact.RecallProbe.from_vectors(vectors)
  assert probe.measure_recall(exact.ExactIndex(vectors)) == 1
  half = ForgetfulIndex(vectors, np.arange(300) % 2 == 0)
  assert 0.3 < probe.measure_recall(half) < 0.6


def test_probe_asks_for_rows_of_every_length():
  # A few short rows, opposite to the others, are next to each other alone.
  vectors = make_units(1000)
  vectors[::50] *= -1e-4
  probe = exact.RecallProbe.from_vectors(vectors)
  assert probe.num_sorts == 3  # Two lengths, and midpoints.
  assert probe.measure_recall(exact.ExactIndex(vectors)) == 1
  is_short = np.arange(1000) % 50 == 0
  assert probe.measure_recall(ForgetfulIndex(vectors, is_short)) == 0


def test_probe_asks_what_users_ask():
  # Few rows are lost, but they are all that the queries are about.
  vectors = np.concatenate([make_units(1000), -make_units(40, seed=1)])
  index = ForgetfulIndex(vectors, np.arange(1040) >= 1000)
  assert exact.RecallProbe.from_vectors(vectors).measure_recall(index) > 0.9
  queries = -make_units(30, seed=2)
  probe = exact.RecallProbe.from_vectors(vectors, queries)
  assert probe.measure_recall(index) == 0


def test_older_probe_is_read(tmp_path):
  """It has ten scores of as many rows as midpoints."""
  vectors = make_units(50)
  queries = np.concatenate([vectors[:9], vectors[9:18]])
  scores, _ = exact.ExactIndex(vectors).search(queries, 10)
  np.savez(tmp_path / "probe.npz", vectors=queries, scores=scores)
  probe = exact.RecallProbe.load(str(tmp_path))
  assert probe.measure_recall(exact.ExactIndex(vectors)) == 1
  probe = exact.RecallProbe.from_vectors(vectors)
  probe.save(str(tmp_path))
  loaded = exact.RecallProbe.load(str(tmp_path))
  assert loaded.num_sorts == probe.num_sorts == 2


@pytest.mark.parametrize(
  "size, kind", [(1e-4, exact.ExactIndex), (1, scann_index.ScannIndex)]
)
def test_index_below_its_target_gives_way_to_exact_search(
  size, kind, monkeypatch, caplog
):
  """ScaNN's codes tell nothing apart that is very short."""
  pytest.importorskip("scann")
  monkeypatch.setattr(scann_index, "MIN_SCANN_ROWS", 100)
  monkeypatch.setattr(scann_index, "RESCORED_ROWS", 12)
  vectors = make_vectors(600, 64) * np.float32(size)
  index = factory.build_index(vectors, "scann")
  assert isinstance(index, kind)
  assert ("wanted 0.950.  Search is exact" in caplog.text) == (size < 1)
  queries = make_vectors(200, 64, seed=3)
  _, rows = index.search(queries, 10)
  expected = slow_search(vectors, queries, 10)
  hits = [np.isin(a, b).mean() for a, b in zip(rows, expected, strict=True)]
  assert np.mean(hits) > 0.95
