r"""Answers that may be any number of an interval.

The reference turns an interval into a grid of strings: with a step s that the
width decides,

  lo, lo + s, ...   as `np.arange(lo, hi + s, s)`, rounded to 3 decimals, and
  int(lo) .. int(hi + 1) - 1

of which there are up to 26,002 in one question of InfoSeek.  Each is one token,
its sign is lost, and so `on_grid` asks only whether a token of the prediction
is such a string.  The grid ends above hi, as a rule, and holds int(lo), which
is below lo; decimals finer than the grid are not on it.

`holds` instead reads the first number of a text and compares: lo <= x <= hi.

Source: github.com/OpenBMB/R1-Router (src/evaluate.py), numpy.arange.
"""

import math
import re
import unicodedata

LARGEST = 1e15  # Of either end; from 1e16 on, numbers are written with an "e".

NUMBER_WORDS = {
  word: str(number)
  for number, word in enumerate(
    "zero one two three four five six seven eight nine ten".split()
  )
}


_GRID = re.compile(r"(?a:\d{1,16}(\.\d{1,3})?)")

_ONE = r"""(?<![\w.])(?P<{0}>-?
    (?:(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?)
    (?:\s?(?P<{0}_unit>thousand|million|billion|trillion)\b)?"""

_NUMBERS = re.compile(
  _ONE.format("low")
  + r"(?:\s?(?:-|to\b|and\b)\s?"
  + _ONE.replace(r"(?<![\w.])", "").format("high")
  + ")?",
  re.ASCII | re.VERBOSE,
)

_WORDS = re.compile(rf"\b(?:{'|'.join(NUMBER_WORDS)})\b")

_UNITS = dict(thousand=1e3, million=1e6, billion=1e9, trillion=1e12)


def on_grid(token: str, low: float, high: float) -> bool:
  """Whether `token` is a string of the reference's grid, without its sign.

  Args:
    token: of a normalised text.
    low, high: at most `LARGEST` from 0.
  """
  if not _GRID.fullmatch(token):
    return False
  if "." not in token:
    return str(int(token)) == token and any(
      int(low) <= n < int(high + 1) for n in (int(token), -int(token))
    )
  value = float(token)
  return str(value) == token and any(
    _arange_holds(n, low, high) for n in (value, -value)
  )


def _arange_holds(value: float, low: float, high: float) -> bool:
  """Whether `value` is a rounded number of the arange; see above."""
  step = _step(high - low)
  count = math.ceil((high + step - low) / step)
  second = low + step
  apart = second - low  # What numpy adds again and again, not the step.
  near = round((value - low) / apart) if apart else 0
  for i in range(max(0, near - 2), min(count, near + 3)):
    point = second if i == 1 else low + i * apart
    if round(point * 1000) / 1000 == value:  # numpy.round's way.
      return True
  return False


def _step(width: float) -> float:
  return next(
    (
      step for least, step in ((50, 1.0), (5, 0.1), (1, 0.01)) if width >= least
    ),
    0.001,
  )


def plain(text: str) -> str:
  """Lower case, usual forms of letters and digits, one dash, single spaces.

  Lone surrogates stay as they are.
  """
  text = unicodedata.normalize("NFKC", text).casefold()
  return " ".join(text.translate(_USUAL).split())


def holds(low: float, high: float, text: str) -> bool:
  """Whether the first number of `text` lies in [low, high].

  It may have a sign, thousands commas, decimals, an exponent, a unit behind it
  and a word such as million.  Of a written range, "6.5-7.0", "6.5 to 7" or
  "between 6.5 and 7", both ends must lie there.  Digits within a word, as in
  H2O, are no number.  Where there are no digits, a word up to ten counts.
  """
  text = plain(text)
  found = _NUMBERS.search(text)
  if not found:
    word = _WORDS.search(text)
    return bool(word) and low <= int(NUMBER_WORDS[word[0]]) <= high
  ends = [
    float(found[end].replace(",", ""))
    * _UNITS.get(found[f"{end}_unit"] or found["high_unit"] or "", 1)
    for end in ("low", "high")
    if found[end]
  ]
  return all(low <= end <= high for end in ends)


class _Usual(dict):
  """What str.translate puts for each character, found when it is asked for."""

  def __missing__(self, code: int) -> int | str | None:
    char = chr(code)
    kind = unicodedata.category(char)
    self[code] = (
      "-"
      if kind == "Pd" or char == "\u2212"  # Minus.
      else str(unicodedata.decimal(char))
      if kind == "Nd"
      else None
      if char == "\u00ad"  # Soft hyphen.
      else code
    )
    return self[code]


_USUAL = _Usual()
