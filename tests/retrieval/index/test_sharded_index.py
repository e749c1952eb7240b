"""An index in shards finds what a single one does."""

import pytest

from r1router_jax.retrieval.index import sharded_index
from tests import two_processes
from tests.retrieval.index import sharded_search


@pytest.mark.parametrize("num_shards", [1, 3, 101])
@pytest.mark.parametrize("k", [1, 7, 120])
def test_shards_find_what_one_index_does(num_shards, k):
  queries = sharded_search.make_vectors(9, seed=1)
  index = sharded_search.make_index(num_shards)
  sharded_search.assert_exact(index.search(queries, k), queries, k)


def test_every_row_is_in_one_shard():
  for rows, num_shards in ((10, 3), (3, 3), (7, 1)):
    ranges = sharded_index.split_rows(rows, num_shards)
    assert [row for part in ranges for row in part] == list(range(rows))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
  with pytest.raises(ValueError, match="--shards=4 of 3 rows"):
    sharded_index.split_rows(3, 4)


# The hosts have different numbers of queries, and one of them may have none.
CHILD = """
import jax
from r1router_jax.parallel import multihost
multihost.initialize_distributed()
from tests.retrieval.index import sharded_search
host = jax.process_index()
own_shards = slice(2 * host, 2 * host + 2)
index = sharded_search.make_index(4, own_shards, collective=True)
for count in (3 + 4 * host, 0, 5 * (1 - host)):
  queries = sharded_search.make_vectors(20, seed=1)[host::2][:count]
  sharded_search.assert_exact(index.search(queries, 6), queries, 6)
print("found", index.rows)
"""


@pytest.mark.slow
def test_hosts_search_together(tmp_path):
  outputs = two_processes.run_two_processes(CHILD, tmp_path)
  assert all("found 101" in output for output in outputs)
