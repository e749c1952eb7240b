"""Thoughts of gold responses that say nothing special.

The policies that come with the package have learnt them.
"""

import re

# Of a plan, by the knowledge base that it searches first.
PLAN = {
  "text": "look in the text",
  "image": "look at the picture",
  "table": "look in the table",
  "none": "enough is known",
}

GIVE_UP = "it is nowhere"  # Of a plan and an answer after vain searches.
READ = "it says so"  # The passages tell the answer.
MISSED = "it does not say"  # They do not.
GIVEN = "answer from what is given"  # Nobody knows whether they do.


def compare_numbers(one: str, other: str) -> str:
  """Return "larger > smaller" of two numbers, or of the years of two dates.

  Returns "" if one of them is neither.
  """
  shown = [
    re.sub(r"^\d{1,2} [A-Z][a-z]+ (?=\d+$)", "", x) for x in (one, other)
  ]
  plain = [text.replace(",", "") for text in shown]
  if not all(re.fullmatch(r"\d+(\.\d+)?", text) for text in plain):
    return ""
  low, high = sorted((0, 1), key=lambda i: float(plain[i]))
  return f"{shown[high]} > {shown[low]}"
