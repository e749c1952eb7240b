import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest

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
  hops = tuple(Hop("Which?", tuple(some.split("|")), ("a",)) for some in gold)
  rounds = []
  for n, route in enumerate(chosen):
    plan = Plan("t", f"What {n}?", (route,))
    passages = (Passage(f"{route}/{n}", route, "words", score=0.5),)
    rounds.append(Round(plan, passages, Answer("t", "a")))
  answer = Answer("", final) if final else Malformed("?", "no tags")
  golds = ("Chad", "Republic of Chad")
  question = Question("q", "Where?", golds, hops=hops, family="f")
  return Trajectory(question, tuple(rounds), answer, faults, 7)


score = functools.partial(trajectories.score_trajectories, max_steps=3)


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
        one = trajectory(gold, chosen, *fault)
        found = trajectories.route_correctness(one, 3)
        assert found == oracle(gold, chosen, length < 3 and not fault)


def test_malformed_answer_scores_zero_unless_scored_raw():
  untagged = Malformed("It is Chad, not tagged", "no tags")
  one = replace(trajectory((), ()), final=untagged)
  strict, raw = (score([one], score_malformed=raw) for raw in (False, True))
  assert strict["recall"] == [0] and raw["recall"] == [1]
  assert strict["exact"] == raw["exact"] == [0]


def test_route_correctness_of_known_trajectories():
  def right(*args):
    return trajectories.route_correctness(trajectory(*args), 3)

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
  done = replace(one.rounds[0], plan=Plan("t", "What?", chosen))
  found = replace(one, rounds=(done,), truncated_tokens=9)
  assert trajectories.route_correctness(found, 3)[0] == right
  columns = score([found, one])
  assert columns["retrievals"].tolist() == [2, 1]
  assert columns["cut"].tolist() == [9, 0]
  assert columns["format"].tolist() == [1, 1]


def test_missing_passage_image_is_no_format_fault():
  found = trajectory(("text",), ("text",), "picture: a.png: gone")
  assert trajectories.route_correctness(found, 3) == [True, True]
  assert score([found])["format"] == 1


def test_score_columns_of_known_trajectories():
  long, text = "the Republic of Chad, I think", ("text",)
  some = [
    trajectory(text, text),
    trajectory(text, ("text", "image"), "plan: no tags", final=long),
    trajectory(text, (), "final: no tags", "repeated: x", final=""),
  ]
  found = score(some)
  f1 = [1, pytest.approx(0.75), 0]
  wanted = dict(recall=[1, 1, 0], f1=f1, exact=[1, 0, 0])
  wanted |= {f"default_{name}": column for name, column in wanted.items()}
  wanted |= dict(
    retrieval=pytest.approx([np.nan] * 3, nan_ok=True),
    # No benchmark, no official metric.
    official_exact=pytest.approx([np.nan] * 3, nan_ok=True),
    official_f1=pytest.approx([np.nan] * 3, nan_ok=True),
    route=[1, pytest.approx(2 / 3), 0],
    format=[1, 0, 0],
    retrievals=[1, 2, 0],
    tokens=[7, 7, 7],
    cut=[0, 0, 0],
  )
  assert {name: column.tolist() for name, column in found.items()} == wanted
  assert answers.score_answer(long, ("Chad",)).recall == 1


def test_interval_is_used_by_both_rule_sets():
  one = trajectory((), (), final="6.6 kg")
  question = replace(one.question, answers=("6.6 kg",), interval=(7.0, 8.0))
  wrong = replace(one, question=question)
  right = replace(wrong, final=Answer("", "About 7.25 kg."))
  off = replace(wrong, final=Answer("", "7.255"))  # Off the grid.
  columns = score([wrong, right, off])
  assert columns["recall"].tolist() == [0, 1, 0]
  assert columns["f1"].tolist() == [0, 0.5, 0]
  assert columns["default_recall"].tolist() == [0, 1, 1]
  assert columns["default_exact"].tolist() == [0, 1, 1]


def test_evidence_recall():
  """The passages of round n are "<route>/<n>"."""

  def with_evidence(evidence, chosen):
    found = trajectory(("text",) * len(evidence), chosen)
    pairs = zip(found.question.hops, evidence, strict=True)
    hops = tuple(replace(hop, evidence=ids) for hop, ids in pairs)
    return replace(found, question=replace(found.question, hops=hops))

  some = [
    with_evidence([("text/0",), ("image/1", "image/7")], ("text", "image")),
    with_evidence([("text/1",), ("image/1",)], ("text", "text")),
    with_evidence([(), ("table/5",)], ("text", "table")),
    with_evidence([(), ()], ("text", "text")),
    with_evidence([], ()),
    with_evidence([("text/0",)], ()),
  ]
  column = score(some)["retrieval"]
  np.testing.assert_array_equal(column, [1, 0.5, 0, np.nan, np.nan, 0])
  assert trajectories.drop_nan(column).tolist() == [1, 0.5, 0, 0]


@pytest.mark.parametrize(
  "found, evidence, right",
  [
    ("t1#3", "t1", True),  # A part of a long document.
    ("t1#3", "t1#3", True),
    ("t1#3", "t1#4", False),
    ("t1", "t1#3", False),
    ("guide.md#hours", "guide.md", False),  # A section is another text.
  ],
)
def test_parts_of_a_document_are_its_evidence(found, evidence, right):
  one = trajectory(("text",), ("text",))
  passage = replace(one.rounds[0].passages[0], id=found)
  hop = replace(one.question.hops[0], evidence=(evidence,))
  done = replace(one.rounds[0], passages=(passage,))
  one = replace(
    one, rounds=(done,), question=replace(one.question, hops=(hop,))
  )
  assert trajectories.evidence_recall(one) == right
