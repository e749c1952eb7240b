"""A folder of a user's own documents feeds all knowledge bases."""

import os

import pytest
from PIL import Image

from r1router_jax.common.row_files import RejectedRow
from r1router_jax.retrieval.corpora import documents, folders, sources
from tests.retrieval.corpora import plain_reader


@pytest.fixture
def folder(tmp_path):
  """A folder with a file of each kind."""
  (tmp_path / "rooms/shown").mkdir(parents=True)
  (tmp_path / ".git").mkdir()
  for name, text in {
    "guide.md": "# Guide\nThe *hall* is old\n## Tea\nTwo rooms.\n\n"
    "Cup | Price\n-|-\nsmall | 2\nlarge | 3\n\n![A kite](rooms/shown/x.png)\n",
    "rooms/old_hall.TXT": "It has\ntwo doors.\n\nNobody sleeps here",
    "rooms/prices-1900.csv": "Room,Price\nHall,3\nAttic,1\n",
    "rooms/doors.csv": '"# Doors, of oak",\nDoor,Age\nfront,100\n',
    "rows.csv": "id,title,text\nr1,Song,la la\n",
    "shown.csv": "id,text,image\ni1,a lamp,rooms/shown/lamp.png\n",
    "rooms/shown/blue_kite.txt": "A caption.\n",
    ".git/notes.md": "hidden",
    ".hidden.csv": "a,b\n1,2\n",
  }.items():
    (tmp_path / name).write_text(text)
  for name in ("x", "lamp", "blue_kite", "red_flag"):
    Image.new("RGB", (8, 8)).save(tmp_path / f"rooms/shown/{name}.png")
  return tmp_path


def read(kb, folder):
  return list(plain_reader.read_passages(kb, str(folder)))


def read_texts(kb, folder):
  return {passage.id: passage.text for passage in read(kb, folder)}


def test_documents_are_the_texts(folder):
  assert read_texts("text", folder) == {
    "guide.md": "Guide. The hall is old.",
    "guide.md#tea": "Guide. Tea. Two rooms. A kite.",
    "rooms/old_hall.TXT": "old hall. It has two doors. Nobody sleeps here.",
    "r1": "Song la la",
  }


def test_csv_files_and_pipe_tables_are_the_tables(folder):
  empty = "[Caption][Table name]"
  assert read_texts("table", folder) == {
    "guide.md/table-1": f"[Title]Guide[Section title]Tea{empty}"
    "[Header]Cup[sep]Price[Rows][Row]small[sep]2[Row]large[sep]3",
    "rooms/doors.csv": f"[Title]Doors, of oak[Section title]{empty}"
    "[Header]Door[sep]Age[Rows][Row]front[sep]100",
    "rooms/prices-1900.csv": f"[Title]prices 1900[Section title]{empty}"
    "[Header]Room[sep]Price[Rows][Row]Hall[sep]3[Row]Attic[sep]1",
  }


def test_images_have_captions_from_three_places(folder):
  assert [(p.id, p.text, p.image) for p in read("image", folder)] == [
    ("i1", "a lamp", "rooms/shown/lamp.png"),
    ("rooms/shown/blue_kite.png", "A caption.", "rooms/shown/blue_kite.png"),
    ("rooms/shown/lamp.png", "lamp", "rooms/shown/lamp.png"),
    ("rooms/shown/red_flag.png", "red flag", "rooms/shown/red_flag.png"),
    ("rooms/shown/x.png", "A kite", "rooms/shown/x.png"),
  ]


def test_long_section_becomes_windows(tmp_path):
  words = [f"w{i}" for i in range(170)]
  (tmp_path / "a.md").write_text("## B\n" + "\n".join(words))
  passages = read("text", tmp_path)
  assert [p.id for p in passages] == ["a.md#b#0", "a.md#b#1", "a.md#b#2"]
  for passage, start in zip(passages, (0, 50, 70), strict=True):
    text = " ".join(["a. B.", *words[start : start + 100]])
    assert passage.text == text + ("." if start == 70 else "")


def test_section_and_window_of_one_number_have_two_ids(tmp_path):
  sections = "## 1\nShort.\n## 2\nShort.\n"
  for words, ids in (
    (150, ["a.md#0", "a.md#1", "a.md#section-1", "a.md#2"]),
    (100, ["a.md", "a.md#1", "a.md#2"]),
  ):
    (tmp_path / "a.md").write_text(f"{'word ' * words}\n{sections}")
    assert [p.id for p in read("text", tmp_path)] == ids


def cut_rows(tmp_path, rows, header="a,b"):
  """Return the rows of each chunk of a table, as they were flattened."""
  (tmp_path / "t.csv").write_text("\n".join([header, *rows]) + "\n")
  passages = read("table", tmp_path)
  for number, passage in enumerate(passages):
    assert passage.id == (f"t.csv#{number}" if len(passages) > 1 else "t.csv")
    head = "[Header]" + header.replace(",", "[sep]")
    assert passage.text.startswith("[Title]t[Section title]")
    assert head in passage.text
  texts = [passage.text.split("[Rows][Row]")[1] for passage in passages]
  return [text.split("[Row]") for text in texts]


def test_long_table_is_cut_into_chunks_of_rows(tmp_path):
  rows = [f"{i},x" for i in range(25)]
  chunks = cut_rows(tmp_path, rows)
  flat = [f"{i}[sep]x" for i in range(25)]
  assert chunks == [flat[:12], flat[12:24], flat[24:]]
  # A full table is one chunk.
  assert len(cut_rows(tmp_path, rows[:12])) == 1
  # Chunks of at most 90 words: of 41 words each, two rows fit.
  wordy = [f"{i},{'word ' * 40}" for i in range(5)]
  assert [len(chunk) for chunk in cut_rows(tmp_path, wordy)] == [2, 2, 1]


def test_long_cell_is_cut(tmp_path):
  ((row,),) = cut_rows(tmp_path, [f"1,{'b' * 900}"])
  assert row == f"1[sep]{'b' * 300}…"
  # White space inside of a cell is one space, control characters are gone.
  ((row,),) = cut_rows(tmp_path, ['1,"two\n  lines\x1b here"'])
  assert row == "1[sep]two lines here"


def test_long_name_of_a_column_is_cut(tmp_path):
  (tmp_path / "t.csv").write_text(f"{'b' * 300}\n1\n")
  (passage,) = read("table", tmp_path)
  assert f"[Header]{'b' * 100}…[Rows]" in passage.text


@pytest.mark.parametrize(
  "lines, title, header",
  [
    ("# Old trees\nTree,Age\nOak,9", "Old trees", "Tree[sep]Age"),
    # A spreadsheet adds commas; the title may have its own.
    ("# Old trees,\nTree,Age\nOak,9", "Old trees", "Tree[sep]Age"),
    ("# Old, tall trees\nTree\nOak", "Old, tall trees", "Tree"),
    # The name of a column.
    ("# of visitors,Year\n31,1900", "t", "# of visitors[sep]Year"),
  ],
)
def test_title_above_the_header(tmp_path, lines, title, header):
  (tmp_path / "t.csv").write_text(lines + "\n")
  (passage,) = read("table", tmp_path)
  assert passage.text.startswith(f"[Title]{title}[Section title]")
  assert f"[Header]{header}[Rows]" in passage.text


def test_subfolder_that_cannot_be_read_is_named(folder, monkeypatch):
  scan = os.scandir

  def refuse(path):
    if str(path).endswith("rooms"):
      raise PermissionError(13, "Permission denied", str(path))
    return scan(path)

  monkeypatch.setattr(os, "scandir", refuse)
  rejected, *others = read("text", folder)
  assert str(rejected).endswith("Check its permissions.")
  assert "rooms: cannot be read (Permission denied)" in str(rejected)
  assert others and not any("rooms" in passage.id for passage in others)


def test_title_of_a_csv_file_is_one_short_line(tmp_path):
  (tmp_path / "t.csv").write_text(f"# a\x1b{'b' * 200}\nc\n1\n")
  (passage,) = read("table", tmp_path)
  assert passage.text.startswith(f"[Title]a {'b' * 98}[Section title]")


BAD_FILES = {
  "a.md": (b"\xff\xfea\x00", "it holds zero bytes"),
  "b.txt": (b"a \xe4", "not UTF-8 at byte 2"),
  "c.md": (b"word " * 900_000, "larger than 4,194,304 bytes"),
  "d.csv": (b"a,b\n1,2\n3\n4,5\n", ":3: has not as many fields"),
  "e.csv": (b'a,b\n1,2\n"3,4\n', ":3: the row that begins here is not CSV"),
  "g.csv": (b"", "a table without a header"),
  "h.csv": (b",".join([b"a"] * 101) + b"\n", ":1: 101 columns"),
  "i.csv": (b"a,\xff\n1,2\n", ":1: its first line is not UTF-8"),
  "j.csv.gz": (b"no gzip", "damaged"),
  "k.gif": (b"GIF89a", "not a PNG, JPEG or WEBP"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_named_and_its_neighbours_are_read(tmp_path, name):
  data, reason = BAD_FILES[name]
  (tmp_path / name).write_bytes(data)
  (tmp_path / "zz.csv").write_text("c,d\n1,2\n")
  (tmp_path / "zz.md").write_text("good")
  Image.new("RGB", (8, 8)).save(tmp_path / "zz.png")
  rejected = []
  for kb in ("text", "table", "image"):
    rows = read(kb, tmp_path)
    rejected += [row for row in rows if isinstance(row, RejectedRow)]
    assert any(getattr(row, "id", "").startswith("zz") for row in rows), kb
  assert rejected
  for row in rejected:
    assert str(row).startswith(f"{tmp_path}/{name}") and reason in str(row)
    assert row.cure


def test_what_stands_before_a_fault_of_a_table_is_read(tmp_path):
  (tmp_path / "d.csv").write_bytes(BAD_FILES["d.csv"][0])
  bad, good = read("table", tmp_path)
  assert isinstance(bad, RejectedRow)
  assert good.text.endswith("[Rows][Row]1[sep]2[Row]4[sep]5")


def test_links_out_of_the_folder_and_pipes_are_not_opened(tmp_path):
  (tmp_path / "secret.md").write_text("secret")
  folder = tmp_path / "folder"
  folder.mkdir()
  (folder / "a.md").symlink_to(tmp_path / "secret.md")
  (folder / "b.md").symlink_to(tmp_path / "nowhere.md")
  (folder / "c.md").symlink_to(folder / "d.md")
  (folder / "d.md").write_text("inside")
  (folder / "e.csv").symlink_to(tmp_path / "secret.md")
  os.mkfifo(folder / "f.md")
  Image.new("RGB", (8, 8)).save(folder / "g.png")
  (folder / "g.txt").symlink_to(tmp_path / "secret.md")
  out, absent, linked, plain, table, pipe = read("text", folder)
  (caption,) = (row for row in read("image", folder) if "g.txt" in str(row))
  for row in (out, absent, table, caption):
    assert "leads out of the folder" in row.reason
  assert (linked.text, plain.text) == ("c. inside.", "d. inside.")
  assert "no regular file" in pipe.reason


def test_folder_feeds_the_kinds_that_it_has_something_for(folder, tmp_path):
  assert sources.choose_kbs(str(folder)) == ("text", "image", "table")
  assert sources.choose_kbs(str(folder), ["table"]) == ("table",)
  shown = folder / "rooms/shown"
  assert sources.choose_kbs(str(shown)) == ("image",)
  assert sources.choose_kbs(str(folder / "guide.md")) == ("text", "table")
  assert sources.choose_kbs(str(folder / "rooms/doors.csv")) == ("table",)
  (folder / "ROOMS.CSV").write_text("a,b\n1,2\n")
  assert sources.choose_kbs(str(folder / "ROOMS.CSV")) == ("table",)
  assert sources.choose_kbs("georouter") == ("text", "image", "table")
  assert sources.choose_kbs("wikipedia:x") == ("text",)
  for several in ("rows.csv", "*.jsonl"):
    with pytest.raises(ValueError, match="can feed one.*--kind=text"):
      sources.choose_kbs(str(folder / several))


def test_folder_with_nothing_to_read_is_refused(tmp_path, caplog):
  (tmp_path / "x.docx").touch()
  with pytest.raises(ValueError, match="nothing of it can be used.*It is empt"):
    sources.choose_kbs(str(tmp_path))
  (tmp_path / "bad.md").write_bytes(b"\xff")
  (tmp_path / "bad.png").write_bytes(b"\xff")
  with pytest.raises(ValueError, match="first of 2 faults.*bad.md: not UTF-8"):
    sources.choose_kbs(str(tmp_path))
  # A kind that has faults alone is named, and left out.
  (tmp_path / "good.md").write_text("good")
  with caplog.at_level("WARNING", "absl"):
    assert sources.choose_kbs(str(tmp_path)) == ("text",)
  assert "bad.png" in caplog.text


def test_unread_files_are_counted(folder, caplog):
  for name in ("a.docx", "b.DOCX", "LICENSE", "rows.jsonl"):
    (folder / name).touch()
  with caplog.at_level("WARNING", "absl"):
    folders.warn_of_unread(str(folder))
  assert "not read: 2 .docx, 1 without an ending, 1 .jsonl." in caplog.text


def test_one_document_is_a_source(folder):
  guide = folder / "guide.md"
  assert list(read_texts("text", guide)) == ["guide.md", "guide.md#tea"]
  assert list(read_texts("table", guide)) == ["guide.md/table-1"]
  guide.write_bytes(b"\xff")
  (bad,) = read("text", guide)
  assert bad.where == str(guide) and "UTF-8" in bad.reason


def test_name_of_a_file_is_a_title():
  for path, title in {
    "a/red_flag-2.png": "red flag 2",
    "v1.2-notes.md": "v1.2 notes",
    "prices.csv.gz": "prices",
  }.items():
    assert documents.name_to_title(path) == title
