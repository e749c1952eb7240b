"""Prepared datasets: equal to their files, read without them, never stale."""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds
from PIL import Image

from r1router_jax.common import images
from r1router_jax.common.errors import UserError
from r1router_jax.data import georouter, r1_router_rows, tfds_datasets
from r1router_jax.data.benchmarks import load_benchmark
from r1router_jax.data.r1_router_rows import load_dataset
from r1router_jax.data.tfds_datasets import Example, Source
from tests.data import shared_rows

ROWS = [
  Example(f"row {n}", "é", "a.png" * (n % 2), bytes([n, 0, 255]))
  for n in range(40)
]
ALL = [*range(40)]
NAME = "things/some"


def source(rows=ROWS, digest="a"):
  splits = dict(train=lambda: iter(rows), val=lambda: iter(ROWS[:2]))
  return Source(digest, splits)


def read(folder, split="train", seed=0, **options):
  """Returns the numbers of the rows of a split."""
  rows = tfds_datasets.read_split(NAME, split, seed, str(folder), **options)
  return [ROWS.index(row) for _, row in rows]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """The folder of the dataset `NAME`."""
  folder = tmp_path_factory.mktemp("tfds")
  assert read(folder, source=source()) == ALL
  return folder


@pytest.fixture
def copied(prepared, tmp_path):
  """The folder of a dataset's version, which may be damaged."""
  shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
  return tmp_path / NAME / "2.0.0"


# ---- Splits.


def test_whole_splits_keep_the_order_of_their_source(prepared):
  assert read(prepared) == read(prepared, seed=1) == ALL
  assert read(prepared, "train+val") == [*range(40), 0, 1]
  # The library's own reader finds the same rows.
  rows = tfds.data_source(NAME, split="train", data_dir=prepared)
  assert [row["id"].decode() for row in rows] == [row.id for row in ROWS]


@pytest.mark.parametrize("cut", ["90%", "7", "-5%"])
def test_slices_divide_a_permutation(prepared, cut):
  slices = f"train[:{cut}]", f"train[{cut}:]"
  first, rest = (read(prepared, each) for each in slices)
  assert sorted(first + rest) == ALL
  assert len(first) == {"90%": 36, "7": 7, "-5%": 38}[cut]
  # Rows are in order, and are not those at one end.
  assert first == sorted(first) and rest == sorted(rest)
  assert rest != ALL[len(first) :]
  # The seed alone chooses them.
  assert read(prepared, slices[0]) == first
  assert read(prepared, slices[0], seed=1) != first


@pytest.mark.parametrize(
  "split", ["test", "train[", "train[:50]", "train[:101%]", "all[:5%]", ""]
)
def test_unknown_split_is_named_with_those_there_are(prepared, split):
  with pytest.raises(UserError, match=r"no split .*Take train, val, or"):
    read(prepared, split)


def test_empty_slice_is_an_error(prepared):
  with pytest.raises(UserError, match="has no rows"):
    read(prepared, "train[20:10]")


# ---- Preparation.


def test_changed_source_is_prepared_again(tmp_path):
  assert read(tmp_path, source=source()) == ALL
  # Equal digests stand for equal rows, so that these are not looked at.
  assert read(tmp_path, source=source(ROWS[:3])) == ALL
  assert read(tmp_path, source=source(ROWS[:3], "b")) == [0, 1, 2]
  assert read(tmp_path) == [0, 1, 2]


def test_source_that_fails_leaves_nothing(tmp_path):
  def fail():
    yield ROWS[0]
    raise UserError("the second row is bad")

  failing = Source("a", dict(train=fail))
  with pytest.raises(UserError, match="the second row is bad"):
    read(tmp_path, source=failing)
  with pytest.raises(UserError, match="not prepared in .*--data"):
    read(tmp_path)


# Prepares a dataset, whose source counts its readers in a file and may wait.
PREPARE = """
import os, sys, time
from r1router_jax.data import tfds_datasets
folder, waits = sys.argv[1:]
def make_rows():
  for n in range(3):
    yield tfds_datasets.Example(f"row {n}", "{}")
  with open(folder + "/readers", "a") as file:
    file.write("x")
  os.write(1, b"half\\n")
  time.sleep(float(waits))
source = tfds_datasets.Source("a", dict(train=make_rows))
rows = tfds_datasets.read_split("things/some", "train", 0, folder, source)
print(*(row.id for _, row in rows), sep=",")
"""


def start(folder, waits):
  command = [sys.executable, "-c", PREPARE, str(folder), str(waits)]
  return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_prepare_a_dataset_once(tmp_path):
  processes = [start(tmp_path, 0.5) for _ in range(2)]
  printed = [process.communicate(timeout=120)[0] for process in processes]
  assert [text.split("\n")[-2] for text in printed] == ["row 0,row 1,row 2"] * 2
  assert (tmp_path / "readers").read_text() == "x"


def test_killed_preparation_leaves_nothing_half(tmp_path):
  process = start(tmp_path, 600)
  assert process.stdout.readline() == "half\n"
  process.kill()
  process.communicate()
  (left,) = (tmp_path / NAME).iterdir()
  assert left.name.startswith("incomplete")
  with pytest.raises(UserError, match="not prepared"):
    read(tmp_path)
  assert read(tmp_path, source=source()) == ALL
  assert [path.name for path in (tmp_path / NAME).iterdir()] == ["2.0.0"]


def test_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").touch()
  place = tmp_path / "file" / "tfds"
  with pytest.raises(UserError, match=f"{place}.*that can be written, by --tf"):
    read(place, source=source())


# ---- Damage.


@pytest.mark.parametrize(
  "name, damage",
  [
    ("*train*", lambda file: os.truncate(file, file.stat().st_size // 2)),
    ("*train*", pathlib.Path.unlink),
    ("*train*", lambda file: file.write_bytes(b"x" * 99_999)),
    ("dataset_info.json", pathlib.Path.unlink),
    ("dataset_info.json", lambda file: file.write_text("{")),
    ("dataset_info.json", lambda file: file.write_text("{}")),
    ("metadata.json", lambda file: file.write_text("{")),
  ],
)
def test_damaged_dataset_is_one_line_with_the_cure(copied, name, damage):
  (file,) = copied.glob(name)
  damage(file)
  with pytest.raises(UserError, match=f"{copied}: is damaged.*Delete this fol"):
    read(copied.parents[2], source=source())


def test_dataset_of_somebody_else_is_not_replaced(copied):
  (copied / "metadata.json").write_text("{}")
  with pytest.raises(UserError, match="is not a dataset of r1router_jax"):
    read(copied.parents[2], source=source(digest="b"))
  assert (copied / "dataset_info.json").exists()


def test_features_of_a_dataset_name_no_classes(copied):
  # TFDS would import whatever module the file names.
  about = json.loads((copied / "features.json").read_text())
  about["pythonClassName"] = "antigravity.Feature"
  (copied / "features.json").write_text(json.dumps(about))
  assert read(copied.parents[2]) == ALL
  assert "antigravity" not in sys.modules


# ---- The three kinds of source.


def test_georouter_equals_its_files():
  for split in georouter.SPLITS:
    found = load_benchmark("georouter", split=split)
    assert found == georouter.load_questions(split)
  for slice, count in {"val[:90%]": 162, "val[90%:]": 18}.items():
    assert len(load_benchmark("georouter", split=slice, seed=3)) == count


@pytest.fixture
def question_files(tmp_path):
  """A folder of two files and one of images, one of which is not there."""
  folder, place = tmp_path / "questions", tmp_path / "images"
  folder.mkdir()
  place.mkdir()
  Image.new("L", (30, 30), 7).save(place / "30.png")
  asked = dict(question="Which?", answer=['"That."'])
  rows = dict(
    webqa=[asked | dict(image_id="30"), asked | dict(image_id="31")],
    jsonl=[asked | dict(interval=[0.1, 2]), asked | dict(image="30.png")],
  )
  for name, of_file in rows.items():
    shared_rows.write_rows(folder / f"{name}.jsonl", of_file)
  return folder, place


@pytest.mark.parametrize("name", ["webqa", "jsonl"])
def test_benchmark_is_read_without_its_files(question_files, tmp_path, name):
  folder, place = question_files
  data = folder / "jsonl.jsonl" if name == "jsonl" else folder
  load = functools.partial(load_benchmark, tfds_dir=str(tmp_path / "tfds"))
  found = load(name, str(data), str(place))
  shutil.rmtree(folder)
  shutil.rmtree(place)
  again = load(name, split="test")
  assert again == found and len(again) == 2
  seen = [images.load_image(q.image) for q in again if os.path.exists(q.image)]
  assert [image.tolist() for image in seen] == [[[[7] * 3] * 30] * 30]
  # A question file is a single split, whatever its name.
  (one,) = load(name, split="val[:50%]")
  assert one in found
  with pytest.raises(UserError, match="images .* of no questions"):
    load(name, images="x")
  with pytest.raises(UserError, match="benchmarks/tabfact is not prepared"):
    load("tabfact")


def test_changed_questions_or_images_are_seen(question_files, tmp_path):
  folder, place = question_files
  where = str(folder), str(place), "test", str(tmp_path / "tfds")
  before, _ = load_benchmark("webqa", *where)
  Image.new("L", (30, 30), 8).save(place / "30.png")
  changed, _ = load_benchmark("webqa", *where)
  # Images are stored under names made of their content.
  assert os.path.exists(changed.image) and changed.image != before.image
  # An image that was missing, below the folder.
  (place / "more").mkdir()
  shutil.copy(place / "30.png", place / "more" / "31.png")
  assert load_benchmark("webqa", *where)[1].image == changed.image
  path = folder / "webqa.jsonl"
  path.write_text(path.read_text().replace("Which?", "Who?"))
  assert load_benchmark("webqa", *where)[0].text == "Who?"


def record(**changes):
  return json.dumps(dict(id="x", text="?", answers=["a"]) | changes)


HOP = dict(sub_question="?", routes=["web"], answers=["a"])


@pytest.mark.parametrize(
  "changes, fault",
  [
    (dict(record='{"id": "x'), "truncated"),
    (dict(record='{"id": "x"}'), "missing required field `text`"),
    (dict(record=record(text=1)), "Expected `str`, got `int`"),
    (dict(record=record(text=" ")), "lacks a text"),
    (dict(record=record(answers=[])), "lacks a text or an answer"),
    (dict(record=record(hops=[dict(sub_question="?")])), "field `routes`"),
    (dict(record=record(hops=[HOP])), "unknown route"),
    (dict(record=record(interval=[1])), "no pair"),
    (dict(record=record(members=[["a"]] * 9)), "members of each answer"),
    (dict(record=record(interval=[float("nan"), 1])), "malformed"),
    (dict(image="../../etc/passwd"), "leads out of"),
    (dict(image="a.x\u202ey", picture=b"1"), "not a plain file name"),
  ],
)
def test_wrong_row_names_dataset_and_row(tmp_path, changes, fault):
  good = Example("x", record())
  rows = [good, good._replace(**changes)]
  dataset = Source("a", dict(test=lambda: iter(rows)))
  tfds_datasets.prepare("benchmarks/webqa", str(tmp_path), dataset)
  said = rf"{tmp_path}/benchmarks/webqa/2.0.0:test\[1\]: .*{fault}.*  Delete"
  with pytest.raises(UserError, match=f"(?i){said}"):
    load_benchmark("webqa", tfds_dir=str(tmp_path))


@pytest.fixture
def row_file(tmp_path):
  """A file of three rows, the second with an image, and a folder of that."""
  (tmp_path / "images").mkdir()
  rows = shared_rows.world_rows()[:3]
  shutil.copy(rows[1]["images"][0], tmp_path / "images")
  path = shared_rows.write_rows(tmp_path / "some.jsonl", rows)
  return path, str(tmp_path / "images")


def steps_of(row):
  """Returns the steps of a row as text, without the place of their image."""
  return repr(row.steps).replace(row.steps[0].question.image or "''", "''")


def test_rows_are_read_without_their_files(tmp_path, row_file):
  path, place = row_file
  wanted = list(r1_router_rows.load_rows(path, place))
  picture = images.read_image_bytes(wanted[1].steps[0].question.image)
  files = r1_router_rows.make_source(dict(train=path), place)
  where = "r1_router_rows/mine", "train", 0, str(tmp_path / "tfds")
  found = list(load_dataset(*where, files))
  shutil.rmtree(place)
  os.remove(path)
  for rows in (found, list(load_dataset(*where))):
    assert [row.id for row in rows] == ["some/1", "some/2", "some/3"]
    assert list(map(steps_of, rows)) == list(map(steps_of, wanted))
    assert images.read_image_bytes(rows[1].steps[0].question.image) == picture


def test_source_of_rows_changes_with_its_files(tmp_path, row_file):
  path, place = row_file

  def digest(split="train"):
    return r1_router_rows.make_source({split: path}, place).digest

  digests = [digest(), digest("val")]
  (tmp_path / "images" / "more.png").touch()
  digests.append(digest())
  with open(path, "a") as file:
    file.write("\n")
  digests.append(digest())
  assert len({*digests}) == 4 and digest() == digests[-1]


def test_bad_rows_of_a_dataset_are_skipped_and_named(
  tmp_path, row_file, caplog
):
  path, place = row_file
  splits = r1_router_rows.make_source(dict(train=path), place).splits
  first, seen, told = splits["train"]()
  headless = json.loads(first.record)
  del headless["steps"][0]
  faults = {
    "not JSON": first._replace(record="{"),
    "intact PNG": seen._replace(picture=b"no image"),
    "before it": first._replace(record=json.dumps(headless)),
  }
  rows = [first, *faults.values(), seen, told]
  bad = Source("a", dict(train=lambda: iter(rows)))
  where = "r1_router_rows/mine", "train", 0, str(tmp_path / "tfds")
  with caplog.at_level("WARNING"):
    found = list(load_dataset(*where, bad))
  assert [row.id for row in found] == ["some/1", "some/2", "some/3"]
  assert "skipped 3 of 6" in caplog.text
  for number, fault in enumerate(faults, 1):
    (line,) = [x for x in caplog.messages if f"mine/2.0.0:train[{number}]" in x]
    assert fault in line
