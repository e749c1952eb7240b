"""Published rows: the good are read, the broken named, none lost."""

import copy
import json
import os
import pathlib
import re
import shutil

import pytest
from absl import logging

from r1router_jax.common.records import Passage
from r1router_jax.common.row_files import RejectedRow
from r1router_jax.data import georouter, gold_steps, r1_router_rows

# Not part of the repository: R1-Router's Step-GRPO validation rows, in the
# folder that R1ROUTER_REFERENCE names.
REFERENCE = pathlib.Path(
  os.environ.get("R1ROUTER_REFERENCE", "reference"),
  "grpo_dataset_valid_new.jsonl",
)

needs_reference = pytest.mark.skipif(
  not REFERENCE.exists(), reason="the reference's rows are absent"
)


def retrieve(queries):
  return [(Passage(f"{kb}/0", kb, f"On {asked}"),) for kb, asked, _ in queries]


def world(count=4):
  """Rows of two rounds, the second with a picture."""
  questions = [q for q in georouter.load_questions("val") if len(q.hops) == 2]
  seen = [q for q in questions if q.image][:1]
  told = [q for q in questions if not q.image][: count - 1]
  found = gold_steps.make_gold_steps([told[0], *seen, *told[1:]], retrieve)
  return [r1_router_rows.to_published_row(steps) for steps in found]


@pytest.fixture
def pictures(tmp_path):
  """The folder of the pictures of `world`."""
  folder = tmp_path / "pictures"
  folder.mkdir()
  for row in world():
    for path in row["images"]:
      shutil.copy(path, folder)
  return str(folder)


def write(path, *lines):
  path.write_text(
    "".join(
      (line if isinstance(line, str) else json.dumps(line)) + "\n"
      for line in lines
    ),
    encoding="utf-8",
  )
  return str(path)


def moved(row):
  """A trajectory as its authors would have published it."""
  return row | dict(
    images=[f"/home/them/{os.path.basename(path)}" for path in row["images"]]
  )


def test_rows_become_steps(tmp_path, pictures):
  path = write(tmp_path / "some.jsonl", *map(moved, world()))
  found = list(r1_router_rows.load_rows(path, pictures))
  assert [row.id for row in found] == [f"some/{n}" for n in range(1, 5)]
  for row, wanted in zip(found, world(), strict=True):
    assert row.published == moved(wanted)
    written = r1_router_rows.to_published_row(row.steps)
    assert written["steps"] == wanted["steps"]
    assert [os.path.basename(image) for image in written["images"]] == [
      os.path.basename(image) for image in wanted["images"]
    ]
    assert all(os.path.isfile(image) for image in written["images"])
    assert row.steps[2].id == f"{row.id}/2"


def changed(change):
  row = copy.deepcopy(moved(world()[0]))
  change(row)
  return row


def put(row, number, **parts):
  row["steps"][number] |= parts


def unread(row):
  """The last prompt, as if nothing had been asked before it."""
  first, *_, last = row["steps"][-1]["problem"].split("\n")
  return f"{first}\n{last}"


PLAN = dict(query="who?", retriever=["text retriever"])

BROKEN = {
  "not JSON": '{"images": [',
  "not JSON ": "[1, NaN,",
  "Expected `object`, got `array`": "[]",
  "missing required field `images`": changed(lambda row: row.pop("images")),
  "surrogate": changed(lambda row: put(row, 0, problem="\ud800")),
  r"length <= 1 - at `\$.images`": changed(
    lambda row: row.update(images=["a", "b"])
  ),
  r"length >= 1 - at `\$.steps`": changed(lambda row: row.update(steps=[])),
  "step 1 has a wrong form: Expected `object`, got `str`": changed(
    lambda row: row["steps"].insert(1, "x")
  ),
  "missing required field `answer`": changed(
    lambda row: row["steps"][1].pop("answer")
  ),
  "Invalid value 'end'": changed(lambda row: put(row, 1, step_type="end")),
  r"step 1 .* Expected `str`, got `int` - at `\$.problem`": changed(
    lambda row: put(row, 1, problem=1)
  ),
  r"step 0 .* Expected `str`, got `int` - at `\$.response`": changed(
    lambda row: put(row, 0, response=1)
  ),
  "step some/2/1 is not of the protocol": changed(
    lambda row: put(row, 1, response="<answer>chad</answer>")
  ),
  r"Expected `str \| array`, got `int`": changed(
    lambda row: put(row, 1, answer=1)
  ),
  "step 0 asks with no query": changed(
    lambda row: put(row, 0, answer=PLAN | dict(query=" "))
  ),
  "length >= 1 - at .*retriever": changed(
    lambda row: put(row, 0, answer=PLAN | dict(retriever=[]))
  ),
  "web retriever": changed(
    lambda row: put(row, 0, answer=PLAN | dict(retriever=["web retriever"]))
  ),
  "no gold answers": changed(lambda row: put(row, -1, answer=[" "])),
  "no gold answers ": changed(lambda row: put(row, -1, answer="chad")),
  "does not follow from": changed(
    lambda row: put(row, 2, problem="Origin question: another?\n")
  ),
  "before it": changed(lambda row: row["steps"].pop(0)),
  "steps are plan final": changed(
    lambda row: row.update(
      steps=[row["steps"][0], row["steps"][-1] | dict(problem=unread(row))]
    )
  ),
  "asks 'None' of": changed(
    lambda row: put(
      row, 4, answer=dict(query="none", retriever=["text retriever"])
    )
  ),
  "asks 'who\\?' of": changed(
    lambda row: put(row, 4, answer=dict(query="who?", retriever=["none"]))
  ),
  "there.png": changed(
    lambda row: row.update(images=["/home/them/not there.png"])
  ),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_row_is_named_and_neighbours_stay(
  tmp_path, pictures, reason, caplog
):
  good = moved(world()[1])
  path = write(tmp_path / "some.jsonl", good, BROKEN[reason], "", good)
  with caplog.at_level("WARNING"):
    found = list(r1_router_rows.load_rows(path, pictures))
  assert [row.id for row in found] == ["some/1", "some/4"]
  (bad,) = [
    row
    for row in r1_router_rows.read_rows(path, pictures)
    if isinstance(row, RejectedRow)
  ]
  assert bad.where == f"{path}:2" and bad.cure
  assert re.search(reason.strip(), str(bad))
  said = caplog.text
  assert "skipped 1 of 3" in said and ":2: " in said


def test_images_without_a_folder_are_named(tmp_path):
  path = write(tmp_path / "some.jsonl", *world())
  assert len(list(r1_router_rows.load_rows(path, ""))) == 3
  (bad,) = [
    row
    for row in r1_router_rows.read_rows(path, "")
    if isinstance(row, RejectedRow)
  ]
  assert "config.data.images" in bad.cure


def test_images_outside_the_folder_are_not_opened(tmp_path, pictures):
  row = world()[1]
  os.symlink(row["images"][0], os.path.join(pictures, "link.png"))
  row["images"] = ["/home/them/link.png"]
  (bad,) = r1_router_rows.read_rows(
    write(tmp_path / "some.jsonl", row), pictures
  )
  assert "leads out of" in bad.reason


def test_file_without_good_rows_is_rejected(tmp_path):
  path = write(tmp_path / "some.jsonl", "{", "[]")
  with pytest.raises(ValueError, match="nothing of it.*2 faults.*some.jsonl:1"):
    list(r1_router_rows.load_rows(path, ""))
  path = write(tmp_path / "some.jsonl")
  with pytest.raises(ValueError, match="It is empty"):
    list(r1_router_rows.load_rows(path, ""))


def test_patterns_find_files(tmp_path):
  for name in ("b1.jsonl", "b2.jsonl", "a.jsonl"):
    write(tmp_path / name)

  def of(patterns):
    return [
      os.path.basename(path) for path in r1_router_rows.find_files(patterns)
    ]

  assert of(f"{tmp_path}/b*.jsonl, {tmp_path}/a.jsonl,{tmp_path}/b1.jsonl") == [
    "b1.jsonl",
    "b2.jsonl",
    "a.jsonl",
  ]
  with pytest.raises(FileNotFoundError, match="no file is named .*c.*globs"):
    of(f"{tmp_path}/a.jsonl,{tmp_path}/c*.jsonl")
  (tmp_path / "more").mkdir()
  write(tmp_path / "more" / "a.jsonl")
  with pytest.raises(ValueError, match="have one name"):
    of(f"{tmp_path}/a.jsonl,{tmp_path}/more/a.jsonl")


def test_only_the_first_faults_are_warnings(tmp_path, caplog):
  path = write(tmp_path / "some.jsonl", world()[0], *["{"] * 9)
  logging.set_verbosity(logging.WARNING)
  with caplog.at_level("WARNING"):
    list(r1_router_rows.load_rows(path, ""))
  assert caplog.text.count("not JSON") == 5
  assert "skipped 9 of 10" in caplog.text


# ---- What R1-Router published.


@pytest.fixture
def oven(tmp_path):
  """Something for each picture that the rows name."""
  folder = tmp_path / "oven"
  folder.mkdir()
  some = next(q.image for q in georouter.load_questions("val") if q.image)
  for line in REFERENCE.read_text(encoding="utf-8").splitlines():
    for path in json.loads(line)["images"]:
      shutil.copy(some, folder / os.path.basename(path))
  return str(folder)


@needs_reference
def test_published_rows_are_read(oven):
  found = list(r1_router_rows.load_rows(str(REFERENCE), oven))
  assert len(found) == 119
  steps = [step for row in found for step in row.steps]
  assert len(steps) == 758

  def count(kind):
    return sum(step.kind == kind for step in steps)

  assert [count(k) for k in ("plan", "answer", "final")] == [346, 293, 119]
  # Every oddity is still there: two spellings of the plan prompt, white space
  # around golds, and one gold that is empty.
  assert (
    len(
      {
        step["system"]
        for row in found
        for step in row.published["steps"]
        if step["step_type"] == "ret"
      }
    )
    == 2
  )
  golds = [gold for step in steps for gold in step.answers]
  assert sum(gold != gold.strip() for gold in golds) == 115
  asked = [step.sub_question for step in steps if step.kind == "plan"]
  assert sum(query != query.strip() for query in asked) == 25
  (empty,) = [step for step in steps if step.answers == ("",)]
  assert empty.id.startswith("grpo_dataset_valid_new/117/")


@needs_reference
def test_rows_without_images_are_kept():
  assert len(list(r1_router_rows.load_rows(str(REFERENCE), ""))) == 85
