"""Hosts whose shards are searched together walk in step, and as one does."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from r1router_jax import build_kb
from r1router_jax.common.records import Query
from r1router_jax.data import georouter
from r1router_jax.policy import policy
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.encoders import registry
from r1router_jax.retrieval.index import exact as exact_lib
from r1router_jax.retrieval.index import sharded_index
from r1router_jax.routing import device_loop, router
from tests import fakes, two_processes
from tests.retrieval.fakes import Words
from tests.routing.test_router import COLOUR, KEY, PEOPLE, gold

PARTS = 4


def kbs(hosts=1, host=0):
  """Of this host, each with its parts of the index."""
  found = {}
  for kb in ("text", "image", "table"):
    some = [*georouter.passages(kb)][:50]
    vectors = Words()(some)
    parts = [
      (rows.start, exact_lib.ExactIndex(vectors[rows.start : rows.stop]))
      for rows in sharded_index.ranges(len(some), PARTS)[host::hosts]
    ]
    found[kb] = local_kb.LocalKB(
      local_kb.Content(
        some, Words(), sharded_index.Shards(parts, len(some), hosts > 1)
      )
    )
  return found


def asked(host):
  """Different questions, and different numbers of rounds."""
  some = (PEOPLE, COLOUR, PEOPLE) if host == 0 else (COLOUR,)
  return [
    dataclasses.replace(q, id=f"{q.id}/{host}/{n}") for n, q in enumerate(some)
  ]


def walked(bases, host):
  """Trajectories, with the scores of passages apart."""
  found = router.route(fakes.Scripted(gold), bases, asked(host), KEY, k=2)
  rounds = [done for one in found for done in one.rounds]
  return [
    (
      one.question.id,
      [(done.plan, [p.id for p in done.passages]) for done in one.rounds],
      one.final,
    )
    for one in found
  ], [p.score for r in rounds for p in r.passages]


def same(bases, host):
  """As one host does alone."""
  (found, scores), (wanted, exact) = walked(bases, host), walked(kbs(), host)
  assert found == wanted
  np.testing.assert_allclose(scores, exact, atol=1e-6)
  return [len(rounds) for _, rounds, _ in found]


CHILD = """
import jax
from r1router_jax import pods
pods.join_pod()
from tests import test_together as t
me = jax.process_index()
away = t.kbs(2, me)
t.same(away, me)
print("rounds", t.same(away, me))  # What it found is remembered.
"""


@pytest.mark.slow
def test_hosts_walk_in_step(tmp_path):
  first, second = two_processes.run(CHILD, tmp_path)
  assert "rounds [2, 0, 2]" in first and "rounds [0]" in second


def test_other_loops_are_refused():
  bases = kbs(hosts=2)
  for loop in ("halves", "fused"):
    with pytest.raises(ValueError, match="take the host's loop"):
      device_loop.LOOPS[loop](policy.load("warm_start"), bases, asked(0), KEY)


def test_shards_are_built_opened_and_wanted_by_no_more_hosts(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(registry.EMBEDDERS, "minilm", lambda weights: Words())
  registry.make.cache_clear()
  source = tmp_path / "rows.jsonl"
  source.write_text(
    "".join(
      json.dumps(dict(id=f"r{i}", text=f"number{i} of {i % 3}")) + "\n"
      for i in range(30)
    )
  )
  found = []
  for name, count in (("whole", 1), ("parts", 4)):
    folder = str(tmp_path / name)
    build_kb.build(folder, "text", str(source), shards=count)
    found.append(local_kb.open_kb(folder))
  assert not found[1].together
  queries = [Query(f"number{i}") for i in (0, 7, 8, 29)] + [Query("of 2")]
  for k in (1, 5, 40):
    for one, other in zip(
      *(base.search(queries, k) for base in found), strict=True
    ):
      np.testing.assert_allclose(
        [p.score for p in one], [p.score for p in other], atol=1e-6
      )
      assert one[0] == other[0] and len(one) == len(other)
  assert len([*(tmp_path / "parts" / "shards").iterdir()]) == 4
  monkeypatch.setattr(jax, "process_count", lambda: 5)
  with pytest.raises(ValueError, match="4 shards for 5 hosts.*--shards=5"):
    local_kb.open_kb(str(tmp_path / "parts"))
  registry.make.cache_clear()
