"""A build that is killed anywhere ends with the files of an unbroken one."""

import functools
import json
import multiprocessing
import os
import pathlib
import shutil

import numpy as np
import pytest

from r1router_jax import build_kb
from r1router_jax.retrieval import embedding_chunks, kb_meta, local_kb
from r1router_jax.retrieval.corpora import passage_writer, sources
from r1router_jax.retrieval.encoders import registry


class Killed(BaseException):
  pass


class Lengths:
  """An embedder by the length and the first letters of a text."""

  fingerprint, width, devices = "lengths", 4, ()

  def __call__(self, items):
    return np.float32([[len(i.text), *map(ord, i.text[:3])] for i in items])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setitem(registry.EMBEDDERS, "minilm", lambda weights: Lengths())
  monkeypatch.setattr(embedding_chunks, "CHUNK_ROWS", 10)
  monkeypatch.setattr(sources, "BLOCK_ROWS", 4)
  registry.get_embedder.cache_clear()
  yield
  registry.get_embedder.cache_clear()


def write_rows(folder, count=23):
  """Write two files; some rows are long, some bad, some repeat an id."""
  folder.mkdir(exist_ok=True)
  for part in range(2):
    with open(folder / f"{part}.jsonl", "w") as file:
      for i in range(part, count, 2):
        row = dict(
          id=f"r{i % 19}",
          title=f"T{i}",
          text=f"w{i} " * (180 if i % 5 == 0 else 3),
        )
        file.write("{}\n" if i % 7 == 6 else json.dumps(row) + "\n")
  return str(folder / "*.jsonl")


def build(folder, source):
  build_kb.build(build_kb.KbSpec(str(folder), "text", source))


def fingerprint(kb, source):
  return passage_writer._fingerprint_source(sources.open_source(kb, source))


def contents(folder):
  return {
    path.relative_to(folder): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def killed_at(monkeypatch, event, work):
  """Do `work`, but raise Killed at a file operation; return whether it did.

  Args:
    monkeypatch: of the test.
    event: number of file operations to let pass.
    work: the function to call.
  """
  happened = 0

  def counted(call):
    def wrapper(*args, **kwargs):
      nonlocal happened
      happened += 1
      if happened > event:
        raise Killed
      return call(*args, **kwargs)

    return wrapper

  with monkeypatch.context() as patch:
    for module, name in (
      (os, "fsync"),
      (os, "replace"),
      (os, "remove"),
      (shutil, "rmtree"),
      (np.lib.format, "open_memmap"),
    ):
      patch.setattr(module, name, counted(getattr(module, name)))
    try:
      work()
    except Killed:
      return True
  return False


def test_build_killed_twice_gives_the_same_files(tmp_path, monkeypatch):
  source = write_rows(tmp_path / "rows")
  build(tmp_path / "whole", source)
  wanted = contents(tmp_path / "whole")
  assert len(local_kb.open_kb(str(tmp_path / "whole"))) > 20
  # Kill a build before each of its file operations, kill it again while it
  # recovers, and let the third run finish.
  event = 0
  while killed_at(
    monkeypatch, event, functools.partial(build, tmp_path / "killed", source)
  ):
    killed_at(
      monkeypatch,
      2 + event % 7,
      functools.partial(build, tmp_path / "killed", source),
    )
    build(tmp_path / "killed", source)
    assert contents(tmp_path / "killed") == wanted, event
    shutil.rmtree(tmp_path / "killed")
    event += 1
  assert event > 40  # The loop did not end at once.


def test_rebuild_killed_anywhere_gives_the_same_files(tmp_path, monkeypatch):
  source = write_rows(tmp_path / "rows")
  build(tmp_path / "old", source)
  write_rows(tmp_path / "rows", 30)
  build(tmp_path / "whole", source)
  wanted = contents(tmp_path / "whole")
  event = 0
  while True:
    shutil.copytree(tmp_path / "old", tmp_path / "killed")
    if not killed_at(
      monkeypatch, event, functools.partial(build, tmp_path / "killed", source)
    ):
      break
    # A knowledge base that can be opened is complete.
    if kb_meta.read_meta(str(tmp_path / "killed")):
      assert len(local_kb.open_kb(str(tmp_path / "killed"))) > 20
    build(tmp_path / "killed", source)
    assert contents(tmp_path / "killed") == wanted, event
    shutil.rmtree(tmp_path / "killed")
    event += 1


def test_written_passages_are_those_of_the_reader(tmp_path):
  source = write_rows(tmp_path / "rows")
  rows = list(sources.read_passages("text", source))
  build(tmp_path / "kb", source)
  stored = local_kb.PassageFile(str(tmp_path / "kb"), "text")
  good = [row for row in rows if not isinstance(row, sources.RejectedRow)]
  assert [(p.id, p.text) for p in stored] == [(p.id, p.text) for p in good]
  assert (tmp_path / "kb/skipped.txt").read_text().splitlines() == [
    str(row) for row in rows if isinstance(row, sources.RejectedRow)
  ]


def test_resumed_draft_reads_no_row_twice(tmp_path, monkeypatch):
  source = sources.open_source("text", write_rows(tmp_path / "rows"))
  folder = tmp_path / "kb"
  folder.mkdir()
  prepare = functools.partial(
    passage_writer.ensure_passages, str(folder), source, False
  )
  assert killed_at(monkeypatch, 10, prepare)
  (journal,) = folder.glob("draft-*/journal.json")
  read = json.loads(journal.read_text())["read"]
  parse_row, seen = sources.parse_row, []

  def counted_parse_row(source, where, row):
    seen.append(where)
    return parse_row(source, where, row)

  monkeypatch.setattr(sources, "parse_row", counted_parse_row)
  note = prepare()
  # Of the 23 rows only those after the journal were parsed again.
  assert 0 < read < 23 and len(seen) == 23 - read
  assert note["rows"] == len(local_kb.PassageFile(str(folder), "text"))


@pytest.mark.parametrize("change", ["append", "touch", "swap", "rename", "add"])
def test_changed_source_has_another_fingerprint(tmp_path, change):
  source = write_rows(tmp_path / "rows")
  first = tmp_path / "rows/0.jsonl"
  before = fingerprint("text", source)
  assert fingerprint("text", source) == before
  times = first.stat().st_atime_ns, first.stat().st_mtime_ns
  if change == "append":
    first.write_bytes(first.read_bytes() + b"\n")
  elif change == "touch":
    os.utime(first, ns=(times[0], times[1] + 1))
  elif change == "swap":  # Same size, same time.
    first.write_bytes(first.read_bytes().replace(b"w2", b"v2"))
    os.utime(first, ns=times)
  elif change == "rename":
    first.rename(tmp_path / "rows/00.jsonl")
  else:
    (tmp_path / "rows/3.jsonl").write_bytes(b"")
  assert fingerprint("text", source) != before


def test_fingerprint_covers_a_folder_of_images(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a/x.txt").write_text("caption")
  before = fingerprint("image", str(tmp_path))
  assert fingerprint("image", str(tmp_path)) == before
  (tmp_path / "a/x.txt").write_text("another")
  os.utime(tmp_path / "a/x.txt", ns=(1, 1))
  assert fingerprint("image", str(tmp_path)) != before


def test_damaged_draft_is_refused(tmp_path, monkeypatch):
  source = sources.open_source("text", write_rows(tmp_path / "rows"))
  folder = tmp_path / "kb"
  folder.mkdir()
  prepare = functools.partial(
    passage_writer.ensure_passages, str(folder), source, False
  )
  assert killed_at(monkeypatch, 10, prepare)
  (path,) = folder.glob("draft-*/passages.jsonl")
  path.write_bytes(b"?" + path.read_bytes()[1:])
  with pytest.raises(ValueError, match="not what was written"):
    prepare()


def _prepare(folder, source, gate):
  gate.wait()
  passage_writer.ensure_passages(folder, source, False)


def test_one_process_writes_and_others_wait(tmp_path):
  source = sources.open_source("text", write_rows(tmp_path / "rows", 2000))
  (tmp_path / "kb").mkdir()
  context = multiprocessing.get_context("fork")
  # The barrier makes all three start at the same moment.
  gate = context.Barrier(3)
  workers = [
    context.Process(target=_prepare, args=(str(tmp_path / "kb"), source, gate))
    for _ in range(3)
  ]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join()
  assert [worker.exitcode for worker in workers] == [0, 0, 0]
  wanted = [
    row
    for row in sources.read_passages("text", str(tmp_path / "rows/*.jsonl"))
    if not isinstance(row, sources.RejectedRow)
  ]
  stored = list(local_kb.PassageFile(str(tmp_path / "kb"), "text"))
  assert [p.id for p in stored] == [p.id for p in wanted]
  assert not list(pathlib.Path(tmp_path / "kb").glob("draft-*"))


def test_rejected_rows_are_counted_by_reason(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(passage_writer, "_MAX_REASONS", 2)
  (tmp_path / "a.jsonl").write_text(
    '{"id": "a", "text": "b"}\n' * 9 + "{}\n[]\n" + '{"id": 1}\n'
  )
  (tmp_path / "kb").mkdir()
  with caplog.at_level("WARNING", "absl"):
    note = passage_writer.ensure_passages(
      str(tmp_path / "kb"),
      sources.open_source("text", str(tmp_path / "a.jsonl")),
      False,
    )
  assert note["rows"] == 1
  assert (
    "skipped 11 of 12 rows: 8 (the id ... came before), 2 (other "
    'reasons), 1 ("id" is missing or empty)'
  ) in caplog.text
  named = [m for m in caplog.messages if "skipped /" in m]
  assert len(named) == 5  # The others are in skipped.txt.
