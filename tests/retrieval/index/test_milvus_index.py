"""A knowledge base in Milvus (Lite) finds what exact search does."""

import json

import numpy as np
import pytest

from r1router_jax import build_kb
from r1router_jax.common.http_client import RetrievalError
from r1router_jax.common.records import Query
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.encoders import registry
from r1router_jax.retrieval.index import exact, factory, milvus_index
from tests.retrieval.fakes import Words

pytest.importorskip("milvus_lite")


def vectors(rows=300, seed=0):
  made = np.random.default_rng(seed).normal(size=(rows, 16))
  return made.astype(np.float32)


def test_it_finds_what_exact_search_does(tmp_path, monkeypatch):
  monkeypatch.setattr(milvus_index, "ROWS", 64)
  monkeypatch.setattr(milvus_index, "QUERIES", 4)
  rows = vectors()
  made = factory.build(rows, f"milvus={tmp_path}/kb.db", name="text_1")
  assert made.recall() == 1  # Of few rows it looks at all.
  factory.save(made, str(tmp_path))
  opened = factory.load(str(tmp_path), rows)
  queries = vectors(9, seed=1)
  for k in (1, 10):
    scores, found = opened.search(queries, k)
    wanted_scores, wanted = exact.ExactIndex(rows).search(queries, k)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(scores, wanted_scores, rtol=1e-5)
  _, found = opened.search(queries, 305)  # It does not look at all of these.
  assert (found[:, 300:] == -1).all()
  for row in found:
    assert len(set(row[row >= 0])) == (row >= 0).sum() > 100
  assert opened.search(queries[:0], 3)[1].shape == (0, 3)
  # Built again in the same place, it holds the new rows alone.
  few = factory.build(rows[:5], f"milvus={tmp_path}/kb.db", name="text_1")
  assert set(few.search(queries, 9)[1].ravel()) == {-1, 0, 1, 2, 3, 4}


def test_a_knowledge_base_is_built_there_and_opened(tmp_path, monkeypatch):
  monkeypatch.setitem(registry.EMBEDDERS, "minilm", lambda weights: Words())
  registry.make.cache_clear()
  source = tmp_path / "rows.jsonl"
  source.write_text(
    "".join(
      json.dumps(dict(id=f"r{i}", text=f"number{i}")) + "\n" for i in range(30)
    )
  )
  folder = str(tmp_path / "text")
  build_kb.build(
    folder, "text", str(source), index_kind=f"milvus={tmp_path}/kb.db", shards=2
  )
  base = local_kb.open_kb(folder)
  for i in (0, 14, 15, 29):
    assert base.search([Query(f"number{i}")], 2)[0][0].id == f"r{i}"
  registry.make.cache_clear()


def test_who_does_not_answer_is_named(monkeypatch):
  monkeypatch.setattr(milvus_index, "DEADLINE", 1)
  with pytest.raises(RetrievalError, match=r"http://127.0.0.1:9, .*it runs"):
    factory.build(vectors(), "milvus=http://127.0.0.1:9", name="text_1")
  with pytest.raises(ValueError, match="'milvus='; choose"):
    factory.build(vectors(), "milvus=")
