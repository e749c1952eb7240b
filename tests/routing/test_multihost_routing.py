"""Hosts whose shards are searched together find what one host does."""

import json

import jax
import numpy as np
import pytest

from r1router_jax import build_kb
from r1router_jax.common.records import Query
from r1router_jax.policy import policy
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.encoders import registry
from r1router_jax.routing import device_loop
from tests import two_processes
from tests.retrieval.fakes import WordEmbedder
from tests.routing.multihost_cases import KEY, load_kbs, make_questions

CHILD = """
import jax
from r1router_jax.parallel import multihost
multihost.initialize_distributed()
from tests.routing import multihost_cases as cases
host = jax.process_index()
kbs = cases.load_kbs(2, host)
cases.check_against_one_host(kbs, host)
# The second time all results come from the cache.
print("rounds", cases.check_against_one_host(kbs, host))
"""


@pytest.mark.slow
def test_two_hosts_search_shards_in_step(tmp_path):
  first, second = two_processes.run_two_processes(CHILD, tmp_path)
  assert "rounds [2, 0, 2]" in first and "rounds [0]" in second


@pytest.mark.parametrize("loop", ["halves", "fused"])
def test_loops_that_are_not_in_step_are_refused(loop):
  with pytest.raises(ValueError, match="take the host's loop"):
    device_loop.ROUTING_LOOPS[loop](
      policy.load("warm_start"), load_kbs(hosts=2), make_questions(0), KEY
    )


def test_sharded_index_needs_a_shard_per_host(tmp_path, monkeypatch):
  fake = dict(minilm=lambda weights: WordEmbedder())
  monkeypatch.setattr(registry, "EMBEDDERS", fake)
  # Rows of few words, so that many scores are near each other.
  source = tmp_path / "rows.jsonl"
  rows = [dict(id=f"r{i}", text=f"number{i} of {i % 3}") for i in range(30)]
  source.write_text("".join(json.dumps(row) + "\n" for row in rows))
  found = []
  for name, count in (("whole", 1), ("parts", 4)):
    folder = str(tmp_path / name)
    # Words would tell equal vectors apart.
    options = dict(shards=count, hybrid=False)
    build_kb.build(build_kb.KbSpec(folder, "text", str(source), **options))
    found.append(local_kb.open_kb(folder))
  assert not found[1].collective
  # Queries with one best passage, and one with many equal ones.
  queries = [Query(f"number{i}") for i in (0, 7, 8, 29)] + [Query("of 2")]
  for k in (1, 5, 40):
    searched = [base.search(queries, k) for base in found]
    for one, other in zip(*searched, strict=True):
      scores = [[p.score for p in passages] for passages in (one, other)]
      np.testing.assert_allclose(*scores, atol=1e-6)
      assert one[0].id == other[0].id and len(one) == len(other)
  assert len([*(tmp_path / "parts/version-1/shards").iterdir()]) == 4
  # A host without a shard could not take part in searches.
  monkeypatch.setattr(jax, "process_count", lambda: 5)
  with pytest.raises(ValueError, match="4 shards for 5 hosts.*--shards=5"):
    local_kb.open_kb(str(tmp_path / "parts"))
