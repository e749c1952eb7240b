"""Passages change while others search, and exact search over them is right."""

import concurrent.futures

import numpy as np
import pytest

from r1router_jax.common.records import Passage, Query
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.index import bm25, exact, factory
from tests.retrieval.fakes import Words

COLOURS = ("red", "green", "blue", "white", "black")


def made(rows, first=0):
  return [
    Passage(f"t/{i}", "text", f"flag {i} {COLOURS[i % 5]} {i % 7}")
    for i in range(first, first + rows)
  ]


def opened(passages, kind="exact"):
  return local_kb.LocalKB(
    local_kb.Content(passages, Words(), factory.build(Words()(passages), kind))
  )


def agree(base, passages):
  """It finds what a new knowledge base of these passages finds."""
  fresh = opened(passages)
  assert len(base) == len(passages)
  queries = [Query(f"{colour} flag {i}") for i, colour in enumerate(COLOURS)]
  for k in (1, 4, len(passages) + 5):
    for got, wanted in zip(
      base.search(queries, k), fresh.search(queries, k), strict=True
    ):
      assert len(got) == len(wanted) == min(k, len(passages))
      np.testing.assert_allclose(
        [p.score for p in got], [p.score for p in wanted], atol=1e-5
      )
      texts = {p.id: p.text for p in passages}
      assert {p.id for p in got} <= texts.keys()
      assert all(p.text == texts[p.id] for p in got)
      assert len({p.id for p in got}) == len(got)


@pytest.mark.parametrize("kind", ["exact", "scann"])
def test_changes_are_found(kind):
  if kind == "scann":
    pytest.importorskip("scann")
  now = {p.id: p for p in made(40)}
  base = opened(list(now.values()), kind)
  rng = np.random.default_rng(0)
  for turn in range(6):
    gone = [str(name) for name in rng.choice(list(now), 7, replace=False)]
    text = f"flag of turn {turn} {COLOURS[turn % 5]}"
    new = [
      Passage(str(name), "text", text)
      for name in rng.choice(list(now), 3, replace=False)
      if name not in gone
    ] + made(4, 100 + 10 * turn)
    base.change(new, gone)
    for name in gone:
      del now[name]
    now |= {p.id: p for p in new}
    agree(base, list(now.values()))
  base.change(deletes=list(now))
  assert base.search([Query("red")], 3) == [[]]
  base.change(made(1))
  agree(base, made(1))


def test_an_id_that_is_not_there_is_named():
  base = opened(made(3))
  with pytest.raises(KeyError, match="t/9"):
    base.change(deletes=["t/9"])
  agree(base, made(3))


def test_words_and_shards_of_others_do_not_change():
  pytest.importorskip("bm25s")
  some = made(5)
  base = local_kb.LocalKB(
    local_kb.Content(
      some,
      Words(),
      exact.ExactIndex(Words()(some)),
      bm25.Words.build(p.text for p in some),
    )
  )
  with pytest.raises(ValueError, match="Build another"):
    base.change(deletes=["t/0"])


def test_a_search_ends_with_the_passages_it_began_with():
  """Each answer is of one generation, while these follow each other."""
  generation = lambda g: [
    Passage(f"t/{i}", "text", f"flag {i} {COLOURS[i % 5]} of {g}")
    for i in range(20)
  ]
  base = opened(generation(0))

  def searches(n):
    return [base.search([Query(f"red flag {n} {m}")], 5)[0] for m in range(60)]

  with concurrent.futures.ThreadPoolExecutor(4) as threads:
    under_way = [threads.submit(searches, n) for n in range(4)]
    for g in range(1, 9):
      base.change(generation(g))
    answers = [answer for each in under_way for answer in each.result()]
  assert len(answers) == 240
  for answer in answers:
    assert len({p.text.rsplit(" ", 1)[1] for p in answer}) == 1
  assert base.search([Query("flag")], 1)[0][0].text.endswith(" 8")
