"""Numbers of texts by their value, against spellings made from the value."""

import re
import time
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import pytest

from r1router_jax.metrics import numbers
from r1router_jax.metrics.numbers import plain_text


def read(text):
  """Return the numbers of a text, each as text."""
  found = numbers.find_numbers(plain_text(text))
  return [numbers.format_number(each.value) for each in found]


ONES = """zero one two three four five six seven eight nine ten eleven twelve
  thirteen fourteen fifteen sixteen seventeen eighteen nineteen""".split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()


def spell(n, *, joint="-", link=" and "):
  """Return a number up to a trillion in English words."""
  for size, name in (
    (10**9, "billion"),
    (10**6, "million"),
    (1000, "thousand"),
  ):
    if n >= size:
      head = f"{spell(n // size, joint=joint, link=link)} {name}"
      rest = n % size
      # Only the last part is behind "and".
      between = link if 0 < rest < 100 else " "
      tail = spell(rest, joint=joint, link=link)
      return head + between + tail if rest else head
  if n >= 100:
    rest = n % 100
    head = f"{ONES[n // 100]} hundred"
    return head + link + spell(rest, joint=joint) if rest else head
  if n < 20:
    return ONES[n]
  return TENS[n // 10] + (joint + ONES[n % 10] if n % 10 else "")


@hypothesis.given(
  st.integers(0, 10**12 - 1) | st.integers(0, 3000),
  st.sampled_from("- "),
  st.sampled_from([" and ", " "]),
)
@hypothesis.settings(deadline=None)
def test_number_words_are_read(n, joint, link):
  text = spell(n, joint=joint, link=link)
  assert read(f"It is {text}, they say.") == [str(n)], text
  assert read(text.upper()) == [str(n)]


@hypothesis.given(
  st.integers(0, 10**15),
  st.integers(0, 99),
  st.sampled_from("-−") | st.just(""),
)
@hypothesis.settings(deadline=None)
def test_digits_are_read_in_any_notation(n, cents, sign):
  value = n + Fraction(cents, 100)
  value = -value if sign else value
  ways = [f"{n:,}.{cents:02d}", f"{n}.{cents:02d}"]
  for mark in (" ", "\u202f", "'", "’"):
    ways.append(f"{n:,}.{cents:02d}".replace(",", mark))
  ways.append(f"{n:,}".replace(",", ".") + f",{cents:02d}")
  for text in ways:
    wanted = [numbers.format_number(value)]
    assert read(f"about {sign}{text} km") == wanted, text


@pytest.mark.parametrize(
  "text, wanted",
  [
    ("1.234,56 and 1 234,5", "1234.56 1234.5"),
    ("v.5, v1.5, ..5, .5", "5 0.5"),
    ("126万亿", "126000000000000"),
    ("6.02×10²³", "602000000000000000000000"),
    ("1,5 and 1, 000", "1.5 1 0"),
    ("4-6, 6-2", "4 6 6 2"),
    ("5 -6", "5 -6"),
    ("(-.5)", "-0.5"),
    ("1/3 of 2/4", "0.3333333333333333 0.5"),
    ("9/11", "0.8181818181818182"),
    ("12/05/1999", "12 5 1999"),
    ("1995-06-12", "1995 6 12"),
    ("COVID-19 in 12:30", "19 12 30"),
    ("2.50% of $7.00", "2.5 7"),
    ("10^-3 m", "0.001"),
    ("6 million and 5 thousand", "6000000 5000"),
    ("five twenty", "5 20"),
    ("a hundred and a thousand", "100 1000"),
    ("twenty twenty", "2020"),
    ("five hundred twenty thousand three hundred and four", "520304"),
    ("6.5.7 and 9.9.9.9", ""),
    ("no two, none, someone, twenty-first, sıx", ""),
    ("9" * 101, ""),
    ("1e999", ""),
  ],
)
def test_numbers_in_their_order(text, wanted):
  assert " ".join(read(text)) == wanted


UNITS = (
  *"9 1, 1. 111. 1.111, 11, 111, 1/ ½ ⁶ 10⁶ 10^ $ 12: a-1 a- -".split(),
  *"十 万 三万 5k 1万".split(),
  *("1 ", "111 ", "1/2 ", "1 x 10^", "5 to ", "1995-06-", "june 1 ", "one "),
  *("one hundred ", "five million ", "twenty ", "half a ", "2 and a half "),
  *("five point ", "minus ", "no one ", "5 m", "five thousand and "),
)


@pytest.mark.parametrize("unit", UNITS, ids=ascii)
def test_hostile_texts_are_read_in_linear_time(unit):
  text = unit * (20_000 // len(unit))
  start = time.process_time()
  read(text)
  assert time.process_time() - start < 2  # CPU seconds.


def test_plain_text():
  assert plain_text(" Ａ\u2003ﬁ\u2014–−‐\u00ad \ud800٣") == "A fi---- \ud8003"
  assert plain_text("km² 5² 10⁶ 10⁻³ 2½ O’Neil´s") == (
    "km2 5 10^6 10^-3 2 1/2 O'Neil's"
  )
  assert re.fullmatch("[A ]+", plain_text("A\n\tA"))
