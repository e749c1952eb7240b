import random
import tracemalloc

import numpy as np
import pytest

from r1router_jax.retrieval.corpora import id_dedup


@pytest.mark.parametrize("seed", range(3))
def test_id_set_agrees_with_a_python_set(seed):
  rng, ids, before = random.Random(seed), id_dedup.IdSet(), set()
  for _ in range(60):
    batch = [f"é{rng.randrange(500)}" for _ in range(rng.randrange(40))]
    wanted = []
    for name in batch:
      wanted.append(name not in before)
      before.add(name)
    assert ids.add(id_dedup.hash_ids(batch)).tolist() == wanted


def test_initial_ids_are_known():
  ids = id_dedup.IdSet(id_dedup.hash_ids(["b", "a", "c"]))
  assert ids.add(id_dedup.hash_ids(["c", "d", "a"])).tolist() == [
    False,
    True,
    False,
  ]
  assert not ids.add(id_dedup.hash_ids(["d"])).any()
  empty = id_dedup.IdSet(id_dedup.hash_ids([]))
  assert empty.add(id_dedup.hash_ids(["d"])).all()


@pytest.mark.slow
def test_id_set_takes_eight_bytes_per_id():
  ids, rng = id_dedup.IdSet(), np.random.default_rng(0)
  tracemalloc.start()
  for _ in range(200):
    assert ids.add(rng.integers(2**64, size=10_000, dtype=np.uint64)).all()
  held, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  # Sorting and merging may need a second copy for a while.
  assert held < 8.1 * 2_000_000 and peak < 17 * 2_000_000
