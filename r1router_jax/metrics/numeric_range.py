r"""Answers that may be any number of an interval.

The reference turns an interval into a grid of strings, with a step s that
depends on the width:

  lo, lo + s, ...   as `np.arange(lo, hi + s, s)`, rounded to 3 decimals, and
  int(lo) .. int(hi + 1) - 1

One question of InfoSeek has up to 26,002 such strings.  Each is one token and
loses its sign, so `is_on_grid` only tests whether a token of the prediction is
such a string.  The grid usually ends above hi, and it contains int(lo), which
is below lo; decimals finer than the grid are not on it.

`is_in_range` reads the first number x of a text instead: lo <= x <= hi.

Source: github.com/OpenBMB/R1-Router (src/evaluate.py), numpy.arange.
"""

import functools
import math
import re
import unicodedata

# Largest end of an interval: from 1e16 on, Python writes numbers with an "e".
LARGEST = 1e15

_WORDS_TO_TEN = "zero one two three four five six seven eight nine ten".split()
NUMBER_WORDS = {word: str(number) for number, word in enumerate(_WORDS_TO_TEN)}

_GRID_STRING = re.compile(r"(?a:\d{1,16}(\.\d{1,3})?)")

_ONE_NUMBER = r"""(?<![\w.])(?P<{0}>-?
    (?:(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?)
    (?:\s?(?P<{0}_unit>thousand|million|billion|trillion)\b)?"""

_NUMBERS = re.compile(
  _ONE_NUMBER.format("low")
  + r"(?:\s?(?:-|to\b|and\b)\s?"
  + _ONE_NUMBER.replace(r"(?<![\w.])", "").format("high")
  + ")?",
  re.ASCII | re.VERBOSE,
)

_WORDS = re.compile(rf"\b(?:{'|'.join(NUMBER_WORDS)})\b")

_UNITS = dict(thousand=1e3, million=1e6, billion=1e9, trillion=1e12)


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


def plain_text(text: str) -> str:
  """Return text in lower case with ordinary letters, digits, dashes, spaces.

  Unicode's compatibility forms (NFKC) are resolved; lone surrogates stay.
  """
  text = unicodedata.normalize("NFKC", text).casefold()
  return " ".join("".join(map(_plain_character, text)).split())


@functools.cache
def _plain_character(char: str) -> str:
  """Return an ordinary digit or dash for any; drop soft hyphens."""
  kind = unicodedata.category(char)
  if kind == "Pd" or char == "\N{MINUS SIGN}":
    return "-"
  if kind == "Nd":
    return str(unicodedata.decimal(char))
  return "" if char == "\N{SOFT HYPHEN}" else char


def is_in_range(low: float, high: float, text: str) -> bool:
  """Return whether the first number of `text` lies in [low, high].

  The number may have a sign, thousands commas, decimals, an exponent, a unit
  behind it and a word such as million.  Both ends of a written range
  ("6.5-7.0", "6.5 to 7", "between 6.5 and 7") must lie in the interval.  Digits
  within a word, as in H2O, are no number.  In a text without digits, a number
  word up to ten counts.
  """
  text = plain_text(text)
  # Digits go before words: "two of 12" is 12.
  found = _NUMBERS.search(text)
  if not found:
    word = _WORDS.search(text)
    return bool(word) and low <= int(NUMBER_WORDS[word[0]]) <= high
  # The unit of the upper end holds for the lower one, too: "6 to 7 million".
  ends = [
    float(found[end].replace(",", ""))
    * _UNITS.get(found[f"{end}_unit"] or found["high_unit"] or "", 1)
    for end in ("low", "high")
    if found[end]
  ]
  return all(low <= end <= high for end in ends)
