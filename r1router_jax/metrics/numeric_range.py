r"""Answers that may be any number of an interval.

The reference turns an interval into a grid of strings, with a step s that
depends on the width:

  lo, lo + s, ...   as `np.arange(lo, hi + s, s)`, rounded to 3 decimals, and
  int(lo) .. int(hi + 1) - 1

One question of InfoSeek has up to 26,002 such strings.  Each is one token and
loses its sign, so `is_on_grid` only tests whether a token of the prediction is
such a string.  The grid usually ends above hi, and it contains int(lo), which
is below lo; decimals finer than the grid are not on it.

`is_in_range` reads the first number x of a text instead: lo <= x <= hi.  Of a
date that is the year; names such as "COVID-19" and times such as "12:30" have
none.

Source: github.com/OpenBMB/R1-Router (src/evaluate.py), numpy.arange.
"""

import itertools
import math
import re
from fractions import Fraction

from r1router_jax.metrics import numbers

# Largest end of an interval: from 1e16 on, Python writes numbers with an "e".
LARGEST = 1e15

_GRID_STRING = re.compile(r"(?a:\d{1,16}(\.\d{1,3})?)")

_MONTH = (
  r"\b(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|"
  r"aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_DATE = re.compile(
  rf"(?<![\w.])(?:(\d{{4}})([-/.])\d\d?\2\d\d?(?!\d)|(?:"
  rf"\d\d?([-/.])\d\d?\3|\d\d?/|{_DAY}(?: of)?[ -]{_MONTH},?[ -]|"
  rf"{_MONTH}[ -](?:{_DAY},? )?)(\d{{4}})(?!\d))",
  re.IGNORECASE,
)
# Times and ratios, and names with a number behind a hyphen.
_NO_COUNT = re.compile(
  r"(?<!\d)\d+(?::\d+)+(?:\.\d+)?|(?<!\w)(?!(?:mid|pre|post|early|late|circa|about|"
  r"over|under)-)[^\W\d_]+-(?=\.?\d)[\w.,]+",
  re.IGNORECASE,
)
_TO = re.compile(r"\s?(?:-|~|to|and)\s?", re.IGNORECASE)


def is_on_grid(token: str, low: float, high: float) -> bool:
  """Return whether `token` is a string of the reference's grid, sign aside.

  Both ends of the interval are at most `LARGEST` from 0.
  """
  if not _GRID_STRING.fullmatch(token):
    return False
  value = float(token) if "." in token else int(token)
  if str(value) != token:
    return False
  if "." in token:
    return any(_is_in_arange(n, low, high) for n in (value, -value))
  return any(int(low) <= n < int(high + 1) for n in (value, -value))


def _is_in_arange(value: float, low: float, high: float) -> bool:
  """Return whether `value` is a rounded number of the grid's np.arange.

  np.arange computes its i-th number as low + i * (second - low), where second
  is the rounded low + step; only three candidates near `value` are computed.
  """
  step = _grid_step(high - low)
  # np.arange(lo, hi + step, step) has this many numbers.
  count = math.ceil((high + step - low) / step)
  second = low + step
  # numpy's increment differs from the step by rounding.
  apart = second - low
  near = round((value - low) / apart) if apart else 0
  for i in range(max(0, near - 2), min(count, near + 3)):
    point = second if i == 1 else low + i * apart
    if round(point * 1000) / 1000 == value:  # As numpy.round computes it.
      return True
  return False


def _grid_step(width: float) -> float:
  steps = ((50, 1.0), (5, 0.1), (1, 0.01))
  return next((step for least, step in steps if width >= least), 0.001)


def is_in_range(low: float, high: float, text: str) -> bool:
  """Return whether the first number of `text` lies in [low, high].

  See `numbers` for what is a number.  Both ends of a written range ("6.5-7.0",
  "6.5 to 7", "between 6.5 and 7") must lie in the interval.  A lone word up to
  ten counts if there is no other number.
  """
  text = numbers.plain_text(text)
  text = _DATE.sub(lambda date: date[1] or date[4], text)
  text = _NO_COUNT.sub(" ", text)
  word = None
  found = [*numbers.find_numbers(text), None]
  for number, following in itertools.pairwise(found):
    if following and _TO.fullmatch(text, number.end, following.start):
      ends = _read_ends(text, number, following)
      return all(low <= float(end) <= high for end in ends)
    # Others go before such words: "two of 12" is 12.
    if not number.is_small_word:
      return low <= float(number.value) <= high
    word = number.value if word is None else word
  return word is not None and low <= float(word) <= high


def _read_ends(
  text: str, low: numbers.Number, high: numbers.Number
) -> list[Fraction]:
  """Return the ends of a written range."""
  first, second = (text[end.start : end.end] for end in (low, high))
  # The last digits of a year: "2003-04".  Others may be a month.
  if re.fullmatch(r"\d{4}", first) and re.fullmatch(r"\d{2}", second):
    year = Fraction(first[:2] + second)
    return [low.value, year] if year > low.value else [low.value]
  # The scale of the upper end holds for the lower one, too: "6 to 7 million".
  return [low.value * (high.scale if low.scale == 1 else 1), high.value]
