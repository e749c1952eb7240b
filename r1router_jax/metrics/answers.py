"""Scores of an answer, by two sets of rules, and their uncertainty.

Prediction and golds are normalised, cut into tokens and compared as bags:

  precision = |common| / |prediction|,  recall = |common| / |gold|,
  F1 = 2 precision recall / (precision + recall).

Of several golds the first with the best F1 counts; its recall is the
"F1-Recall" of the R1-Router paper.  F1-Recall rewards an answer that lists
every candidate, so tables show F1 and exact match beside it.

`score_answer` follows the reference's rules to the letter, so that numbers can
be compared: "none" is 0, "an" and "the" are dropped but "a" is not, at most 32
periods are removed, punctuation vanishes where it touches a space anywhere in
the text and becomes a space elsewhere, an interval is a grid of strings
(`numeric_range`).  The rules descend from the VQA evaluation; the tokeniser is
that of NLTK (Penn Treebank).

`score_default` follows stricter rules of this project:

  - "a" is an article, too, and "none" is a word;
  - numbers are compared by value, however they are written (`numbers`);
  - full-width letters become ordinary ones; apostrophes of all kinds vanish,
    and so do periods; other marks separate words; accents stay; a Chinese or
    Japanese character is a token;
  - an answer with both "yes" and "no" does not match a gold that is only one
    of them;
  - for an interval only the answer's first number counts: all scores are 1 if
    it lies within, else 0.

`pass_at_k` and `majority_vote` score several samples of an answer together.

Axes:  N values or questions   n samples   K resampled means.
Sources: arxiv.org/abs/2505.22095 (R1-Router), visualqa.org/evaluation (VQA).
"""

import collections
import dataclasses
import functools
import itertools
import math
import re
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epy
from jaxtyping import Float, Int

from r1router_jax.common.errors import UserError
from r1router_jax.metrics import numbers, numeric_range

# Imported when used, since it takes most of a second.
with epy.lazy_imports():
  from nltk.tokenize import destructive

# The reference restores contractions that were written without one of their
# apostrophes ("dont", "couldnt've", "couldn'tve"), after lower-casing.
_CONTRACTED_WORDS = """
'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't
don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't
it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't
not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've
somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've wasn't we'd've we've weren't
what'll what're what's what've when's where'd where's where've who'd who'd've
who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'd've y'all'll you'd you'd've you'll you're you've
""".split()

_CONTRACTIONS = {"somebody'd": "somebodyd"} | {
  word[:place] + word[place + 1 :]: word
  for word in _CONTRACTED_WORDS
  for place, letter in enumerate(word)
  if letter == "'"
}

_NUMBERS = {
  word: str(number) for number, word in enumerate(numbers.SMALL_WORDS)
}
_NUMBERS["none"] = "0"
_ARTICLES = ("an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The reference passes the flag re.UNICODE, which is 32, where re.sub wants the
# count, so that only the first 32 periods are removed.
_MAX_PERIODS = 32


# Patterns of the default rules.
_STOP = re.compile(r"\.(?!\d)|(?<=[^\W\d])\.")

# Han, Hiragana and Katakana: each character is a token of its own.
_CJK = re.compile(
  "[\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


@functools.cache
def _word_character(char: str) -> str:
  """Return a character as a part of words; most marks become a space."""
  if _CJK.match(char):
    return f" {char} "
  is_accent = unicodedata.category(char).startswith("M")
  if char == "." or char.isalnum() or is_accent:
    return char
  return "" if char == "'" else " "


@dataclasses.dataclass(frozen=True)
class AnswerScores:
  """Scores of one answer, each in [0, 1].

  Attributes:
    precision: share of the answer's tokens in the gold with the best F1.
    recall: share of that gold's tokens in the answer.
    f1: harmonic mean of both.
    max_recall: the best recall against any gold, as OmniSearch reports it.
    exact: 1 if the tokens equal those of a gold, in order.
  """

  precision: float
  recall: float
  f1: float
  max_recall: float
  exact: float


class Interval(NamedTuple):
  """A mean with its 95 % bootstrap interval."""

  mean: float
  low: float
  high: float


def normalize_text(text: str) -> str:
  """Normalise text by the reference's rules: case, marks, articles, numbers."""
  text = text.replace("\n", " ").replace("\t", " ").strip()
  crowded = _THOUSANDS.search(text) is not None
  # Whether a mark becomes a space depends on the whole text, as there.
  bare = text
  for mark in _PUNCTUATION:
    if mark in text:
      apart = f"{mark} " in text or f" {mark}" in text
      bare = bare.replace(mark, "" if apart or crowded else " ")
  bare = _PERIOD.sub("", bare, count=_MAX_PERIODS)
  # Number words first, then articles, then contractions, as in the original.
  words = (_NUMBERS.get(word, word) for word in bare.lower().split())
  kept = (word for word in words if word not in _ARTICLES)
  return " ".join(_CONTRACTIONS.get(word, word) for word in kept)


@functools.lru_cache(maxsize=1 << 12)
def reference_tokens(text: str) -> tuple[str, ...]:
  """Return the tokens that the reference compares, without bare marks."""
  words = _nltk_tokenizer().tokenize(normalize_text(text).lower())
  return tuple(word for word in words if word not in ",.?!:;'\"")


@functools.cache
def _nltk_tokenizer() -> "destructive.NLTKWordTokenizer":
  return destructive.NLTKWordTokenizer()


@functools.lru_cache(maxsize=1 << 12)
def default_tokens(text: str) -> tuple[str, ...]:
  """Return the tokens that the default rules compare.

  Articles stay in a text of nothing else, and so do marks.
  """
  text = numbers.plain_text(text)
  words, end = [], 0
  for number in numbers.find_numbers(text):
    words += _split_words(text[end : number.start])
    words.append(numbers.format_number(number.value))
    end = number.end
  words += _split_words(text[end:])
  kept = [word for word in words if word not in ("a", "an", "the")]
  return tuple(kept or words or text.casefold().split())


def _split_words(text: str) -> list[str]:
  """Return the words of a plain text without numbers."""
  bare = "".join(map(_word_character, text.casefold()))
  return _STOP.sub("", bare).split()


def score_answer(
  prediction: str, golds: Sequence[str], interval: Sequence[float] = ()
) -> AnswerScores:
  """Score an answer against accepted answers, by the reference's rules.

  One of `golds` is enough; an `interval` (low, high) takes their place.
  """
  found = reference_tokens(prediction)
  if not interval:
    return _bag_scores(found, map(reference_tokens, golds))
  # Every string of the grid is one token, so the first one in the answer is as
  # good a gold as any.
  on = (word for word in found if numeric_range.is_on_grid(word, *interval))
  return _bag_scores(found, [(word,) for word in itertools.islice(on, 1)])


def score_default(
  prediction: str, golds: Sequence[str], interval: Sequence[float] = ()
) -> AnswerScores:
  """Score an answer by the default rules; the arguments of `score_answer`."""
  if interval:
    right = float(numeric_range.is_in_range(*interval, prediction))
    return AnswerScores(*[right] * 5)
  found = default_tokens(prediction)
  known = map(default_tokens, golds)
  if {"yes", "no"} <= {*found}:
    known = [gold for gold in known if gold not in (("yes",), ("no",))]
  return _bag_scores(found, known)


def _bag_scores(
  found: Sequence[str], golds: Iterable[Sequence[str]]
) -> AnswerScores:
  best, max_recall, exact = (0.0, 0.0, 0.0), 0.0, 0.0
  # Ties in F1 go to the first gold, because max keeps the earlier one.
  counts = collections.Counter(found)
  for gold in golds:
    same = sum((collections.Counter(gold) & counts).values())
    if not same:
      continue
    precision, recall = same / len(found), same / len(gold)
    f1 = 2 * precision * recall / (precision + recall)
    best = max(best, (precision, recall, f1), key=lambda scores: scores[2])
    max_recall = max(max_recall, recall)
    exact = max(exact, float(gold == found))
  return AnswerScores(*best, max_recall, exact)


def bootstrap_interval(
  values: Float[np.ndarray, " N"], seed: int, *, draws: int = 10_000
) -> Interval:
  """Return the mean of `values` with its 95 % percentile bootstrap interval.

  Raises:
    UserError: if there are no values.
  """
  values = np.asarray(values, np.float64)
  if not values.size:
    raise UserError("there is no value to average; was a family left empty?")
  rng = np.random.default_rng(seed)
  # In batches of 32 MiB of indices, so that memory does not grow with N.
  means = np.empty(draws)
  batch = max(1, (1 << 22) // values.size)
  for start in range(0, draws, batch):
    some = means[start : start + batch]
    picks = rng.integers(values.size, size=(some.size, values.size))
    some[:] = values[picks].mean(axis=1)
  low, high = np.quantile(means, (0.025, 0.975))
  return Interval(float(values.mean()), float(low), float(high))


def pass_at_k(
  right: Float[np.ndarray, "N n"], k: int
) -> Float[np.ndarray, " N"]:
  """Estimate without bias the chance that one of k <= n samples is right.

  Source: arxiv.org/abs/2107.03374, equation 1.
  """
  samples = right.shape[1]
  if not 1 <= k <= samples:
    raise UserError(f"pass@{k} of {samples} samples: take 1 to {samples}.")
  # 1 - C(wrong, k) / C(n, k), with exact integers.
  wrong = (samples - right.sum(axis=1)).astype(int)
  return np.array(
    [1 - math.comb(each, k) / math.comb(samples, k) for each in wrong]
  )


def majority_vote(
  answers: Sequence[Sequence[Hashable]],
) -> Int[np.ndarray, " N"]:
  """Return, for each question, the sample with its most common answer.

  Answers are equal if they mean the same, and empty if they are no vote.  The
  first of the most common answers wins.
  """
  chosen = []
  for samples in map(list, answers):
    votes = collections.Counter(filter(None, samples))
    votes = votes or collections.Counter(samples)
    # Counters keep the order of insertion, so that max prefers the first.
    chosen.append(samples.index(max(votes, key=votes.get)))
  return np.array(chosen, int)
