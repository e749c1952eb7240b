"""Training rows that teach a small policy to copy instead of to remember.

A policy that meets 150 countries in training remembers their names, and then
fails on a country that it never met.  Two remedies for the warm start:

* `RecallSampler`: rows of random tokens.  The policy can only look the answer
  up, copy it and stop in time; there is nothing to remember.
* `EntityRenamer`: training rows in which each entity and each looked-up value
  has another name every time the row is seen.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from r1router_jax.common.records import Step
from r1router_jax.inputs.processor import EncodedPrompt
from r1router_jax.inputs.tokenizer import START, Tokenizer

_DIGIT = re.compile(r"\d")

# A whole value that is a number, e.g. "1,284,000" or "12.5".
_NUMBER = re.compile(r"[\d.,]*\d[\d.,]*")

# A number in a cell of a flattened table.
_CELL = re.compile(r"\[sep\]([\d.,]*\d)(?=\[|$)")


class RecallSampler:
  """Samples look-up tasks over random tokens, spelt as the compact prompts are.

  GeoRouter's passages suggest three forms: a text `key of name? name. key:
  value. key: value.`, a table `topic of row? topic [Row] row [sep] cell`, and a
  caption, out of whose sentence a name has to be copied.

  Args:
    tokenizer: the tokenizer of a compact policy.
  """

  def __init__(self, tokenizer: Tokenizer):
    def last_token(text):
      # The token of a word or sign may only be right behind another one.
      return tokenizer.encode_response(text)[-2]

    self._colon, self._stop = last_token("a:"), last_token("a.")
    self._ask, self._line = last_token("a?"), last_token("a\n")
    self._of, self._row = last_token("of"), last_token("[Row]")
    self._sep = last_token("[sep]")
    # encode_response ends with the end token, which is dropped within a text.
    self._prompt_start = tokenizer.encode_response("<|answer|>")[:-1]
    self._prompt_end = tokenizer.encode_response(START)[:-1]
    self.before_answer = tokenizer.encode_response("<think></think><answer>")[
      :-1
    ]
    self.after_answer = tokenizer.encode_response("</answer>")
    self._words = np.array(tokenizer.whole_word_ids())

  def __call__(
    self, rng: np.random.Generator
  ) -> tuple[EncodedPrompt, list[int]]:
    """Return a prompt and the tokens of its response."""
    # Lines of the text, or rows of the table.
    count = int(rng.integers(1, 6))
    # The one that the question asks for.
    gold = int(rng.integers(count))
    form = rng.integers(3)
    if form == 0:
      text, answer = self._draw_text(rng, count, gold)
    elif form == 1:
      text, answer = self._draw_table(rng, count, gold)
    else:
      text, answer = self._draw_caption(rng)
    prompt = EncodedPrompt([*self._prompt_start, *text, *self._prompt_end])
    return prompt, [*self.before_answer, *answer, *self.after_answer]

  def _draw_words(
    self, rng: np.random.Generator, low: int, high: int
  ) -> list[int]:
    """Draw between `low` and `high` random words."""
    return rng.choice(self._words, rng.integers(low, high + 1)).tolist()

  def _draw_text(
    self, rng: np.random.Generator, count: int, gold: int
  ) -> tuple[list[int], list[int]]:
    """Draw "key of name? name. key: value. key: value." and a value."""
    name = self._draw_words(rng, 1, 4)
    keys = [self._draw_words(rng, 1, 3) for _ in range(count)]
    values = [self._draw_words(rng, 1, 6) for _ in range(count)]
    text = [*keys[gold], self._of, *name, self._ask, self._line]
    text += [*name, self._stop]
    for key, value in zip(keys, values, strict=True):
      text += [*key, self._colon, *value, self._stop]
    return text, values[gold]

  def _draw_table(
    self, rng: np.random.Generator, count: int, gold: int
  ) -> tuple[list[int], list[int]]:
    """Draw "topic of row? topic [Row] row [sep] cell" and a cell."""
    topic = self._draw_words(rng, 1, 3)
    rows = [self._draw_words(rng, 1, 4) for _ in range(count)]
    cells = [self._draw_words(rng, 1, 5) for _ in range(count)]
    text = [*topic, self._of, *rows[gold], self._ask, self._line, *topic]
    for row, cell in zip(rows, cells, strict=True):
      text += [self._row, *row, self._sep, *cell]
    return text, cells[gold]

  def _draw_caption(
    self, rng: np.random.Generator
  ) -> tuple[list[int], list[int]]:
    """Draw a question, a caption "... of name: ..." and its name."""
    name = self._draw_words(rng, 1, 5)
    text = [*self._draw_words(rng, 2, 6), self._ask, self._line]
    text += [*self._draw_words(rng, 1, 2), self._of, *name, self._colon]
    text += self._draw_words(rng, 2, 10)
    return text, name


class EntityRenamer:
  """Gives the entities and looked-up values of a step other names.

  Args:
    names: names of entities, as questions and passages spell them.
    given_names: names that another entity may be given.
    words: words that the other new names are made of.
  """

  def __init__(
    self, names: Sequence[str], given_names: Sequence[str], words: Sequence[str]
  ):
    self._names = _match_any(names)
    self._given_names, self._words = list(given_names), list(words)

  def __call__(self, step: Step, rng: np.random.Generator) -> Step:
    """Return the step with every name replaced, in the same way throughout."""
    texts = "\n".join(_step_texts(step))

    # 1. A new name for each entity.
    new = {}
    for name in dict.fromkeys(self._names.findall(texts)):
      new[name] = self._draw_name(rng)

    # 2. A new value, where the answer was looked up in a passage.
    hops = step.question.hops
    looked_up = step.kind == "answer" or (
      step.kind == "final"
      and len(hops)
      and set(step.answers) & set(hops[-1].answers)
    )
    if looked_up:
      value = step.answers[0]
      if value not in new and value.lower() not in ("yes", "no"):
        new |= self._draw_value(value, rng)

    # 3. New digits in the numbers of tables.
    # setdefault: the looked-up value may be such a number, and has its digits.
    for cell in dict.fromkeys(_CELL.findall(texts)):
      new.setdefault(cell, _replace_digits(cell, rng))
    if not new:
      return step
    # One pass, so that a new name is not replaced again.
    old = _match_any(new)
    return _map_texts(step, lambda text: old.sub(lambda m: new[m[0]], text))

  def _draw_name(self, rng: np.random.Generator) -> str:
    """Draw a given name, or one to three random words."""
    # Two in five new names are those of other entities.
    if rng.random() < 0.4:
      return self._given_names[rng.integers(len(self._given_names))]
    return " ".join(rng.choice(self._words, rng.choice((1, 1, 2, 3))))

  def _draw_value(self, value: str, rng: np.random.Generator) -> dict[str, str]:
    """Return {value: new value}; empty if the value has to stay."""
    if _NUMBER.fullmatch(value):
      # One digit is part of too many other numbers.
      if len(value) == 1:
        return {}  # One digit stands in too many other numbers.
      return {value: _replace_digits(value, rng)}
    # Dates and short values keep their form.
    if len(value) < 4 or len(_DIGIT.findall(value)) > 2:
      return {}  # Dates and the like keep their form.
    return {value: self._draw_name(rng)}


def _match_any(texts: Iterable[str]) -> re.Pattern:
  """Return a pattern of any of the texts as whole words, longest first."""
  longest_first = sorted(texts, key=len, reverse=True)
  alternatives = "|".join(map(re.escape, longest_first))
  return re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)")


def _replace_digits(number: str, rng: np.random.Generator) -> str:
  """Return a number of the same form with other digits, none of them 0."""
  digits = iter(rng.integers(1, 10, len(number)))
  return _DIGIT.sub(lambda _: str(next(digits)), number)


def _step_texts(step: Step) -> list[str]:
  """Return the texts that the prompt and the answer of a step are made of."""
  return [
    step.question.text,
    *(text for pair in step.history for text in pair),
    step.sub_question,
    *step.answers,
    *(p.text for p in step.passages),
  ]


def _map_texts(step: Step, change: Callable[[str], str]) -> Step:
  """Return the step with `change` applied to each of its texts."""
  hops = tuple(
    dataclasses.replace(hop, answers=tuple(map(change, hop.answers)))
    for hop in step.question.hops
  )
  question = dataclasses.replace(
    step.question, text=change(step.question.text), hops=hops
  )
  passages = tuple(
    dataclasses.replace(p, text=change(p.text)) for p in step.passages
  )
  return dataclasses.replace(
    step,
    question=question,
    history=tuple((change(q), change(a)) for q, a in step.history),
    sub_question=change(step.sub_question),
    answers=tuple(map(change, step.answers)),
    passages=passages,
  )
