import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from r1router_jax import build_kb
from r1router_jax.retrieval import (
  build_cost,
  embedding_chunks,
  kb_meta,
  local_kb,
  retriever,
)
from r1router_jax.retrieval.corpora import sources
from r1router_jax.retrieval.encoders import registry
from tests.retrieval.fakes import Words

Query = retriever.Query

TRIALS = 2 * sum(build_cost.TRIAL)  # Rows embedded before it begins.


@pytest.fixture
def words(monkeypatch):
  """A fake in MiniLM's place; parts of ten rows."""
  fake = Words()
  monkeypatch.setitem(registry.EMBEDDERS, "minilm", lambda weights: fake)
  monkeypatch.setattr(embedding_chunks, "PART", 10)
  registry.make.cache_clear()
  yield fake
  registry.make.cache_clear()


@pytest.fixture
def source(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text(
    "".join(
      json.dumps(dict(id=f"r{i}", text=f"number{i} of many")) + "\n"
      for i in range(35)
    )
  )
  return str(path)


def test_what_is_built_answers(words, source, tmp_path):
  build_kb.build(str(tmp_path / "kb/text"), "text", source)
  (opened,) = retriever.open_kbs(str(tmp_path / "kb"), ["text"]).values()
  assert len(opened) == 35
  for i in (0, 17, 34):
    (answer,) = opened.search([Query(f"number{i}")], 3)
    assert answer[0].id == f"r{i}" and answer[0].kb == "text"
  assert sorted(os.listdir(tmp_path / "kb/text")) == [
    ".lock",
    "index.json",
    "meta.json",
    "offsets.npy",
    "passages.jsonl",
    "skipped.txt",
    "source.json",
    "vectors.npy",
  ]


def test_built_again_it_is_kept(words, source, tmp_path):
  build_kb.build(str(tmp_path / "text"), "text", source)
  seen = len(words.seen)
  build_kb.build(str(tmp_path / "text"), "text", source)
  assert len(words.seen) == seen
  with open(source, "a") as file:
    file.write('{"id": "new", "text": "something else"}\n')
  build_kb.build(str(tmp_path / "text"), "text", source)
  opened = local_kb.open_kb(str(tmp_path / "text"))
  assert opened.search([Query("something else")], 1)[0][0].id == "new"


def test_words_are_indexed_when_asked(words, source, tmp_path):
  pytest.importorskip("bm25s")
  folder = str(tmp_path / "text")
  build_kb.build(folder, "text", source)
  seen = len(words.seen)
  for hybrid in (True, True, False, True):
    build_kb.build(folder, "text", source, with_words=hybrid)
    assert ("bm25" in os.listdir(folder)) == hybrid
    assert (local_kb.open_kb(folder).content.words is not None) == hybrid
  assert len(words.seen) == seen  # Nothing is embedded again.
  (answer,) = local_kb.open_kb(folder).search([Query("number17")], 2)
  assert answer[0].id == "r17" and answer[0].score == pytest.approx(2 / 61)
  # A file of other passages is refused.
  params = tmp_path / "text/bm25/params.index.json"
  params.write_text(
    params.read_text().replace('"num_docs": 35', '"num_docs": 36')
  )
  with pytest.raises(ValueError, match="rows of bm25 should be 35"):
    local_kb.open_kb(folder)


def test_a_reranker_is_named_in_the_meta(words, source, tmp_path, monkeypatch):
  """It puts passages in order of their last letters."""

  class Last(build_kb.rerank.Reranker):
    fingerprint, devices = "last-1", ()

    def __init__(self):
      pass

    def rerank(self, queries, found, passage, k):
      last = lambda row: passage(row).text[6:8]
      best = [
        sorted(rows[rows >= 0].tolist(), key=last, reverse=True)[:k]
        for rows in found[1]
      ]
      return np.ones((len(best), k), np.float32), np.array(best)

  folders = []
  monkeypatch.setattr(
    build_kb.rerank, "load", lambda folder: folders.append(folder) or Last()
  )
  folder = str(tmp_path / "text")
  build_kb.build(folder, "text", source)
  seen = len(words.seen)
  assert local_kb.open_kb(folder).search([Query("number3")], 1)[0][0].id == "r3"
  build_kb.build(folder, "text", source, reranker="model")
  assert len(words.seen) == seen + 1
  opened = local_kb.open_kb(folder)
  assert opened.search([Query("number3")], 1)[0][0].id != "r3"
  assert set(folders) == {os.path.abspath("model")}
  Last.fingerprint = "last-2"
  with pytest.raises(ValueError, match="reranker weights should be last-1"):
    local_kb.open_kb(folder)
  build_kb.build(folder, "text", source)
  assert local_kb.open_kb(folder).content.reranker is None


def test_a_killed_build_goes_on(words, source, tmp_path, monkeypatch):
  class Killed(BaseException):
    pass

  def killed(items, desc):
    for number, item in enumerate(items):
      if number == 2:
        raise Killed
      yield item

  with monkeypatch.context() as patch:
    patch.setattr(build_kb.telemetry, "progress", killed)
    with pytest.raises(Killed):
      build_kb.build(str(tmp_path / "text"), "text", source)
  with pytest.raises(ValueError, match="no finished knowledge base"):
    local_kb.open_kb(str(tmp_path / "text"))
  words.seen.clear()
  build_kb.build(str(tmp_path / "text"), "text", source)
  assert "number5 of many" not in words.seen[TRIALS:]  # After the trials.
  assert "number25 of many" in words.seen
  build_kb.build(str(tmp_path / "whole"), "text", source)
  np.testing.assert_array_equal(
    *(np.load(tmp_path / name / "vectors.npy") for name in ("text", "whole"))
  )


def test_parts_of_another_corpus_are_not_used(words, source, tmp_path):
  build_kb.build(str(tmp_path / "text"), "text", source, worker=(0, 2))
  with open(source) as file:
    rows = file.readlines()
  with open(source, "w") as file:
    file.writelines(reversed(rows))
  build_kb.build(str(tmp_path / "text"), "text", source)
  opened = local_kb.open_kb(str(tmp_path / "text"))
  assert opened.search([Query("number3")], 1)[0][0].id == "r3"


def test_workers_share_the_parts(words, source, tmp_path):
  build_kb.build(str(tmp_path / "text"), "text", source, worker=(1, 2))
  assert kb_meta.read_meta(str(tmp_path / "text")) is None
  build_kb.build(str(tmp_path / "text"), "text", source, worker=(0, 2))
  assert len(local_kb.open_kb(str(tmp_path / "text"))) == 35


def test_bad_rows_are_left_out_and_named(words, source, tmp_path):
  with open(source, "a") as file:
    file.write("{}\n" + '{"id": "last", "text": "fine"}\n')
  build_kb.build(str(tmp_path / "text"), "text", source)
  assert len(local_kb.open_kb(str(tmp_path / "text"))) == 36
  skipped = (tmp_path / "text/skipped.txt").read_text()
  assert "rows.jsonl:36:" in skipped and skipped.count("\n") == 1


def test_an_unchanged_source_is_not_read_again(
  words, source, tmp_path, monkeypatch
):
  build_kb.build(str(tmp_path / "text"), "text", source, worker=(0, 2))
  with monkeypatch.context() as patch:
    patch.setattr(sources, "rows", None)  # Whoever reads, fails.
    build_kb.build(str(tmp_path / "text"), "text", source)
    build_kb.build(str(tmp_path / "text"), "text", source)
  assert len(local_kb.open_kb(str(tmp_path / "text"))) == 35


def test_a_dry_run_says_what_it_takes_and_embeds_nothing(
  words, source, tmp_path, caplog
):
  with caplog.at_level("INFO", "absl"):
    build_kb.build(str(tmp_path / "text"), "text", source, dry_run=True)
  (said,) = [m for m in caplog.messages if "rows of width" in m]
  for part in ("35 rows of width 32", "Disk:", "to embed", "to index", "Time:"):
    assert part in said
  assert len(words.seen) == TRIALS
  assert kb_meta.read_meta(str(tmp_path / "text")) is None
  build_kb.build(str(tmp_path / "text"), "text", source)
  assert len(local_kb.open_kb(str(tmp_path / "text"))) == 35


def test_pictures_that_were_missing_are_looked_for_again(words, tmp_path):
  (tmp_path / "rows.jsonl").write_text(
    '{"id": "a", "text": "one"}\n{"id": "b", "text": "two", "image": "b.png"}\n'
  )
  build = lambda: build_kb.build(
    str(tmp_path / "image"),
    "image",
    str(tmp_path / "rows.jsonl"),
    pictures=str(tmp_path / "pictures"),
    embedder="minilm",
  )
  build()
  assert len(local_kb.open_kb(str(tmp_path / "image"))) == 1
  (tmp_path / "pictures").mkdir()
  Image.new("RGB", (8, 8)).save(tmp_path / "pictures/b.png")
  build()
  opened = local_kb.open_kb(str(tmp_path / "image"))
  assert opened.content.passages[1].image == str(tmp_path / "pictures/b.png")


@pytest.mark.parametrize(
  ("rows", "words_"),
  [("", "corpus is empty"), ("{}\n[]\n{}\n", "no usable row: 3 are bad.*id")],
)
def test_nothing_but_bad_rows_is_an_error(
  words, source, tmp_path, rows, words_
):
  with open(source, "w") as file:
    file.write(rows)
  with pytest.raises(ValueError, match=words_):
    build_kb.build(str(tmp_path / "text"), "text", source)


@pytest.mark.parametrize(
  ("key", "value", "said"),
  [
    ("rows", 34, "passages should be 34"),
    ("width", 31, "width should be 31"),
    ("fingerprint", "other", "embedder weights should be other"),
    ("format", 0, "format should be 0"),
  ],
)
def test_what_does_not_fit_is_refused(
  words, source, tmp_path, key, value, said
):
  build_kb.build(str(tmp_path / "text"), "text", source)
  path = tmp_path / "text/meta.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
  with pytest.raises(ValueError, match=said):
    local_kb.open_kb(str(tmp_path / "text"))
  path.write_text("{")
  with pytest.raises(ValueError, match="damaged"):
    local_kb.open_kb(str(tmp_path / "text"))


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--kb=web"], "--kb=web is no knowledge base"),
    (["--kb=text", "--source=nowhere.jsonl"], "nowhere.jsonl does not exist"),
    (["--source=rows.jsonl"], "can feed one knowledge base"),
    (["--source=mbeir:pool.jsonl"], "needs --images"),
    (["--worker=3/2"], "--worker=3/2"),
    (["--kb=text", "--embedder=clip"], "No embedder 'clip'"),
    (["--index=faiss"], "index"),
  ],
)
def test_bad_flags_end_in_one_line(tmp_path, flags, said):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "r1router_jax.build_kb",
      f"--out={tmp_path}/kb",
      *flags,
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode and said in done.stderr
  assert "Traceback" not in done.stderr
