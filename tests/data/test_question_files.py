"""A user's questions: good rows as they are, each fault told by its line."""

import bz2
import gzip
import json
import re

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from r1router_jax.common import images
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Hop, Question
from r1router_jax.common.row_files import RowError
from r1router_jax.data import benchmarks, question_files

GOOD = dict(question="Who?", answer="Ann")
HOP = dict(sub_question="Where?", routes=["text", "table"], answers=["Rome"])
LONE = "\ud800"


def write(path, content):
  """Write bytes, a text whose lone surrogates are bytes, or rows of JSON."""
  if isinstance(content, list):
    content = "".join(
      row if isinstance(row, str) else json.dumps(row) + "\n" for row in content
    )
  if isinstance(content, str):
    content = content.encode(errors="surrogateescape")
  path.write_bytes(content)
  return str(path)


def read(path, folder=""):
  """Return what each line holds: a question, or its fault."""
  rows = question_files.check_images(
    question_files.read_questions(path, folder)
  )
  return {int(where.rpartition(":")[2]): row for where, row in rows}


def faults_of(path, folder=""):
  found = read(path, folder).items()
  return {line: str(row) for line, row in found if isinstance(row, RowError)}


# ---- What is read.


def test_all_keys_of_a_row(tmp_path):
  Image.new("L", (30, 30)).save(tmp_path / "a.png")
  row = dict(question="Q?", answers=["a", 2, 2.5], id=7, image="a.png")
  row |= dict(family="toys", interval=[1, 2], hops=[HOP])
  path = write(tmp_path / "shop.jsonl", [row])
  (question,) = question_files.load_questions(path)
  assert question == Question(
    id="shop/7",
    text="Q?",
    answers=("a", "2", "2.5"),
    image=str(tmp_path / "a.png"),
    family="toys",
    hops=(Hop("Where?", ("text", "table"), ("Rome",)),),
    interval=(1.0, 2.0),
  )


@pytest.mark.parametrize("name", ["shop.v2.csv", "my shop.csv.gz", "a.b.jsonl"])
def test_ids_are_of_the_file_and_the_line(tmp_path, name):
  table = b"\nquestion,answer\n\nQ?,A\n"
  if name.endswith(".gz"):
    table = gzip.compress(table)
  path = write(tmp_path / name, table if ".csv" in name else ["\n" * 3, GOOD])
  (question,) = question_files.load_questions(path)
  assert (
    question.id == {"s": "shop.v2/4", "m": "my shop/4", "a": "a.b/4"}[name[0]]
  )


def test_absent_hops_are_unknown_and_none_are_none(tmp_path):
  rows = [GOOD, GOOD | dict(hops=None), GOOD | dict(hops=[])]
  found = question_files.load_questions(write(tmp_path / "a.jsonl", rows))
  assert [question.hops for question in found] == [None, None, ()]
  assert [question.id for question in found] == ["a/1", "a/2", "a/3"]
  assert {question.family for question in found} == {"a"}


@pytest.mark.parametrize(
  "field, answers",
  [
    ("Ann", ("Ann",)),
    (" Ann ", ("Ann",)),
    ("Ann | Bob", ("Ann", "Bob")),
    ('"[""a|b"", 2]"', ("a|b", "2")),
    ('"Ann, ""the"" queen"', ('Ann, "the" queen',)),
    ("007", ("007",)),
    ('"two\r\nlines"', ("two\r\nlines",)),
    ("true", ("true",)),
  ],
)
@pytest.mark.parametrize("name", ["answer", "answers"])
def test_answers_in_a_csv_field(tmp_path, name, field, answers):
  path = write(tmp_path / "a.csv", f"id,question,{name}\n\n,Q?,{field}\n")
  (question,) = question_files.load_questions(path)
  assert question.answers == answers and question.text == "Q?"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_of_other_systems(tmp_path, end):
  lines = ["question,answer,hops,interval", "Q?,A", "R?,B,[]", "S?,3,,", ""]
  lines[1:3] = ["Q?,A,,", "R?,B,[],"]
  lines[3] = 'S?,3,,"[2, 4]"'
  path = write(tmp_path / "a.csv", "\ufeff" + end.join(lines))
  found = question_files.load_questions(path)
  assert [question.hops for question in found] == [None, (), None]
  assert [question.interval for question in found] == [(), (), (2.0, 4.0)]


@pytest.mark.parametrize("ending, pack", [("gz", gzip), ("bz2", bz2)])
@pytest.mark.parametrize(
  "kind, text", [("csv", "question,answer\nQ?,A\n"), ("jsonl", [GOOD])]
)
def test_compressed_files(tmp_path, ending, pack, kind, text):
  plain = (tmp_path / "plain", write(tmp_path / "plain", text))[0].read_bytes()
  path = write(tmp_path / f"a.{kind}.{ending}", pack.compress(plain))
  (question,) = question_files.load_questions(path)
  assert question.id.startswith("a/")
  write(tmp_path / f"a.{kind}.{ending}", pack.compress(plain * 99)[:-9])
  with pytest.raises(UserError, match=f"a.{kind}.{ending}: damaged"):
    question_files.load_questions(path)


PARQUET = dict(
  question=["Q?", "R?", None, "S?"],
  answers=[["a", "b"], ["c"], ["d"], []],
  hops=[[HOP], [], None, None],
  image=[None] * 4,
)


def test_parquet(tmp_path):
  table = pa.table(PARQUET)
  parquet.write_table(table, tmp_path / "a.parquet")
  found = read(str(tmp_path / "a.parquet"))
  assert (
    found[1].answers == ("a", "b") and found[1].hops[0].routes[1] == "table"
  )
  assert found[2].hops == ()
  assert 'no "question"' in str(found[3]) and "none empty" in str(found[4])


@pytest.mark.parametrize(
  "columns, message",
  [
    (dict(question=["Q?"]), "wanted question and answer"),
    (dict(question=["Q?"], answer=["A"], context=["c"]), "unknown .*context"),
    (dict(question=["Q?"], answer=[b"A"]), "'answer' is of type binary"),
    (
      dict(question=["Q?"], answer=["A"], image=[dict(bytes=b"", path="a")]),
      "'image' is of type struct",
    ),
  ],
)
def test_parquet_with_other_columns(tmp_path, columns, message):
  parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
  with pytest.raises(UserError, match=f"a.parquet: .*{message}"):
    read(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
  "columns, fault",
  [
    (dict(question=[3], answer=["A"]), '"question" is 3, wanted a text'),
    (dict(question=["Q?"], answer=[float("nan")]), '"answer" is nan'),
    (dict(question=["Q?"], answer=[True]), '"answer" is True'),
    (dict(question=["Q?"], answer=[[["A"]]]), '"answer" is '),
    (dict(question=["Q?"], answer=pa.array([0], pa.date32())), "date"),
    (dict(question=["Q?"], answer=["A"], hops=["x"]), '"hops" is '),
  ],
)
def test_parquet_with_values_of_other_types(tmp_path, columns, fault):
  parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
  assert fault in faults_of(str(tmp_path / "a.parquet"))[1]


def test_parquet_text_that_is_not_utf_8_costs_its_row(tmp_path):
  raw = pa.array([b"Q?", b"\xff"]).cast(pa.binary()).view(pa.string())
  table = pa.table(dict(question=raw, answer=["a", "b"]))
  parquet.write_table(table, tmp_path / "a.parquet")
  found = read(str(tmp_path / "a.parquet"))
  assert found[1].text == "Q?" and "cannot be read" in str(found[2])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 99, b"question,"])
def test_damaged_parquet_is_named(tmp_path, content):
  path = write(tmp_path / "a.parquet", content)
  with pytest.raises(UserError, match="a.parquet: is no intact Parquet file"):
    read(path)
  parquet.write_table(pa.table(PARQUET), path)
  good = (tmp_path / "a.parquet").read_bytes()
  for bad in (
    good[:10] + b"x" * 50 + good[60:],
    good.replace(b"question", b"\xffuestion"),
    good[:-9],
  ):
    with pytest.raises(UserError, match="a.parquet: is no intact Parquet"):
      read(write(tmp_path / "a.parquet", bad))


# ---- Faults of rows: the neighbours stay.


@pytest.mark.parametrize(
  "row, fault",
  [
    ("nonsense\n", "not JSON"),
    ("\udcff\udcfe\n", "not UTF-8 at byte 0"),
    ("[" * 9999 + "\n", "nested too deeply"),
    ('["Who?", "Ann"]\n', "it is no object"),
    ('[{"question": "Who?", "answer": "Ann"}]\n', "it is no object"),
    ("null\n", "it is no object"),
    ('{"question": "a", "question": "b"}\n', "'question' occurs twice"),
    ({}, 'it has no "question"'),
    (dict(question="Who?"), 'it has no "answer"'),
    (dict(question=None, answer="Ann"), 'it has no "question"'),
    (dict(question="Who?", answer=None), 'it has no "answer"'),
    (GOOD | dict(answers=["Ann"]), '"answer" and "answers"'),
    (GOOD | dict(colour="red"), "unknown keys ['colour']"),
    (GOOD | dict(Question="Who?"), "unknown keys ['Question']"),
    (GOOD | dict(question=3), '"question" is 3'),
    (GOOD | dict(question=["Who?"]), "\"question\" is ['Who?']"),
    (GOOD | dict(question=" \t"), '"question" is '),
    (GOOD | dict(question="a\x00b"), "control character '\\x00'"),
    (GOOD | dict(question="a" * 40_000), '"question" has 40,000 characters'),
    (GOOD | dict(question="a" * (1 << 20)), "longer than 1,048,576 bytes"),
    (GOOD | dict(answer=""), "\"answer\" is ''"),
    (GOOD | dict(answer=" "), "\"answer\" is ' '"),
    (GOOD | dict(answer=[]), '"answer" is []'),
    (GOOD | dict(answer=["Ann", " "]), "none empty"),
    (GOOD | dict(answer=["Ann", None]), "none empty"),
    (GOOD | dict(answer=[["Ann"]]), "none empty"),
    (GOOD | dict(answer={"a": 1}), "none empty"),
    (GOOD | dict(answer=True), "none empty"),
    (GOOD | dict(answer=float("nan")), "none empty"),
    (GOOD | dict(answer=float("inf")), "none empty"),
    (GOOD | dict(answer="a\x1b[31m"), "control character '\\x1b'"),
    (GOOD | dict(id=""), "\"id\" is ''"),
    (GOOD | dict(id=[1]), '"id" is [1]'),
    (GOOD | dict(id=True), '"id" is True'),
    (GOOD | dict(id="a\x07"), "control character"),
    (GOOD | dict(id=1), "it has the id 'a/1', as"),
    (GOOD | dict(family=3), '"family" is 3'),
    (GOOD | dict(interval=[2, 1]), "low <= high"),
    (GOOD | dict(interval="1-2"), "\"interval\" is '1-2'"),
    (GOOD | dict(image=3), '"image" is 3'),
    (GOOD | dict(image=" "), "\"image\" is ' '"),
    (GOOD | dict(image="no.png"), "no.png': cannot be opened (No such file"),
    (GOOD | dict(image="/etc/passwd"), "leads out of"),
    (GOOD | dict(image="../a.png"), "leads out of"),
    (GOOD | dict(image="C:\\a.png"), "not a plain file name"),
    (GOOD | dict(image="http://x/a.png"), "not a plain file name"),
    (GOOD | dict(image="folder"), "(Is a directory)"),
    (GOOD | dict(image="text.png"), "cannot identify image file"),
    (GOOD | dict(image="cut.png"), "truncated"),
    (GOOD | dict(hops="text"), "\"hops\" is 'text'"),
    (GOOD | dict(hops=[HOP] * 4), "at most 3 objects"),
    (GOOD | dict(hops=[HOP | dict(routes=[])]), "none of them empty"),
    (GOOD | dict(hops=[HOP | dict(routes=["web"])]), "text, image, table"),
    (GOOD | dict(hops=[HOP | dict(routes=["text"] * 2)]), "a route twice"),
    (GOOD | dict(hops=[HOP | dict(answers=[" "])]), "none of them empty"),
    (GOOD | dict(hops=[HOP | dict(sub_question="")]), "none of them empty"),
    (GOOD | dict(hops=[HOP | dict(colour=1)]), "at most 3 objects"),
    (GOOD | dict(hops=[HOP | dict(answers=["\x00"])]), "control character"),
  ],
)
def test_bad_row_costs_itself_alone(tmp_path, row, fault):
  (tmp_path / "folder").mkdir()
  write(tmp_path / "text.png", "text")
  Image.new("RGB", (99, 99), "red").save(tmp_path / "cut.png")
  write(tmp_path / "cut.png", (tmp_path / "cut.png").read_bytes()[:-99])
  found = faults_of(write(tmp_path / "a.jsonl", [GOOD, row, GOOD]))
  assert list(found) == [2] and fault in found[2], found


@pytest.mark.parametrize(
  "line, fault",
  [
    (",Ann,,", 'it has no "question"'),
    ("Who?,,,", 'it has no "answer"'),
    ("Who?, ,,", 'it has no "answer"'),
    ("Who?,Ann", "not as many fields"),
    ("Who?,Ann,,,,x", "not as many fields"),
    ("Who?,Ann||Bob,,", "none empty"),
    ('Who?,"[""Ann"", null]",,', "none empty"),
    ("Who?,[],,", '"answer" is []'),
    ("Who?,[Ann],,", '"answer" is not JSON'),
    ("Who?,[NaN],,", '"answer" is NaN is not JSON'),
    ("Wh\udcff?,Ann,,", "not UTF-8"),
    ("Wh\x00?,Ann,,", "control character '\\x00'"),
    ("Who?,Ann,no.png,", "no.png': cannot be opened (No such file"),
    ("Who?,Ann,,text", '"hops" is not JSON'),
    ("a" * 40_000 + ",Ann,,", '"question" has 40,000 characters'),
  ],
)
def test_bad_line_of_csv_costs_itself_alone(tmp_path, line, fault):
  text = f"question,answer,image,hops\nQ?,A,,\n{line}\nR?,B,,\n"
  found = faults_of(write(tmp_path / "a.csv", text))
  assert list(found) == [3] and fault in found[3], found


def test_second_of_two_ids_is_left_out(tmp_path):
  rows = [GOOD | dict(id="x"), GOOD | dict(id="x"), GOOD]
  path = write(tmp_path / "a.jsonl", rows)
  assert faults_of(path) == {
    2: f"it has the id 'a/x', as {path}:1 has; Name each question once"
  }


def test_faults_are_counted_and_named(tmp_path, caplog):
  path = write(tmp_path / "a.jsonl", [GOOD, {}, {}, GOOD])
  with caplog.at_level("WARNING", "absl"):
    assert len(question_files.load_questions(path)) == 2
  assert f'skipped {path}:2: it has no "question". Give' in caplog.text
  assert f"{path}, train: skipped 2 of 4" in caplog.text


# ---- Faults of files.


@pytest.mark.parametrize(
  "text",
  [
    "question;answer\nQ?;A, or a\n",
    "question\tanswer\nQ?\tA, or a\n",
    '"question";"answer"\n"Q?";"A, or a"\n',
  ],
)
def test_columns_may_have_other_separators(tmp_path, text):
  path = write(tmp_path / "a.csv", text)
  (question,) = question_files.load_questions(path)
  assert question.answers == ("A, or a",)


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "it is empty"),
    ("\n\n", "it is empty"),
    ("question,answer\n", "is empty"),
    ("Question,Answer\nQ?,A\n", "unknown columns .*'Question', 'Answer'"),
    ("question, answer\nQ?,A\n", "unknown columns .*' answer'"),
    ("question,answer,color\nQ?,A,red\n", ":1: .*unknown columns .*'color'"),
    ("question,answer,\nQ?,A,\n", "unknown columns"),
    ("question,question,answer\nQ?,R?,A\n", "names a column twice"),
    ("question,answer,answers\nQ?,A,B\n", "wanted question and answer"),
    ("question\nQ?\n", "wanted question and answer"),
    ("answer\nA\n", "wanted question and answer"),
    ("Q?,A\nR?,B\n", "unknown columns"),
    ('question,answer\nQ?,"A\nR?,B\n', ":2: .* end of data"),
    ('question,answer\nQ?,A "b" c\n', ":2: .*a quote inside of a field"),
    ('question,answer\nQ?,"A" b\n', ":2: .*is not CSV"),
    ("\udcff\udcfeq\x00u\x00", ":1: its first line is not UTF-8"),
    ("ques\udcfftion,answer\nQ?,A\n", ":1: its first line is not UTF-8"),
  ],
)
def test_bad_csv_file_is_an_error(tmp_path, text, message):
  path = write(tmp_path / "a.csv", text)
  with pytest.raises(UserError, match=message) as caught:
    question_files.load_questions(path)
  assert str(caught.value).startswith(path)


@pytest.mark.parametrize(
  "content, message",
  [
    (b"", "is empty"),
    (b" \n\n", "is empty"),
    (json.dumps([GOOD, GOOD], indent=1).encode(), "nothing .*:1: not JSON"),
    (json.dumps([GOOD, GOOD]).encode(), "nothing .*:1: it is no object"),
    (json.dumps(GOOD).encode("utf-16"), "nothing .*:1: not UTF-8 at byte 0"),
    ((json.dumps(GOOD) + "\r").encode() * 2, "nothing .*:1: not JSON"),
    (b"question,answer\nQ?,A\n", "nothing .*:1: not JSON"),
    (bytes(99), "nothing .*:1: not JSON"),
  ],
)
def test_file_of_other_lines_is_an_error(tmp_path, content, message):
  path = write(tmp_path / "a.jsonl", content)
  with pytest.raises(UserError, match=message):
    question_files.load_questions(path)


@pytest.mark.parametrize(
  "name, message",
  [
    ("a.json", "questions are not read from that.  Name a file that ends in"),
    ("a.parquet.gz", "questions are not read from that"),
    ("a", "questions are not read from that"),
    ("no.csv", "there is no such file"),
    ("folder.csv", "is no file"),
  ],
)
def test_place_that_is_no_file_of_questions(tmp_path, name, message):
  (tmp_path / "folder.csv").mkdir()
  with pytest.raises(UserError, match=message):
    question_files.load_questions(str(tmp_path / name))


def test_folder_of_images_that_is_not_there_is_an_error(tmp_path):
  path = write(tmp_path / "a.jsonl", [GOOD])
  with pytest.raises(UserError, match="nowhere: there is no such folder"):
    question_files.load_questions(path, str(tmp_path / "nowhere"))


# ---- Slices.


def test_slices_are_disjoint_random_and_those_of_a_prepared_file(tmp_path):
  rows = [dict(question=f"Q{i}?", answer="A") for i in range(40)]
  path = write(tmp_path / "shop.jsonl", rows)

  def texts(split, seed=0):
    found = question_files.load_questions(path, split=split, seed=seed)
    return [question.text for question in found]

  learnt, held_out = texts("train[:90%]"), texts("train[90%:]")
  assert len(held_out) == 4 and held_out != texts("train")[36:]
  assert sorted(learnt + held_out) == sorted(texts("train"))
  assert texts("train[90%:]", seed=1) != held_out
  asked = benchmarks.load_benchmark(
    "jsonl", path, split="train[90%:]", tfds_dir=str(tmp_path / "tfds")
  )
  assert [question.text for question in asked] == held_out
  # A row that turns bad leaves the other rows where they are.
  number = int(held_out[0][1:-1])
  write(tmp_path / "shop.jsonl", [*rows[:number], {}, *rows[number + 1 :]])
  assert texts("train[90%:]") == held_out[1:]


@pytest.mark.parametrize(
  "split, message",
  [
    ("val", "a.jsonl has no split 'val': .*slices such as train.:90%."),
    ("test[90%:]", "has no split"),
    ("train[:9000%]", "has no split"),
    ("train[3:2]", "has no rows"),
  ],
)
def test_a_file_has_one_split(tmp_path, split, message):
  path = write(tmp_path / "a.jsonl", [GOOD] * 3)
  with pytest.raises(UserError, match=message):
    question_files.load_questions(path, split=split)


# ---- The same file in `eval`.


def test_eval_reads_csv_and_parquet_by_the_same_rules(tmp_path):
  Image.new("L", (30, 30)).save(tmp_path / "a.png")
  text = "id,question,answers,image,family\nx,Q?,A|B,a.png,toys\n,R?,3,,\n"
  paths = [write(tmp_path / "a.csv", text), str(tmp_path / "a.parquet")]
  columns = dict(id=["x", None], question=["Q?", "R?"])
  columns |= dict(answers=[["A", "B"], ["3"]], image=["a.png", None])
  columns |= dict(family=["toys", None])
  parquet.write_table(pa.table(columns), paths[1])
  for path in paths:
    one, two = benchmarks.load_benchmark(
      "jsonl", path, tfds_dir=str(tmp_path / "tfds")
    )
    assert (one.id, one.text, one.answers) == ("jsonl/x", "Q?", ("A", "B"))
    assert (one.family, two.family) == ("toys", "jsonl")
    picture = (tmp_path / "a.png").read_bytes()
    assert images.read_image_bytes(one.image) == picture
    assert (two.text, two.answers, two.image) == ("R?", ("3",), "")
  bad = write(tmp_path / "b.csv", "question,answer\nQ?,\n")
  with pytest.raises(UserError, match=re.escape(f"{bad}:2: ")):
    benchmarks.load_benchmark("jsonl", bad)
