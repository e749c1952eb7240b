"""Knowledge bases whose shards lie on several hosts, and questions for each.

A module of its own, because processes that tests start import it, too.
"""

import dataclasses

import jax
import numpy as np

from r1router_jax.data import georouter
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.index import exact, sharded_index
from r1router_jax.routing import router
from r1router_jax.routing.router import RolloutOptions
from tests.fakes import COLOUR, PEOPLE, ScriptedPolicy, good_script
from tests.retrieval.fakes import WordEmbedder

KEY = jax.random.key(0)

SHARDS = 4


def load_kbs(hosts=1, host=0):
  """Return the knowledge bases of one host, with its shards of the index."""
  kbs = {}
  for kind in ("text", "image", "table"):
    passages = [*georouter.load_passages(kind)][:50]
    vectors = WordEmbedder()(passages)
    shards = [
      (rows.start, exact.ExactIndex(vectors[rows.start : rows.stop]))
      # Every hosts-th shard lies on this host.
      for rows in sharded_index.split_rows(len(passages), SHARDS)[host::hosts]
    ]
    index = sharded_index.ShardedIndex(shards, len(passages), hosts > 1)
    kbs[kind] = local_kb.LocalKB(
      local_kb.SearchStack(passages, WordEmbedder(), index)
    )
  return kbs


def make_questions(host):
  """Return questions that take other numbers of rounds on each host."""
  # A host without any plan left must still take part in searches.
  questions = (PEOPLE, COLOUR, PEOPLE) if host == 0 else (COLOUR,)
  return [
    dataclasses.replace(q, id=f"{q.id}/{host}/{n}")
    for n, q in enumerate(questions)
  ]


def _run_questions(kbs, host):
  """Return trajectories, and the scores of their passages apart."""
  task = ScriptedPolicy(good_script), kbs, make_questions(host), KEY
  found = router.run_routing(*task, RolloutOptions(k=2))
  trajectories = []
  for t in found:
    rounds = [(done.plan, [p.id for p in done.passages]) for done in t.rounds]
    trajectories.append((t.question.id, rounds, t.final))
  scores = [p.score for t in found for done in t.rounds for p in done.passages]
  return trajectories, scores


def check_against_one_host(kbs, host):
  """Check that a host finds what one host alone does; return round counts."""
  found, scores = _run_questions(kbs, host)
  wanted, wanted_scores = _run_questions(load_kbs(), host)
  assert found == wanted
  # Shards are multiplied in another order.
  np.testing.assert_allclose(scores, wanted_scores, atol=1e-6)
  return [len(rounds) for _, rounds, _ in found]
