"""Rules of selection, and the split of rows."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from r1router_jax.common.records import Question
from r1router_jax.data import georouter, r1_router_rows
from r1router_jax.rewards import step_reward
from r1router_jax.synthesis import output, selection
from r1router_jax.synthesis.selection import question_group
from tests.synthesis import scripted_teacher
from tests.synthesis.scripted_teacher import PLACES, question, run_teacher


def test_number_within_the_interval_becomes_a_gold_answer(tmp_path):
  # The teacher's answer is 18 million; 17.5 is for display.
  golds = dict(answers=("17.5",), interval=(17.0, 19.0))
  asked = dataclasses.replace(question("good"), **golds)
  rules = selection.SelectionRules("recall")
  (result,), _ = run_teacher(tmp_path, asked, rules=rules)
  assert result.outcomes == (selection.KEPT,)
  assert result.row["steps"][-1]["answer"] == ["17.5", "18 million"]
  reward = step_reward.StepReward(lambda texts: np.eye(len(texts)), "reference")
  *_, final = r1_router_rows.parse_row(result.row, "q", "")
  assert reward([final], [final.response]) == 1


def test_question_without_gold_answers_never_passes(tmp_path):
  (result,), _ = run_teacher(tmp_path, Question("q", "good?"))
  assert result.outcomes == (selection.WRONG,)


def test_equal_questions_have_one_group(tmp_path):
  Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
  # b.png is the same image under another name.
  shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
  Image.new("RGB", (9, 9), "blue").save(tmp_path / "c.png")

  def group(text, image=""):
    path = str(tmp_path / image) if image else ""
    return question_group(Question("", text, image=path))

  assert group("Whose flag?", "a.png") == group("WHOSE  flag?", "b.png")
  images = ("", "a.png", "c.png", "missing.png")
  assert len({group("Whose flag?", image) for image in images}) == 4
  assert group("Whose flag?") != group("Whose map?")


def test_split_is_random_and_depends_on_the_question_alone():
  groups = [question_group(Question("", f"question {n}?")) for n in range(2000)]

  def held_out(seed, valid):
    sides = [selection.split_side(group, seed, valid) for group in groups]
    assert {*sides} <= {*selection.SIDES}
    return np.array(sides) == "valid"

  some = held_out(0, 0.2)
  assert (some == held_out(0, 0.2)).all()
  assert 340 < some.sum() < 460
  assert 50 < (some & held_out(1, 0.2)).sum() < 115  # Independent seeds: 80.
  # A larger share takes no question back.
  assert held_out(0, 0.5)[some].all()
  assert not held_out(0, 0.0).any() and held_out(0, 1.0).all()


@pytest.mark.parametrize("side", selection.SIDES)
def test_files_hold_their_side_of_the_split(tmp_path, side):
  results, _ = run_teacher(tmp_path, *map(question, PLACES))
  output.write_outputs(tmp_path, results, 3, 0.4, {})
  rows = scripted_teacher.read_lines(tmp_path / f"grpo_dataset_{side}.jsonl")
  groups = {place: question_group(question(place)) for place in PLACES}
  wanted = [
    place
    for place, group in groups.items()
    if selection.split_side(group, 3, 0.4) == side
  ]
  assert [row["question_id"] for row in rows] == wanted and wanted
  # The TensorFlow Dataset holds the same steps.
  name, folder = "r1_router_rows/synthesis", str(tmp_path / "tfds")
  data = r1_router_rows.load_dataset(name, side, tfds_dir=folder)
  rows = scripted_teacher.read_trajectories(tmp_path, side)
  read = [(row.id, row.steps) for row in rows]
  assert [(row.id, row.steps) for row in data] == read


def test_questions_are_one_line():
  found = selection.load_questions("georouter", "", "", "val", "")
  assert found == georouter.load_questions("val")
