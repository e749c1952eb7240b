"""Files that are whole or absent, and files of rows that survive a kill."""

import json
import os

import pytest

from r1router_jax.common import files, jsonl


def test_write_json_leaves_no_partial_file(tmp_path):
  for value in ({"a": 1}, {"b": [2]}):
    files.write_json(tmp_path / "scores.json", value)
    assert json.loads((tmp_path / "scores.json").read_text()) == value
  assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failed_write_keeps_the_old_file(tmp_path, error):
  path = tmp_path / "a.bin"
  path.write_bytes(b"old")
  with pytest.raises(error), files.atomic_write(path) as file:
    file.write(b"new")
    raise error
  assert path.read_bytes() == b"old"
  assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_rows_after_a_torn_line_are_read(tmp_path):
  path = tmp_path / "rows.jsonl"
  assert jsonl.read_rows(path) == []
  jsonl.append_rows(path, [{"a": 1}, {"é": [2]}])
  with path.open("a") as file:
    file.write('{"id": "torn')  # A run was killed here.
  jsonl.append_rows(path, [{"b": None}])
  with path.open("a") as file:
    file.write("7\n")  # JSON, but no object.
  assert jsonl.read_rows(path) == [{"a": 1}, {"é": [2]}, {"b": None}]


def test_files_are_loaded_once_until_they_change(tmp_path):
  loaded = []

  def load(place):
    loaded.append(place)
    return object()

  folder, file = str(tmp_path), tmp_path / "weights"
  file.write_text("first")
  first = files.load_once(load, folder)
  assert files.load_once(load, folder) is first
  # As a copy that keeps size and time.
  times = file.stat().st_atime_ns, file.stat().st_mtime_ns
  other = tmp_path.with_name("other")
  other.write_text("other")
  os.utime(other, ns=times)
  other.replace(file)
  second = files.load_once(load, folder)
  assert second is not first and files.load_once(load, folder) is second
  # Also in a folder below.
  (tmp_path / "below").mkdir()
  (tmp_path / "below/more").write_text("more")
  assert files.load_once(load, folder) is not second
  # Nothing tells when a server changes.
  for place, count in (("", 1), ("http://a", 2)):
    loaded.clear()
    files.load_once(load, place)
    files.load_once(load, place)
    assert loaded == [place] * count
