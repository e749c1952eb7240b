"""Official metrics, against values that were worked out by hand."""

import math

import numpy as np
import pytest

from r1router_jax.common.records import Question
from r1router_jax.metrics import official


def score(benchmark, text, *golds, **more):
  question = Question("q", "?", golds, benchmark=benchmark, **more)
  found = official.score_official(text, question)
  return found.exact, found.f1


NAN = pytest.approx(math.nan, nan_ok=True)


@pytest.mark.parametrize(
  "benchmark, text, golds, exact, f1",
  [
    ("musique", "The U.S. film!", ["us film"], 1, 1),
    ("musique", "a red kite", ["kite", "red balloon"], 0, 2 / 3),
    ("musique", "", ["the"], 1, 1),
    ("musique", "kite kite", ["kite"], 0, 2 / 3),
    ("musique", "well-known", ["well known"], 0, 0),
    ("hotpotqa", "kite", ["a kite"], 1, 1),
    ("hotpotqa", "yes", ["yes"], 1, 1),
    ("hotpotqa", "yes it is", ["yes"], 0, 0),
    ("hotpotqa", "no", ["no way"], 0, 0),
    ("hotpotqa", "", ["the"], 1, 0),
    ("mmsearch", "May 1", ["June", "1 May 2024"], NAN, 0.8),
    ("fvqa", "The Anna", ["Ann", "Anna"], 1, NAN),
    ("infoseek", "An energy", ["x", "energy"], 1, NAN),
    ("livevqa", "a", ["a"], NAN, NAN),
    ("", "a", ["a"], NAN, NAN),
  ],
)
def test_texts(benchmark, text, golds, exact, f1):
  assert score(benchmark, text, *golds) == (
    exact,
    pytest.approx(f1, nan_ok=True),
  )


@pytest.mark.parametrize(
  "text, right",
  [
    ("7", 1),
    ("about 1,000 m", 0),
    ("6.5-8", 1),
    ("9 to 7", 0),  # The first number of a falling pair.
    ("4-8", 1),  # 2 of 6 to 8 and 4 to 8 are shared: half of 4.
    ("3-8", 0),
    ("none", 0),
    ("-7", 0),
  ],
)
def test_numbers_of_infoseek(text, right):
  assert score("infoseek", text, "7", interval=(6.0, 8.0))[0] == right


@pytest.mark.parametrize(
  "text, golds, right",
  [
    ("The answer is two.", ["2"], 1),
    ("True", ["yes"], 1),
    ("don’t", ["dont"], 1),
    ("red kite", ["kite", "a Red-kite"], 0),
    ("", ["the"], 0),  # A gold of no words is none.
  ],
)
def test_texts_of_evqa(text, golds, right):
  assert score("e_vqa", text, *golds, family="automatic")[0] == right


@pytest.mark.parametrize(
  "text, right",
  [("red and blue", 1), ("blue", 1), ("red, blue & green, grey", 1), ("a", 0)]
  + [("red, x, y", 0), ("green", 1)],
)
def test_lists_of_evqa_overlap_by_half(text, right):
  lists = ("red", "blue"), ("green",)
  more = dict(family="multi_answer", members=lists)
  assert score("e_vqa", text, "red, blue", "green", **more)[0] == right


@pytest.mark.parametrize(
  "text, gold, exact, f1",
  [
    ("Rome, Italy", ["Rome Italy"], 1, 1),
    ("Pisa and Rome", ["Rome", "Pisa"], 1, 1),
    ("Rome", ["Rome", "Pisa"], 0, 0.5),
    # The best pairing: (red kite, kite) and (blue, blue), and nothing more.
    ("kite, blue, x", ["blue", "red kite"], 0, round((1 + 2 / 3) / 3, 2)),
    ("seven", ["7.0"], 1, 1),
    ("twenty-one", ["20 1"], 1, 1),
    # A number that is wrong is no part of a right answer.
    ("8 red kites", ["7 red kites"], 0, 0),
    ("red kites", ["7 red kites"], 0, 0),
    ("", ["Rome"], 0, 0),
  ],
)
def test_lists_of_multimodalqa(text, gold, exact, f1):
  found = score("multimodalqa", text, ", ".join(gold), members=(tuple(gold),))
  assert found == (exact, pytest.approx(f1))


def test_infoseek_score():
  families = ["val_unseen_question"] * 2 + ["val_unseen_entity"] * 4
  questions = [
    Question(str(n), "?", ("a",), family=family, benchmark="infoseek")
    for n, family in enumerate(families)
  ]
  other = Question(
    "o", "?", ("a",), family="x_unseen_entity", benchmark="webqa"
  )
  accuracies = np.array([1, 0, 1, 0, 0, 0, 1.0])
  found = official.infoseek_score([*questions, other], accuracies)
  assert found == pytest.approx((1 / 3, 0.5, 0.25))
  nothing = official.infoseek_score(questions, np.zeros(6))
  assert nothing.harmonic_mean == 0
  # Without both splits there is no score.
  assert official.infoseek_score(questions[:2], [1.0, 1.0]) is None
  assert official.infoseek_score([other], [1.0]) is None
