"""Passages are updated while others search, and results are right."""

import concurrent.futures

import numpy as np
import pytest

from r1router_jax.common.records import Passage, Query
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.index import bm25, factory
from tests.retrieval import kb_servers
from tests.retrieval.fakes import WordEmbedder

COLOURS = ("red", "green", "blue", "white", "black")


def make_passages(count, first=0):
  return [
    Passage(f"t/{i}", "text", f"flag {i} {COLOURS[i % 5]} {i % 7}")
    for i in range(first, first + count)
  ]


def make_kb(passages, index_kind="exact"):
  index = factory.build_index(WordEmbedder()(passages), index_kind)
  stack = local_kb.SearchStack(passages, WordEmbedder(), index)
  return local_kb.LocalKB(stack)


def assert_same_as_new(kb, passages):
  """Assert that results are those of a new knowledge base of these passages."""
  new_kb = make_kb(passages)
  assert len(kb) == len(passages)
  texts = {p.id: p.text for p in passages}
  queries = [Query(f"{colour} flag {i}") for i, colour in enumerate(COLOURS)]
  for k in (1, 4, len(passages) + 5):
    results, expected = kb.search(queries, k), new_kb.search(queries, k)
    for found, wanted in zip(results, expected, strict=True):
      assert len(found) == len(wanted) == min(k, len(passages))
      # Ids may differ where scores are equal.
      np.testing.assert_allclose(
        [p.score for p in found], [p.score for p in wanted], atol=1e-5
      )
      assert len({p.id for p in found}) == len(found)
      assert all(p.text == texts[p.id] for p in found)


@pytest.mark.parametrize("index_kind", ["exact", "scann"])
def test_updates_are_found(index_kind):
  if index_kind == "scann":
    pytest.importorskip("scann")
  current = {p.id: p for p in make_passages(40)}
  kb = make_kb(list(current.values()), index_kind)
  rng = np.random.default_rng(0)
  for turn in range(6):
    # Delete some, replace some, add some.
    deletes = [str(i) for i in rng.choice(list(current), 7, replace=False)]
    text = f"flag of turn {turn} {COLOURS[turn % 5]}"
    replaced = rng.choice(list(current), 3, replace=False)
    upserts = [
      Passage(str(i), "text", text) for i in replaced if i not in deletes
    ]
    upserts += make_passages(4, 100 + 10 * turn)
    kb.update_passages(upserts, deletes)
    for name in deletes:
      del current[name]
    current |= {p.id: p for p in upserts}
    assert_same_as_new(kb, list(current.values()))
  # Nothing is left, and then a passage is added to nothing.
  kb.update_passages(deletes=list(current))
  assert kb.search([Query("red")], 3) == [[]]
  kb.update_passages(make_passages(1))
  assert_same_as_new(kb, make_passages(1))


def test_unknown_id_is_rejected():
  kb = make_kb(make_passages(3))
  with pytest.raises(KeyError, match="t/9"):
    kb.update_passages(deletes=["t/9"])
  assert_same_as_new(kb, make_passages(3))


def test_hybrid_kb_cannot_be_updated():
  pytest.importorskip("bm25s")
  passages = make_passages(5)
  bm25_index = bm25.Bm25Index.from_texts(p.text for p in passages)
  kb = local_kb.LocalKB(kb_servers.make_stack(passages, bm25_index=bm25_index))
  with pytest.raises(ValueError, match="Build another"):
    kb.update_passages(deletes=["t/0"])


def test_each_search_sees_one_generation_of_passages():
  def make_generation(number):
    return [
      Passage(f"t/{i}", "text", f"flag {i} {COLOURS[i % 5]} of {number}")
      for i in range(20)
    ]

  kb = make_kb(make_generation(0))

  def search_often(n):
    return [kb.search([Query(f"red flag {n} {m}")], 5)[0] for m in range(60)]

  with concurrent.futures.ThreadPoolExecutor(4) as threads:
    futures = [threads.submit(search_often, n) for n in range(4)]
    for number in range(1, 9):
      kb.update_passages(make_generation(number))
    answers = [answer for future in futures for answer in future.result()]
  assert len(answers) == 240
  # The last word of a text is its generation.
  for answer in answers:
    assert len({p.text.rsplit(" ", 1)[1] for p in answer}) == 1
  assert kb.search([Query("flag")], 1)[0][0].text.endswith(" 8")
