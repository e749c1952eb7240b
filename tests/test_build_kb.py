"""Building knowledge bases: resuming, sharing work, options and wrong flags."""

import json
import os
import pathlib
import re

import numpy as np
import pytest
import tokenizers
from absl.testing import flagsaver
from PIL import Image

from r1router_jax import build_kb
from r1router_jax.common import files, progress
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Query
from r1router_jax.retrieval import (
  build_cost,
  embedding_chunks,
  kb_meta,
  kb_versions,
  local_kb,
  retriever,
)
from r1router_jax.retrieval.corpora import sources
from r1router_jax.retrieval.encoders import cross_encoder, registry
from tests.retrieval.fakes import WordEmbedder
from tests.tiny_encoders import make_bert_embedder

# Rows that are embedded to measure the cost, each trial twice.
NUM_TRIAL_ROWS = 2 * sum(build_cost.TRIAL_ROWS)


@pytest.fixture
def embedder(monkeypatch):
  """Return a fake that stands in for MiniLM; chunks have ten rows."""
  fake = WordEmbedder()
  monkeypatch.setitem(registry.EMBEDDERS, "minilm", lambda weights: fake)
  monkeypatch.setattr(embedding_chunks, "CHUNK_ROWS", 10)
  return fake


@pytest.fixture
def source(tmp_path):
  """Return a file of 35 passages, more than three chunks."""
  path = tmp_path / "rows.jsonl"
  rows = [{"id": f"r{i}", "text": f"number{i} of many"} for i in range(35)]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


@pytest.fixture
def folder(tmp_path):
  return str(tmp_path / "kb/text")


def build(folder, source, dry_run=False, hybrid=False, **options):
  spec = build_kb.KbSpec(folder, "text", source, hybrid=hybrid, **options)
  build_kb.build(spec, dry_run=dry_run)


def find_first(folder, text):
  """Return the id of the best passage."""
  ((passage, *_),) = local_kb.open_kb(folder).search([Query(text)], 3)
  return passage.id


def test_built_kb_answers(embedder, source, folder, tmp_path):
  build(folder, source)
  (opened,) = retriever.open_kbs(str(tmp_path / "kb"), ["text"]).values()
  assert len(opened) == 35
  for i in (0, 17, 34):
    (passages,) = opened.search([Query(f"number{i}")], 3)
    assert passages[0].id == f"r{i}" and passages[0].kb == "text"
  names = ".lock current skipped.txt source.json version-1"
  assert sorted(os.listdir(folder)) == names.split()
  names = "files.json index.json meta.json offsets.npy passages.jsonl"
  written = [*names.split(), "vectors.npy"]
  assert sorted(os.listdir(f"{folder}/version-1")) == written


def test_second_build_keeps_the_first(embedder, source, folder):
  build(folder, source)
  num_embedded = len(embedder.embedded)
  build(folder, source)
  # Also if the source was touched.
  os.utime(source, (1, 1))
  build(folder, source)
  assert len(embedder.embedded) == num_embedded
  assert kb_versions.version_folder(folder) == f"{folder}/version-1"
  # A changed corpus is built.
  with open(source, "a") as file:
    file.write('{"id": "new", "text": "something else"}\n')
  build(folder, source)
  assert find_first(folder, "something else") == "new"


def test_hybrid_may_be_added_and_removed(embedder, source, folder):
  build(folder, source)
  num_embedded = len(embedder.embedded)
  for hybrid in (True, True, False, True):
    build(folder, source, hybrid=hybrid)
    version = kb_versions.version_folder(folder)
    assert ("bm25" in os.listdir(version)) == hybrid
    assert os.listdir(folder).count(os.path.basename(version)) == 1
    bm25_index = local_kb.open_kb(folder).stack.bm25_index
    assert (bm25_index is not None) == hybrid
  # Nothing is embedded again.
  assert len(embedder.embedded) == num_embedded
  (passages,) = local_kb.open_kb(folder).search([Query("number17")], 2)
  assert passages[0].id == "r17"
  # It is the best by its vector, 1, and by its words, 0.8.
  assert passages[0].score == pytest.approx(1.8)
  # An index of other passages is refused, also if it is listed.
  params = pathlib.Path(version, "bm25/params.index.json")
  more = params.read_text().replace('"num_docs": 35', '"num_docs": 36')
  params.write_text(more)
  with pytest.raises(ValueError, match="bm25/params.index.json should have"):
    local_kb.open_kb(folder)
  kb_versions.finish_version(folder, version)
  with pytest.raises(ValueError, match="rows of bm25 should be 35"):
    local_kb.open_kb(folder)


@pytest.fixture
def short_sighted(monkeypatch, tmp_path):
  """Make MiniLM a random BERT that reads 24 tokens, of which a word is one."""
  coder = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0}, "x"))
  coder.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  embed = make_bert_embedder(tmp_path / "model", coder)
  monkeypatch.setitem(registry.EMBEDDERS, "minilm", lambda weights: embed)
  monkeypatch.setattr(embedding_chunks, "CHUNK_ROWS", 10)


@pytest.mark.parametrize("lengths", [{}, {3: 25, 4: 24, 29: 100}])
def test_passages_longer_than_the_embedder_reads_are_counted(
  short_sighted, folder, tmp_path, caplog, lengths
):
  rows = [dict(id=f"r{i}", text="x " * lengths.get(i, 1)) for i in range(35)]
  source = tmp_path / "rows.jsonl"
  source.write_text("".join(json.dumps(row) + "\n" for row in rows))
  # An earlier run embeds a part of them.
  for worker in ((0, 2), (1, 2)):
    build(folder, str(source), worker=worker)
  found = [x for x in caplog.messages if "longer than the embedder" in x]
  if not lengths:
    assert not found
  else:
    (line,) = found
    assert "2 of 35 passages" in line and "such as 'r3'" in line
    assert "--embedder" in line and "\n" not in line


def test_words_of_an_older_version_are_refused_until_split_anew(
  embedder, source, folder
):
  build(folder, source, hybrid=True)
  num_embedded = len(embedder.embedded)
  version = kb_versions.version_folder(folder)
  meta = kb_meta.read_meta(folder)
  del meta["words"]  # As older versions wrote it.
  files.write_json(f"{version}/meta.json", meta)
  with pytest.raises(UserError, match="split its passages into words.  Run bu"):
    local_kb.open_kb(folder)
  build(folder, source, hybrid=True)
  assert find_first(folder, "number17") == "r17"
  assert len(embedder.embedded) == num_embedded + 1  # The query.


@pytest.mark.parametrize(
  "source, default",
  [
    ("documents", True),
    ("a:b.jsonl", True),
    (sources.GEOROUTER, False),
    ("wikipedia:extracted", False),
  ],
)
def test_own_files_are_searched_by_words_unless_the_user_says_so(
  folder, source, default
):
  for hybrid, expected in ((True, True), (False, False), (None, default)):
    spec = build_kb.KbSpec(folder, "text", source, hybrid=hybrid)
    assert spec.is_hybrid == expected


class LastDigits(cross_encoder.Reranker):
  """Sorts passages by the digits in their texts, largest first."""

  fingerprint, devices = "last-1", ()

  def __init__(self):
    pass

  def rerank(self, queries, found, passage, k):
    (rows,) = found[1]
    rows = rows[rows >= 0].tolist()
    best = sorted(rows, key=lambda row: passage(row).text[6:8])
    return np.ones((1, k), np.float32), np.array([best[-k:][::-1]])


def test_reranker_may_be_added_and_removed(
  embedder, source, folder, monkeypatch
):
  loaded = []

  def load_reranker(path):
    loaded.append(path)
    return LastDigits()

  monkeypatch.setattr(cross_encoder, "load_reranker", load_reranker)
  build(folder, source)
  num_embedded = len(embedder.embedded)
  assert find_first(folder, "number3") == "r3"
  build(folder, source, reranker="model")
  # Only the query was embedded since.
  assert len(embedder.embedded) == num_embedded + 1
  assert find_first(folder, "number3") != "r3"
  assert set(loaded) == {os.path.abspath("model")}
  # Other weights than those of the build are refused.
  monkeypatch.setattr(LastDigits, "fingerprint", "last-2")
  with pytest.raises(ValueError, match="reranker weights should be last-1"):
    local_kb.open_kb(folder)
  build(folder, source)
  assert local_kb.open_kb(folder).stack.reranker is None


def test_killed_build_is_resumed(
  embedder, source, folder, tmp_path, monkeypatch
):
  class Killed(BaseException):
    pass

  def kill_in_third_chunk(items, desc):
    for number, item in enumerate(items):
      if number == 2 and desc == "embed text":
        raise Killed
      yield item

  with monkeypatch.context() as patch:
    patch.setattr(progress, "show_progress", kill_in_third_chunk)
    with pytest.raises(Killed):
      build(folder, source)
  with pytest.raises(ValueError, match="no finished knowledge base"):
    local_kb.open_kb(folder)

  embedder.embedded.clear()
  build(folder, source)
  # The trial embeds everywhere; after it, only missing chunks are embedded.
  assert "number5 of many" not in embedder.embedded[NUM_TRIAL_ROWS:]
  assert "number25 of many" in embedder.embedded[NUM_TRIAL_ROWS:]
  build(str(tmp_path / "whole"), source)
  places = "whole/version-1/vectors.npy", "kb/text/version-1/vectors.npy"
  whole, resumed = ((tmp_path / place).read_bytes() for place in places)
  assert whole == resumed


def test_chunks_of_another_corpus_are_not_used(embedder, source, folder):
  build(folder, source, worker=(0, 2))
  path = pathlib.Path(source)
  path.write_text("".join(reversed(path.read_text().splitlines(True))))
  build(folder, source)
  assert find_first(folder, "number3") == "r3"


def test_workers_share_the_chunks(embedder, source, folder):
  # A worker that is not the last to finish leaves no meta.json.
  build(folder, source, worker=(1, 2))
  assert kb_meta.read_meta(folder) is None
  build(folder, source, worker=(0, 2))
  assert len(local_kb.open_kb(folder)) == 35


def test_relative_weights_are_stored_with_their_whole_path(
  embedder, source, folder, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "model").mkdir()
  build(folder, source, weights="model")
  meta = kb_meta.read_meta(folder)
  assert meta["weights"] == str(tmp_path / "model")
  # A folder that was built with the relative path is kept.
  path = f"{folder}/version-1/meta.json"
  files.write_json(path, meta | {"weights": "model"})
  num_embedded = len(embedder.embedded)
  build(folder, source, weights="model")
  assert len(embedder.embedded) == num_embedded


def test_bad_rows_are_skipped_and_named(embedder, source, folder, tmp_path):
  with open(source, "a") as file:
    file.write("{}\n" + '{"id": "last", "text": "fine"}\n')
  build(folder, source)
  assert len(local_kb.open_kb(folder)) == 36
  skipped = (tmp_path / "kb/text/skipped.txt").read_text()
  assert "rows.jsonl:36:" in skipped and skipped.count("\n") == 1


def test_unchanged_source_is_not_read_again(
  embedder, source, folder, monkeypatch
):
  build(folder, source, worker=(0, 2))
  with monkeypatch.context() as patch:
    # Reading the source would call None.
    patch.setattr(sources, "read_raw_rows", None)
    build(folder, source)
    build(folder, source)
  assert len(local_kb.open_kb(folder)) == 35


def test_dry_run_logs_the_cost_and_builds_nothing(
  embedder, source, folder, caplog
):
  with caplog.at_level("INFO", "absl"):
    build(folder, source, dry_run=True)
  (message,) = [m for m in caplog.messages if "rows of width" in m]
  for part in ("35 rows of width 32", "Disk:", "to embed", "to index", "Time:"):
    assert part in message
  assert len(embedder.embedded) == NUM_TRIAL_ROWS
  assert kb_meta.read_meta(folder) is None
  build(folder, source)
  assert len(local_kb.open_kb(folder)) == 35


def test_cost_holds_words_if_they_are_searched(
  embedder, source, folder, caplog
):
  rows = [{"id": f"r{i}", "text": "word" * 5000} for i in range(50)]  # 1 MB.
  pathlib.Path(source).write_text("\n".join(map(json.dumps, rows)))
  with caplog.at_level("INFO", "absl"):
    for hybrid in (False, True):
      build(folder, source, dry_run=True, hybrid=hybrid)
  disk = re.findall(r"Disk: ([\d.]+) MB", caplog.text)
  without, with_words = map(float, disk)
  assert with_words > without + 0.9


def test_missing_images_are_looked_for_again(embedder, tmp_path):
  rows = (
    '{"id": "a", "text": "one"}\n{"id": "b", "text": "two", "image": "b.png"}'
  )
  (tmp_path / "rows.jsonl").write_text(rows)
  names = str(tmp_path / "image"), "image", str(tmp_path / "rows.jsonl")
  folder = str(tmp_path / "images")
  spec = build_kb.KbSpec(*names, folder, embedder="minilm")
  build_kb.build(spec)
  assert len(local_kb.open_kb(spec.folder)) == 1
  (tmp_path / "images").mkdir()
  Image.new("RGB", (8, 8)).save(tmp_path / "images/b.png")
  build_kb.build(spec)
  passages = local_kb.open_kb(spec.folder).stack.passages
  assert passages[1].image == str(tmp_path / "images/b.png")


def test_corpus_without_a_usable_row_is_rejected(embedder, source, folder):
  bad = "{}\n[]\n{}\n", "no usable row: 3 are bad.*id"
  for rows, message in (("", "corpus is empty"), bad):
    pathlib.Path(source).write_text(rows)
    with pytest.raises(ValueError, match=message):
      build(folder, source)


def test_folder_that_does_not_match_its_meta_is_rejected(
  embedder, source, folder, tmp_path
):
  build(folder, source)
  path = tmp_path / "kb/text/version-1/meta.json"
  meta = kb_meta.read_meta(folder)
  for text, message in (
    (json.dumps(meta | {"rows": 34}), "passages should be 34"),
    (json.dumps(meta | {"width": 31}), "should be .*31"),
    (json.dumps(meta | {"fingerprint": "x"}), "embedder's files should be x"),
    (json.dumps(meta | {"format": 0}), "format should be 0"),
    ("{", "meta.json: not JSON"),
  ):
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
      local_kb.open_kb(folder)


def run_main(kb_dir, source, kind=()):
  """Run the command in this process with flags of these values."""
  # Other commands of this process may have given flags other defaults.
  places = dict(kb_dir=str(kb_dir), source=str(source))
  with flagsaver.flagsaver(kind=list(kind), images="", weights="", **places):
    build_kb.main([])


def test_folder_of_documents_becomes_knowledge_bases(
  embedder, tmp_path, parsed_flags
):
  documents = tmp_path / "documents"
  documents.mkdir()
  (documents / "guide.md").write_text("# Guide\nSome text.\n")
  (documents / "prices.csv").write_text("Room,Price\nhall,3\n")
  kb_dir = str(tmp_path / "kb")
  run_main(kb_dir=kb_dir, source=documents)
  kbs = retriever.open_kbs(kb_dir)
  assert {kind: len(kb) for kind, kb in kbs.items()} == dict(text=1, table=1)
  # A document more makes its knowledge base anew.
  (documents / "more.txt").write_text("More.")
  run_main(kb_dir=kb_dir, source=documents, kind=["text"])
  assert len(retriever.open_kbs(kb_dir)["text"]) == 2
  with pytest.raises(ValueError, match="corpus is empty.*--kind=image"):
    run_main(kb_dir=kb_dir, source=documents, kind=["image"])
  # What failed is not taken for a knowledge base.
  assert set(retriever.open_kbs(kb_dir)) == {"text", "table"}


def test_damaged_document_is_named_once_for_all_kinds(
  embedder, tmp_path, parsed_flags, caplog
):
  """Also if a kind, here images, has nothing else."""
  documents = tmp_path / "documents"
  documents.mkdir()
  (documents / "bad.md").write_bytes(b"# Guide \xff")
  (documents / "good.md").write_text("Some text.\n\nCup|Price\n-|-\nsmall|2\n")
  with caplog.at_level("WARNING", "absl"):
    run_main(kb_dir=tmp_path / "kb", source=documents)
  named = [m for m in caplog.messages if "bad.md: not UTF-8" in m]
  assert len(named) == 1
  for kind in ("text", "table"):
    skipped = (tmp_path / f"kb/{kind}/skipped.txt").read_text()
    assert "bad.md: not UTF-8" in skipped
  assert "text: skipped 1 of 2 rows" in caplog.text


def test_kb_dir_inside_of_the_documents_is_refused(tmp_path, parsed_flags):
  (tmp_path / "guide.md").write_text("Some text.")
  for kb_dir in (tmp_path, tmp_path / "kb"):
    with pytest.raises(ValueError, match="inside of --source=.*beside it"):
      run_main(kb_dir=kb_dir, source=tmp_path)
  assert sorted(os.listdir(tmp_path)) == ["guide.md"]


def test_names_of_embedders_are_complete():
  assert set(build_kb.EMBEDDER_NAMES) == set(registry.EMBEDDERS)
