import bz2
import gzip
import json

import pytest

from r1router_jax.common import row_files

LINE = b'{"id": "a", "text": "b"}\n'


def test_parse_json_keeps_valid_values():
  value = {"a": [1, 2.5, None, True, "é\u2028"]}
  assert row_files.parse_json(json.dumps(value).encode()) == value
  assert row_files.parse_json(b"1e300") == 1e300


def test_rows_keep_whole_characters_alone(caplog):
  assert row_files.parse_json(rb'{"a": "\ud83d?"}') == {"a": "\ufffd?"}
  assert "1 halves of surrogate pairs" in caplog.text
  # What names a file is not mended: it would name another.
  with pytest.raises(row_files.RowError, match="half a surrogate pair"):
    row_files.validate_text("id", "\udcff.png")


def test_long_texts_are_split_into_windows():
  words = [f"w{i}" for i in range(150)]
  assert row_files.split_windows(" ".join(words)) == [
    " ".join(words[:100]),
    " ".join(words[50:]),
  ]
  assert row_files.split_windows("short  text") == ["short  text"]


@pytest.mark.parametrize("ending, pack", [(".gz", gzip), (".bz2", bz2)])
def test_compressed_lines_are_read(tmp_path, ending, pack):
  path = tmp_path / f"a.jsonl{ending}"
  path.write_bytes(pack.compress(LINE * 99))
  rows = list(row_files.read_json_lines(str(path)))
  assert rows == [
    (f"{path}:{number}", {"id": "a", "text": "b"}) for number in range(1, 100)
  ]
  for damaged in (pack.compress(LINE * 99)[:-9], LINE):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"a.jsonl{ending}: damaged"):
      list(row_files.read_json_lines(str(path)))


def test_skip_log_counts_and_names_rows(caplog):
  log = row_files.SkipLog("rows.jsonl")
  with caplog.at_level("WARNING", "absl"):
    for number in range(7):
      log(row_files.RejectedRow(f"rows.jsonl:{number}", "is bad", "Mend it"))
    log.finish(kept=3)
  named = [m for m in caplog.messages if m.startswith("skipped")]
  assert named[0] == "skipped rows.jsonl:0: is bad. Mend it."
  assert len(named) == row_files.MAX_WARNINGS
  assert "rows.jsonl: skipped 7 of 10" in caplog.messages[-1]
  with pytest.raises(ValueError, match="nothing of it can be used.*is bad"):
    log.finish(kept=0)
  with pytest.raises(ValueError, match="It is empty"):
    row_files.SkipLog("empty.jsonl").finish(kept=0)
