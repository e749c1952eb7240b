"""Gold steps, and the published form of trajectories."""

import copy
import dataclasses
import json
import os
import pathlib

import pytest

from r1router_jax.common.records import Answer, Hop, Passage, Plan, Question
from r1router_jax.common.row_files import RowError
from r1router_jax.data import georouter, gold_steps, r1_router_rows
from r1router_jax.protocol import format

# Not part of the repository: R1-Router's Step-GRPO validation rows, in the
# folder that R1ROUTER_REFERENCE names.
ROWS = pathlib.Path(
  os.environ.get("R1ROUTER_REFERENCE", "reference"),
  "grpo_dataset_valid_new.jsonl",
)

CHAD = Hop("Which country is it?", ("image",), ("Chad", "Tchad"), ("i/1",))

PEOPLE = Hop("How many live in Chad?", ("table", "text"), ("11,631,456",))


def question(*hops, image=""):
  return Question("q", "How many live here?", ("11,631,456",), image, hops=hops)


def retrieve(queries):
  return [(Passage(f"{kb}/0", kb, f"On {asked}"),) for kb, asked, _ in queries]


def steps(*hops):
  return gold_steps.make_gold_steps([question(*hops, image="f.png")], retrieve)[
    0
  ]


def test_gold_steps_of_two_hops():
  first, reading, second, counting, stop, final = steps(CHAD, PEOPLE)
  assert [s.kind for s in (first, reading, second, counting, stop, final)] == [
    "plan",
    "answer",
  ] * 2 + ["plan", "final"]
  assert [s.id for s in steps(CHAD, PEOPLE)] == [f"q/{n}" for n in range(6)]
  history = (("Which country is it?", "Chad"),)
  assert first.history == reading.history == ()
  assert second.history == counting.history == history
  assert (
    stop.history
    == final.history
    == (*history, ("How many live in Chad?", "11,631,456"))
  )
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
  assert calls == [
    [
      ("image", "Which country is it?", "f.png"),
      ("table", "How many live in Chad?", "f.png"),
      ("table", "How many live in Chad?", ""),
    ]
  ]
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
  row = r1_router_rows.to_published_row(steps(CHAD))
  assert row["images"] == ["f.png"]
  plan, answer, stop, final = row["steps"]
  assert [s["step_type"] for s in row["steps"]] == ["ret", "ans", "ret", "ans"]
  assert plan["problem"] == "Origin question: How many live here?\n<image>"
  assert plan["answer"] == dict(
    query="which country is it?", retriever=["text image retriever"]
  )
  assert answer["answer"] == "Chad"
  assert "retriever:tir-0: On Which country is it?\n" in answer["problem"]
  assert answer["problem"].endswith("Question: which country is it?<image>")
  assert stop["answer"] == dict(query="none", retriever=["none"])
  assert stop["problem"] == (
    "Origin question: How many live here?\nSub-question1: which country is "
    "it?\nAnswer1: chad\n<image>"
  )
  assert final["answer"] == ["11,631,456"]
  assert final["problem"].endswith(
    "Now, give me the final answer of the origin question: How many live "
    "here?<image>"
  )


def test_georouter_round_trips_through_published_form():
  for trajectory in gold_steps.make_gold_steps(
    georouter.load_questions("test"), retrieve
  ):
    row = r1_router_rows.to_published_row(trajectory)
    read = r1_router_rows.parse_trajectory(row, trajectory[0].question.id)
    assert r1_router_rows.to_published_row(read) == row
    for ours, theirs in zip(trajectory, read, strict=True):
      assert (ours.id, ours.kind, ours.routes) == (
        theirs.id,
        theirs.kind,
        theirs.routes,
      )
      assert theirs.sub_question in (
        ours.sub_question,
        ours.sub_question.lower(),
      )
      assert theirs.answers == (
        ours.answers if ours.kind == "final" else ours.answers[:1]
      )
      assert [p.text for p in theirs.passages] == [
        p.text for p in ours.passages
      ]


@pytest.mark.skipif(not ROWS.exists(), reason="the reference's rows are absent")
def test_published_rows_round_trip():
  lines = ROWS.read_text(encoding="utf-8").split("\n")[:-1]
  for number, line in enumerate(lines):
    row = json.loads(line)
    written = r1_router_rows.to_published_row(
      r1_router_rows.parse_trajectory(row, f"reference/{number}")
    )
    for step in (*row["steps"], *written["steps"]):
      # The plan prompt has a variant that is one newline shorter.
      step["system"] = step["system"].rstrip("\n")
    assert written == row
  assert len(lines) == 119


def test_moved_images_are_found():
  row = r1_router_rows.to_published_row(steps(CHAD))
  row["images"] = ["/home/somebody/f.png"]
  step = r1_router_rows.parse_trajectory(row, "q", image_folder="/data")[0]
  assert step.question.image == os.path.join("/data", "f.png")
  assert r1_router_rows.parse_trajectory(row, "q")[0].question.image == (
    "/home/somebody/f.png"
  )


def test_changed_row_is_rejected():
  row = r1_router_rows.to_published_row(steps(CHAD, PEOPLE))
  changed = copy.deepcopy(row)
  changed["steps"][2]["problem"] = changed["steps"][2]["problem"].replace(
    "chad", "mali"
  )
  with pytest.raises(ValueError, match="q/2 does not follow.*'mali"):
    r1_router_rows.parse_trajectory(changed, "q")
  changed = copy.deepcopy(row)
  del changed["steps"][0]
  with pytest.raises(ValueError, match='no "ret" step'):
    r1_router_rows.parse_trajectory(changed, "q")
  changed = copy.deepcopy(row)
  changed["steps"][0]["answer"]["retriever"] = ["web retriever"]
  with pytest.raises(ValueError, match="web retriever.*table retriever"):
    r1_router_rows.parse_trajectory(changed, "q")


# ---- What a teacher wrote.


def taught():
  """The steps of `CHAD`, with a teacher's responses."""

  def plan(*of):
    return format.render_plan(Plan("It shows\n a flag.", *of))

  def says(text):
    return format.render_answer(Answer("I see.", text))

  written = (
    plan("Which country is it?", ("image",)),
    says("Chad"),
    plan("None", ()),
    says("It has 11,631,456."),
  )
  return [
    dataclasses.replace(step, response=response)
    for step, response in zip(steps(CHAD), written, strict=True)
  ]


def test_teacher_response_round_trips():
  row = r1_router_rows.to_published_row(taught())
  assert [step["response"] for step in row["steps"]] == [
    step.response for step in taught()
  ]
  read = r1_router_rows.parse_trajectory(row, "q")
  assert [step.response for step in read] == [
    step.response for step in taught()
  ]
  # In the teacher's spelling, where the published form folds case.
  assert [step.sub_question for step in read] == [
    step.sub_question for step in taught()
  ]
  assert read[2].history == (("Which country is it?", "Chad"),)
  assert r1_router_rows.to_published_row(read) == row
  bare = json.loads(json.dumps(row))
  for step in bare["steps"]:
    del step["response"]
  assert bare == r1_router_rows.to_published_row(steps(CHAD))
  assert {
    step.response for step in r1_router_rows.parse_trajectory(bare, "q")
  } == {""}


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
  row = r1_router_rows.to_published_row(taught())
  assert old in row["steps"][at]["response"]
  row["steps"][at]["response"] = row["steps"][at]["response"].replace(old, new)
  if reason is None:
    r1_router_rows.parse_trajectory(row, "q")
  else:
    with pytest.raises(RowError, match=reason) as error:
      r1_router_rows.parse_trajectory(row, "q")
    assert "Delete its" in error.value.args[1]
