"""Published rows: the good are read, the broken named, none lost."""

import copy
import json
import os
import re
import shutil
import time

import pytest
from absl import logging

from r1router_jax.common.row_files import RejectedRow, RowError
from r1router_jax.data import georouter, r1_router_rows
from tests.data import shared_rows
from tests.data.shared_rows import VALID_ROWS, needs_reference, write_rows


@pytest.fixture
def pictures(tmp_path):
  """The folder of the pictures of `shared_rows.world_rows`."""
  folder = tmp_path / "pictures"
  folder.mkdir()
  for row in shared_rows.world_rows():
    for path in row["images"]:
      shutil.copy(path, folder)
  return str(folder)


def moved(row):
  """A trajectory as its authors would have published it."""
  images = [f"/home/them/{os.path.basename(path)}" for path in row["images"]]
  return row | dict(images=images)


GOOD, PICTURED, *OTHERS = map(moved, shared_rows.world_rows())


def load(path, folder):
  return list(r1_router_rows.load_rows(path, folder))


def rejected(path, folder):
  rows = r1_router_rows.read_rows(path, folder)
  return [row for row in rows if isinstance(row, RejectedRow)]


def test_rows_become_steps(tmp_path, pictures):
  rows = [GOOD, PICTURED, *OTHERS]
  found = load(write_rows(tmp_path / "some.jsonl", rows), pictures)
  assert [row.id for row in found] == [f"some/{n}" for n in range(1, 5)]
  for row, wanted in zip(found, rows, strict=True):
    assert row.published == wanted
    written = r1_router_rows.to_published_row(row.steps)
    assert moved(written) == wanted
    assert all(map(os.path.isfile, written["images"]))
    assert row.steps[2].id == f"{row.id}/2"


def put(number, **parts):
  """The first row with other parts of a step."""
  row = copy.deepcopy(GOOD)
  row["steps"][number] |= parts
  return row


def asks(number, query="who?", retriever=("text retriever",)):
  return put(number, answer=dict(query=query, retriever=[*retriever]))


def lacks(key, number=None):
  row = copy.deepcopy(GOOD)
  del (row if number is None else row["steps"][number])[key]
  return row


def of_steps(*steps):
  return GOOD | dict(steps=[*steps])


PLAN, *REST = GOOD["steps"]

# The last prompt, as if nothing had been asked before it.
HEAD, *_, TAIL = REST[-1]["problem"].split("\n")
LAST = REST[-1] | dict(problem=f"{HEAD}\n{TAIL}")

BROKEN = {
  "not JSON": b'{"images": [',
  "not JSON ": b"[1, NaN,",
  "Expected `object`, got `array`": [],
  "missing required field `images`": lacks("images"),
  r"length <= 1 - at `\$.images`": GOOD | dict(images=["a", "b"]),
  r"length >= 1 - at `\$.steps`": of_steps(),
  r"`object`, got `str` - at `\$.steps\[1\]`": of_steps(PLAN, "x", *REST),
  r"field `answer` - at `\$.steps\[1\]`": lacks("answer", 1),
  "Invalid value 'end'": put(1, step_type="end"),
  r"`str`, got `int` - at `\$.steps\[1\].problem`": put(1, problem=1),
  r"`str`, got `int` - at `\$.steps\[0\].response`": put(0, response=1),
  "2/1 is not of the protocol": put(1, response="<answer>chad</answer>"),
  r"Expected `str \| array`, got `int`": put(1, answer=1),
  "step some/2/0 asks with no query": asks(0, " "),
  "length >= 1 - at .*retriever": asks(0, retriever=()),
  "web retriever.*Known are .*table retriever": asks(
    0, retriever=("web retriever",)
  ),
  "no gold answers": put(-1, answer=[" "]),
  "no gold answers ": put(-1, answer="chad"),
  "2/2 does not follow.*nother": put(2, problem="Origin question: another?\n"),
  "before it": of_steps(*REST),
  "steps are plan final": of_steps(PLAN, LAST),
  "asks 'None' of": asks(4, "none"),
  r"asks 'who\?' of": asks(4, retriever=("none",)),
  "there.png": GOOD | dict(images=["/home/them/not there.png"]),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_row_is_named_and_neighbours_stay(
  tmp_path, pictures, reason, caplog
):
  rows = [OTHERS[0], BROKEN[reason], b"", PICTURED]
  path = write_rows(tmp_path / "some.jsonl", rows)
  with caplog.at_level("WARNING"):
    found = load(path, pictures)
  assert [row.id for row in found] == ["some/1", "some/4"]
  (bad,) = rejected(path, pictures)
  assert bad.where == f"{path}:2" and bad.cure
  assert re.search(reason.strip(), str(bad))
  assert "skipped 1 of 3" in caplog.text and ":2: " in caplog.text


def test_images_without_a_folder_are_named(tmp_path):
  path = write_rows(tmp_path / "some.jsonl", [GOOD, PICTURED, *OTHERS])
  assert len(load(path, "")) == 3
  (bad,) = rejected(path, "")
  assert "config.data.images" in bad.cure


def test_images_outside_the_folder_are_not_opened(tmp_path, pictures):
  target = shared_rows.world_rows()[1]["images"][0]
  os.symlink(target, os.path.join(pictures, "link.png"))
  row = PICTURED | dict(images=["/home/them/link.png"])
  (bad,) = rejected(write_rows(tmp_path / "some.jsonl", [row]), pictures)
  assert "leads out of" in bad.reason


def test_file_without_good_rows_is_rejected(tmp_path):
  path = write_rows(tmp_path / "some.jsonl", [b"{", b"[]"])
  with pytest.raises(ValueError, match="nothing of it.*2 faults.*some.jsonl:1"):
    load(path, "")
  with pytest.raises(ValueError, match="It is empty"):
    load(write_rows(tmp_path / "some.jsonl", []), "")


def test_patterns_find_files(tmp_path):
  (tmp_path / "more").mkdir()
  for name in ("b1.jsonl", "b2.jsonl", "a.jsonl", "more/a.jsonl"):
    (tmp_path / name).touch()

  def find(*names):
    patterns = ", ".join(f"{tmp_path}/{name}" for name in names)
    return [*map(os.path.basename, r1_router_rows.find_files(patterns))]

  found = find("b*.jsonl", "a.jsonl", "b1.jsonl")
  assert found == ["b1.jsonl", "b2.jsonl", "a.jsonl"]
  with pytest.raises(FileNotFoundError, match="no file is named .*c.*globs"):
    find("a.jsonl", "c*.jsonl")
  with pytest.raises(ValueError, match="have one name"):
    find("a.jsonl", "more/a.jsonl")


def test_only_the_first_faults_are_warnings(tmp_path, caplog):
  path = write_rows(tmp_path / "some.jsonl", [GOOD, *[b"{"] * 9])
  logging.set_verbosity(logging.WARNING)
  with caplog.at_level("WARNING"):
    load(path, "")
  assert caplog.text.count("not JSON") == 5
  assert "skipped 9 of 10" in caplog.text


@pytest.mark.parametrize("unit", ["ter-1: ", "ter-1: \n", "\n", "ter-1"])
def test_hostile_prompt_is_read_in_linear_time(unit):
  passages, asked, tail = REST[0]["problem"].partition("Question")
  problem = passages + unit * (200_000 // len(unit)) + asked + tail
  row = of_steps(PLAN, REST[0] | dict(problem=problem), *REST[1:])
  start = time.process_time()
  with pytest.raises(RowError, match="does not follow"):
    r1_router_rows.parse_row(row, "a", "")
  assert time.process_time() - start < 5  # CPU seconds.


# ---- What R1-Router published.


@needs_reference
def test_published_rows_are_read(tmp_path):
  # Something stands for each picture that the rows name.
  some = next(q.image for q in georouter.load_questions("val") if q.image)
  for line in VALID_ROWS.read_text(encoding="utf-8").splitlines():
    for path in json.loads(line)["images"]:
      shutil.copy(some, tmp_path / os.path.basename(path))
  found = load(str(VALID_ROWS), str(tmp_path))
  assert len(found) == 119
  steps = [step for row in found for step in row.steps]
  kinds = [step.kind for step in steps]
  assert list(map(kinds.count, ("plan", "answer", "final"))) == [346, 293, 119]
  # Every oddity is still there: two spellings of the plan prompt, white space
  # around golds, and one gold that is empty.
  told = [step for row in found for step in row.published["steps"]]
  plans = {step["system"] for step in told if step["step_type"] == "ret"}
  assert len(steps) == len(told) == 758 and len(plans) == 2
  golds = [gold for step in steps for gold in step.answers]
  assert sum(gold != gold.strip() for gold in golds) == 115
  asked = [step.sub_question for step in steps if step.kind == "plan"]
  assert sum(query != query.strip() for query in asked) == 25
  (empty,) = [step for step in steps if step.answers == ("",)]
  assert empty.id.startswith("grpo_dataset_valid_new/117/")


@needs_reference
def test_rows_without_images_are_kept():
  assert len(load(str(VALID_ROWS), "")) == 85
