"""Official metrics of benchmarks, which tables show beside this project's own.

  multimodalqa  exact match and F1 of lists: the members of answer and gold are
                paired so that their F1 is largest
  e_vqa         exact match alone.  The official score of what does not match
                is BEM, a BERT that compares answers, which is not run here, so
                that this is a lower bound of the official accuracy
  fvqa          exact match, the reward of MMSearch-R1; its tables have a judge
  mmsearch      F1
  hotpotqa      exact match and F1; "yes" and "no" earn no part of F1
  musique       exact match and F1
  infoseek      accuracy: exact match, and for numbers whether they lie in the
                range, or a range overlaps it by half; the score is the harmonic
                mean of questions and entities that training does not show

Exact match and F1 are those of SQuAD but for E-VQA and MultimodalQA: texts
without case, marks and articles, compared word by word.  LiveVQA's metric is a
judge (`rewards.llm_judge`), and other benchmarks are scored by
`metrics.answers` alone.

Sources: aclanthology.org/D16-1264 (SQuAD); the scripts of allenai/multimodalqa,
google-research/encyclopedic_vqa, EvolvingLMMs-Lab/multimodal-search-r1,
CaraJ7/MMSearch, hotpotqa/hotpot, StonyBrookNLP/musique and
edchengg/infoseek_eval, all on github.com.
"""

import collections
import math
import re
import string
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epy

from r1router_jax.common.records import Question

# Imported when used, since it takes most of a second.
with epy.lazy_imports():
  from scipy import optimize

_MARKS = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_HOTPOT_WHOLE = ("yes", "no", "noanswer")

# E-VQA's rules.
_MORE_MARKS = str.maketrans("", "", string.punctuation + "‘’´")
_ANSWER_IS = re.compile(r"\b(the answer is|a|an|the)\b")
_SMALL = "zero one two three four five six seven eight nine ten".split()
_SAME = {word: str(number) for number, word in enumerate(_SMALL)}
_SAME |= dict(none="0", entailment="yes", true="yes", contradiction="no")
_SAME["false"] = "no"
_MIN_OVERLAP = 0.5  # Of E-VQA's lists, and of InfoSeek's ranges.

# MultimodalQA's rules: words that are numbers by themselves.
_TEENS = "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = enumerate([*_SMALL, *_TEENS.split(), "nineteen"])
_NUMBER_WORDS = {word: float(number) for number, word in _WORDS}
_NUMBER_WORDS |= {word: 10.0 * n for n, word in enumerate(_TENS, 2)}
_NUMBER_WORDS |= dict(hundred=1e2, thousand=1e3, million=1e6, billion=1e9)

# InfoSeek's rules.
_TINY = 1e-12
_NUMBER = re.compile(r"[-+]?\.?\d+(?:,\d{3})*\.?\d*(?:[eE][-+]?\d+)?")


class OfficialScores(NamedTuple):
  """Scores of an answer in [0, 1]; NaN where the benchmark reports none."""

  exact: float = math.nan
  f1: float = math.nan


class InfoseekScore(NamedTuple):
  """InfoSeek's score of a method, and the two accuracies that it is made of."""

  harmonic_mean: float
  unseen_question: float
  unseen_entity: float


def score_official(text: str, question: Question) -> OfficialScores:
  """Score an answer by the metric of the question's benchmark."""
  metric = METRICS.get(question.benchmark)
  return metric(text, question) if metric else OfficialScores()


def infoseek_score(
  questions: Sequence[Question], accuracies: Iterable[float]
) -> InfoseekScore | None:
  """Return InfoSeek's score, or None unless there are both of its splits.

  The accuracies are `OfficialScores.exact` of each question; questions of
  other benchmarks are passed over.
  """
  splits = collections.defaultdict(list)
  for question, accuracy in zip(questions, accuracies, strict=True):
    if question.benchmark == "infoseek":
      split = re.search("unseen_(question|entity)$", question.family)
      splits[split[0] if split else ""].append(accuracy)
  if not {"unseen_question", "unseen_entity"} <= splits.keys():
    return None
  asked = splits["unseen_question"], splits["unseen_entity"]
  means = [float(np.mean(accuracies)) for accuracies in asked]
  harmonic = 2 * math.prod(means) / sum(means) if all(means) else 0.0
  return InfoseekScore(harmonic, *means)


# --- SQuAD --------------------------------------------------------------------


def squad_words(text: str) -> list[str]:
  """Return the words of a text without case, marks and articles."""
  return _ARTICLES.sub(" ", text.lower().translate(_MARKS)).split()


def _squad_exact(text: str, question: Question) -> float:
  golds = map(squad_words, question.answers)
  return float(squad_words(text) in list(golds))


def _word_f1(found: Sequence[str], gold: Sequence[str]) -> float:
  """Return the F1 of two bags of words; of an empty one, if they are equal."""
  if not (found and gold):
    return float(found == gold)
  same = sum((collections.Counter(found) & collections.Counter(gold)).values())
  return 2 * same / (len(found) + len(gold))


def _squad(text: str, question: Question) -> OfficialScores:
  found, golds = squad_words(text), map(squad_words, question.answers)
  f1 = max(_word_f1(found, gold) for gold in golds)
  return OfficialScores(_squad_exact(text, question), f1)


def _hotpot(text: str, question: Question) -> OfficialScores:
  exact, f1 = _squad(text, question)
  said = [text, *question.answers]
  # Nothing in common is no F1, even where both are empty.
  whole = any(" ".join(squad_words(x)) in ("", *_HOTPOT_WHOLE) for x in said)
  if whole:
    f1 = exact * bool(squad_words(text))
  return OfficialScores(exact, f1)


def _fvqa(text: str, question: Question) -> OfficialScores:
  return OfficialScores(exact=_squad_exact(text, question))


def _mmsearch(text: str, question: Question) -> OfficialScores:
  return OfficialScores(f1=_squad(text, question).f1)


def _split_list(text: str) -> list[str]:
  """Return the members of a list that is written as a text."""
  return text.replace(" and ", ",").replace(" & ", ",").split(",")


# --- E-VQA --------------------------------------------------------------------


def _evqa_text(text: str) -> str:
  """Normalise a text.  The official contractions change no comparison."""
  bare = _ANSWER_IS.sub(" ", text.lower().strip().translate(_MORE_MARKS))
  return " ".join(_SAME.get(word, word) for word in bare.split())


def _evqa(text: str, question: Question) -> OfficialScores:
  if question.family != "multi_answer":
    golds = filter(None, map(_evqa_text, question.answers))
    return OfficialScores(exact=float(_evqa_text(text) in list(golds)))
  found = {*map(_evqa_text, _split_list(text))} - {""}
  golds = [{*map(_evqa_text, some)} - {""} for some in question.members]
  overlaps = [len(found & gold) / len(found | gold) for gold in golds if gold]
  return OfficialScores(exact=float(max(overlaps, default=0) >= _MIN_OVERLAP))


# --- MultimodalQA -------------------------------------------------------------


def _multimodalqa(text: str, question: Question) -> OfficialScores:
  """Score lists.  An answer is split only where the gold has several members.

  Official answers are lists, and this project's are texts.
  """
  members = question.members[0] if question.members else question.answers[:1]
  gold = [_mmqa_text(member) for member in members]
  parts = _split_list(text) if len(gold) > 1 else [text]
  found = [_mmqa_text(part) for part in parts if part.strip()] or [""]
  exact = {*found} == {*gold} and len(found) == len(gold)
  f1 = np.array([[_mmqa_f1(x, y) for y in found] for x in gold])
  pairs = optimize.linear_sum_assignment(f1, maximize=True)
  paired = np.zeros(max(f1.shape))
  paired[pairs[0]] = f1[pairs]
  return OfficialScores(float(exact), float(round(np.mean(paired), 2)))


def _mmqa_text(text: str) -> str:
  words = []
  for word in re.split(" |-", text.lower()):
    word = word if _is_number(word) else word.translate(_MARKS)
    number = word if _is_number(word) else _NUMBER_WORDS.get(word)
    word = word if number is None else str(float(number))
    words += _ARTICLES.sub(" ", word).split()
  return " ".join(words)


def _mmqa_f1(gold: str, found: str) -> float:
  """Return the F1 of two sets of words, 0 if gold numbers are not found."""
  gold_words, found_words = {*gold.split()}, {*found.split()}
  numbers = {*filter(_is_number, gold_words)}
  if numbers and not numbers & found_words:
    return 0.0
  if not (gold_words or found_words):
    return 1.0
  if not (same := len(gold_words & found_words)):
    return 0.0
  # As there, since the mean is rounded.
  precision, recall = same / len(found_words), same / len(gold_words)
  return 2 * precision * recall / (precision + recall)


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


# --- InfoSeek -----------------------------------------------------------------


def _infoseek(text: str, question: Question) -> OfficialScores:
  if not question.interval:
    return OfficialScores(exact=_squad_exact(text, question))
  low, high = question.interval
  first, last = _read_range(text)
  inside = low <= first <= high and low <= last <= high
  overlap = max(0.0, min(high, last) - max(low, first))
  # The official script adds this to both ranges, and takes off half of it.
  union = (last - first + _TINY) + (high - low + _TINY) - overlap
  shared = overlap / union >= _MIN_OVERLAP - _TINY
  return OfficialScores(exact=float(inside or shared))


def _read_range(text: str) -> tuple[float, float]:
  """Return the first two numbers of a text if they ascend, or the first twice.

  A text without numbers says 0.
  """
  # A hyphen behind a digit is that of a range, and no minus sign.
  found = _NUMBER.findall(re.sub(r"(?<=\d)-", " - ", text))
  numbers = [float(x.replace(",", "").strip(".")) for x in found[:2]]
  first, *others = numbers or [0.0]
  last = others[0] if others else first
  return (first, last) if first <= last else (first, first)


# The metric of each benchmark: a function of an answer and its question.
METRICS: dict[str, Callable[[str, Question], OfficialScores]] = {
  "multimodalqa": _multimodalqa,
  "e_vqa": _evqa,
  "fvqa": _fvqa,
  "mmsearch": _mmsearch,
  "hotpotqa": _hotpot,
  "musique": _squad,
  "infoseek": _infoseek,
}
