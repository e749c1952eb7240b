"""MultimodalQA's texts, images and tables as knowledge bases."""

import gzip
import json

import pytest
from PIL import Image

from r1router_jax.common.row_files import RejectedRow
from r1router_jax.retrieval.corpora import sources
from tests.data.mmqa_rows import table_row
from tests.retrieval.corpora import plain_reader

TEXT = dict(title="Chad", url="https://x", id="x1", text="It is\n a country.")
PICTURE = dict(title="Taipei", url="https://x", id="i1", path="i1.PNG")


@pytest.fixture
def folder(tmp_path):
  """A folder of the three files, with an image below another."""
  (tmp_path / "pictures").mkdir()
  Image.new("RGB", (9, 9)).save(tmp_path / "pictures/i1.PNG")
  write(tmp_path, "texts", TEXT)
  write(tmp_path, "images", PICTURE)
  write(tmp_path, "tables", table_row([["1976", "Kite"]]))
  return tmp_path


def write(folder, kind, *rows):
  lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
  (folder / f"MMQA_{kind}.jsonl.gz").write_bytes(gzip.compress(lines))


def read(folder, kb):
  source = f"multimodalqa:{folder}"
  return list(plain_reader.read_passages(kb, source, f"{folder}/pictures"))


TABLE_TEXT = "[Title]Ann[Section title]Roles[Caption][Table name]"
TABLE_TEXT += "[Header]Year[sep]Title[Rows]"


@pytest.mark.parametrize(
  "kb, wanted",
  [
    ("text", ("x1", "text", "Chad It is a country.", "")),
    ("image", ("i1", "image", "Taipei", "i1.PNG")),
    ("table", ("t1", "table", f"{TABLE_TEXT}[Row]1976[sep]Kite", "")),
  ],
)
def test_passages_of_each_kind(folder, kb, wanted):
  (found,) = read(folder, kb)
  assert (found.id, found.kb, found.text, found.image) == wanted


def test_folder_feeds_the_kinds_that_it_has_files_for(folder):
  source = f"multimodalqa:{folder}"
  assert sources.choose_kbs(source) == ("text", "image", "table")
  assert sources.choose_kbs(source, ["table"]) == ("table",)
  (folder / "MMQA_images.jsonl.gz").unlink()
  assert sources.choose_kbs(source) == ("text", "table")
  # A lone file may be of any kind.
  with pytest.raises(ValueError, match="Say which"):
    sources.choose_kbs(f"multimodalqa:{folder}/MMQA_texts.jsonl.gz")


def test_long_texts_and_tables_are_parts_of_their_document(folder):
  write(folder, "texts", TEXT | dict(text="word " * 120))
  assert [p.id for p in read(folder, "text")] == ["x1#0", "x1#1"]
  assert all(p.text.startswith("Chad word") for p in read(folder, "text"))
  rows = [[str(n), f"Kite {n}"] for n in range(30)]
  write(folder, "tables", table_row(rows))
  found = read(folder, "table")
  assert [p.id for p in found] == ["t1#0", "t1#1", "t1#2"]
  assert all(p.text.startswith(TABLE_TEXT) for p in found)
  assert sum(p.text.count("[Row]") for p in found) == 30


BAD = {
  "text": [TEXT | dict(text=" "), PICTURE, [1], TEXT | dict(text="a\x00")],
  "image": [
    PICTURE | dict(path="absent.png"),
    PICTURE | dict(path="../../x.png"),
    PICTURE | dict(title=""),
  ],
  "table": [
    table_row([]),
    table_row([["1976"]]),
    table_row([["1976", 3]]),
    TEXT,
  ],
}


@pytest.mark.parametrize("kb", BAD)
def test_bad_row_costs_itself_alone(folder, kb):
  (good,) = read(folder, kb)
  fine = dict(text=TEXT, image=PICTURE, table=table_row([["1976", "Kite"]]))
  write(folder, f"{kb}s", *BAD[kb], fine[kb])
  *bad, last = read(folder, kb)
  assert last.id == good.id and len(bad) == len(BAD[kb])
  for line, row in enumerate(bad, 1):
    assert isinstance(row, RejectedRow) and row.cure
    assert row.where.endswith(f"MMQA_{kb}s.jsonl.gz:{line}")
