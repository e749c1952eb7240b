"""A knowledge base in Milvus Lite finds what exact search does."""

import json

import numpy as np
import pytest

from r1router_jax import build_kb
from r1router_jax.common import http_client
from r1router_jax.common.http_client import RemoteServiceError
from r1router_jax.common.records import Query
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.encoders import registry
from r1router_jax.retrieval.index import exact, factory, milvus_index
from tests.retrieval.fakes import WordEmbedder

pytest.importorskip("milvus_lite")


def make_vectors(rows=300, seed=0):
  vectors = np.random.default_rng(seed).normal(size=(rows, 16))
  return vectors.astype(np.float32)


def test_milvus_agrees_with_exact_search(tmp_path, monkeypatch):
  # Several requests of each sort.
  monkeypatch.setattr(milvus_index, "ROWS_PER_INSERT", 64)
  monkeypatch.setattr(milvus_index, "QUERIES_PER_REQUEST", 4)
  vectors, kind = make_vectors(), f"milvus={tmp_path}/kb.db"
  built = factory.build_index(vectors, kind, collection="text_1")
  # Of so few rows Milvus looks at all.
  assert built.measure_recall() == 1
  factory.save_index(built, str(tmp_path))
  http_client.allow_addresses([f"{tmp_path}/kb.db"])
  loaded = factory.load_index(str(tmp_path), vectors)
  queries = make_vectors(9, seed=1)
  for k in (1, 10):
    scores, found = loaded.search(queries, k)
    expected_scores, expected = exact.ExactIndex(vectors).search(queries, k)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
  # For so large a k Milvus does not look at all rows.
  _, found = loaded.search(queries, 305)
  assert (found[:, 300:] == -1).all()
  for rows in found:
    assert len(set(rows[rows >= 0])) == (rows >= 0).sum() > 100
  assert loaded.search(queries[:0], 3)[1].shape == (0, 3)
  # A new collection of the same name holds the new rows alone.
  few = factory.build_index(vectors[:5], kind, collection="text_1")
  assert set(few.search(queries, 9)[1].ravel()) == {-1, 0, 1, 2, 3, 4}


def test_kb_is_built_in_milvus_and_opened(tmp_path, monkeypatch):
  monkeypatch.setitem(registry.EMBEDDERS, "minilm", lambda _: WordEmbedder())
  source, folder = tmp_path / "rows.jsonl", str(tmp_path / "text")
  rows = [{"id": f"r{i}", "text": f"number{i}"} for i in range(30)]
  source.write_text("".join(json.dumps(row) + "\n" for row in rows))
  index = dict(index_kind=f"milvus={tmp_path}/kb.db", shards=2, hybrid=False)
  build_kb.build(build_kb.KbSpec(folder, "text", str(source), **index))
  kb = local_kb.open_kb(folder)
  # The first and the last row of each shard.
  for i in (0, 14, 15, 29):
    assert kb.search([Query(f"number{i}")], 2)[0][0].id == f"r{i}"


def test_wrong_addresses_are_rejected(monkeypatch):
  monkeypatch.setattr(milvus_index, "TIMEOUT_SECONDS", 1)
  kind = "milvus=http://127.0.0.1:9"
  with pytest.raises(
    RemoteServiceError, match=r"http://127.0.0.1:9, .*it runs"
  ):
    factory.build_index(make_vectors(), kind, collection="text_1")
  with pytest.raises(ValueError, match="'milvus='; choose"):
    factory.build_index(make_vectors(), "milvus=")


def test_index_json_from_elsewhere_chooses_no_database(tmp_path):
  vectors, place = make_vectors(20), f"{tmp_path}/kb.db"
  built = factory.build_index(vectors, f"milvus={place}", collection="text_1")
  factory.save_index(built, str(tmp_path))
  path = tmp_path / factory.INDEX_FILE
  content = path.read_text()
  # Not even one that is there, unless the user names it.
  others = f"{tmp_path}/other.db", "http://other.db", "http://127.0.0.1:9"
  for other in (place, *others):
    path.write_text(content.replace(place, other))
    with pytest.raises(ValueError, match="elsewhere.*give --kb_addresses="):
      factory.load_index(str(tmp_path), vectors)
  assert {child.name for child in tmp_path.glob("*.db")} == {"kb.db"}


def test_emptied_collection_is_searched_exactly(tmp_path, caplog):
  vectors, place = make_vectors(40), f"{tmp_path}/kb.db"
  built = factory.build_index(vectors, f"milvus={place}", collection="text_1")
  factory.save_index(built, str(tmp_path))
  factory.build_index(vectors[:5], f"milvus={place}", collection="text_1")
  http_client.allow_addresses([place])
  loaded = factory.load_index(str(tmp_path), vectors)
  assert isinstance(loaded, exact.ExactIndex)
  assert "Search is exact, and slower." in caplog.text
