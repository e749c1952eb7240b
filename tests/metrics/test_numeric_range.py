"""Intervals: the reference's grid, enumerated; the first number of a text."""

import json
import os
import pathlib
import random
import re
import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from r1router_jax.metrics import answers, numeric_range
from r1router_jax.metrics.answers import reference_tokens, score_answer
from tests import slow_bag_f1

REFERENCE = pathlib.Path(os.environ.get("R1ROUTER_REFERENCE", "reference"))

needs_reference = pytest.mark.skipif(
  not REFERENCE.exists(), reason="the reference's files are absent"
)


def step_of(width):
  """Return the step of the grid of a range."""
  return next(
    (step for least, step in ((50, 1), (5, 0.1), (1, 0.01)) if width >= least),
    0.001,
  )


def grid(low, high):
  """Every accepted string, one after the other."""
  step = step_of(high - low)
  points = [str(round(x, 3)) for x in np.arange(low, high + step, step)]
  return points + [str(n) for n in range(int(low), int(high + 1))]


def predictions(low, high, rng):
  """Numbers at, around, between and beyond the ends, spelled in many ways."""
  step = step_of(high - low)
  ends = [low, high, int(low), int(high), int(high) + 1, int(low) - 1]
  points = [end + k * step for end in ends for k in (-2, -1, -0.5, 0, 0.5, 1)]
  count = int((high - low) / step) + 2
  points += [low + step * rng.randrange(count) for _ in range(12)]
  for x in points:
    yield from {*(f"{x:.{d}f}" for d in range(5))}
    yield from (str(x), f"{x:,.1f}", f"-{x:g}")
  for x in (rng.choice(points) for _ in range(6)):
    yield from (
      *(f"about {x:.2f} kg", f"{x:g}%", f"0{x:.1f}", f"{x:.1f}0", f"{x:e}"),
      *(f"{x:.1f}-{x + step:.1f}", f"The answer is {x:.0f}."),
      *(f"${x:,.0f} or {x:.3f}, {x:.1f}", f"{int(x)} {x:.1f} {x:.1f}"),
    )
  yield from "none one ten zero 1e3 nan inf -0 ? 1,234 0.0 -0.0 .5".split()
  yield from ("", "6.5.7", "9" * 400, "６.５", "²")


def check(low, high, seed):
  """Our scores are those of the grid, for every prediction."""
  golds = {}  # By a word of each: others share nothing with a prediction.
  for gold in dict.fromkeys(map(reference_tokens, grid(low, high))):
    golds.setdefault(gold[0], []).append(gold)
    assert len(gold) == 1
  hits = 0
  for text in predictions(low, high, random.Random(seed)):
    some = [
      gold for word in reference_tokens(text) for gold in golds.get(word, ())
    ]
    found = score_answer(text, ("not looked at",), (low, high))
    wanted = slow_bag_f1.best(reference_tokens(text), some)
    assert (found.precision, found.recall, found.f1) == wanted, text
    assert found.exact == (reference_tokens(text) in some)
    hits += wanted[1]
  assert hits > 20


def numeric_rows():
  for line in (REFERENCE / "infoseek_val.jsonl").open(encoding="utf-8"):
    row = json.loads(line)
    if isinstance(row["answer_eval"][0], dict):
      yield row


@needs_reference
@pytest.mark.parametrize(
  "part",
  [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 8))],
)
def test_scores_match_infoseek_grids(part):
  some = list(numeric_rows())[part::8]
  assert len(some) == 31
  for seed, row in enumerate(some):
    check(*row["answer_eval"][0]["range"], seed)


@pytest.mark.parametrize(
  "low, high",
  [
    (6.5, 7.0),
    (0.0, 0.0),
    (-0.0, 0.002),
    (-3.7, -1.2),
    (-2.0, 2.0),
    (-75.5, 20.25),
    (0.0004, 0.0016),
    (1.2671999999999999, 1.5488),
    (390.6, 477.40000000000003),
    (999999.5, 1000002.25),
    (1e12, 1e12 + 70),
  ],
)
def test_scores_match_other_grids(low, high):
  check(low, high, 0)


@hypothesis.given(
  st.floats(-1e4, 1e4),
  st.sampled_from([0, 0.0007, 0.3, 1, 4.9, 5, 49.9, 50]),
  st.integers(-12, 900),
  st.sampled_from([1, 0.1, 0.01, 0.001]),
)
@hypothesis.settings(deadline=None, max_examples=200)
def test_is_on_grid_matches_numpy_arange(low, width, at, step):
  high = low + width
  words = {word.lstrip("-") for word in grid(low, high)}
  for word in {str(abs(round(low + at * step, 3))), str(abs(int(low) + at))}:
    assert numeric_range.is_on_grid(word, low, high) == (word in words)


def test_huge_grid_is_tested_in_bounded_time():
  start = time.process_time()
  assert numeric_range.is_on_grid("123456789012345", 0.0, 1e15)
  for number in (1234567890123.0, 123456789012345.0):
    wanted = round(np.float64(number), 3) == number
    assert numeric_range.is_on_grid(str(number), 0.0, 1e15) == wanted
  assert not numeric_range.is_on_grid("1234567890123456", 0.0, 1e15)
  assert time.process_time() - start < 1  # CPU seconds.


@pytest.mark.parametrize("width", [0, 0.5, 1.5, 5])
def test_steps_below_float_resolution(width):
  low = 3e13  # The next number is 0.004 away.
  words = set(grid(low, low + width))
  for word in (f"{low + n / 8}" for n in range(-3, 60)):
    assert numeric_range.is_on_grid(word, low, low + width) == (word in words)
  assert numeric_range.is_on_grid("30000000000000", low, low + width)


IN_RANGE = """
  6.5|7|about 6.5kg|It is 6.75. No, 9.|６．６|高度为6.6米|٦.٦|6.6.|$6.6|6.6%
  (6.6)|mid-6.6|6.5-7.0|6.5 – 7.0 kg|6.5 to 7|between 6.6 and 6.9|H2O at 6.7
  v2 6.7|6.7e0|67e-1|0.0066 thousand|seven|one: 6.6
"""
OUT_OF_RANGE = """
  6.49|7.01|9, or 6.75|x-6.6|6·6|-6.6|−6.6|6,600|6.5-700|1 to 7|6.6e1|1e999
  6.6 million|nan|inf|none|ten|someone
"""


def split_words(lines):
  return re.split(r"\||\n\s*", lines.strip())


@pytest.mark.parametrize(
  "text, wanted",
  [
    *((text, True) for text in (*split_words(IN_RANGE), "\ud8006.6")),
    *((text, False) for text in (*split_words(OUT_OF_RANGE), "", "9" * 5000)),
  ],
)
def test_only_the_first_number_counts(text, wanted):
  assert numeric_range.is_in_range(6.5, 7.0, text) == wanted
  scores = answers.score_default(text, ("6.75",), (6.5, 7.0))
  assert scores == answers.AnswerScores(*[float(wanted)] * 5)


DOCS = pathlib.Path(__file__).parents[2] / "docs/evaluation.md"


def documented_numbers():
  """Return the rows of the table of the docs."""
  table = DOCS.read_text(encoding="utf-8").partition("| an answer says |")[2]
  lines = table.split("\n\n")[0].splitlines()[2:]
  return [[cell.strip() for cell in line.split("|")[1:3]] for line in lines]


@pytest.mark.parametrize("text, wanted", documented_numbers())
def test_documented_numbers_are_read(text, wanted):
  ends = [] if wanted == "none" else list(map(float, wanted.split(" to ")))
  if not ends:
    assert not numeric_range.is_in_range(-1e15, 1e15, text)
    return
  low, high = min(ends), max(ends)
  assert numeric_range.is_in_range(low, high, text)
  assert not numeric_range.is_in_range(low, high - 1e-3, text)
  assert not numeric_range.is_in_range(low + 1e-3, high + 1e12, text)


@pytest.mark.parametrize(
  "text, low, high",
  [
    ("1,2345", 1, 1),
    ("-40 °C", -40, -40),
    ("1-2 million", 1e6, 2e6),
    ("2 billion to 3 billion", 2e9, 3e9),
    ("two million and three million", 2e6, 3e6),
    ("two million five hundred thousand", 2.5e6, 2.5e6),
    ("1½ million", 1.5e6, 1.5e6),
    ("US$1.5bn", 1.5e9, 1.5e9),
    ("1.5 M people", 1.5e6, 1.5e6),
    ("300 K", 300, 300),
    ("12 de 1995", 12, 12),
    ("1995-06", 1995, 1995),
    ("1999-00", 1999, 1999),
    ("1995年6月", 1995, 1995),
    ("06/1995", 1995, 1995),
    ("the 12th of June, 1995", 1995, 1995),
    ("1995-06-12T10:00:00Z", 1995, 1995),
    ("c.1500", 1500, 1500),
    ("٣٫١٤", 3.14, 3.14),
    ("1½M", 1.5e6, 1.5e6),
    ("twelve hundred", 1200, 1200),
    ("1 million+", 1e6, 1e6),
    ("七千三百零四", 7304, 7304),
    ("一九七四", 1974, 1974),
    ("1.26亿", 126e6, 126e6),
    (".5", 0.5, 0.5),
    ("zero", 0, 0),
    ("The answer is one.", 1, 1),
    ("5e-324", 5e-324, 5e-324),
  ],
)
def test_spelled_and_formatted_numbers_are_read(text, low, high):
  assert numeric_range.is_in_range(float(low), float(high), text)
  assert not numeric_range.is_in_range(high + 1e-3, high + 1e12, text)


@pytest.mark.parametrize(
  "text",
  "no-one|Nobody|one of them|Well, one may hope.|two-thirds|sıx|1e999|"
  "9.9.9.9|24/7|F-16|1:2|万一|百分".split("|"),
)
def test_texts_without_a_number(text):
  assert not numeric_range.is_in_range(-1e300, 1e300, text)


@hypothesis.given(*[st.floats(-1e6, 1e6)] * 3)
def test_is_in_range_matches_a_comparison(x, one, other):
  low, high = sorted((one, other))
  for text in (repr(x), f"It weighs {x!r} kg, not 3."):
    assert numeric_range.is_in_range(low, high, text) == (low <= x <= high)


@needs_reference
def test_wikidata_values_are_in_range():
  """The grid misses a twelfth of these values, more in Python's spelling."""
  missed = {"%g": 0, "%r": 0}
  for row in numeric_rows():
    (gold,) = row["answer_eval"]
    value = gold["wikidata"]
    if not isinstance(value, list):
      for spelling in missed:
        text = spelling % value
        within = gold["range"][0] <= float(text) <= gold["range"][1]
        assert numeric_range.is_in_range(*gold["range"], text) == within
        missed[spelling] += not score_answer(text, (), gold["range"]).recall
    assert numeric_range.is_in_range(*gold["range"], row["answer"][0])
  assert missed["%g"] >= 10 and missed["%r"] > missed["%g"]
