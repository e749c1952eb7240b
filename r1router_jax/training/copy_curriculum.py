"""Training rows that teach a small policy to copy instead of to remember.

A policy that meets 150 countries in training remembers their names, and then
fails on a country that it never met.  Two remedies for the warm start:

* `RecallSampler`: rows of random tokens.  The policy can only look the answer
  up, copy it and stop in time; there is nothing to remember.
* `EntityRenamer`: training rows in which each entity and each looked-up value
  has another name every time the row is seen.
"""

import dataclasses
import itertools
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
  """

  def __init__(self, tokenizer: Tokenizer):
    encode = tokenizer.encode_template
    # The token of a word or sign may only be right behind another one.
    signs = "a:", "a.", "a?", "a\n", "of", "[Row]", "[sep]"
    tokens = [encode(sign)[-1] for sign in signs]
    self._colon, self._stop, self._ask, self._line = tokens[:4]
    self._of, self._row, self._sep = tokens[4:]
    self._prompt_start, self._prompt_end = encode("<|answer|>"), encode(START)
    self.before_answer = encode("<think></think><answer>")
    self.after_answer = tokenizer.encode_response("</answer>")
    self._words = np.array(tokenizer.whole_word_ids())

  def __call__(
    self, rng: np.random.Generator
  ) -> tuple[EncodedPrompt, list[int]]:
    """Return a prompt and the tokens of its response."""
    # Lines of the text or rows of the table, and which of them is asked for.
    count = int(rng.integers(1, 6))
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

  Entities are found by `names`, as questions and passages spell them; a new
  name is one of `given_names`, or made of `words`.
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
    names = dict.fromkeys(self._names.findall(texts))
    new = {name: self._draw_name(rng) for name in names}

    # 2. A new value, where the answer was looked up in a passage.
    looked_up = step.kind == "answer"
    if step.kind == "final" and step.question.hops:
      last_hop = step.question.hops[-1]
      looked_up = not set(step.answers).isdisjoint(last_hop.answers)
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
      is_long = len(value) > 1
      return {value: _replace_digits(value, rng)} if is_long else {}
    # Dates and short values keep their form.
    if len(value) < 4 or len(_DIGIT.findall(value)) > 2:
      return {}
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
  history = itertools.chain(*step.history)
  passages = (passage.text for passage in step.passages)
  before = step.question.text, *history, step.sub_question
  return [*before, *step.answers, *passages]


def _map_texts(step: Step, change: Callable[[str], str]) -> Step:
  """Return the step with `change` applied to each of its texts."""
  replace, question = dataclasses.replace, step.question
  hops = tuple(
    replace(hop, answers=tuple(map(change, hop.answers)))
    for hop in question.hops
  )
  return replace(
    step,
    question=replace(question, text=change(question.text), hops=hops),
    history=tuple((change(q), change(a)) for q, a in step.history),
    sub_question=change(step.sub_question),
    answers=tuple(map(change, step.answers)),
    passages=tuple(replace(p, text=change(p.text)) for p in step.passages),
  )
