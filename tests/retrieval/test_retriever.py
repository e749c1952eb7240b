import concurrent.futures
import dataclasses
import json
import math
import threading

import numpy as np
import pytest

from r1router_jax.common.records import Passage, Query
from r1router_jax.retrieval import knowledge_base, local_kb, retriever
from r1router_jax.retrieval.index import exact
from tests import fakes
from tests.retrieval.fakes import Words

TEXTS = [
  "the capital of chad is ndjamena",
  "chad has many people",
  "rome is the capital of italy",
  "a flag is red",
]


@pytest.fixture
def base():
  passages = [Passage(f"text/{i}", "text", t) for i, t in enumerate(TEXTS)]
  return local_kb.LocalKB(
    local_kb.Content(passages, Words(), exact.ExactIndex(Words()(passages)))
  )


def test_answers_are_the_nearest_passages_with_their_scores(base):
  first, second = base.search([Query("capital of chad"), Query("red flag")], 2)
  assert [p.id for p in first] == ["text/0", "text/2"]
  assert second[0].id == "text/3"
  words = Words()
  for passage in first:
    wanted = (words([Query("capital of chad")]) @ words([passage]).T).item()
    assert passage.score == pytest.approx(wanted, abs=1e-5)
  assert math.isnan(base.content.passages[0].score)  # The store is untouched.


def test_the_same_query_is_embedded_once(base):
  queries = [Query("red"), Query("rome"), Query("red"), Query("red", "x.png")]
  answers = base.search(queries, 1)
  seen = base.content.embedder.seen
  assert seen == ["red", "rome", "red"]  # The picture differs.
  assert answers[0] == answers[2]
  assert base.search(queries[:2], 1) == answers[:2]
  assert len(seen) == 3  # Remembered,
  base.search(queries[:1], 2)
  assert len(seen) == 4  # but not for another k.


def test_answers_are_the_callers_own(base):
  base.search([Query("red")], 2)[0].clear()
  assert len(base.search([Query("red")], 2)[0]) == 2


def test_few_passages_and_no_queries(base):
  assert [len(a) for a in base.search([Query("red")], 9)] == [4]
  assert base.search([], 3) == []


def test_memory_is_bounded(base, monkeypatch):
  monkeypatch.setattr(knowledge_base, "REMEMBERED", 10)
  for i in range(50):
    assert base.search([Query(f"red {i}"), Query("rome")], 1)
    assert len(base._answers) <= 10


def test_what_was_asked_longest_ago_is_forgotten(base, monkeypatch):
  monkeypatch.setattr(knowledge_base, "REMEMBERED", 2)
  seen = base.content.embedder.seen
  for text in ("red", "rome", "red", "chad", "red", "rome"):
    base.search([Query(text)], 1)
  assert seen == ["red", "rome", "chad", "rome"]


def test_it_reports_what_it_did_since_the_last_time(base, monkeypatch):
  assert base.report() == dict(queries=0, remembered=0)
  clock = iter([0, 0.1, 1, 1.3])
  monkeypatch.setattr(knowledge_base.time, "perf_counter", lambda: next(clock))
  base.search([Query("red"), Query("red"), Query("rome")], 1)
  base.search([Query("red")], 1)
  base.search([Query("chad")], 1)
  found = base.report()
  assert (found["queries"], found["remembered"]) == (5, 2 / 5)
  assert found["p50_ms"] == pytest.approx(200)
  assert found["p99_ms"] == pytest.approx(300 - 0.01 * 200)
  assert base.report() == dict(queries=0, remembered=0)
  assert retriever.report({"text": base}) == {
    "retrieval/text/queries": 0,
    "retrieval/text/remembered": 0,
  }


def test_knowledge_bases_are_searched_side_by_side():
  meet = threading.Barrier(3)

  class Slow(fakes.Echo):
    def _find(self, queries, k):
      meet.wait(timeout=10)  # Breaks where they come one by one.
      return super()._find(queries, k)

  retrieve = retriever.retriever({kb: Slow(kb) for kb in retriever.KINDS})
  found = retrieve([(kb, f"what {kb}", "") for kb in retriever.KINDS])
  assert [p.kb for (p,) in found] == list(retriever.KINDS)


def test_threads_share_a_knowledge_base(base, monkeypatch):
  monkeypatch.setattr(knowledge_base, "REMEMBERED", 5)
  batches = [
    [Query(f"{w} {i % 7}") for w in ("red", "rome")] for i in range(60)
  ]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    together = list(pool.map(lambda batch: base.search(batch, 2), batches))
  for batch, answers in zip(batches, together, strict=True):
    assert [a[0].id for a in answers] == [
      a[0].id for a in base.search(batch, 2)
    ]


@pytest.fixture
def stored(tmp_path):
  rows = [
    dict(id=str(i), text=t, image=f"p/{i}.png" if i % 2 else "")
    for i, t in enumerate(["plain", "é\u2028", "x" * 10_000])
  ]
  lines = [json.dumps(row).encode() + b"\n" for row in rows]
  (tmp_path / "passages.jsonl").write_bytes(b"".join(lines))
  np.save(tmp_path / "offsets.npy", np.cumsum([0, *map(len, lines)]))
  return rows, local_kb.Passages(str(tmp_path), "image", "/pictures")


def test_passages_are_read_where_they_lie(stored):
  rows, passages = stored
  assert len(passages) == 3
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda i: passages[i % 3], range(300)))
  for i, passage in enumerate(found):
    row = rows[i % 3]
    image = "/pictures/p/1.png" if row["image"] else ""
    assert dataclasses.replace(passage, score=0.0) == Passage(
      row["id"], "image", row["text"], image, 0.0
    )


def test_a_retriever_asks_each_knowledge_base_once():
  asked = []

  class Kb(fakes.Echo):
    def _find(self, queries, k):
      asked.append((self.kb, tuple(queries), k))
      return [
        [Passage(f"{self.kb}/{query.text}/{n}", self.kb, "") for n in range(k)]
        for query in queries
      ]

  retrieve = retriever.retriever(
    {kb: Kb(kb) for kb in ("text", "image")}, dict(text=2, image=1)
  )
  found = retrieve(
    [("text", "a", "flag.png"), ("image", "b", "flag.png"), ("text", "c", "")]
  )
  assert [[p.id for p in ps] for ps in found] == [
    ["text/a/0", "text/a/1"],
    ["image/b/0"],
    ["text/c/0", "text/c/1"],
  ]
  assert sorted(asked) == [
    ("image", (Query("b", "flag.png"),), 1),
    ("text", (Query("a"), Query("c")), 2),
  ]
  assert not retrieve([])
