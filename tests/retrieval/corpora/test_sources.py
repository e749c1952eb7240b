import bz2
import csv
import gzip
import io
import json
import re

import pytest
from PIL import Image

from r1router_jax.common.records import Passage
from r1router_jax.common.row_files import RejectedRow
from r1router_jax.retrieval.corpora import sources
from tests.retrieval.corpora import plain_reader

GOOD = b'{"id": "a", "text": "b"}\n'


def read(tmp_path, data, kb="text", name="rows.jsonl"):
  path = tmp_path / name
  path.write_bytes(data)
  return list(plain_reader.read_passages(kb, str(path)))


BAD = {
  "NaN": b'{"id": "x", "text": "y", "score": NaN}',
  "Infinity": b'{"id": "x", "text": "y", "score": -Infinity}',
  "too large": b'{"id": "x", "text": "y", "score": 1e999}',
  "twice": b'{"id": "x", "text": "y", "text": "z"}',
  "nested": b"[" * 100_000,
  "digits": b'{"id": "x", "text": "y", "n": ' + b"9" * 5000 + b"}",
  "UTF-8 at byte 21": b'{"id": "x", "text": "\xff"}',
  "control character '\\\\x00'": b'{"id": "x", "text": "a\\u0000b"}',
  "not JSON": b'{"id": "x", "text": "a\x01b"}',
  "Extra data": b'{"id": "x", "text": "y"} {"id": "z", "text": "y"}',
  "Unterminated": b'{"id": "x", "text": "y',
  "a list": b"[1, 2]",
  "a str ": b'"text"',
  "a NoneType": b"null",
  '"id" is missing': b'{"text": "y"}',
  '"text" is missing': b'{"id": "x", "text": "  \\n"}',
  '"id" is a bool': b'{"id": true, "text": "y"}',
  '"id" is a float': b'{"id": 1.5, "text": "y"}',
  '"text" is a list': b'{"id": "x", "text": ["y"]}',
  "longer than": b'{"id": "x", "text": "' + b"a" * (3 << 20) + b'"}',
}


@pytest.mark.parametrize("words", BAD)
def test_bad_row_is_rejected_and_the_next_is_read(tmp_path, words):
  bad, good = read(tmp_path, BAD[words] + b"\n" + GOOD)
  assert isinstance(bad, RejectedRow)
  assert bad.where == f"{tmp_path}/rows.jsonl:1"
  assert words.replace("\\\\", "\\") in bad.reason and bad.cure
  assert good == Passage(id="a", kb="text", text="b", score=good.score)


def test_byte_order_mark_and_line_ends_are_accepted(tmp_path):
  windows = b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n")
  for data in (windows, GOOD[:-1], b"\n  \n" + GOOD + b"\n"):
    (passage,) = read(tmp_path, data)
    assert (passage.id, passage.text) == ("a", "b"), data


def test_utf_16_is_rejected(tmp_path):
  found = read(tmp_path, GOOD.decode().encode("utf-16"))
  assert found and all(isinstance(row, RejectedRow) for row in found)
  assert "UTF-8" in found[0].reason


def test_lines_end_at_line_feeds_alone(tmp_path):
  (passage,) = read(tmp_path, '{"id": "a", "text": "b\u2028c\x85d"}\n'.encode())
  assert passage.text == "b\u2028c\x85d"


def test_repeated_id_is_rejected(tmp_path):
  other = GOOD.replace(b'"a"', b'"c"')
  first, second, third = read(tmp_path, GOOD + GOOD + other)
  assert second.where.endswith(":2") and "'a' came before" in second.reason
  assert (first.id, third.id) == ("a", "c")


def test_long_texts_become_windows(tmp_path):
  words = [f"w{i}" for i in range(175)]
  row = json.dumps(dict(id="a", title="T", text=" ".join(words))).encode()
  passages = read(tmp_path, row)
  assert [p.id for p in passages] == ["a#0", "a#1", "a#2"]
  for passage, start in zip(passages, (0, 50, 75), strict=True):
    assert passage.text == " ".join(["T", *words[start : start + 100]])


def test_whole_rows_are_kept_unchanged(tmp_path):
  text = " two  spaces\n" + "word " * 150
  whole = dict(id="a#0", text=text, whole=True)
  (passage,) = read(tmp_path, json.dumps(whole).encode())
  assert (passage.id, passage.text) == ("a#0", text)
  for wrong in (dict(whole="yes"), dict(text="")):
    (bad,) = read(tmp_path, json.dumps(whole | wrong).encode())
    assert isinstance(bad, RejectedRow), wrong
  Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
  whole |= dict(text="", image="a.png")
  (passage,) = read(tmp_path, json.dumps(whole).encode(), "image")
  assert (passage.text, passage.image) == ("", "a.png")


PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}


@pytest.mark.parametrize("end", PACK)
def test_pattern_of_compressed_files(tmp_path, end):
  for name, data in (
    ("passages-{}.jsonl", b'{"id": "%d", "text": "b"}\n'),
    ("rows-{}.csv", b"id,text\n%d,b\n"),
  ):
    for number in (2, 0, 1):
      path = tmp_path / (name.format(number) + end)
      path.write_bytes(PACK[end](data % number))
    pattern = tmp_path / (name.format("*") + end)
    found = plain_reader.read_passages("text", str(pattern))
    assert [p.id for p in found] == ["0", "1", "2"]


def test_damaged_file_is_an_error(tmp_path):
  rows = b"id,text\n" + b"a,b\n" * 99
  for name, good in (("a.jsonl.gz", GOOD * 99), ("a.csv.gz", rows)):
    for damaged in (gzip.compress(good)[:-9], good):
      with pytest.raises(ValueError, match=f"{name}: damaged"):
        read(tmp_path, damaged, name=name)


def test_reading_starts_at_any_row(tmp_path):
  for number in range(3):
    rows = [{"id": 10 * number + i, "text": "x"} for i in range(4)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / f"{number}.jsonl").write_text(lines)
  source = sources.open_source("text", str(tmp_path / "*.jsonl"))
  every = list(sources.read_raw_rows(source))
  assert len(every) == 12
  for start in range(13):
    assert list(sources.read_raw_rows(source, start)) == every[start:]
    assert list(sources.read_raw_rows(source, start, 7)) == every[start:7]


def test_contents_begin_with_a_title_in_quotes(tmp_path):
  """As in the dumps of Search-R1, FlashRAG and Pyserini."""
  rows = [
    dict(id="0", contents='"Aaron"\nAaron is a prophet.'),
    dict(id=1, contents='"The "old" hall"\r\nIt is old.'),
    dict(id="2", contents="Two lines\nof text."),
    dict(id="3", contents='""\nNo title.'),
    dict(id="4", contents='"It is," he said.\nAnd left.'),
    dict(id="5", title="Song", contents='"Song"\nla la'),
    dict(id="6", title=None, text="both", contents="other"),
  ]
  data = "".join(json.dumps(row) + "\n" for row in rows).encode()
  found = read(tmp_path, gzip.compress(data), name="rows.jsonl.gz")
  assert [(p.id, p.text) for p in found] == [
    ("0", "Aaron Aaron is a prophet."),
    ("1", 'The "old" hall It is old.'),
    ("2", "Two lines\nof text."),
    ("3", "No title."),
    ("4", '"It is," he said.\nAnd left.'),
    ("5", "Song la la"),
    ("6", "both"),
  ]
  for wrong in (
    dict(contents=["a"]),
    dict(contents=""),
    dict(contents='"a"\n'),
  ):
    (bad,) = read(tmp_path, json.dumps(dict(id="a") | wrong).encode())
    assert isinstance(bad, RejectedRow), wrong


def test_rows_may_be_whole_passages(tmp_path):
  path = tmp_path / "rows.jsonl"
  row = dict(id="a", title="T", text="word " * 150)
  path.write_text(json.dumps(row))
  for whole, ids in ((True, ["a"]), (False, ["a#0", "a#1"])):
    source = sources.open_source("text", str(path), whole=whole)
    ((where, raw),) = sources.read_raw_rows(source)
    _, passages = sources.parse_row(source, where, raw)
    assert [passage.id for passage in passages] == ids


DIALECTS = {
  "semicolons": 'id;text\n1;"a; b"\n2;c, d\n3;e, f\n',
  "decimals": "id;text\n1;1,5\n2;2,5\n",
  "tabs": "id\ttext\n1\ta; b\n2\tc, d\n",
  "bars": "id|text\n1|a\n2|b\n",
  "a mark": "\ufeffid;text\n1;a\n2;b\n",
  "Excel": "sep=;\r\nid;text\r\n1;a\r\n2;b\r\n",
  "all quoted": '"id";"text"\n"1";"a"\n"2";"b ""c"""\n',
  "line breaks": 'id;text\n1;"a\nb, c, d\n;"\n2;c\n',
  "a bad row": "id;text\n1;a\n2\n3;b\n",
  "semicolons in texts": "id,text\n1,a;b\n2,c;d\n",
}


@pytest.mark.parametrize("name", DIALECTS)
def test_separator_of_a_csv_file_is_found(tmp_path, name):
  data = DIALECTS[name].encode()
  found = read(tmp_path, data, name="rows.csv")
  (delimiter,) = (
    x for x in ",;\t|" if f"id{x}t" in data.decode().replace('"', "")
  )
  # By the csv module, told of the separator.
  lines = data.decode("utf-8-sig").removeprefix("sep=;\r\n")
  wanted = [
    (row["id"], row["text"].strip())
    for row in csv.DictReader(io.StringIO(lines, ""), delimiter=delimiter)
    if row["text"] is not None
  ]
  good = [row for row in found if isinstance(row, Passage)]
  assert [(p.id, p.text) for p in good] == wanted and len(wanted) > 1
  bad = [str(row) for row in found if isinstance(row, RejectedRow)]
  assert len(bad) == (name == "a bad row")
  assert all("rows.csv:3: has not as many fields" in row for row in bad)


def test_lines_after_that_of_excel_are_counted(tmp_path):
  found = read(tmp_path, b"sep=;\nid;text\n1;a\n2\n", name="rows.csv")
  assert "rows.csv:4: " in str(found[1])


def test_passages_of_dpr_are_read(tmp_path):
  data = b'id\ttext\ttitle\n1\t"Aaron ( or ; ""Ah"") is"\tAaron\n'
  (passage,) = read(tmp_path, gzip.compress(data), name="psgs_w100.tsv.gz")
  assert (passage.id, passage.text) == ("1", 'Aaron Aaron ( or ; "Ah") is')


def test_row_in_another_encoding_costs_itself_and_is_told_the_cure(tmp_path):
  data = "id;text\n1;Caf\u00e9\n2;b\n".encode("cp1252")
  bad, good = read(tmp_path, data, name="rows.csv")
  assert "rows.csv:2: not UTF-8" in str(bad) and "iconv -f cp1252" in bad.cure
  assert good.id == "2"


def test_tables_are_flattened(tmp_path):
  table = dict(id="a", title="T", section_title="S", caption="C", name="n")
  table |= dict(header=["h", "i"], rows=[["1", 2], ["3", "4"]])
  (passage,) = read(tmp_path, json.dumps(table).encode(), "table")
  assert passage.text == (
    "[Title]T[Section title]S[Caption]C[Table name]n[Header]h[sep]i"
    "[Rows][Row]1[sep]2[Row]3[sep]4"
  )
  wrong_rows = [["1"]], [], "x", [[["1"], None]]
  for wrong in (dict(header=None), *(dict(rows=rows) for rows in wrong_rows)):
    (bad,) = read(tmp_path, json.dumps(table | wrong).encode(), "table")
    assert isinstance(bad, RejectedRow), wrong


@pytest.mark.parametrize(
  ("rows", "expected"),
  [
    ('1,"b, c"\n2\n3,d\n', [("1", "b, c"), ":3: has not as many", ("3", "d")]),
    ("1,b\r2,c\r", [("1", "b"), ("2", "c")]),
    ('1,"b\r\n2,c"\r\n\r\n3,d', [("1", "b\r\n2,c"), ("3", "d")]),
    ('1,"C:\\"\n2,"a ""b"""\n', [("1", "C:\\"), ("2", 'a "b"')]),
    (f"1,{'b' * 200_000}\n2,c\n", [("1", "b" * 200_000), ("2", "c")]),
    (f'1,"{"b," * 600_000}"\n2,c\n', [":2: longer than", ("2", "c")]),
    ("1,b\x00\n2,c\n", [":2: .*control character", ("2", "c")]),
    ("1,\udcff\n2,c\n", [":2: not UTF-8", ("2", "c")]),
  ],
)
def test_csv_rows(tmp_path, rows, expected):
  data = b"\xef\xbb\xbfid,text\n" + rows.encode(errors="surrogateescape")
  found = read(tmp_path, data, "table", "rows.csv")
  for row, wanted in zip(found, expected, strict=True):
    if isinstance(wanted, tuple):
      assert (row.id, row.text) == wanted
    else:
      assert re.search(f"rows.csv{wanted}", str(row))


@pytest.mark.parametrize(
  ("data", "message"),
  [
    ("a,b\n1,2\n", "at least id and text"),
    ("", "at least id and text"),
    ("id,text,text\n1,a,b\n", "one of them twice.  Name each column once"),
    ("id,text\udcff\n1,a\n", ":1: .*not UTF-8"),
    # Lines from inside of a quoted text must not become passages.
    ('id,text\n0,a\n1,"Say "hi".\nx,inside"\n2,b\n', ":3: .* at line 3"),
    ('id,text\n1,"A 3.5" disk\nx,inside"\n2,"b"\n', ":2: .* at line 2"),
    ('id,text\n1, "a\nx,inside"\n2,b\n', ":2: .* not quoted, at line 2"),
    ('id,text\n1,"He said \\"hi, you\\""\n2,b\n', ":2: .* at line 2"),
    ('id,text\n1,"open\n' + "2,b\n" * 30_000, ":2: .* end of data, at line"),
    ('id,text\n1,"open\n' + '2,"b, c"\n' * 9, ":2: .* at line 3"),
    ('id,text\n1,"' + ("b" * 99_999 + "\n") * 170, ":2: .*longer than 16,777"),
  ],
)
def test_csv_that_must_be_guessed_is_an_error(tmp_path, data, message):
  path = tmp_path / "rows.csv"
  path.write_bytes(data.encode(errors="surrogateescape"))
  found = plain_reader.read_passages("text", str(path))
  with pytest.raises(ValueError, match=f"rows.csv.*{message}"):
    for passage in found:
      assert passage.id == "0"  # Only what stands before the fault is read.


def test_folder_of_images(tmp_path):
  folder = tmp_path / "images"
  (folder / "b").mkdir(parents=True)
  for name in ("red_flag.png", "b/x.webp"):
    Image.new("RGB", (8, 8)).save(folder / name)
  (folder / "b/x.txt").write_text("A\n caption")
  (folder / "broken.jpg").write_bytes(b"no image")
  (folder / "notes.md").write_text("ignored")
  (folder / "moves.GIF").write_bytes(b"GIF89a")
  bad, gif, good, caption = plain_reader.read_passages("image", str(folder))
  assert (good.text, good.image) == ("red flag", "red_flag.png")
  assert (caption.id, caption.text) == ("b/x.webp", "A caption")
  assert "broken.jpg" in bad.where and "broken.jpg" in str(bad)
  assert "moves.GIF: not a PNG, JPEG or WEBP" in str(gif)


def test_images_outside_of_the_folder_are_rejected(tmp_path):
  for image in "../x.png /etc/passwd absent.png http://127.0.0.1/x.png".split():
    row = json.dumps(dict(id="a", text="b", image=image)).encode()
    (bad,) = read(tmp_path, row, "image")
    assert isinstance(bad, RejectedRow), image


@pytest.mark.parametrize(
  ("kb", "source", "words"),
  [
    ("text", "nowhere.jsonl", "does not exist"),
    ("text", "", "does not exist"),
    ("text", "x.docx", "none that the text.* a folder, or a .md, .html, .pdf"),
    ("image", "x.md", "none that the image.* a folder, or a .parquet"),
    ("text", "*.jsonl", "does not exist"),
    ("text", "wiki:.", "does not exist.* wikipedia:PATH"),
    ("text", "wikipedia:.", "holds no such file"),
    ("table", "wikipedia:.", "is for --kind=text, not table"),
  ],
)
def test_bad_source_is_refused(tmp_path, monkeypatch, kb, source, words):
  monkeypatch.chdir(tmp_path)
  for name in ("x.docx", "x.md"):
    (tmp_path / name).touch()
  with pytest.raises(ValueError, match=words):
    plain_reader.read_passages(kb, source)
