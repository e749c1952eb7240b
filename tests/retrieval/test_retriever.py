"""Knowledge bases: nearest passages, the cache, metrics, many at once."""

import concurrent.futures
import dataclasses
import json
import math
import threading

import numpy as np
import pytest

from r1router_jax.common.records import KBS, Passage, Query
from r1router_jax.retrieval import knowledge_base, local_kb, retriever
from tests import fakes
from tests.retrieval import kb_servers
from tests.retrieval.fakes import WordEmbedder


def make_kb():
  return local_kb.LocalKB(kb_servers.make_stack(kb_servers.make_passages()))


@pytest.fixture
def kb():
  return make_kb()


def test_search_returns_the_nearest_passages_with_scores(kb):
  query = Query("capital of chad")
  # Both queries share words with two or more of the passages.
  first, second = kb.search([query, Query("red flag")], 2)
  assert [p.id for p in first] == ["text/0", "text/2"]
  assert second[0].id == "text/3"
  embed = WordEmbedder()
  for passage in first:
    expected = (embed([query]) @ embed([passage]).T).item()
    assert passage.score == pytest.approx(expected, abs=1e-5)
  # Stored passages have no score.
  assert math.isnan(kb.stack.passages[0].score)


def test_same_query_is_embedded_once(kb):
  queries = [Query("red"), Query("rome"), Query("red"), Query("red", "x.png")]
  results = kb.search(queries, 1)
  embedded = kb.stack.embedder.embedded
  # The last query differs from the first by its image.
  assert embedded == ["red", "rome", "red"]
  assert results[0] == results[2]
  assert kb.search(queries[:2], 1) == results[:2]
  assert len(embedded) == 3
  # The cache holds results for one k.
  kb.search(queries[:1], 2)
  assert len(embedded) == 4


def test_callers_may_change_results(kb):
  kb.search([Query("red")], 2)[0].clear()
  assert len(kb.search([Query("red")], 2)[0]) == 2


def test_few_passages_and_no_queries(kb):
  assert [len(passages) for passages in kb.search([Query("red")], 9)] == [4]
  assert kb.search([], 3) == []


def limit_cache(monkeypatch, results, text):
  """Let new caches hold so many results of a text; return the bytes."""
  kb = make_kb()
  kb.search([Query(text)], 1)
  limit = int(results * kb._cache.currsize)
  monkeypatch.setattr(knowledge_base, "CACHE_BYTES", limit)
  return limit


def test_cache_is_bounded_in_bytes(monkeypatch):
  limit = limit_cache(monkeypatch, 10, "red 10")
  kb = make_kb()
  for i in range(50):
    assert kb.search([Query(f"red {i}"), Query("rome")], 1)
  assert 8 <= len(kb._cache) <= 11
  # A long query counts for as much as it takes; this one fills the cache.
  assert kb.search([Query("\U0001f600" * (limit // 4 - 200))], 1)
  assert len(kb._cache) == 1
  assert kb.search([Query("\U0001f600" * limit)], 1)
  assert len(kb._cache) == 1


def test_least_recently_used_result_is_dropped(monkeypatch):
  limit_cache(monkeypatch, 2.5, "chad")
  kb = make_kb()
  for text in ("red", "rome", "red", "chad", "red", "rome"):
    kb.search([Query(text)], 1)
  assert kb.stack.embedder.embedded == ["red", "rome", "chad", "rome"]


def test_metrics_are_of_the_searches_since_the_last_call(kb, monkeypatch):
  none = {"queries": 0, "remembered": 0}
  assert kb.pop_search_metrics() == none
  # Two searches reach the index: one takes 100 ms, the other 300 ms.
  clock = iter([0, 0.1, 1, 1.3])
  monkeypatch.setattr(knowledge_base.time, "perf_counter", lambda: next(clock))
  kb.search([Query("red"), Query("red"), Query("rome")], 1)
  kb.search([Query("red")], 1)
  kb.search([Query("chad")], 1)
  metrics = kb.pop_search_metrics()
  assert (metrics["queries"], metrics["remembered"]) == (5, 2 / 5)
  assert metrics["p50_ms"] == pytest.approx(200)
  assert metrics["p99_ms"] == pytest.approx(300 - 0.01 * 200)
  assert kb.pop_search_metrics() == none
  named = {f"retrieval/text/{name}": 0 for name in none}
  assert retriever.pop_search_metrics({"text": kb}) == named


def test_knowledge_bases_are_searched_side_by_side():
  barrier = threading.Barrier(3)

  class BlockingKB(fakes.EchoKB):
    def _search_uncached(self, queries, k):
      # Raises unless all three searches run at the same time.
      barrier.wait(timeout=10)
      return super()._search_uncached(queries, k)

  retrieve = retriever.make_retriever({kind: BlockingKB(kind) for kind in KBS})
  found = retrieve([(kind, f"what {kind}", "") for kind in KBS])
  assert [passage.kb for (passage,) in found] == list(KBS)


def test_threads_share_a_knowledge_base(monkeypatch):
  limit_cache(monkeypatch, 5, "rome 1")
  kb = make_kb()
  batches = [[Query(f"red {i % 7}"), Query(f"rome {i % 7}")] for i in range(60)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    results = list(pool.map(lambda batch: kb.search(batch, 2), batches))
  # Each thread has the results of a single one.
  for batch, found in zip(batches, results, strict=True):
    assert [p[0].id for p in found] == [p[0].id for p in kb.search(batch, 2)]


def test_passages_are_read_from_the_file(tmp_path):
  rows = [
    {"id": str(i), "text": text, "image": f"p/{i}.png" if i % 2 else ""}
    for i, text in enumerate(["plain", "é\u2028", "x" * 10_000])
  ]
  lines = [json.dumps(row).encode() + b"\n" for row in rows]
  (tmp_path / "passages.jsonl").write_bytes(b"".join(lines))
  np.save(tmp_path / "offsets.npy", np.cumsum([0, *map(len, lines)]))
  passages = local_kb.PassageFile(str(tmp_path), "image", "/images")
  assert len(passages) == 3
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda i: passages[i % 3], range(300)))
  for i, passage in enumerate(found):
    row, passage = rows[i % 3], dataclasses.replace(passage, score=0.0)
    image = "/images/p/1.png" if row["image"] else ""
    assert passage == Passage(row["id"], "image", row["text"], image, 0.0)


def test_each_knowledge_base_is_searched_once():
  searches = []

  class RecordingKB(fakes.EchoKB):
    def _search_uncached(self, queries, k):
      searches.append((self.kb, tuple(queries), k))
      return [
        [Passage(f"{self.kb}/{query.text}/{n}", self.kb, "") for n in range(k)]
        for query in queries
      ]

  kbs = {kind: RecordingKB(kind) for kind in ("text", "image")}
  retrieve = retriever.make_retriever(kbs, {"text": 2, "image": 1})
  asked = ("text", "a", "flag.png"), ("image", "b", "flag.png")
  found = retrieve([*asked, ("text", "c", "")])
  ids = [" ".join(p.id for p in passages) for passages in found]
  assert ids == ["text/a/0 text/a/1", "image/b/0", "text/c/0 text/c/1"]
  # Only the image knowledge base is given the image.
  assert sorted(searches) == [
    ("image", (Query("b", "flag.png"),), 1),
    ("text", (Query("a"), Query("c")), 2),
  ]
  assert not retrieve([])


def test_request_for_a_missing_kind_is_put_to_another():
  kbs = fakes.make_kbs()
  for kinds, searched in {
    ("text", "image"): "text",
    ("image",): "image",
    ("table", "image", "text"): "table",
  }.items():
    retrieve = retriever.make_retriever({kind: kbs[kind] for kind in kinds})
    ((found,),) = retrieve([("table", f"what {kinds}", "")])
    assert found.kb == searched
  assert retriever.substitute_kind("text", ()) is None
