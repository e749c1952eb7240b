"""Rows of random tokens, which teach a small policy to copy.

The policy can only look the answer up, copy it and stop in time; there is
nothing to remember.  Invented countries (`data/countries`) go on from there.
"""

import numpy as np

from r1router_jax.inputs.processor import EncodedPrompt
from r1router_jax.inputs.tokenizer import START, Tokenizer

_LONG_SHARE = 0.3  # Share of the words that are more than one token.


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
    self._starts, self._pieces = map(np.array, tokenizer.letter_ids())

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
    """Draw between `low` and `high` random words, some of several tokens."""
    tokens = []
    for _ in range(rng.integers(low, high + 1)):
      tokens.append(rng.choice(self._starts))
      if rng.random() < _LONG_SHARE:
        tokens += [*rng.choice(self._pieces, rng.integers(1, 4))]
    return list(map(int, tokens))

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
