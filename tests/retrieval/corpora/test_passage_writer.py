"""A build that is killed anywhere ends with the files of an unbroken one."""

import json
import multiprocessing
import os
import pathlib
import shutil
import signal

import numpy as np
import pytest

from r1router_jax import build_kb
from r1router_jax.retrieval import embedding_chunks, local_kb
from r1router_jax.retrieval.corpora import passage_writer, sources
from r1router_jax.retrieval.encoders import registry
from tests.retrieval.corpora import plain_reader


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
  monkeypatch.setattr(passage_writer, "COMMIT_ROWS", 4)


def write_rows(folder, count=23):
  """Write two files; some rows are long, some bad, some repeat an id."""
  folder.mkdir(exist_ok=True)
  for part in range(2):
    with open(folder / f"{part}.jsonl", "w") as file:
      for i in range(part, count, 2):
        text = f"w{i} " * (180 if i % 5 == 0 else 3)
        row = dict(id=f"r{i % 19}", title=f"T{i}", text=text)
        file.write("{}\n" if i % 7 == 6 else json.dumps(row) + "\n")
  return str(folder / "*.jsonl")


def build(folder, source):
  build_kb.build(build_kb.KbSpec(str(folder), "text", source))


def fingerprint(kb, source):
  return passage_writer._fingerprint_source(sources.open_source(kb, source))


def contents(folder):
  paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
  return {path.relative_to(folder): path.read_bytes() for path in paths}


def killed_at(monkeypatch, event, work, *args):
  """Call `work`, but raise Killed at a file operation; return whether it did.

  `event` file operations pass before.
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
      *((os, "replace"), (os, "unlink"), (os, "link"), (os, "mkdir")),
      (shutil, "rmtree"),
      *((np.lib.format, "open_memmap"), (sources, "parse_row")),
    ):
      patch.setattr(module, name, counted(getattr(module, name)))
    try:
      work(*args)
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
  event, killed = 0, tmp_path / "killed"
  while killed_at(monkeypatch, event, build, killed, source):
    killed_at(monkeypatch, 2 + event % 7, build, killed, source)
    build(killed, source)
    assert contents(killed) == wanted, event
    shutil.rmtree(killed)
    event += 1
  assert event > 40  # The loop did not end at once.


def test_rebuild_killed_anywhere_gives_the_same_files(tmp_path, monkeypatch):
  source = write_rows(tmp_path / "rows")
  build(tmp_path / "old", source)
  write_rows(tmp_path / "rows", 30)
  shutil.copytree(tmp_path / "old", tmp_path / "whole")
  build(tmp_path / "whole", source)
  wanted = contents(tmp_path / "whole")
  pair = ("old", "whole")
  sizes = [len(local_kb.open_kb(str(tmp_path / name))) for name in pair]
  event, killed = 0, tmp_path / "killed"
  shutil.copytree(tmp_path / "old", killed)
  while killed_at(monkeypatch, event, build, killed, source):
    # It is the old or the new one.
    assert len(local_kb.open_kb(str(killed))) in sizes
    build(killed, source)
    assert contents(killed) == wanted, event
    shutil.rmtree(killed)
    shutil.copytree(tmp_path / "old", killed)
    event += 1


def test_written_passages_are_those_of_the_reader(tmp_path):
  source = write_rows(tmp_path / "rows")
  good, bad = plain_reader.split_passages("text", source)
  build(tmp_path / "kb", source)
  stored = local_kb.open_kb(str(tmp_path / "kb")).stack.passages
  assert [(p.id, p.text) for p in stored] == [(p.id, p.text) for p in good]
  assert (tmp_path / "kb/skipped.txt").read_text().splitlines() == bad


def test_resumed_draft_reads_no_row_twice(tmp_path, monkeypatch):
  source = sources.open_source("text", write_rows(tmp_path / "rows"))
  prepare, folder = passage_writer.ensure_passages, str(tmp_path / "kb")
  os.mkdir(folder)
  assert killed_at(monkeypatch, 11, prepare, folder, source)
  parse_row, seen = sources.parse_row, []

  def counted_parse_row(source, where, row):
    seen.append(where)
    return parse_row(source, where, row)

  monkeypatch.setattr(sources, "parse_row", counted_parse_row)
  note, draft = prepare(folder, source)
  # Ten rows were read, and the first nine of them saved.
  assert len(seen) == 23 - 9
  assert note["rows"] == len(local_kb.PassageFile(draft, "text"))


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
  source = write_rows(tmp_path / "rows")
  assert killed_at(monkeypatch, 10, build, tmp_path / "kb", source)
  (path,) = tmp_path.glob("kb/draft-*/rows.sqlite")
  path.write_bytes(b"?" * 100 + path.read_bytes()[100:])
  with pytest.raises(ValueError, match="rows.sqlite cannot be used.*delete it"):
    build(tmp_path / "kb", source)


def _build(folder, source, gate, kill_after):
  parse_row = sources.parse_row

  def count_rows(*args):
    nonlocal kill_after
    kill_after -= 1
    if kill_after == 0:
      os.kill(os.getpid(), signal.SIGKILL)
    return parse_row(*args)

  sources.parse_row = count_rows
  gate.wait()
  build(folder, source)


def test_one_of_many_builds_works_and_others_wait(tmp_path):
  source = write_rows(tmp_path / "rows", 200)
  context = multiprocessing.get_context("fork")
  # The barrier makes all three start at the same moment.
  args, workers = (tmp_path / "kb", source, context.Barrier(3)), []
  for kill_after in (50, 0, 0):
    workers.append(context.Process(target=_build, args=(*args, kill_after)))
    workers[-1].start()
  for worker in workers:
    worker.join()
  # The first is killed if it gets to read rows; the others go on after it.
  assert workers[0].exitcode in (0, -signal.SIGKILL)
  assert [worker.exitcode for worker in workers[1:]] == [0, 0]
  build(tmp_path / "alone", source)
  built, wanted = contents(tmp_path / "kb"), contents(tmp_path / "alone")
  lock = pathlib.Path(".lock")
  assert built.pop(lock) != wanted.pop(lock)  # It names the process.
  assert built == wanted


LONG = "word " * 150  # Two windows.


@pytest.mark.parametrize(
  "rows, kept",
  [
    ({"a": LONG, "a#0": "b"}, "a#0 a#1"),
    ({"a#0": "b", "a": LONG}, "a#0"),
    ({"a#1": LONG, "a": LONG}, "a#1#0 a#1#1"),
    # No two of these passages have the same id.
    ({"a": "b", "a#0": "b"}, "a a#0"),
    ({"a": LONG, "a#2": "b", "a#00": "b"}, "a#0 a#1 a#2 a#00"),
    ({"a": LONG, "b": LONG, "c#0": "b"}, "a#0 a#1 b#0 b#1 c#0"),
  ],
)
def test_rows_that_are_called_like_a_window_are_left_out(tmp_path, rows, kept):
  lines = [json.dumps(dict(id=x, text=text)) + "\n" for x, text in rows.items()]
  (tmp_path / "a.jsonl").write_text("".join(lines))
  source = sources.open_source("text", str(tmp_path / "a.jsonl"))
  _, draft = passage_writer.ensure_passages(str(tmp_path), source)
  written = pathlib.Path(draft, "passages.jsonl").read_text().splitlines()
  assert [json.loads(line)["id"] for line in written] == kept.split()
  skipped = (tmp_path / "skipped.txt").read_text()
  windows = sum(1 + (text == LONG) for text in rows.values())
  assert ("came before" in skipped) == (len(kept.split()) < windows)


def test_rejected_rows_are_counted_by_reason(tmp_path, caplog):
  rows = '{"id": "a", "text": "b"}\n' * 9 + '{}\n[]\n{"id": 1}\n'
  (tmp_path / "a.jsonl").write_text(rows)
  source = sources.open_source("text", str(tmp_path / "a.jsonl"))
  with caplog.at_level("WARNING", "absl"):
    note, _ = passage_writer.ensure_passages(str(tmp_path), source)
  assert note["rows"] == 1
  counts = '8 (the id ... came before), 1 ("id" is missing or empty), 1 (a list'
  assert f"skipped 11 of 12 rows: {counts}" in caplog.text
  named = [m for m in caplog.messages if m.startswith("skipped /")]
  assert len(named) == 5  # The others are in skipped.txt.
