import bz2
import gzip
import json
import time

import pytest

from r1router_jax.common import row_files
from r1router_jax.data import question_files
from r1router_jax.retrieval.corpora import passage_writer, sources

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


def log_rows(count, folder):
  log = row_files.SkipLog("rows.jsonl")
  for number in range(count):
    log(row_files.RejectedRow(f"rows.jsonl:{number}", f"{number}", "Mend it"))
  log.finish(kept=1)


def write_bad_rows(count, folder, good):
  path = folder / f"rows{count}.jsonl"
  bad = "".join(f'{{"id": {number}}}\n' for number in range(count))
  path.write_text(bad + json.dumps(good) + "\n")
  return str(path)


def read_questions(count, folder):
  good = dict(question="Who?", answer="a")
  path = write_bad_rows(count, folder, good)
  assert len(question_files.load_questions(path)) == 1


def read_corpus(count, folder):
  path = write_bad_rows(count, folder, dict(id="a", text="b"))
  source = sources.open_source("text", path)
  note, _ = passage_writer.ensure_passages(str(folder / f"kb{count}"), source)
  assert note["rows"] == 1


@pytest.mark.parametrize("read", [log_rows, read_questions, read_corpus])
def test_bad_rows_take_linear_time(read, tmp_path):
  def measure(count, tries):
    seconds = []
    for number in range(tries):
      folder = tmp_path / f"{count}.{number}"
      folder.mkdir()
      start = time.process_time()
      read(count, folder)
      seconds.append(time.process_time() - start)
    return min(seconds)

  # Ten times as long if it is linear, a hundred times if it is quadratic.
  assert measure(20_000, 1) < 25 * measure(2_000, 3)
