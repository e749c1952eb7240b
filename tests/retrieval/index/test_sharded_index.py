"""An index in parts finds what the whole one does."""

import numpy as np
import pytest

from r1router_jax.retrieval.index import exact, sharded_index
from tests import two_processes


def vectors(rows=101, seed=0):
  """Some rows twice, so that scores are equal."""
  made = np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)
  made[rows // 2 :] = made[: rows - rows // 2]
  return made


def in_parts(parts, mine=slice(None), apart=False):
  whole = vectors()
  cut = sharded_index.ranges(len(whole), parts)
  return sharded_index.Shards(
    [
      (rows.start, exact.ExactIndex(whole[rows.start : rows.stop]))
      for rows in cut[mine]
    ],
    len(whole),
    apart,
  )


def agree(found, queries, k):
  """The scores of exact search, of rows that have them, none twice."""
  scores, rows = found
  wanted, _ = exact.ExactIndex(vectors()).search(queries, k)
  np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-5)
  real = rows >= 0
  assert (real == np.isfinite(wanted)).all()
  np.testing.assert_allclose(
    scores[real],
    np.einsum("nE,nkE->nk", queries, vectors()[rows])[real],
    rtol=1e-4,
    atol=1e-5,
  )
  for row in rows:
    assert len(set(row[row >= 0])) == (row >= 0).sum()


@pytest.mark.parametrize("parts", [1, 3, 101])
@pytest.mark.parametrize("k", [1, 7, 120])
def test_parts_find_what_the_whole_does(parts, k):
  queries = vectors(9, seed=1)
  agree(in_parts(parts).search(queries, k), queries, k)


def test_ranges_hold_every_row_once():
  for rows, parts in ((10, 3), (3, 3), (7, 1)):
    cut = sharded_index.ranges(rows, parts)
    assert [row for part in cut for row in part] == list(range(rows))
    assert max(map(len, cut)) - min(map(len, cut)) <= 1
  with pytest.raises(ValueError, match="--shards=4 of 3 rows"):
    sharded_index.ranges(3, 4)


CHILD = """
import jax
from r1router_jax import pods
pods.join_pod()
from tests.retrieval import test_shards
me = jax.process_index()
found = test_shards.in_parts(4, slice(2 * me, 2 * me + 2), apart=True)
for count in (3 + 4 * me, 0, 5 * (1 - me)):
  queries = test_shards.vectors(20, seed=1)[me::2][:count]
  test_shards.agree(found.search(queries, 6), queries, 6)
print("found", found.rows)
"""


@pytest.mark.slow
def test_hosts_search_together(tmp_path):
  assert all("found 101" in said for said in two_processes.run(CHILD, tmp_path))
