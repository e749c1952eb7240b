"""Wordings in which only what matters makes sense.

A policy that learns from some hundred wordings trusts in their words, and
stumbles over "If you put Chad next to Togo, which one has more people?".  Here
all words are random but those that a question cannot do without: names, values,
the words of a field, and whether the country is one in a picture.
"""

import random
from collections.abc import Sequence
from typing import Any

# By the lower-case names of `wordings.py`; WORDS stands for random ones.
_PATTERNS = {
  "frames": (
    "WORDS NOUN WORDS {}?",
    "WORDS {}, WORDS NOUN?",
    "WORDS {} WORDS NOUN.",
    "WORDS NOUN WORDS {} WORDS?",
    "{} WORDS NOUN?",
    "WORDS NOUN: {}",
  ),
  "compare": (
    "WORDS {} WORDS {}: WORDS VERB?",
    "WORDS {} WORDS {}, which one VERB?",
    "WORDS VERB, {} WORDS {}?",
    "WORDS {} WORDS {} WORDS. Which VERB?",
    "WORDS VERB: {} or {}?",
    "WORDS {} and {}, WORDS VERB.",
  ),
  "check": (
    "WORDS the NOUN of {} is VALUE?",
    "WORDS VALUE is the NOUN of {}. WORDS?",
    "WORDS NOUN of {} is VALUE. WORDS?",
    "WORDS: the NOUN of {} is VALUE.",
  ),
  "check_pair": (
    "WORDS {} VERB than {}?",
    "WORDS: {} VERB than {}.",
    "WORDS {} VERB than {}. WORDS?",
  ),
  "given": (
    "WORDS NOUN of {} WORDS VALUE.",
    "WORDS VALUE WORDS NOUN of {}.",
    "WORDS {}, the NOUN WORDS VALUE.",
  ),
  "given_pair": (
    "WORDS NOUN WORDS {} WORDS {} WORDS {} WORDS {}.",
    "WORDS NOUN: {} {}, {} {}.",
    "WORDS NOUN of {}: {}. WORDS {}: {}.",
  ),
  "which_flag": (
    "WORDS country WORDS flag?",
    "WORDS which state WORDS picture?",
    "WORDS nation WORDS this banner?",
  ),
  "flag": (
    "the WORDS this flag",
    "the WORDS picture",
    "the WORDS this banner",
    "the WORDS of this image",
  ),
}

_BRIDGES = (
  "the WORDS FIELD {}",
  "the WORDS FIELD WORDS {}",
  "the nation WORDS {} WORDS FIELD",
  "the country WORDS {} WORDS FIELD",
)
_REPEATS = 2  # Wordings of each pattern.

_MOST_WORDS = 3  # In a place.


def make_noisy_wordings(
  rng: random.Random, words: Sequence[str], fields: Sequence[str]
) -> dict[str, Any]:
  """Return wordings by name; those of "bridges" by the `fields` they tell."""

  def fill(pattern: str) -> str:
    pieces = pattern.split("WORDS")
    drawn = [
      " ".join(rng.choices(words, k=rng.randint(1, _MOST_WORDS)))
      for _ in pieces[1:]
    ]
    return "".join(
      text for pair in zip(pieces, [*drawn, ""], strict=True) for text in pair
    )

  wordings = {
    name: tuple(map(fill, _REPEATS * patterns))
    for name, patterns in _PATTERNS.items()
  }
  bridges = {
    field: tuple(fill(p.replace("FIELD", field)) for p in _REPEATS * _BRIDGES)
    for field in fields
  }
  return wordings | dict(bridges=bridges)
