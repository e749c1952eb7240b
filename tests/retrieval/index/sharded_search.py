"""An index in shards for tests, also for those in several processes."""

import numpy as np

from r1router_jax.retrieval.index import exact, sharded_index


def make_vectors(rows=101, seed=0):
  """Return vectors that come twice, so that scores are equal."""
  vectors = np.random.default_rng(seed).normal(size=(rows, 8))
  vectors = vectors.astype(np.float32)
  vectors[rows // 2 :] = vectors[: rows - rows // 2]
  return vectors


def make_index(num_shards, own_shards=slice(None), collective=False):
  """Return an index of `make_vectors()` with some of its shards."""
  vectors = make_vectors()
  ranges = sharded_index.split_rows(len(vectors), num_shards)
  shards = [
    (rows.start, exact.ExactIndex(vectors[rows.start : rows.stop]))
    for rows in ranges[own_shards]
  ]
  return sharded_index.ShardedIndex(shards, len(vectors), collective)


def assert_exact(result, queries, k):
  """Assert that scores are those of exact search, and rows have them."""
  scores, rows = result
  vectors = make_vectors()
  expected, _ = exact.ExactIndex(vectors).search(queries, k)
  np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
  found = rows >= 0
  assert (found == np.isfinite(expected)).all()
  products = np.einsum("nE,nkE->nk", queries, vectors[rows])
  np.testing.assert_allclose(
    scores[found], products[found], rtol=1e-4, atol=1e-5
  )
  for found_rows in rows:
    found_rows = found_rows[found_rows >= 0]
    assert len(set(found_rows)) == len(found_rows)
