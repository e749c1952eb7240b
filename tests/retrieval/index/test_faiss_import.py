"""A ready FAISS index takes the place of embedding."""

import json
import sys

import numpy as np
import pytest
import tokenizers

from r1router_jax import build_kb
from r1router_jax.common.records import Passage, Query
from r1router_jax.retrieval import kb_meta, kb_versions, local_kb
from r1router_jax.retrieval.encoders import registry
from r1router_jax.retrieval.index import faiss_import
from tests.retrieval.fakes import WordEmbedder
from tests.tiny_encoders import BERT, make_bert_embedder

faiss = pytest.importorskip("faiss")

NUM_ROWS = 400
INNER, L2 = faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2


@pytest.fixture
def embedder(monkeypatch):
  fake = WordEmbedder()
  monkeypatch.setitem(registry.EMBEDDERS, "minilm", lambda weights: fake)
  return fake


def make_rows(count):
  return [
    dict(id=str(i), contents=f'"Title {i}"\nnumber{i} of part{i % 7}')
    for i in range(count)
  ]


def write_rows(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def embed_rows(rows):
  """Embed rows as their authors did, with words of their own and rounding."""
  texts = [row["contents"].replace('"', "") + " passage" for row in rows]
  items = [
    Passage(row["id"], "text", text)
    for row, text in zip(rows, texts, strict=True)
  ]
  vectors = WordEmbedder()(items)
  return vectors.astype(np.float16).astype(np.float32)


def write_index(path, vectors, kind="Flat", metric=INNER, ids=None):
  index = faiss.index_factory(vectors.shape[1], kind, metric)
  index.train(vectors)
  if ids is None:
    index.add(vectors)
  else:
    index.add_with_ids(vectors, np.asarray(ids))
  faiss.write_index(index, str(path))
  return str(path)


def build(folder, source, index="", **options):
  options = dict(hybrid=False, faiss_index=index) | options
  build_kb.build(build_kb.KbSpec(str(folder), "text", source, **options))


def search(folder, texts):
  found = local_kb.open_kb(str(folder)).search([Query(x) for x in texts], 5)
  return [[(p.id, p.text, p.score) for p in passages] for passages in found]


KINDS = {
  "flat": ("Flat", INNER, None),
  "flat by distance": ("Flat", L2, None),
  "IVF": ("IVF8,Flat", INNER, None),
  "IVF of distance": ("IVF8,Flat", L2, None),
  "ids of its own": ("IDMap,Flat", INNER, range(NUM_ROWS)[::-1]),
  "IVF with ids": ("IVF8,Flat", INNER, range(NUM_ROWS)[::-1]),
  "IVF in an IDMap": ("IDMap2,IVF8,Flat", INNER, range(NUM_ROWS)[::-1]),
}


@pytest.mark.parametrize("name", KINDS)
def test_imported_index_answers_as_an_embedded_one(embedder, tmp_path, name):
  kind, metric, ids = KINDS[name]
  rows = make_rows(NUM_ROWS)
  source = write_rows(tmp_path / "rows.jsonl", rows)
  build(tmp_path / "embedded", source)
  items = local_kb.open_kb(str(tmp_path / "embedded")).stack.passages
  vectors = WordEmbedder()([items[i] for i in range(NUM_ROWS)])
  if ids is not None:
    vectors = vectors[np.asarray(ids)]
  index = write_index(tmp_path / "x.index", vectors, kind, metric, ids)

  embedder.embedded.clear()
  build(tmp_path / "imported", source, index)
  # The probe alone.
  assert len(embedder.embedded) == 16
  queries = [f"number{i}" for i in (0, 7, 399)] + ["part3"]
  wanted = search(tmp_path / "embedded", queries)
  assert search(tmp_path / "imported", queries) == wanted
  # It is up to date, and nothing is embedded again.
  embedder.embedded.clear()
  build(tmp_path / "imported", source, index)
  build(tmp_path / "imported", source, index, hybrid=True)
  assert not embedder.embedded
  # Another index is another knowledge base.
  version = kb_meta.read_meta(str(tmp_path / "imported"))["imported"]
  other = write_index(tmp_path / "y.index", vectors * 1.001, kind, metric, ids)
  build(tmp_path / "imported", source, other)
  meta = kb_meta.read_meta(str(tmp_path / "imported"))
  assert meta["imported"] != version


def test_vectors_are_taken_as_they_are(embedder, tmp_path):
  rows = make_rows(NUM_ROWS)
  source = write_rows(tmp_path / "rows.jsonl", rows)
  vectors = embed_rows(rows)
  index = write_index(tmp_path / "x.index", vectors)
  build(tmp_path / "kb", source, index)
  version = kb_versions.version_folder(str(tmp_path / "kb"))
  np.testing.assert_array_equal(np.load(f"{version}/vectors.npy"), vectors)


@pytest.fixture
def tiny_bert(monkeypatch, tmp_path):
  """Make MiniLM a random BERT, and return it and its words."""
  words = [f"w{i}" for i in range(BERT.vocab)]
  vocabulary = {word: i for i, word in enumerate(words)}
  coder = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "w0"))
  coder.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  embed = make_bert_embedder(tmp_path / "model", coder)
  monkeypatch.setitem(registry.EMBEDDERS, "minilm", lambda weights: embed)
  return embed, words


def test_vectors_of_an_encoder_of_this_package_are_taken(tiny_bert, tmp_path):
  embed, words = tiny_bert
  drawn = np.random.default_rng(0).choice(words, (300, 8))
  rows = [dict(id=str(i), text=" ".join(each)) for i, each in enumerate(drawn)]
  source = write_rows(tmp_path / "rows.jsonl", rows)
  vectors = embed([Passage(x["id"], "text", x["text"]) for x in rows])
  index = write_index(tmp_path / "x.index", vectors, "IVF4,Flat")
  build(tmp_path / "imported", source, index)
  build(tmp_path / "embedded", source)
  queries = [row["text"] for row in rows[::50]]
  imported = search(tmp_path / "imported", queries)
  embedded = search(tmp_path / "embedded", queries)
  for found, wanted in zip(imported, embedded, strict=True):
    assert [x[0] for x in found] == [x[0] for x in wanted]
    scores = [[score for _, _, score in each] for each in (found, wanted)]
    np.testing.assert_allclose(*scores, rtol=1e-5)


def test_each_row_is_a_passage_however_long(embedder, tmp_path):
  rows = make_rows(NUM_ROWS)
  rows[3]["contents"] += " word" * 300
  source = write_rows(tmp_path / "rows.jsonl", rows)
  index = write_index(tmp_path / "x.index", embed_rows(rows))
  build(tmp_path / "kb", source, index)
  kb = local_kb.open_kb(str(tmp_path / "kb"))
  assert len(kb) == NUM_ROWS and len(kb.stack.passages[3].text.split()) > 300


def shuffle(vectors):
  return np.roll(vectors, 1, axis=0)


def other_weights(vectors):
  return vectors @ np.linalg.qr(np.random.RandomState(0).randn(32, 32))[0]


def with_nan(vectors):
  vectors = vectors.copy()
  vectors[5, 2] = np.nan
  return vectors


FAULTS = {
  "rows": (lambda x: x[1:], "Flat", "has 399 vectors, and the source 400"),
  "width": (lambda x: x[:, :16], "Flat", "has width 16, and the embedder 32"),
  "order": (shuffle, "Flat", "not of these passages.*'0' is nearer"),
  "weights": (other_weights, "Flat", "not of these passages"),
  "length": (
    lambda x: 3 * x,
    "Flat",
    "of length 3 to 3, and the embedder of 1",
  ),
  "numbers": (with_nan, "Flat", "not finite"),
  "HNSW": (
    lambda x: x,
    "HNSW8,Flat",
    "is of type IndexHNSWFlat, wanted Flat or IVF",
  ),
  "codes": (lambda x: x, "IVF8,SQ8", "IndexIVFScalarQuantizer, wanted Flat or"),
  "PCA": (lambda x: x, "PCA32,Flat", "is of type IndexPreTransform, wanted"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_index_of_something_else_is_refused_by_a_line(embedder, tmp_path, name):
  change, kind, message = FAULTS[name]
  rows = make_rows(NUM_ROWS)
  source = write_rows(tmp_path / "rows.jsonl", rows)
  vectors = np.ascontiguousarray(change(embed_rows(rows)), np.float32)
  index = write_index(tmp_path / "x.index", vectors, kind)
  with pytest.raises(ValueError, match=f"--faiss_index=.*{message}") as caught:
    build(tmp_path / "kb", source, index)
  assert "\n" not in str(caught.value) and "leave it out" in str(caught.value)
  assert kb_meta.read_meta(str(tmp_path / "kb")) is None


@pytest.mark.parametrize(
  "kind, ids",
  [
    ("IVF8,Flat", np.zeros(NUM_ROWS, int)),
    ("IVF8,Flat", 2 * np.arange(NUM_ROWS)),
    ("IDMap,Flat", 1 + np.arange(NUM_ROWS)),
    ("IDMap,Flat", np.zeros(NUM_ROWS, int)),
  ],
)
def test_ids_that_are_no_rows_are_refused(tmp_path, kind, ids):
  vectors = embed_rows(make_rows(NUM_ROWS))
  path = write_index(tmp_path / "x.index", vectors, kind, ids=ids)
  with pytest.raises(ValueError, match="other ids than"):
    faiss_import.FaissVectors(path)


def test_damaged_index_is_refused(tmp_path):
  path = tmp_path / "x.index"
  write_index(path, embed_rows(make_rows(NUM_ROWS)), "IVF8,Flat")
  data = path.read_bytes()
  for damaged in (b"", b"no index", data[:100], data[:-9]):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="x.index cannot be read"):
      faiss_import.FaissVectors(str(path))
  with pytest.raises(ValueError, match="absent is no file"):
    build_kb.KbSpec("kb", "text", "x.jsonl", faiss_index="absent")


def test_equal_passages_are_no_fault(embedder, tmp_path):
  rows = [dict(id=str(i), contents="all the same") for i in range(40)]
  source = write_rows(tmp_path / "rows.jsonl", rows)
  build(
    tmp_path / "kb",
    source,
    write_index(tmp_path / "x.index", embed_rows(rows)),
  )
  assert len(local_kb.open_kb(str(tmp_path / "kb"))) == 40


def test_published_corpora_take_no_index():
  with pytest.raises(ValueError, match="rows of your own, not wikipedia:x"):
    build_kb.KbSpec("kb", "text", "wikipedia:x", faiss_index="x.index")


def test_missing_library_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "faiss", None)
  with pytest.raises(ValueError, match=r"pip install 'r1router_jax\[faiss\]'"):
    faiss_import.FaissVectors(str(tmp_path / "x.index"))


@pytest.mark.long
def test_100_000_rows_are_imported_without_embedding(embedder, tmp_path):
  rows = make_rows(100_000)
  source = write_rows(tmp_path / "rows.jsonl", rows)
  build(tmp_path / "embedded", source, index_kind="exact")
  items = local_kb.open_kb(str(tmp_path / "embedded")).stack.passages
  vectors = WordEmbedder()([items[i] for i in range(len(rows))])
  index = write_index(tmp_path / "x.index", vectors, "IVF64,Flat")
  embedder.embedded.clear()
  build(tmp_path / "imported", source, index, index_kind="exact")
  assert len(embedder.embedded) == 16
  asked = range(0, 100_000, 997)
  queries = [items[i].text for i in asked]
  found = search(tmp_path / "imported", queries)
  assert found == search(tmp_path / "embedded", queries)
  assert [each[0][0] for each in found] == [str(i) for i in asked]
