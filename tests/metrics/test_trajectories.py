import dataclasses
import itertools
import json

import numpy as np
import pytest

from r1router_jax.common import files, jsonl, trajectory_io
from r1router_jax.common.records import (
  Answer,
  Hop,
  Malformed,
  Passage,
  Plan,
  Question,
  Round,
  Trajectory,
)
from r1router_jax.metrics import answers, trajectories

ROUTES = ("text", "image", "table")


def trajectory(gold, chosen, *faults, final="Chad"):
  """`gold` holds accepted routes per hop, "text|table"; `chosen` rounds."""
  hops = tuple(
    Hop("Which?", tuple(routes.split("|")), ("a",)) for routes in gold
  )
  rounds = tuple(
    Round(
      Plan("t", f"What {n}?", (route,)),
      (Passage(f"{route}/{n}", route, "words", score=0.5),),
      Answer("t", "a"),
    )
    for n, route in enumerate(chosen)
  )
  answer = Answer("", final) if final else Malformed("?", "no tags")
  question = Question(
    "q", "Where?", ("Chad", "Republic of Chad"), hops=hops, family="f"
  )
  return Trajectory(question, rounds, answer, faults, 7)


def oracle(gold, chosen, stopped):
  """Position by position, the slow way."""
  marks = []
  for at in itertools.count():
    asks_gold = at < len(gold)
    stop_due = at == len(gold) and at < 3
    took = at < len(chosen)
    took_stop = stopped and at == len(chosen)
    if not (asks_gold or stop_due or took or took_stop):
      return marks
    if took:
      marks.append(asks_gold and chosen[at] in gold[at].split("|"))
    elif took_stop:
      marks.append(not asks_gold)
    else:
      marks.append(False)


@pytest.mark.parametrize(
  "gold", [(), ("text",), ("image", "table|text"), ("text", "image", "table")]
)
def test_route_correctness_at_every_position(gold):
  for length in range(4):
    for chosen in itertools.product(ROUTES, repeat=length):
      for fault in ((), ("stuck: x",)) if length < 3 else ((),):
        found = trajectories.route_correctness(
          trajectory(gold, chosen, *fault), 3
        )
        assert found == oracle(gold, chosen, length < 3 and not fault)


def test_malformed_answer_scores_zero_unless_scored_raw():
  malformed = dataclasses.replace(
    trajectory((), ()), final=Malformed("It is Chad, not tagged", "no tags")
  )
  strict, raw = (
    trajectories.score_trajectories(
      [malformed], max_steps=3, score_malformed=raw
    )
    for raw in (False, True)
  )
  assert strict["recall"] == [0] and raw["recall"] == [1]
  assert strict["exact"] == raw["exact"] == [0]


def test_route_correctness_of_known_trajectories():
  right = lambda *args: trajectories.route_correctness(trajectory(*args), 3)
  assert right(("image", "table|text"), ("image", "text")) == [True] * 3
  assert right((), ()) == [True]
  assert right((), (), "input: no picture") == [False]
  assert right(("text",), ("text", "text")) == [True, False, True]
  assert right(("text",), ("text",), "repeated: x") == [True, False]
  assert right(("text", "image"), ()) == [False] * 3


@pytest.mark.parametrize(
  "gold, chosen, right",
  [
    (("table|text",), ("table", "text"), True),
    (("table|text",), ("text", "table"), True),
    (("table|text",), ("table", "image"), False),
    (("table|text",), ("image", "table"), False),
    (("table",), ("table", "text"), False),
    ((), ("table", "text"), False),
  ],
)
def test_plan_with_several_routes(gold, chosen, right):
  """Right where each is accepted; each costs a retrieval."""
  one = trajectory(gold, chosen[:1])
  done = dataclasses.replace(one.rounds[0], plan=Plan("t", "What?", chosen))
  found = dataclasses.replace(one, rounds=(done,), truncated_tokens=9)
  assert trajectories.route_correctness(found, 3)[0] == right
  columns = trajectories.score_trajectories([found, one], max_steps=3)
  assert columns["retrievals"].tolist() == [2, 1]
  assert columns["cut"].tolist() == [9, 0]
  assert columns["format"].tolist() == [1, 1]


def test_missing_passage_image_is_no_format_fault():
  found = trajectory(("text",), ("text",), "picture: a.png: gone")
  assert trajectories.route_correctness(found, 3) == [True, True]
  assert trajectories.score_trajectories([found], max_steps=3)["format"] == 1


def test_score_columns_of_known_trajectories():
  some = [
    trajectory(("text",), ("text",)),
    trajectory(
      ("text",),
      ("text", "image"),
      "plan: no tags",
      final="the Republic of Chad, I think",
    ),
    trajectory(("text",), (), "final: no tags", "repeated: x", final=""),
  ]
  found = trajectories.score_trajectories(some, max_steps=3)
  scores = answers.score_answer("the Republic of Chad, I think", ("Chad",))
  assert {name: column.tolist() for name, column in found.items()} == dict(
    recall=[1, 1, 0],
    f1=[1, pytest.approx(0.75), 0],
    exact=[1, 0, 0],
    default_recall=[1, 1, 0],
    default_f1=[1, pytest.approx(0.75), 0],
    default_exact=[1, 0, 0],
    retrieval=pytest.approx([np.nan] * 3, nan_ok=True),
    route=[1, pytest.approx(2 / 3), 0],
    format=[1, 0, 0],
    retrievals=[1, 2, 0],
    tokens=[7, 7, 7],
    cut=[0, 0, 0],
  )
  assert scores.recall == 1


def test_interval_is_used_by_both_rule_sets():
  one = trajectory((), (), final="6.6 kg")
  question = dataclasses.replace(
    one.question, answers=("6.6 kg",), interval=(7.0, 8.0)
  )
  wrong = dataclasses.replace(one, question=question)
  right = dataclasses.replace(wrong, final=Answer("", "About 7.25 kg."))
  off = dataclasses.replace(wrong, final=Answer("", "7.255"))  # Off the grid.
  columns = trajectories.score_trajectories([wrong, right, off], max_steps=3)
  assert columns["recall"].tolist() == [0, 1, 0]
  assert columns["f1"].tolist() == [0, 0.5, 0]
  assert columns["default_recall"].tolist() == [0, 1, 1]
  assert columns["default_exact"].tolist() == [0, 1, 1]


def test_evidence_recall():
  """The passages of round n are "<route>/<n>"."""

  def with_evidence(evidence, chosen):
    found = trajectory(("text",) * len(evidence), chosen)
    hops = tuple(
      dataclasses.replace(hop, evidence=ids)
      for hop, ids in zip(found.question.hops, evidence, strict=True)
    )
    return dataclasses.replace(
      found, question=dataclasses.replace(found.question, hops=hops)
    )

  some = [
    with_evidence([("text/0",), ("image/1", "image/7")], ("text", "image")),
    with_evidence([("text/1",), ("image/1",)], ("text", "text")),
    with_evidence([(), ("table/5",)], ("text", "table")),
    with_evidence([(), ()], ("text", "text")),
    with_evidence([], ()),
    with_evidence([("text/0",)], ()),
  ]
  column = trajectories.score_trajectories(some, max_steps=3)["retrieval"]
  np.testing.assert_array_equal(column, [1, 0.5, 0, np.nan, np.nan, 0])
  assert trajectories.drop_nan(column).tolist() == [1, 0.5, 0, 0]
  columns = dict(retrieval=column, tokens=np.arange(6.0))
  assert trajectories.row_scores(columns, 1) == dict(retrieval=0.5, tokens=1)
  assert trajectories.row_scores(columns, 3) == dict(tokens=3)


def test_trajectory_round_trips_through_its_file(tmp_path):
  path = tmp_path / "predictions.jsonl"
  assert jsonl.read_rows(path) == []
  first = trajectory(("text",), ("text", "image"), "answer: no tags")
  second = trajectory((), (), final="")
  jsonl.append_rows(path, [trajectory_io.to_row(first)])
  with path.open("a") as file:
    file.write('{"id": "torn')  # Killed here.
  jsonl.append_rows(path, [trajectory_io.to_row(second)])
  found = [
    trajectory_io.from_row(row, each.question)
    for row, each in zip(jsonl.read_rows(path), (first, second), strict=True)
  ]
  assert found == [first, second]


def test_routes_and_truncation_round_trip_through_file(tmp_path):
  one = trajectory(("text",), ("text",))
  done = dataclasses.replace(
    one.rounds[0], plan=Plan("t", "What?", ("text", "table", "image"))
  )
  wanted = dataclasses.replace(one, rounds=(done,), truncated_tokens=3)
  jsonl.append_rows(tmp_path / "p", [trajectory_io.to_row(wanted)])
  (row,) = jsonl.read_rows(tmp_path / "p")
  assert trajectory_io.from_row(row, one.question) == wanted


def test_older_prediction_file_is_read(tmp_path):
  """A line as it was written before plans could name several routes."""
  (tmp_path / "p").write_text(
    '{"id": "q", "question": "Where?", "image": "", "family": "f", "gold": '
    '["Chad"], "rounds": [{"thought": "t", "sub_question": "What 0?", '
    '"route": "text", "passages": [{"id": "text/0", "kb": "text", "text": '
    '"words", "image": "", "score": 0.5}], "answer": {"thought": "t", '
    '"text": "a"}}], "final": {"thought": "", "text": "Chad"}, "faults": '
    '[], "tokens": 7}\n'
  )
  (row,) = jsonl.read_rows(tmp_path / "p")
  wanted = trajectory(("text",), ("text",))
  assert trajectory_io.from_row(row, wanted.question) == wanted


def test_replace_leaves_no_partial_file(tmp_path):
  for value in ({"a": 1}, {"b": [2]}):
    files.write_json(tmp_path / "scores.json", value)
    assert json.loads((tmp_path / "scores.json").read_text()) == value
  assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_pick_mixes_families_and_verdicts():
  rng = np.random.default_rng(0)
  many = [
    dataclasses.replace(
      trajectory((), ()), question=Question(f"q/{n}", "?", family=f"f{n % 4}")
    )
    for n in range(80)
  ]
  right = (rng.random(80) < 0.5).tolist()
  marks = {t.question.id: r for t, r in zip(many, right, strict=True)}
  picked = trajectory_io.select_examples(many, right, 12)
  assert len({t.question.id for t in picked}) == 12
  families = [t.question.family for t in picked]
  assert all(families.count(f"f{n}") == 3 for n in range(4))
  for n in range(4):
    assert (
      len(
        {marks[t.question.id] for t in picked if t.question.family == f"f{n}"}
      )
      == 2
    )
  assert len(trajectory_io.select_examples(many[:5], right[:5], 12)) == 5
  assert trajectory_io.select_examples([], [], 12) == []
