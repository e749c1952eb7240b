"""Scores of an answer, by two sets of rules, and their uncertainty.

Prediction and golds are normalised, cut into tokens and compared as bags:

  precision = |common| / |prediction|,  recall = |common| / |gold|,
  F1 = 2 precision recall / (precision + recall).

Of several golds the one with the best F1 counts, first come first served; its
recall is the "F1-Recall" of the R1-Router paper.  It rewards an answer that
lists every candidate, so tables here show F1 and exact match beside it.

`score` has the reference's rules to the letter, because numbers are to be
compared: "none" is 0, "an" and "the" are dropped but "a" is not, at most 32
periods go, punctuation vanishes where it touches a space anywhere in the text
and becomes a space elsewhere, an interval is a grid of strings (`ranges`).
They descend from the VQA evaluation; the tokeniser is that of NLTK (Penn
Treebank) as far as normalised text can tell.

`score_default` has the rules that we would choose:

  - "a" is an article, too, and "none" is a word;
  - full-width letters and digits are usual ones, all dashes are one and part
    words as a space does, but for a minus before a number; apostrophes vanish,
    and so do periods that are no decimal point; a comma of thousands vanishes,
    other marks part words; accents stay; a Chinese or Japanese character is a
    token;
  - an answer with both "yes" and "no" does not match a gold that is only one
    of them;
  - for an interval the answer's first number counts, and alone: all scores are
    1 where it lies within, else 0.

Axes:  N values   K resampled means.
Sources: arxiv.org/abs/2505.22095 (R1-Router), visualqa.org/evaluation (VQA),
nltk.org/api/nltk.tokenize.destructive (tokeniser).
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
from jaxtyping import Float, Int

from r1router_jax.metrics import numeric_range

# What the lower-cased, normalised text of a contraction without one of its
# apostrophes is mapped to: "dont", "couldnt've" and "couldn'tve", ...
_CONTRACTED = """
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
  for word in _CONTRACTED
  for place, letter in enumerate(word)
  if letter == "'"
}

_NUMBERS = {"none": "0"} | numeric_range.NUMBER_WORDS

_ARTICLES = ("an", "the")

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

_THOUSANDS = re.compile(r"\d,\d")

_PERIOD = re.compile(r"\.(?!\d)")

_PERIODS = 32  # The reference passes a flag of this value as the count.


# The tokeniser's rules, in order; rules for characters that normalised text
# cannot hold are left out.
_TOKEN_RULES = tuple(
  (re.compile(rule), by)
  for rule, by in (
    (r"([«“‘„])", r" \1 "),
    (r" ''", "  `` "),
    (r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", "' "),
    (r"([^.])(\.)([' »”’]*)$", r"\1 \2 \3 "),
    (r"([:,])(\D)", r" \1 \2"),
    (r":$", " : "),
    (r"\.{2,}", r" \g<0> "),
    (r"[#$%&\u2012-\u2015]", r" \g<0> "),
    (r"([^'])' ", r"\1 ' "),
    (r"\*", " * "),
    (r"^|$", " "),
    (r"([»”’])", r" \1 "),
    (r"''", " '' "),
    (r"\s+", " "),
    (r"([^' ])('[smd]|') ", r"\1 \2 "),
    (r"([^' ])('ll|'re|'ve|n't) ", r"\1 \2 "),
    (r"\b(can)(not)\b", r" \1 \2 "),
    (r"\b(d)('ye)\b", r" \1 \2 "),
    (r"\b(gim|lem)(me)\b", r" \1 \2 "),
    (r"\b(gon)(na)\b", r" \1 \2 "),
    (r"\b(got)(ta)\b", r" \1 \2 "),
    (r"\b(more)('n)\b", r" \1 \2 "),
    (r"\b(wan)(na)(?=\s)", r" \1 \2 "),
    (r" ('t)(is)\b", r" \1 \2 "),
    (r" ('t)(was)\b", r" \1 \2 "),
  )
)


# The default rules.
_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")

_HYPHEN = re.compile(r"(?<=\S)-|-(?!\.?\d)")

_STOP = re.compile(r"\.(?!\d)|(?<=[^\W\d])\.")

_CHARACTERS = (  # Of which each is a word: Han, Hiragana and Katakana.
  range(0x3005, 0x3008),
  range(0x3040, 0x3100),
  range(0x3400, 0x4DC0),
  range(0x4E00, 0xA000),
  range(0xF900, 0xFB00),
  range(0x20000, 0x40000),
)


class _Bare(dict):
  """What str.translate puts for each character: a space for most marks."""

  def __missing__(self, code: int) -> int | str | None:
    char = chr(code)
    self[code] = (
      f" {char} "
      if any(code in some for some in _CHARACTERS)
      else code
      if char in ".-"
      or char.isalnum()
      or unicodedata.category(char).startswith("M")
      else None
      if char in "'\u2018\u2019"
      else " "
    )
    return self[code]


_BARE = _Bare()


@dataclasses.dataclass(frozen=True)
class Scores:
  """Of one answer, each in [0, 1].

  Attributes:
    precision, recall, f1: against the gold of the best F1.
    max_recall: the best recall against any gold, as OmniSearch reports.
    exact: 1 if the tokens are those of a gold, in order.
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


def normalise(text: str) -> str:
  """Lower-cased text without most punctuation and articles."""
  text = text.replace("\n", " ").replace("\t", " ").strip()
  crowded = _THOUSANDS.search(text) is not None
  bare = text
  for mark in _PUNCTUATION:
    if mark in text:
      apart = f"{mark} " in text or f" {mark}" in text
      bare = bare.replace(mark, "" if apart or crowded else " ")
  bare = _PERIOD.sub("", bare, count=_PERIODS)
  words = (_NUMBERS.get(word, word) for word in bare.lower().split())
  kept = (word for word in words if word not in _ARTICLES)
  return " ".join(_CONTRACTIONS.get(word, word) for word in kept)


@functools.lru_cache(maxsize=1 << 12)
def tokens(text: str) -> tuple[str, ...]:
  """The tokens that are compared: those of normalised text, bare of marks."""
  text = normalise(text).lower()
  for rule, by in _TOKEN_RULES:
    text = rule.sub(by, text)
  return tuple(word for word in text.split() if word not in ",.?!:;'\"")


@functools.lru_cache(maxsize=1 << 12)
def default_tokens(text: str) -> tuple[str, ...]:
  """The same by the default rules.

  Where there is nothing else, articles stay, and so do marks.
  """
  text = numeric_range.plain(text)
  bare = _HYPHEN.sub(" ", _COMMA.sub("", text).translate(_BARE))
  words = [
    numeric_range.NUMBER_WORDS.get(word, word)
    for word in _STOP.sub("", bare).split()
  ]
  kept = [word for word in words if word not in ("a", "an", "the")]
  return tuple(kept or words or text.split())


def score(
  prediction: str, golds: Sequence[str], interval: Sequence[float] = ()
) -> Scores:
  """Scores of `prediction` against accepted answers, by the reference's rules.

  Args:
    prediction: the answer.
    golds: of which one is wanted.
    interval: (low, high) of the accepted numbers instead of `golds`.
  """
  found = tokens(prediction)
  if not interval:
    return _scores(found, map(tokens, golds))
  # Every string of the grid is one token, so that one that is there is best.
  on = (word for word in found if numeric_range.on_grid(word, *interval))
  return _scores(found, [(word,) for word in itertools.islice(on, 1)])


def score_default(
  prediction: str, golds: Sequence[str], interval: Sequence[float] = ()
) -> Scores:
  """The same by the default rules."""
  if interval:
    return Scores(*[float(numeric_range.holds(*interval, prediction))] * 5)
  found = default_tokens(prediction)
  known = map(default_tokens, golds)
  if {"yes", "no"} <= {*found}:
    known = [gold for gold in known if gold not in (("yes",), ("no",))]
  return _scores(found, known)


def _scores(found: Sequence[str], golds: Iterable[Sequence[str]]) -> Scores:
  best, max_recall, exact = (0.0, 0.0, 0.0), 0.0, 0.0
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
  return Scores(*best, max_recall, exact)


def interval(
  values: Float[np.ndarray, " N"], seed: int, *, draws: int = 10_000
) -> Interval:
  """Mean of `values` with its 95 % percentile bootstrap interval."""
  values = np.asarray(values, np.float64)
  if not values.size:
    raise ValueError("there is no value to average; was a family left empty?")
  rng = np.random.default_rng(seed)
  means = np.empty(draws)
  batch = max(1, (1 << 22) // values.size)  # 32 MiB of indices at a time.
  for start in range(0, draws, batch):
    some = means[start : start + batch]
    picks = rng.integers(values.size, size=(some.size, values.size))
    some[:] = values[picks].mean(axis=1)
  low, high = np.quantile(means, (0.025, 0.975))
  return Interval(float(values.mean()), float(low), float(high))


def paired_difference(
  a: Float[np.ndarray, " N"], b: Float[np.ndarray, " M"], seed: int
) -> Interval:
  """Mean of a - b over the same questions, with its interval."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape:
    raise ValueError(
      f"{a.size} and {b.size} values are not of the same questions; score "
      "both methods on one list of questions."
    )
  return interval(a - b, seed)


def pass_at(right: Float[np.ndarray, "N n"], k: int) -> Float[np.ndarray, " N"]:
  """The chance that one of k samples is right, without bias.

  Args:
    right: 1 where a sample is.
    k: at most n.
  """
  samples = right.shape[1]
  if not 1 <= k <= samples:
    raise ValueError(f"pass@{k} of {samples} samples: take 1 to {samples}.")
  wrong = (samples - right.sum(axis=1)).astype(int)
  return np.array(
    [1 - math.comb(each, k) / math.comb(samples, k) for each in wrong]
  )


def majority(answers: Sequence[Sequence[Hashable]]) -> Int[np.ndarray, " N"]:
  """Which sample has each question's commonest answer.

  Args:
    answers: of each question those of its samples, equal where they say the
      same; a falsy one is no vote.
  """

  def pick(said):
    votes = collections.Counter(filter(None, said)) or collections.Counter(said)
    return said.index(max(votes, key=votes.get))  # Counters keep their order.

  return np.array([pick(list(said)) for said in answers], int)
