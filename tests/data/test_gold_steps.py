"""Gold steps, and the published form of trajectories."""

import copy
import dataclasses
import json

import pytest

from r1router_jax.common.records import Answer, Hop, Plan, Question
from r1router_jax.common.row_files import RowError
from r1router_jax.data import georouter, gold_steps
from r1router_jax.data.r1_router_rows import parse_trajectory, to_published_row
from r1router_jax.protocol import format
from tests.data.shared_rows import VALID_ROWS, needs_reference, retrieve

CHAD = Hop("Which country is it?", ("image",), ("Chad", "Tchad"), ("i/1",))
PEOPLE = Hop("How many live in Chad?", ("table", "text"), ("11,631,456",))


def question(*hops, image=""):
  return Question("q", "How many live here?", ("11,631,456",), image, hops=hops)


def steps(*hops):
  asked = question(*hops, image="f.png")
  (found,) = gold_steps.make_gold_steps([asked], retrieve)
  return found


def test_gold_steps_of_two_hops():
  found = steps(CHAD, PEOPLE)
  assert [s.kind for s in found] == ["plan", "answer"] * 2 + ["plan", "final"]
  assert [s.id for s in found] == [f"q/{n}" for n in range(6)]
  seen = ("Which country is it?", "Chad")
  counted = ("How many live in Chad?", "11,631,456")
  histories = [()] * 2 + [(seen,)] * 2 + [(seen, counted)] * 2
  assert [s.history for s in found] == histories
  _, _, second, counting, stop, final = found
  assert second.sub_question == counting.sub_question == PEOPLE.sub_question
  assert second.routes == ("table", "text") and second.answers == ()
  assert counting.answers == PEOPLE.answers and counting.routes == ()
  assert [p.id for p in counting.passages] == ["table/0"]
  assert (stop.sub_question, stop.routes) == ("None", ("none",))
  assert final.answers == ("11,631,456",) and final.sub_question == ""


@pytest.mark.parametrize(
  "hops, kinds",
  [
    (0, ["plan", "final"]),
    (1, ["plan", "answer", "plan", "final"]),
    (3, ["plan", "answer"] * 3 + ["final"]),
  ],
)
def test_plan_stops_unless_all_rounds_are_used(hops, kinds):
  assert [step.kind for step in steps(*[CHAD] * hops)] == kinds


def test_retrieval_is_one_ordered_call():
  calls = []

  def spy(queries):
    calls.append(list(queries))
    return retrieve(queries)

  both = [question(CHAD, PEOPLE, image="f.png"), question(), question(PEOPLE)]
  found = gold_steps.make_gold_steps(both, spy)
  seen, counted = CHAD.sub_question, PEOPLE.sub_question
  pictured = ("image", seen, "f.png"), ("table", counted, "f.png")
  assert calls == [[*pictured, ("table", counted, "")]]
  assert [len(s) for s in found] == [6, 2, 4]


def test_georouter_step_counts():
  found = gold_steps.make_gold_steps(georouter.load_questions("test"), retrieve)
  assert sum(map(len, found)) > 3000
  for trajectory in found:
    assert len(trajectory) <= 7
    for number, step in enumerate(trajectory):
      assert step.id == f"{step.question.id}/{number}"
      assert len(step.history) == number // 2 or step.kind == "final"


# ---- The published form.


def test_published_row_in_full():
  row = to_published_row(steps(CHAD))
  assert row["images"] == ["f.png"]
  plan, answer, stop, final = row["steps"]
  assert [s["step_type"] for s in row["steps"]] == ["ret", "ans", "ret", "ans"]
  assert plan["problem"] == "Origin question: How many live here?\n<image>"
  asked = "which country is it?"
  assert plan["answer"] == dict(query=asked, retriever=["text image retriever"])
  assert answer["answer"] == "Chad"
  assert "retriever:tir-0: On Which country is it?\n" in answer["problem"]
  assert answer["problem"].endswith(f"Question: {asked}<image>")
  assert stop["answer"] == dict(query="none", retriever=["none"])
  opening = "Origin question: How many live here?"
  told = f"{opening}\nSub-question1: {asked}\nAnswer1: chad\n<image>"
  assert stop["problem"] == told
  assert final["answer"] == ["11,631,456"]
  closing = (
    "the final answer of the origin question: How many live here?<image>"
  )
  assert final["problem"].endswith(f"Now, give me {closing}")


def test_georouter_round_trips_through_published_form():
  questions = georouter.load_questions("test")
  for trajectory in gold_steps.make_gold_steps(questions, retrieve):
    row = to_published_row(trajectory)
    read = parse_trajectory(row, trajectory[0].question.id)
    assert to_published_row(read) == row
    for ours, theirs in zip(trajectory, read, strict=True):
      for name in ("id", "kind", "routes"):
        assert getattr(ours, name) == getattr(theirs, name)
      asked = ours.sub_question
      assert theirs.sub_question in (asked, asked.lower())
      kept = ours.answers if ours.kind == "final" else ours.answers[:1]
      assert theirs.answers == kept
      texts = [passage.text for passage in ours.passages]
      assert [passage.text for passage in theirs.passages] == texts


@needs_reference
def test_published_rows_round_trip():
  lines = VALID_ROWS.read_text(encoding="utf-8").splitlines()
  for number, line in enumerate(lines):
    row = json.loads(line)
    written = to_published_row(parse_trajectory(row, f"reference/{number}"))
    for step in (*row["steps"], *written["steps"]):
      # The plan prompt has a variant that is one newline shorter.
      step["system"] = step["system"].rstrip("\n")
    assert written == row
  assert len(lines) == 119


def test_moved_images_are_found():
  row = to_published_row(steps(CHAD)) | dict(images=["/home/somebody/f.png"])
  found = parse_trajectory(row, "q", image_folder="/data")
  assert found[0].question.image == "/data/f.png"
  kept = parse_trajectory(row, "q")
  assert kept[0].question.image == "/home/somebody/f.png"


# ---- What a teacher wrote.


def taught():
  """The steps of `CHAD`, with a teacher's responses."""

  def plan(*of):
    return format.render_plan(Plan("It shows\n a flag.", *of))

  def says(text):
    return format.render_answer(Answer("I see.", text))

  written = plan("Which country is it?", ("image",)), says("Chad")
  written += plan("None", ()), says("It has 11,631,456.")
  pairs = zip(steps(CHAD), written, strict=True)
  return [dataclasses.replace(step, response=text) for step, text in pairs]


def test_teacher_response_round_trips():
  taught_steps = taught()
  responses = [step.response for step in taught_steps]
  row = to_published_row(taught_steps)
  assert [step["response"] for step in row["steps"]] == responses
  read = parse_trajectory(row, "q")
  assert [step.response for step in read] == responses
  # In the teacher's spelling, where the published form folds case.
  asked = [step.sub_question for step in taught_steps]
  assert [step.sub_question for step in read] == asked
  assert read[2].history == (("Which country is it?", "Chad"),)
  assert to_published_row(read) == row
  bare = copy.deepcopy(row)
  for step in bare["steps"]:
    del step["response"]
  assert bare == to_published_row(steps(CHAD))
  assert {step.response for step in parse_trajectory(bare, "q")} == {""}


@pytest.mark.parametrize(
  "at, old, new, reason",
  [
    (0, "<ret>", "", "q/0 is not of the protocol: tags are"),
    (1, "<think>I see.</think>", "", "q/1 is not of the protocol"),
    (3, "</answer>", "</answer> So.", "q/3 is not of the protocol"),
    (0, "Which country", "What land", "q/0 says other than its"),
    (0, "Text Image", "Text", "q/0 says other than its"),
    (1, "Chad", "chad", "q/1 says other than its"),
    (3, "11,631,456", "12", None),
  ],
)
def test_teacher_response_is_checked(at, old, new, reason):
  row = to_published_row(taught())
  step = row["steps"][at]
  assert old in step["response"]
  step["response"] = step["response"].replace(old, new)
  if reason is None:
    parse_trajectory(row, "q")
    return
  with pytest.raises(RowError, match=reason) as error:
    parse_trajectory(row, "q")
  assert "Delete its" in error.value.args[1]
