"""Which questions have an answer in a text, against a slow search."""

import random

import pytest

from r1router_jax.common.records import Question
from r1router_jax.data import answer_coverage
from r1router_jax.metrics import answers


def is_in_a_text(question, texts):
  """Compare each accepted answer with each window of each text."""
  for answer in map(answers.default_tokens, question.answers):
    for tokens in map(answers.default_tokens, texts):
      starts = range(len(tokens) - len(answer) + 1)
      if any(tokens[i : i + len(answer)] == answer for i in starts):
        return True
  return False


def test_found_are_those_of_a_slow_search():
  draw = random.Random(0)

  def words(low, high):
    return " ".join(
      draw.choices("ab cd ef gh".split(), k=draw.randint(low, high))
    )

  questions = [
    Question(str(i), "?", tuple(words(1, 4) for _ in range(draw.randint(1, 3))))
    for i in range(200)
  ]
  texts = [words(0, 6) for _ in range(9)]
  found = answer_coverage.find_answered(questions, iter(texts))
  assert found == {q.id for q in questions if is_in_a_text(q, texts)}
  assert 0 < len(found) < 200


@pytest.mark.parametrize(
  "answer, text, is_there",
  [
    ("N'Djamena", "The capital is NDjamena.", True),
    ("12,500", "It weighs 12500 g", True),
    ("Rome", "Romes", False),
    ("the Red Hat", "A red hat.", True),
    ("red hat", "a hat, red", False),
    ("two", "2 of them", True),
    ("北京", "在北京市", True),
    ("\u200b", "a\u200bb", False),
  ],
)
def test_answers_are_compared_by_the_default_rules(answer, text, is_there):
  found = answer_coverage.find_answered([Question("q", "?", (answer,))], [text])
  assert bool(found) == is_there


@pytest.mark.parametrize(
  "text, is_there",
  [
    ("from 3 to 9.5 kg", True),
    ("from 3 to 12 kg", False),
    ("model x9 of -9", False),
    ("1e999 and nan", False),
    ("10", True),
  ],
)
def test_any_number_of_an_interval_is_an_answer(text, is_there):
  question = Question("q", "?", ("9 kg",), interval=(9.0, 10.0))
  assert bool(answer_coverage.find_answered([question], [text])) == is_there
