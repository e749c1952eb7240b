"""Finds the questions whose answers stand in a set of texts at all.

An answer stands in a text if its tokens do, one after the other, by the default
rules of `metrics.answers`; so does any number within the question's interval.
Each text is read once, whatever the number of questions.
"""

import bisect
import collections
from collections.abc import Iterable, Sequence

from r1router_jax.common.records import Question
from r1router_jax.metrics import answers


def find_answered(
  questions: Sequence[Question], texts: Iterable[str]
) -> set[str]:
  """Return the ids of the questions with an accepted answer in a text."""
  # 1. The questions of each answer, and the lengths of the answers that begin
  # with a token, so that few places of a text are compared.
  askers, lengths = collections.defaultdict(set), collections.defaultdict(set)
  intervals = [question for question in questions if question.interval]
  for question in questions:
    for answer in () if question.interval else question.answers:
      # An answer of invisible characters has no token.
      if tokens := answers.default_tokens(answer):
        askers[tokens].add(question.id)
        lengths[tokens[0]].add(len(tokens))

  # 2. The texts.
  found, numbers = set(), set()
  for text in texts:
    tokens = answers.default_tokens(text)
    for start, token in enumerate(tokens):
      for length in lengths.get(token, ()):
        found |= askers.get(tokens[start : start + length], set())
    if intervals:
      numbers.update(filter(_is_number, tokens))

  # 3. The intervals: the least number that is not below one is not above it.
  ordered = sorted(map(float, numbers))
  for question in intervals:
    low, high = question.interval
    at = bisect.bisect_left(ordered, low)
    if at < len(ordered) and ordered[at] <= high:
      found.add(question.id)
  return found


def _is_number(token: str) -> bool:
  try:
    return token[0] in "-.0123456789" and float(token) == float(token)
  except ValueError:
    return False
