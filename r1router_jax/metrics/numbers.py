"""Reads the numbers of a text by their value; docs/evaluation.md has a table.

Digits within a word, as in "H2O", or of a version, as in "6.5.7", are no
number, and a raised digit behind another number than 10 marks a footnote.  A
word may be a pronoun: "no one", "one of them" and "..., one" are no numbers.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

# A longer run of digits, or another exponent, is no number that is meant.
_MAX_CHARS, _EXPONENTS = 100, range(-400, 100)

_ONES = (
  "zero one two three four five six seven eight nine ten eleven twelve "
  "thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SMALL_WORDS = tuple(_ONES[:11])
_WORDS = {word: Fraction(n) for n, word in enumerate(_ONES)}
_WORDS |= {word: Fraction(10 * n) for n, word in enumerate(_TENS, 2)}
_WORDS["half"] = Fraction(1, 2)

_THOUSANDS = dict(thousand=10**3, lakh=10**5, million=10**6, crore=10**7)
_THOUSANDS |= dict(billion=10**9, trillion=10**12)
_SCALES = dict(dozen=12, hundred=100, mn=10**6, mln=10**6, bn=10**9, tn=10**12)
_SCALES |= _THOUSANDS | {f"{word}s": n for word, n in _THOUSANDS.items()}
_FACTORS = _SCALES | dict(k=10**3, m=10**6, b=10**9, t=10**12)
_FACTORS |= dict.fromkeys("万萬", 10**4) | dict.fromkeys("亿億", 10**8)

# --- The pattern of a number --------------------------------------------------


def _any_of(words: Iterable[str]) -> str:
  # In ASCII "i" has no twin without a dot.
  return rf"(?a:{'|'.join(words)})\b"


# Letters that a number does not follow; Chinese, for one, has no spaces.
_LETTER = r"A-Za-z\u00aa-\u02af\u0370-\u052f"
# Three forms with a comma for decimals, two with other groups, and the plain.
_DIGITS = r"""(?:\d{1,3}(?:\.\d{3}){2,9}(?!\d)(?:,\d+)?
  | \d{1,3}(?:[. ]\d{3}){1,9},\d{1,2}(?!\d) | (?<!\d,)\d++,\d{1,2}(?![\d,])
  | (?:\d{1,3}(?:(?:,\d{3}){1,9}|(?:[ ]\d{3}){1,9}|(?:'\d{3}){1,9})
    | \d{1,2}(?:,\d{2}){1,9},\d{3})(?!\d)(?:\.\d+)?
  | (?:\d+(?:\.\d+)?|\.\d+)(?!\.?\d))"""
_FRACTION = r"(?<!/)\d{1,3}/[1-9]\d{0,2}(?![\d/])"
_ONE, _TEN = _any_of(_ONES), _any_of(_TENS)
_SCALE, _THOUSAND = _any_of(_SCALES), _any_of(_THOUSANDS)
_BELOW_100 = rf"(?:{_TEN}(?:[ -](?!{_any_of(_ONES[10:])}|zero){_ONE})?|{_ONE})"
_BELOW_1000 = rf"{_BELOW_100}(?:[ -]hundred\b(?:(?:[ ]and)?[ ]{_BELOW_100})?)?"
_YEAR = (
  rf"{_any_of(_ONES[11:] + _TENS[:1])}[ -](?!{_any_of(_ONES[:10])}){_BELOW_100}"
)
# What follows a scale in words: more with scales, and at last without.
_REST = (
  rf"(?:[ ]{_BELOW_1000}[ -]{_THOUSAND})*"
  rf"(?:(?:,|[ ]and)?[ ]{_BELOW_1000}(?![ -]{_THOUSAND}))?"
)
_CJK = "零〇一二三四五六七八九两十百千"
_NUMBER = re.compile(
  rf"""(?=[-.$€£¥₹\d〇-龥]|\b[aefhmnostz])
  (?P<sign>(?<!\w)-|\b(?:minus|negative)[ ])?
  (?P<money>[$€£¥₹][ ]?)?
  (?:(?P<core>(?:(?<![{_LETTER}\d_.])|(?<=[{_LETTER}]\.))(?:
        10(?:\^|\*\*)(?P<power>[+-]?\d+) | (?P<fraction>{_FRACTION})
        | (?P<digits>{_DIGITS})(?:
          (?:[ ]?[x×*·][ ]?10(?:\^|\*\*)|e)(?P<exponent>[+-]?\d+))?)
      | (?P<cjk>[{_CJK[2:]}][{_CJK}万萬亿億]{{1,9}}))
    | (?<!\bno[ -])\b(?!(?:(?<=[;,][ ])one|one[ ]of)\b(?![ -]{_SCALE}))
      (?P<word>{_YEAR}|{_BELOW_1000}|(?:half[ ]an?|an?)(?=[ -]{_SCALE}))
      (?!-(?:first|second|thirds?|quarters?|\w{{2,9}}ths?)\b))
  (?:[ -]{_FRACTION}|[ ]and[ ]a[ ]half\b)?
  (?:(?:[ -]?{_SCALE} | (?-i:[Kk]|[ ]?M|B)(?![{_LETTER}\d]) | [万萬亿億]
      | (?(money)[ ]?[kmbt](?![{_LETTER}\d])|(?!))){{1,3}}
    (?(word){_REST}))?""",
  re.VERBOSE | re.IGNORECASE,
)

# --- Plain text ---------------------------------------------------------------

_APOSTROPHES = "`\u00b4\u2018\u2019\u201b\u2032\u02b9\u02bb\u02bc\u02bd\u02be"
_APOSTROPHES += "\u02bf\u02c8\u055a\ua78c\uff07"
_PLAIN_MARKS = dict.fromkeys(map(ord, _APOSTROPHES), "'")
_PLAIN_MARKS |= {ord("٫"): ".", ord("٬"): ","}  # Arabic.


def plain_text(text: str) -> str:
  """Return text with ordinary letters, digits, dashes, apostrophes, spaces.

  Unicode's compatibility forms (NFKC) are resolved; lone surrogates stay.
  """
  text = text.translate(_PLAIN_MARKS)
  # NFKC would make "106" of 10⁶, and "21⁄2" of 2½.
  text = re.sub(r"(?<![\d.,])10([⁺⁻]?[⁰¹²³⁴-⁹]+)", r"10^\1", text)
  text = re.sub(r"(?<=\d)[⁺⁻⁰¹²³⁴-⁹]+", " ", text)
  text = re.sub("[¼-¾⅐-⅞]", r" \g<0>", text)
  text = unicodedata.normalize("NFKC", text)
  return " ".join("".join(map(_plain_character, text)).split())


@functools.cache
def _plain_character(char: str) -> str:
  """Return an ordinary digit, dash or slash for any; drop soft hyphens."""
  kind = unicodedata.category(char)
  if kind == "Pd" or char == "\N{MINUS SIGN}":
    return "-"
  if kind == "Nd":
    return str(unicodedata.decimal(char))
  if char == "\N{FRACTION SLASH}":
    return "/"
  return "" if char == "\N{SOFT HYPHEN}" else char


# --- Reading ------------------------------------------------------------------


class Number(NamedTuple):
  """A number, and where it stands in a text."""

  start: int
  end: int
  value: Fraction
  scale: int  # What its last words multiply it by: 10**6 for "6 million".
  is_small_word: bool  # Whether it is a lone word up to ten.


def find_numbers(text: str) -> Iterator[Number]:
  """Yield the numbers of a plain text, see `plain_text`, in their order."""
  for found in _NUMBER.finditer(text):
    group = _read_core(found) if found["core"] else Fraction(0)
    if group is None:
      continue
    # Words add up to groups, which scales multiply.
    total, scale = Fraction(0), 1
    begin = found.end("core") if found["core"] else found.start("word")
    words = text[begin : found.end()].lower()
    for word in re.findall(r"\d+/\d+|[a-z]+|[万萬亿億]", words):
      if factor := _FACTORS.get(word):
        # "A million" has no other number.
        is_article = found["word"] and not group
        group, scale = factor * (1 if is_article else group), scale * factor
      elif word in _WORDS or "/" in word:
        value = _WORDS[word] if word in _WORDS else Fraction(word)
        if scale >= 1000:
          total, group = total + group, Fraction(0)
        elif 10 < group <= 20 and value >= 10:  # "Nineteen ninety-five".
          group *= 100
        group, scale = group + value, 1
    value = (total + group) * (-1 if found["sign"] else 1)
    is_small_word = found[0].lower() in SMALL_WORDS
    yield Number(*found.span(), value, scale, is_small_word)


def format_number(value: Fraction) -> str:
  """Return the same text for equal numbers, to 17 digits if not whole."""
  is_whole = value.denominator == 1
  return str(value.numerator) if is_whole else repr(float(value))


def _read_core(found: re.Match) -> Fraction | None:
  """Return the number that a match begins with, or None if it is not one."""
  if found["cjk"]:
    return Fraction(_read_cjk(found["cjk"]))
  if found["fraction"]:
    value = Fraction(found["fraction"])
    return value if value < 1 else None  # "20/20" is none, nor is "24/7".
  digits = found["digits"] or "1"
  exponent = found["power"] or found["exponent"] or "0"
  if len(digits + exponent) > _MAX_CHARS or int(exponent) not in _EXPONENTS:
    return None
  # A comma is that of decimals before one or two digits, or behind periods.
  if digits.count(".") > 1 or re.fullmatch(r"[\d. ]*,\d{1,2}", digits):
    digits = digits.replace(".", "").replace(",", ".")
  return Fraction(re.sub("[ ',]", "", digits)) * Fraction(10) ** int(exponent)


def _read_cjk(text: str) -> int:
  """Return the value of Chinese numerals, or of digits as years have them."""
  total = group = digit = 0
  for number in (int(unicodedata.numeric(char)) for char in text):
    if number >= 10**4:
      total, group, digit = (total + group + digit) * number, 0, 0
    elif number >= 10:
      group, digit = group + (digit or 1) * number, 0
    else:
      digit = 10 * digit + number
  return total + group + digit
