"""Builds beside readers: old or new, no mixture, and readers keep theirs."""

import functools
import json
import os
import pathlib
import shutil
import sys

import numpy as np
import pytest

from r1router_jax import build_kb
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Query
from r1router_jax.retrieval import kb_versions, local_kb
from r1router_jax.retrieval.encoders import registry
from tests.retrieval.fakes import WordEmbedder

COUNT = 8  # Passages, unless a test says another number.


class Killed(BaseException):
  pass


class SaltedEmbedder(WordEmbedder):
  """An embedder whose vectors have nothing in common with other salts'."""

  def __init__(self, salt):
    super().__init__()
    self.fingerprint = self.salt = salt

  def __call__(self, items):
    salted = (item.text.replace(" ", f" {self.salt}") for item in items)
    return super().__call__([Query(self.salt + text) for text in salted])


@pytest.fixture(autouse=True)
def embedders(monkeypatch):
  """Two embedders of one width, which take each other's names nowhere."""
  for name in ("minilm", "image"):
    load = functools.partial(SaltedEmbedder, name)
    monkeypatch.setitem(registry.EMBEDDERS, name, lambda _, load=load: load())
  monkeypatch.setattr(build_kb, "_log_cost", lambda *_: None)


@pytest.fixture
def folder(tmp_path):
  return str(tmp_path / "text")


def build(folder, word="old", count=COUNT, embedder="minilm", hybrid=False):
  """Build passages such as "old3 of many" with the ids old0, old1, ..."""
  source = pathlib.Path(folder).with_name(f"{word}-{count}.jsonl")
  if not source.exists():
    rows = [
      dict(id=f"{word}{i}", text=f"{word}{i} of b{i}") for i in range(count)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
  options = dict(embedder=embedder, hybrid=hybrid)
  build_kb.build(build_kb.KbSpec(folder, "text", str(source), **options))


def count_right(kb, word="old", count=COUNT):
  """Return how many passages are found first by their own words."""
  queries = [Query(f"{word}{i} of b{i}") for i in range(count)]
  found = kb.search(queries, 1)
  return sum(p.id == f"{word}{i}" for i, (p,) in enumerate(found))


def to_old_layout(folder):
  """Make a folder as builds did before there were versions."""
  version = pathlib.Path(kb_versions.version_folder(folder))
  (version / "files.json").unlink()
  for path in version.iterdir():
    path.rename(pathlib.Path(folder, path.name))
  version.rmdir()
  pathlib.Path(folder, "current").unlink()


def count_kept_files(folder):
  """Return how many removed files below a folder this process has mapped."""
  gone = "(deleted)\n"
  with open("/proc/self/maps") as maps:
    return sum(line.endswith(gone) and folder in line for line in maps)


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("count", [3, COUNT, 90])
def test_reader_keeps_the_version_that_it_opened(folder, count, is_old):
  build(folder, hybrid=True)
  if is_old:
    to_old_layout(folder)
  kb = local_kb.open_kb(folder)
  assert (kb_versions.version_folder(folder) == folder) == is_old
  assert not count_kept_files(folder)
  build(folder, "new", count, hybrid=True)
  assert count_right(kb) == COUNT
  opened = local_kb.open_kb(folder)
  assert count_right(opened, "new", count) == count
  # The former version has no names any more; it goes with its last reader.
  current = os.path.basename(kb_versions.version_folder(folder))
  names = [".lock", "current", "skipped.txt", "source.json", current]
  assert sorted(os.listdir(folder)) == names
  assert count_kept_files(folder) > 5
  del kb
  assert not count_kept_files(folder)
  assert count_right(opened, "new", count) == count


class Killer:
  """Ends what runs when it would change the disk once too often.

  Nothing changes the disk after that: no handler of an exception, either.
  """

  changes_left = None  # None lets everything pass.

  def __call__(self, event, args):
    writes = event == "open" and isinstance(args[2], int) and args[2] & 3
    changes = "os.link os.mkdir os.remove os.rename os.rmdir os.truncate"
    if self.changes_left is None or not (writes or event in changes.split()):
      return
    self.changes_left -= 1
    if self.changes_left < 0:
      raise Killed

  def is_killed(self, changes, action):
    """Return whether an action needs more than so many changes of the disk."""
    self.changes_left = changes
    try:
      action()
    except Killed:
      return True
    finally:
      self.changes_left = None
    return False


KILLER = Killer()
sys.addaudithook(KILLER)  # It cannot be removed.


@pytest.mark.parametrize(
  "change, is_old",
  [
    (dict(embedder="image"), False),
    (dict(embedder="image"), True),
    (dict(hybrid=True), False),
    (dict(word="new"), True),
  ],
  ids=str,
)
def test_killed_rebuild_leaves_old_or_new(folder, tmp_path, change, is_old):
  build(folder)
  if is_old:
    to_old_layout(folder)
  # At every second change of the disk.
  saved, event, seen = tmp_path / "saved", int(is_old), set()
  shutil.copytree(folder, saved)

  def open_and_search(word):
    kb = local_kb.open_kb(folder)
    assert count_right(kb, word) == COUNT
    return {k: kb.meta.get(k) for k in ("fingerprint", "hybrid", "passages")}

  old, new_word = open_and_search("old"), change.get("word", "old")
  while KILLER.is_killed(event, lambda: build(folder, **change)):
    is_new = local_kb.open_kb(folder).meta["passages"] != old["passages"]
    left = open_and_search(new_word if is_new else "old")
    # The next build ends as if nothing had happened.
    build(folder, **change)
    new = open_and_search(new_word)
    assert left in (old, new) and old != new
    seen.add(left == new)
    shutil.rmtree(folder)
    shutil.copytree(saved, folder)
    event += 2
  assert seen == {False, True} and event > 15


@pytest.mark.parametrize("calls", range(3))
def test_version_that_vanishes_while_it_is_opened_is_no_error(
  folder, monkeypatch, calls
):
  build(folder)
  find, called = kb_versions.version_folder, []

  def find_and_build(place):
    found = find(place)
    called.append(place)
    if len(called) == calls + 1:
      # As another process may do at any moment.
      build(folder, "new")
    return found

  monkeypatch.setattr(kb_versions, "version_folder", find_and_build)
  kb = local_kb.open_kb(folder)
  assert len(called) > calls and count_right(kb, "new") == COUNT


def flip(content):
  return bytes([content[0] ^ 4]) + content[1:]


DAMAGES = dict(
  empty=lambda x: b"",
  halved=lambda x: x[: len(x) // 2],
  bit=flip,
  zeros=lambda x: bytes(len(x)),
  longer=lambda x: x + b"\0",
  removed=lambda x: None,
)


@pytest.mark.parametrize("how", DAMAGES)
def test_file_that_was_damaged_is_named_when_opened(folder, how):
  build(folder, hybrid=True)
  version = pathlib.Path(kb_versions.version_folder(folder))
  listed = json.loads((version / "files.json").read_text())
  assert len(listed) > 5 and "bm25/params.index.json" in listed
  for name in listed:
    content = (version / name).read_bytes()
    damaged = DAMAGES[how](content)
    (version / name).unlink()
    if damaged is not None:
      (version / name).write_bytes(damaged)
    if damaged == content:
      continue
    with pytest.raises(ValueError, match=f"{name} should have.*run build_kb"):
      local_kb.open_kb(folder)
    (version / name).write_bytes(content)
  assert count_right(local_kb.open_kb(folder)) == COUNT


@pytest.mark.parametrize("is_old", [False, True])
def test_incomplete_copy_is_refused_when_opened(folder, is_old):
  build(folder, hybrid=True)
  if is_old:
    to_old_layout(folder)
  version = pathlib.Path(kb_versions.version_folder(folder))
  paths = [path for path in version.rglob("*") if path.is_file()]
  unneeded = (".lock", "skipped.txt", "source.json", "corpus.jsonl")
  needed = [path for path in paths if path.name not in unneeded]
  assert len(needed) > 8
  for path in needed:
    moved = path.rename(f"{folder}/.lock-moved")
    with pytest.raises(UserError, match="build_kb"):
      local_kb.open_kb(folder)
    moved.rename(path)
  assert count_right(local_kb.open_kb(folder)) == COUNT


ROW = dict(id="a", text="b", image="")
LINES = {
  "another key": json.dumps(ROW | {"score": "<b>"}),
  "a number": json.dumps(ROW | {"id": 5}),
  "not UTF-8": json.dumps(ROW).replace("b", "\udcff"),
  "no JSON": "x" * 30,
  "a path": json.dumps(ROW | {"image": "/etc/passwd"}),
  "a way out": json.dumps(ROW | {"image": "../../b.png"}),
  "a link": json.dumps(ROW | {"image": "link.png"}),
}


@pytest.mark.parametrize("name", LINES)
def test_passage_from_elsewhere_is_refused(tmp_path, name):
  """It may name any file of this disk, which would go into the report."""
  (tmp_path / "images").mkdir()
  (tmp_path / "images/link.png").symlink_to("/etc/passwd")
  line = LINES[name].encode(errors="surrogateescape")
  (tmp_path / "passages.jsonl").write_bytes(line)
  np.save(tmp_path / "offsets.npy", np.array([0, len(line)]))
  images = str(tmp_path / "images")
  passages = local_kb.PassageFile(str(tmp_path), "image", images)
  with pytest.raises(ValueError, match="line 1 of passages.jsonl is damaged"):
    passages[0]


def test_folder_from_elsewhere_chooses_no_address(folder, monkeypatch):
  asked = []
  monkeypatch.setitem(registry.EMBEDDERS, "tei", asked.append)
  build(folder)
  path = pathlib.Path(kb_versions.version_folder(folder), "meta.json")
  meta = json.loads(path.read_text())
  changes = dict(embedder="tei_unit", weights="http://127.0.0.1:9")
  path.write_text(json.dumps(meta | changes))
  cure = "from elsewhere.*give --kb_addresses=http://127.0.0.1:9"
  with pytest.raises(ValueError, match=cure):
    local_kb.open_kb(folder)
  assert not asked
