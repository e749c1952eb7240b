"""What a knowledge base's folder may say, checked when it is opened."""

import json

import numpy as np
import pytest

from r1router_jax import build_kb
from r1router_jax.common import files
from r1router_jax.common.errors import UserError
from r1router_jax.retrieval import kb_meta, kb_versions, local_kb
from r1router_jax.retrieval.encoders import registry
from r1router_jax.retrieval.index import factory
from tests.retrieval.fakes import WordEmbedder

META = dict(format=2, kb="text", rows=3, width=8, embedder="minilm", weights="")
META |= dict(fingerprint="f", index="exact", source="georouter", passages="d")


def test_meta_is_read_as_it_stands(tmp_path):
  more = dict(
    hybrid=True, words=2, shards=2, pictures="/p", rerank="/r", tokenizer="t"
  )
  for meta in (META, META | more):
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    # The order of keys is part of digests.
    assert list(kb_meta.read_meta(str(tmp_path)).items()) == list(meta.items())


@pytest.mark.parametrize(
  "change, says",
  [
    (dict(rows="3"), "rows is '3': expected `int`, got `str`"),
    (dict(rows=0), "rows is 0: expected `int` >= 1"),
    (dict(rows=10**400), "rows is 1000"),
    (dict(width=10**9), "width is 1000000000: expected `int` <= 1048576"),
    (dict(kb="../../etc"), "kb is '../../etc': take one of text, image, table"),
    (dict(kb=None), "kb is None"),
    (dict(embedder=None), "embedder is None: expected `str`"),
    (dict(weights=["/etc"]), "weights: expected `str`, got `array`"),
    (dict(source=None), "source is None"),
    (dict(hybrid="yes"), "hybrid is 'yes': expected `bool`"),
    (dict(shards=-1), "shards is -1"),
    (dict(hybrjd=True), "hybrjd is unknown"),
    ([], "expected `object`, got `array`"),
    ({}, "format is missing"),
    ("x", "expected `object`, got `str`"),
  ],
)
def test_odd_meta_is_refused_in_a_line(tmp_path, change, says):
  meta = META | change if isinstance(change, dict) and change else change
  (tmp_path / "meta.json").write_text(json.dumps(meta))
  with pytest.raises(UserError) as caught:
    kb_meta.read_meta(str(tmp_path))
  message = str(caught.value)
  assert message.startswith(f"{tmp_path}/meta.json: {says}")
  assert message.endswith("delete the folder and run build_kb.")


CARD = dict(kind="exact", rows=2, width=4)
PARTS = [dict(first=0, card=CARD), dict(first=2, card=CARD)]
SHARDS = dict(kind="shards", rows=4, width=4, parts=PARTS)


@pytest.mark.parametrize(
  "card, says",
  [
    (
      CARD | dict(kind="evil"),
      "kind is 'evil': take one of exact, scann",
    ),
    (CARD | dict(rows=-1), "rows is -1"),
    (CARD | dict(width="4"), "width is '4'"),
    ({}, "kind is missing"),
    (SHARDS | dict(parts=[]), "its parts are not 4 rows, in order"),
    (SHARDS | dict(parts=PARTS[::-1]), "its parts are not 4 rows, in order"),
    (SHARDS | dict(parts=PARTS * 500), "its parts are not 4 rows, in order"),
    (SHARDS | dict(parts=[dict(first=-5, card=CARD)]), "parts[0].first is -5"),
    (SHARDS | dict(parts=[dict(first=0)]), "parts[0].card is missing"),
    (SHARDS | dict(parts=[7]), "parts[0] is 7: expected `object`"),
  ],
)
def test_odd_index_is_refused_in_a_line(tmp_path, card, says):
  (tmp_path / "index.json").write_text(json.dumps(card))
  with pytest.raises(UserError) as caught:
    factory.load_index(str(tmp_path), np.eye(4, dtype=np.float32))
  assert str(caught.value).startswith(f"{tmp_path}/index.json: {says}")


def test_another_tokenizer_beside_the_weights_is_noticed(tmp_path, monkeypatch):
  fake, model = WordEmbedder(), tmp_path / "model"
  monkeypatch.setitem(registry.EMBEDDERS, "minilm", lambda weights: fake)
  monkeypatch.setattr(files, "LOADED", {})
  model.mkdir()
  (model / "tokenizer.json").write_text("first")
  source, folder = tmp_path / "rows.jsonl", str(tmp_path / "text")
  source.write_text('{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n')
  spec = build_kb.KbSpec(folder, "text", str(source), weights=str(model))
  build_kb.build(spec)
  assert len(local_kb.open_kb(folder)) == 2

  (model / "tokenizer.json").write_text("second")
  with pytest.raises(UserError, match="embedder's tokenizer should be"):
    local_kb.open_kb(folder)
  # A folder of an older version does not know, and is kept.
  path = f"{kb_versions.version_folder(folder)}/meta.json"
  meta = kb_meta.read_meta(folder)
  del meta["tokenizer"]
  files.write_json(path, meta)
  assert len(local_kb.open_kb(folder)) == 2
  count = len(fake.embedded)
  build_kb.build(spec)
  assert len(fake.embedded) == count
