"""Question files: published ones as they are, broken ones refused by line."""

import json
import os
import pathlib
import re
import zipfile

import pytest
from PIL import Image

from r1router_jax.common import images
from r1router_jax.common.errors import UserError
from r1router_jax.data import benchmark_images, benchmark_schema
from r1router_jax.data.benchmarks import BENCHMARK_SPECS, load_benchmark
from tests.data.shared_rows import REFERENCE, needs_reference, write_rows

INFOSEEK = dict(data_id="a", image_id="oven_1", question="What is it?")
INFOSEEK |= dict(answer=["x"], answer_eval=["x", "y"])
NUMERIC = dict(data_id="b", image_id="oven_2", question="How many?")
NUMERIC |= dict(answer=["6.5-7.0"])
NUMERIC |= dict(answer_eval=[dict(wikidata=6.75, range=[6.5, 7])])
DYN_VQA = dict(question_id="en1", image_id=1, question="Who?")
DYN_VQA |= dict(answer=["谁", 7], gloden_query=float("nan"))
PLAIN = dict(question="Is it?", answer="yes")
HOP = dict(sub_question="Is it?", routes=["text"], answers=["yes"])
ROWS = {
  "infoseek": [INFOSEEK, NUMERIC],
  "dyn_vqa": [DYN_VQA],
  "webqa": [dict(question="Which?", answer=['"That."'], image_id="30")],
  "openwikitqa": [PLAIN, PLAIN],
  "tabfact": [PLAIN],
  "2wikimultihopqa": [PLAIN | dict(answer=["no", 3])],
}
WANTED_NUMBER = "b", "oven_2", ("6.5-7.0",), (6.5, 7.0)


def paint(path, shade=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("L", (30, 30), shade).save(path)
  return path.read_bytes()


def published(folder, name, rows=None):
  write_rows(folder / BENCHMARK_SPECS[name].file, rows or ROWS[name])
  return str(folder)


@pytest.mark.parametrize(
  "name, wanted",
  [
    ("infoseek", [("a", "oven_1", ("x", "y"), ()), WANTED_NUMBER]),
    ("dyn_vqa", [("en1", "1", ("谁", "7"), ())]),
    ("webqa", [("0", "30", ('"That."',), ())]),
    ("openwikitqa", [("0", "", ("yes",), ()), ("1", "", ("yes",), ())]),
    ("tabfact", [("0", "", ("yes",), ())]),
    ("2wikimultihopqa", [("0", "", ("no", "3"), ())]),
  ],
)
def test_question_records(tmp_path, name, wanted):
  found = load_benchmark(name, published(tmp_path, name))
  triples = zip(found, ROWS[name], wanted, strict=True)
  for question, row, (id, image, *golds) in triples:
    assert (question.id, question.text) == (f"{name}/{id}", row["question"])
    assert [question.answers, question.interval] == golds
    assert os.path.basename(question.image) == image
    assert not image or not os.path.exists(question.image)
    assert (question.family, question.benchmark) == (name, name)
    assert question.hops is None
  file = tmp_path / BENCHMARK_SPECS[name].file
  file.rename(tmp_path / f"{name}.jsonl")
  assert load_benchmark(name, str(tmp_path)) == found


def test_missing_files_are_named(tmp_path):
  with pytest.raises(ValueError, match="No benchmark 'x'; known: georouter"):
    load_benchmark("x")
  with pytest.raises(FileNotFoundError, match=r"DynVQA.*or.*dyn_vqa\.jsonl"):
    load_benchmark("dyn_vqa", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="Name your file"):
    load_benchmark("jsonl", str(tmp_path / "mine.jsonl"))
  with pytest.raises(FileNotFoundError, match="no images"):
    load_benchmark("webqa", published(tmp_path, "webqa"), "/nowhere")


def test_short_file_is_warned_about(tmp_path, caplog):
  load_benchmark("tabfact", published(tmp_path, "tabfact"))
  assert "has 1 rows, tabfact was published with 1000" in caplog.text


def lacks(row, key):
  return {k: v for k, v in row.items() if k != key}


def jsonl(**parts):
  return dict(question="q", answer="a") | parts


def ranged(value):
  return NUMERIC | dict(answer_eval=[dict(range=value)])


@pytest.mark.parametrize(
  "name, row, reason",
  [
    ("tabfact", b"[", "not JSON"),
    ("tabfact", b'{"question": "\xff"}', "not UTF-8 at byte 14"),
    ("tabfact", [], "it is no object"),
    ("tabfact", lacks(PLAIN, "question"), '"question" is None'),
    ("tabfact", PLAIN | dict(question=" "), "\"question\" is ' '"),
    ("tabfact", PLAIN | dict(question=3), '"question" is 3'),
    ("tabfact", lacks(PLAIN, "answer"), '"answer" is None'),
    ("tabfact", PLAIN | dict(answer=""), "\"answer\" is ''"),
    ("tabfact", PLAIN | dict(answer=[]), "none empty"),
    ("tabfact", PLAIN | dict(answer=["x", None]), "none empty"),
    ("tabfact", PLAIN | dict(answer=[True]), "none empty"),
    ("tabfact", PLAIN | dict(answer=float("nan")), "none empty"),
    ("infoseek", lacks(INFOSEEK, "answer_eval"), '"answer_eval" is None'),
    ("infoseek", lacks(INFOSEEK, "data_id"), '"data_id" is None'),
    ("infoseek", lacks(INFOSEEK, "image_id"), '"image_id" is None'),
    ("infoseek", INFOSEEK | dict(image_id="../b/a"), "leads out of"),
    ("infoseek", INFOSEEK | dict(image_id="b/a"), "without folders"),
    ("infoseek", lacks(NUMERIC, "answer"), '"answer" is None'),
    ("infoseek", NUMERIC | dict(answer_eval=[{}, "x"]), "interval and more"),
    ("infoseek", ranged(None), '"range" is None, wanted .low, high.'),
    ("infoseek", ranged([1]), "wanted .low, high."),
    ("infoseek", ranged([2, 1]), "low <= high"),
    ("infoseek", ranged([1, True]), "wanted .low, high."),
    ("dyn_vqa", DYN_VQA | dict(image_id=True), '"image_id" is True'),
    ("jsonl", jsonl(id=""), "\"id\" is ''"),
    ("jsonl", jsonl(id=[1]), r'"id" is \[1\]'),
    ("jsonl", jsonl(image=3), '"image" is 3'),
    ("jsonl", jsonl(image="/etc/passwd"), "leads out of"),
    ("jsonl", jsonl(image="../x.png"), "leads out of"),
    ("jsonl", jsonl(interval=[0, 1e16]), "neither beyond 1e.15"),
    ("jsonl", jsonl(interval=[0, 10**400]), "neither beyond 1e.15"),
    ("jsonl", b'{"question": "q", "answer": 1e999}', "too large"),
    ("jsonl", b'{"question": "' + b"q" * (1 << 20) + b'"}', "longer than"),
    ("jsonl", b"[" * 100_000, "nested too deeply"),
    ("jsonl", jsonl(interval="1-2"), "wanted .low, high."),
    ("jsonl", jsonl(interval=[1, float("nan")]), "wanted .low, high."),
    ("jsonl", b'{"question": "q", "question": "r"}', "occurs twice"),
    ("jsonl", jsonl(hops=2), '"hops" is 2, wanted a list of at most 3'),
    ("jsonl", jsonl(hops=[HOP | dict(routes=["web"])]), "text, image, table"),
    ("jsonl", jsonl(hops=[HOP | dict(answers=["\0"])]), "control character"),
  ],
)
def test_broken_row_is_an_error_with_its_line(tmp_path, name, row, reason):
  good = ROWS.get(name, [jsonl(id=0)])[0]
  path = write_rows(tmp_path / f"{name}.jsonl", [good, b"", row])
  with pytest.raises(ValueError) as caught:
    load_benchmark(name, path if name == "jsonl" else str(tmp_path))
  said = str(caught.value)
  assert "1 of 2 rows cannot be used" in said and f"{path}:3: " in said
  assert re.search(reason, said), said


def test_many_faults_are_counted_and_the_first_named(tmp_path):
  path = write_rows(tmp_path / "mine.jsonl", [[]] * 9)
  with pytest.raises(ValueError, match="9 of 9 rows .*:5: .*And 4 more"):
    load_benchmark("jsonl", path)
  with pytest.raises(ValueError, match="is empty"):
    load_benchmark("jsonl", write_rows(tmp_path / "mine.jsonl", []))


def test_duplicate_id_is_rejected(tmp_path):
  folder = published(tmp_path, "infoseek", [INFOSEEK, NUMERIC, INFOSEEK])
  with pytest.raises(ValueError, match=r":1 and \S+:3 both have the id .*/a'"):
    load_benchmark("infoseek", folder)
  path = write_rows(tmp_path / "mine", [jsonl(), jsonl(id=0)])
  with pytest.raises(ValueError, match=r"mine:1 and \S+:2 both.*jsonl/0"):
    load_benchmark("jsonl", path)


# ---- Pictures.


def test_images_in_folders(tmp_path, caplog):
  folder, place = published(tmp_path, "infoseek"), tmp_path / "oven"
  wanted = paint(place / "06" / "oven_2.JPEG")
  paint(place / "oven_22.png", 1)
  (place / "oven_1.txt").write_text("no picture")
  first, second = load_benchmark("infoseek", folder, str(place))
  assert images.read_image_bytes(second.image) == wanted
  assert not os.path.exists(first.image)
  assert "1 questions miss their image ('oven_1')" in caplog.text
  assert "Add them to" in caplog.text
  with pytest.raises(images.BadImage, match="oven_1"):
    images.load_image(first.image)  # What the router tries.


def test_links_out_of_a_folder_of_images_are_not_followed(tmp_path, caplog):
  folder, place = published(tmp_path, "infoseek"), tmp_path / "oven"
  paint(tmp_path / "private.png")
  place.mkdir()
  (place / "oven_1.png").symlink_to(tmp_path / "private.png")
  (place / "oven_2.png").symlink_to(tmp_path / "nowhere.png")
  found = load_benchmark("infoseek", folder, str(place))
  assert not any(os.path.exists(question.image) for question in found)
  assert "2 questions miss their image" in caplog.text


def test_images_in_a_zip(tmp_path):
  folder, place = published(tmp_path, "infoseek"), str(tmp_path / "oven.zip")
  data = paint(tmp_path / "some" / "a.jpg")
  with zipfile.ZipFile(place, "w") as archive:
    archive.writestr("../../oven_1.JPG", data)
    archive.writestr("deep/er/oven_2.jpg", data[:-1])
    archive.writestr("unwanted.jpg", data)
  found = load_benchmark("infoseek", folder, place)
  stored = [images.read_image_bytes(question.image) for question in found]
  assert stored == [data, data[:-1]]


def test_hostile_zip_is_rejected(tmp_path, monkeypatch):
  folder, place = published(tmp_path, "webqa"), tmp_path / "some.zip"

  def load():
    return load_benchmark("webqa", folder, str(place))

  place.write_bytes(b"PK nothing")
  with pytest.raises(UserError, match="cannot be unpacked"):
    load()
  with zipfile.ZipFile(place, "w") as archive:
    archive.writestr("30.png", b"12345678" * 20)
  with monkeypatch.context() as patch:
    patch.setattr(images, "MAX_BYTES", 100)
    with pytest.raises(UserError, match="'30.png' has 160 bytes, wanted at mo"):
      load()
  place.write_bytes(place.read_bytes().replace(b"2345", b"2340", 1))
  with pytest.raises(UserError, match="cannot be unpacked.*CRC"):
    load()


@pytest.mark.parametrize("method", ["STORED", "DEFLATED", "BZIP2", "LZMA"])
@pytest.mark.parametrize("at", [0.05, 0.3, 0.6, 0.9])
def test_damaged_member_is_named(tmp_path, method, at):
  """Decoders of bzip2 and LZMA raise other errors than zipfile's."""
  place, data = str(tmp_path / "some.zip"), bytes(range(256)) * 40
  with zipfile.ZipFile(
    place, "w", getattr(zipfile, f"ZIP_{method}")
  ) as archive:
    archive.writestr("30.png", data)
    size = archive.getinfo("30.png").compress_size
  start = 30 + len("30.png")  # Behind the local header.
  content = bytearray(pathlib.Path(place).read_bytes())
  for i in range(int(size * at), min(size, int(size * at) + 40)):
    content[start + i] ^= 0x5A
  pathlib.Path(place).write_bytes(content)
  found = benchmark_images.find_images(place, ["30"])
  with pytest.raises(UserError, match="some.zip: '30.png': cannot be unpacked"):
    found["30"].read()


def test_image_of_no_bytes_counts_as_missing(tmp_path, caplog):
  (tmp_path / "30.png").touch()
  folder = published(tmp_path, "webqa")
  (question,) = load_benchmark("webqa", folder, str(tmp_path))
  assert question.image and not os.path.exists(question.image)
  assert "30.png': has 0 bytes" in caplog.text and "webqa_val" in caplog.text


def test_user_file(tmp_path):
  data = paint(tmp_path / "pictures" / "a.png", 3)
  rows = [
    jsonl(id="x", image="pictures/a.png"),
    jsonl(answer=[1, "uno"], image="pictures/b.png"),
    jsonl(answer=3, interval=[-2, 4]),
  ]
  path = write_rows(tmp_path / "mine.jsonl", rows)
  found = load_benchmark("jsonl", path)
  assert [q.id for q in found] == ["jsonl/x", "jsonl/1", "jsonl/2"]
  assert [q.answers for q in found] == [("a",), ("1", "uno"), ("3",)]
  assert [q.interval for q in found] == [(), (), (-2.0, 4.0)]
  assert images.read_image_bytes(found[0].image) == data
  assert found[1].image.endswith("/b.png") and found[2].image == ""
  # Images may lie elsewhere.
  os.rename(tmp_path / "pictures", tmp_path / "other")
  write_rows(tmp_path / "mine.jsonl", [jsonl(image="a.png")])
  (only,) = load_benchmark("jsonl", path, str(tmp_path / "other"))
  assert images.read_image_bytes(only.image) == data


# ---- What R1-Router published.


@needs_reference
def test_published_files(caplog):
  found = {name: load_benchmark(name, str(REFERENCE)) for name in ROWS}
  for name, questions in found.items():
    wanted = BENCHMARK_SPECS[name]
    assert len(questions) == wanted.count
    assert all(bool(q.image) == bool(wanted.images) for q in questions)
  assert "was published with" not in caplog.text

  def count(name, test):
    return sum(bool(test(question)) for question in found[name])

  def says_yes_or_no(question):
    return question.answers[0].lower() in ("yes", "no")

  def is_chinese(question):
    return re.search("[\u4e00-\u9fff]", "".join(question.answers))

  assert count("infoseek", lambda q: q.interval) == 248
  assert count("dyn_vqa", is_chinese) == 442
  assert count("openwikitqa", lambda q: "–" in q.answers[0]) == 107
  assert count("tabfact", lambda q: q.answers == ("yes",)) == 522
  assert count("2wikimultihopqa", says_yes_or_no) == 309
  numeric = (REFERENCE / "infoseek_val.jsonl").read_text().split("\n")[2]
  answers = benchmark_schema.parse_answers("infoseek", json.loads(numeric))
  assert answers == (("6.5-7.0",), (6.5, 7.0))
