"""What teaches a small policy to copy rather than to remember.

A policy that meets 150 countries in training remembers their names, and then
has nothing to say of a country it never met.  Two remedies for the warm start:

* `Recall`: rows of random tokens, in which the answer can only be looked up,
  copied and stopped in time; nothing can be remembered.
* `Renamer`: training rows in which each entity and each looked-up value has
  another name every time the row is seen.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from r1router_jax.common.records import Passage, Step
from r1router_jax.inputs.processor import Encoded
from r1router_jax.inputs.tokenizer import START, Tokenizer

_DIGIT = re.compile(r"\d")

_NUMBER = re.compile(r"[\d.,]*\d[\d.,]*")

_CELL = re.compile(r"\[sep\]([\d.,]*\d)(?=\[|$)")


class Recall:
  """Draws rows of look-up over random tokens, spelt as the compact prompts are.

  Three forms, as the world's passages have them: `key of name? name. key:
  value. key: value.`, `topic of row? topic [Row] row [sep] cell`, and a name to
  be taken out of its sentence.
  """

  def __init__(self, tokenizer: Tokenizer):
    def only(text):  # The last token, where a space of its own comes first.
      return tokenizer.encode_response(text)[-2]

    self._colon, self._stop, self._ask = only("a:"), only("a."), only("a?")
    self._of, self._line = only("of"), only("a\n")
    self._row, self._sep = only("[Row]"), only("[sep]")
    self._open = tokenizer.encode_response("<|answer|>")[:-1]
    self._close = tokenizer.encode_response(START)[:-1]
    self._before = tokenizer.encode_response("<think></think><answer>")[:-1]
    self._after = tokenizer.encode_response("</answer>")
    self._words = np.array(tokenizer.words())

  def __call__(self, rng: np.random.Generator) -> tuple[Encoded, list[int]]:
    """A prompt and its response."""
    text, answer = self._draw(rng)
    ids = [*self._open, *text, *self._close]
    return Encoded(ids), [*self._before, *answer, *self._after]

  def _draw(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    span = lambda low, high: rng.choice(
      self._words, rng.integers(low, high + 1)
    ).tolist()
    count = int(rng.integers(1, 6))
    at = int(rng.integers(count))
    form = rng.integers(3)
    if form == 0:
      name, keys = span(1, 4), [span(1, 3) for _ in range(count)]
      values = [span(1, 6) for _ in range(count)]
      text = [
        *keys[at],
        self._of,
        *name,
        self._ask,
        self._line,
        *name,
        self._stop,
      ]
      for key, value in zip(keys, values, strict=True):
        text += [*key, self._colon, *value, self._stop]
      return text, values[at]
    if form == 1:
      topic, rows = span(1, 3), [span(1, 4) for _ in range(count)]
      cells = [span(1, 5) for _ in range(count)]
      text = [*topic, self._of, *rows[at], self._ask, self._line, *topic]
      for row, cell in zip(rows, cells, strict=True):
        text += [self._row, *row, self._sep, *cell]
      return text, cells[at]
    name = span(1, 5)
    text = [
      *span(2, 6),
      self._ask,
      self._line,
      *span(1, 2),
      self._of,
      *name,
      self._colon,
      *span(2, 10),
    ]
    return text, name


class Renamer:
  """Gives the entities and looked-up values of a step other names.

  Args:
    names: names of entities, as they stand in questions and passages.
    known: those that may be given to another; else it takes random words.
    words: words that random names are made of.
  """

  def __init__(
    self, names: Sequence[str], known: Sequence[str], words: Sequence[str]
  ):
    longest = sorted(names, key=len, reverse=True)
    self._names = re.compile(
      r"(?<!\w)(?:" + "|".join(map(re.escape, longest)) + r")(?!\w)"
    )
    self._known, self._words = list(known), list(words)

  def __call__(self, step: Step, rng: np.random.Generator) -> Step:
    """The step with every name replaced, the same way throughout."""
    texts = "\n".join(_texts(step))
    new = {
      name: self._name(rng)
      for name in dict.fromkeys(self._names.findall(texts))
    }
    if step.kind == "answer" or (
      step.kind == "final"
      and len(step.question.hops)
      and set(step.answers) & set(step.question.hops[-1].answers)
    ):
      value = step.answers[0]
      if value not in new and value.lower() not in ("yes", "no"):
        new |= self._value(value, texts, rng)
    for cell in dict.fromkeys(_CELL.findall(texts)):
      new.setdefault(cell, _digits(cell, rng))
    if not new:
      return step
    found = re.compile(
      r"(?<![\w])(?:"
      + "|".join(map(re.escape, sorted(new, key=len, reverse=True)))
      + r")(?!\w)"
    )
    return _map(step, lambda text: found.sub(lambda m: new[m[0]], text))

  def _name(self, rng: np.random.Generator) -> str:
    if rng.random() < 0.4:
      return self._known[rng.integers(len(self._known))]
    return " ".join(rng.choice(self._words, rng.choice((1, 1, 2, 3))))

  def _value(self, value: str, texts: str, rng: np.random.Generator) -> dict:
    """A new spelling of a looked-up value; none where it is part of a name."""
    if _NUMBER.fullmatch(value):
      return {value: _digits(value, rng)} if len(value) > 1 else {}
    if len(value) < 4 or len(_DIGIT.findall(value)) > 2:
      return {}  # Dates and the like keep their form.
    return {value: self._name(rng)}


def _digits(number: str, rng: np.random.Generator) -> str:
  """A number of the same form with other digits."""
  digits = iter(rng.integers(1, 10, len(number)))
  return _DIGIT.sub(lambda m: str(next(digits)), number)


def _texts(step: Step) -> list[str]:
  return [
    step.question.text,
    *(text for pair in step.history for text in pair),
    step.sub_question,
    *step.answers,
    *(p.text for p in step.passages),
  ]


def _map(step: Step, change) -> Step:
  """The step with `change` applied to each of its texts."""
  question = dataclasses.replace(
    step.question,
    text=change(step.question.text),
    hops=tuple(
      dataclasses.replace(hop, answers=tuple(map(change, hop.answers)))
      for hop in step.question.hops
    ),
  )
  return dataclasses.replace(
    step,
    question=question,
    history=tuple((change(q), change(a)) for q, a in step.history),
    sub_question=change(step.sub_question),
    answers=tuple(map(change, step.answers)),
    passages=tuple(
      Passage(p.id, p.kb, change(p.text), p.image, p.score)
      for p in step.passages
    ),
  )
