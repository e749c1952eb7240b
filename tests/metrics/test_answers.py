"""Scores against the reference's golden values and slow restatements."""

import collections
import json
import os
import pathlib
import random
import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from nltk.tokenize import destructive

from r1router_jax.data import benchmarks
from r1router_jax.metrics import answers
from r1router_jax.metrics.answers import bootstrap_interval, default_tokens
from tests import slow_bag_f1

REFERENCE = pathlib.Path(os.environ.get("R1ROUTER_REFERENCE", "reference"))

PIECES = (
  *"abdlmnrstv01  '.,:;\"-–—*$%&?()“”‘’«»/\n\té",
  *"dont don't cannot gonna 'tis 'twas more'n y'all 1,000".split(),
  *("the ", "an ", "none ", "wanna ", "Ten ", ". ", ", "),
)

noisy = st.lists(st.sampled_from(PIECES), max_size=24).map("".join)


# Its best F1 is not of the gold of the best recall.
BALTIC = (
  "baltic sea northern europe is",
  ["sea", "the baltic sea of northern europe"],
)


# From the reference's own code: prediction, golds, (precision, recall, F1).
@pytest.mark.parametrize(
  "prediction, golds, wanted",
  [
    ("december 9, 1899", ["9 December 1899"], (1, 1, 1)),
    ("a cat", ["A cat"], (1, 1, 1)),
    ("cat", ["A cat"], (1, 0.5, 0.667)),
    ("1,234 people", ["1234"], (0.5, 1, 0.667)),
    ("u.s.", ["U.S."], (1, 1, 1)),
    ("2011 12", ["2011-12"], (1, 1, 1)),
    ("one", ["1"], (1, 1, 1)),
    ("none", ["0"], (1, 1, 1)),
    ("4-6, 6-2", ["4–6, 6–2"], (1, 0.667, 0.8)),
    ("it's", ["its"], (0, 0, 0)),
    ("the", ["the"], (0, 0, 0)),
    ("", ["x"], (0, 0, 0)),
    ("x", [""], (0, 0, 0)),
    ("x", [], (0, 0, 0)),
    (*BALTIC, (0.8, 0.8, 0.8)),
  ],
)
def test_reference_scores_of_known_answers(prediction, golds, wanted):
  scores = answers.score_answer(prediction, golds)
  np.testing.assert_allclose(
    (scores.precision, scores.recall, scores.f1), wanted, atol=5e-4
  )


def test_best_f1_is_not_best_recall():
  scores = answers.score_answer(*BALTIC)
  assert (scores.recall, scores.max_recall) == (0.8, 1.0)


@pytest.mark.parametrize(
  "text, wanted",
  [
    ("Dont, Couldnt've!", "don't couldn't've"),
    ("somebody'd", "somebodyd"),
    ("a/b", "a b"),
    ("a/b and c/ d", "ab and c d"),
    ("a-b 1,000", "ab 1000"),  # A thousands comma makes every mark vanish.
    ("v1.5 u.k.", "v1.5 uk"),
    ("." * 40, "." * 8),  # The reference drops 32 periods.
    ("The end of an era", "end of era"),
    ("Ten\tof\nnone", "10 of 0"),
  ],
)
def test_normalize_text(text, wanted):
  assert answers.normalize_text(text) == wanted


@pytest.mark.parametrize(
  "prediction, golds, exact",
  [
    ("The Chad.", ["chad"], 1),
    ("chad lake", ["lake chad"], 0),
    ("lake chad", ["x", "Lake Chad"], 1),
    ("the", ["the"], 0),
  ],
)
def test_exact_match(prediction, golds, exact):
  assert answers.score_answer(prediction, golds).exact == exact


@hypothesis.given(noisy)
def test_answer_equal_to_gold_scores_one(text):
  expected = float(bool(answers.reference_tokens(text)))
  scores = answers.score_answer(text, [text])
  assert scores == answers.AnswerScores(*[expected] * 5)


# ---- The reference's rules, restated.


def slow_tokens(text):
  """Normalise as the reference does, a character or a word at a time."""
  tokenize = destructive.NLTKWordTokenizer().tokenize
  text = "".join(" " if char in "\n\t" else char for char in text).strip()
  comma = any(
    a.isdigit() and b == "," and c.isdigit()
    for a, b, c in zip(text, text[1:], text[2:], strict=False)
  )
  touching = {
    mark
    for mark in ';/[]"{}()=+\\_-><@`,?!'
    for a, b in zip(text, text[1:], strict=False)
    if (a, b) in ((mark, " "), (" ", mark))
  }
  bare = ""
  for char in text:
    mark = char in ';/[]"{}()=+\\_-><@`,?!'
    bare += char if not mark else "" if comma or char in touching else " "
  left, dotless = 32, ""
  for place, char in enumerate(bare):
    if char == "." and left and not bare[place + 1 : place + 2].isdigit():
      left -= 1
    else:
      dotless += char
  numbers = "zero one two three four five six seven eight nine ten".split()
  words = []
  for word in dotless.lower().split():
    if word not in ("an", "the"):
      word = "0" if word == "none" else word
      number = str(numbers.index(word)) if word in numbers else word
      words.append(answers._CONTRACTIONS.get(number, number))
  found = tokenize(" ".join(words).lower())
  return [word for word in found if word not in ",.?!:;'\""]


def slow_score(prediction, golds):
  return slow_bag_f1.best(slow_tokens(prediction), map(slow_tokens, golds))


@hypothesis.given(noisy, st.lists(noisy, max_size=4))
@hypothesis.settings(deadline=None)
def test_score_answer_matches_the_reference_code(prediction, golds):
  scores = answers.score_answer(prediction, golds)
  found = (scores.precision, scores.recall, scores.f1)
  assert found == slow_score(prediction, golds)
  assert 0 <= scores.recall <= scores.max_recall <= 1
  assert scores.exact in (0, 1)
  assert not scores.exact or scores.max_recall == 1


def answered(rng, golds):
  """Something that a policy could say where `golds` are right."""
  gold = rng.choice(golds)
  words = gold.split()
  ways = (
    *(gold, gold.upper(), gold[:-1], gold[1:]),
    *(f"The answer is {gold}.", f"{gold}, I think", f"{gold} {gold}"),
    *(" ".join(words[::-1]), " ".join(words[: len(words) // 2 + 1])),
    *(f"not {gold}!", f"'{gold}'", f"({gold})", f"{gold}...", f"a {gold}"),
    *(gold.replace(" ", "-"), gold.replace("-", "–"), gold.replace(",", "")),
    *(f"an {gold}\n\n1,000", f"\ud800{gold}", f"**{gold}**"),
    *"yes|yes and no|No.|none|one|1,234|| |the|?".split("|"),
    *("I don't know", "cannot say", "dont"),
    *("." * 40, "".join(rng.sample(gold, len(gold))), " or ".join(golds[:4])),
    *(json.dumps(golds), f"<answer>{gold}</answer>"),
  )
  return rng.choice(ways)


@pytest.mark.skipif(
  not REFERENCE.exists(), reason="the reference's files are absent"
)
@pytest.mark.parametrize(
  "name",
  [
    name for name, spec in benchmarks.BENCHMARK_SPECS.items() if not spec.is_own
  ],
)
def test_scores_of_published_questions(name):
  rng = random.Random(name)
  questions = [
    q for q in benchmarks.load_benchmark(name, str(REFERENCE)) if not q.interval
  ]
  hits = 0
  for question in rng.sample(questions, 300):
    text = answered(rng, question.answers)
    scores = answers.score_answer(text, question.answers)
    found = (scores.precision, scores.recall, scores.f1)
    assert found == slow_score(text, question.answers), text
    hits += scores.recall > 0
    default = answers.score_default(text, question.answers)
    assert 0 <= default.exact <= default.f1 <= 1 + 1e-9
    for gold in question.answers:
      assert answers.score_default(gold, question.answers).exact == 1
  assert 100 < hits < 300


# ---- The default rules.

HAWAII = [f"Hawai{mark}i" for mark in "'’‘ʻʼʹ′`´ʿ＇"]
SAME_NUMBERS = (
  ("11000", "11000.0"),
  ("two million", "2,000,000"),
  ("1 234 567", "1,234,567"),
  ("2½", "2 1/2"),
  ("1.5M", "1.5 million"),
  ("10⁶", "1e6"),
  ("twenty five", "25"),
  ("3,14", "3.14"),
  ("38万", "380,000"),
  ("-5.0", "−5"),
)
OTHER_NUMBERS = (
  ("10²", "102"),
  ("9.11", "911"),
  ("1.5", "15"),
  ("1.5m", "1.5 million"),
  ("6.5.7", "6.5"),
  ("20/20", "1"),
  ("none", "0"),
  ("No one", "1"),
)


@pytest.mark.parametrize(
  "prediction, golds, wanted",
  [
    # Of the golden values of the reference, what comes out here.
    ("december 9, 1899", ["9 December 1899"], (1, 1, 0)),
    ("a cat", ["A cat"], (1, 1, 1)),
    ("cat", ["A cat"], (1, 1, 1)),
    ("1,234 people", ["1234"], (1, 0.667, 0)),
    ("u.s.", ["U.S."], (1, 1, 1)),
    ("2011 12", ["2011-12"], (1, 1, 1)),
    ("one", ["1"], (1, 1, 1)),
    ("none", ["0"], (0, 0, 0)),
    ("4-6, 6-2", ["4–6, 6–2"], (1, 1, 1)),
    ("it's", ["its"], (1, 1, 1)),
    ("the", ["the"], (1, 1, 1)),
    ("", ["x"], (0, 0, 0)),
    ("x", [""], (0, 0, 0)),
    ("x", [], (0, 0, 0)),
    (*BALTIC, (1, 0.8, 0)),
    # Yes and no.
    ("yes", ["yes"], (1, 1, 1)),
    ("Yes, it is.", ["Yes"], (1, 0.5, 0)),
    ("yes and no", ["yes"], (0, 0, 0)),
    ("no, yes", ["no"], (0, 0, 0)),
    ("it is", ["yes"], (0, 0, 0)),
    ("nothing", ["no"], (0, 0, 0)),
    ("yes and no", ["no", "No, they are not"], (0.25, 0.286, 0)),
    ("no way, yes", ["no way"], (1, 0.8, 0)),
    # Marks, dashes, widths.
    ("-5", ["5"], (0, 0, 0)),
    ("−5 °C", ["-5°C"], (1, 1, 1)),
    ("1.5", ["15"], (0, 0, 0)),
    ("in 1999.", ["1999"], (1, 0.667, 0)),
    ("ＡＢＣ　１２", ["abc 12"], (1, 1, 1)),
    ("don’t", ["dont"], (1, 1, 1)),
    ("C++", ["C"], (1, 1, 1)),
    ("🇵🇰", ["Pakistan", "🇵🇰"], (1, 1, 1)),
    *((text, ["Hawaii"], (1, 1, 1)) for text in HAWAII),
    # Numbers.
    *((text, [gold], (1, 1, 1)) for text, gold in SAME_NUMBERS),
    *((text, [gold], (0, 0, 0)) for text, gold in OTHER_NUMBERS),
    # Other scripts.
    ("Malgorzata Braunek", ["Małgorzata Braunek"], (0.5, 0.5, 0)),
    ("cafe\u0301", ["CAFÉ"], (1, 1, 1)),
    ("目前还没有人类去过火星", ["目前还没有人类去过火星。"], (1, 1, 1)),
    ("火星", ["金星"], (0.5, 0.5, 0)),
    ("हिन्दी", ["हिन्दी।"], (1, 1, 1)),
    ("हिन्दू", ["हिन्दी"], (0, 0, 0)),
    ("\ud800", ["x"], (0, 0, 0)),
  ],
)
def test_default_scores_of_known_answers(prediction, golds, wanted):
  scores = answers.score_default(prediction, golds)
  np.testing.assert_allclose(
    (scores.max_recall, scores.f1, scores.exact), wanted, atol=5e-4
  )


def test_default_tokens():
  found = default_tokens("The 1,234,567 o'clock U.S.-led x/y (-.5)")
  assert " ".join(found) == "1234567 oclock us led x y -0.5"
  assert default_tokens("No. 5 of COVID-19") == ("no", "5", "of", "covid", "19")


@hypothesis.given(st.text(max_size=30))
def test_default_rules_ignore_case_marks_and_articles(text):
  one = default_tokens(text)
  assert answers.score_default(text, [text]).exact == float(bool(one))
  assert default_tokens(f"  {text}\n") == one
  assert all(word.split() == [word] for word in one)
  if any(map(str.isalnum, "".join(one))) and not {*one} & {"a", "an", "the"}:
    assert default_tokens(f"The {text}") == one


MARKS = (
  *"9 1, 1,234 - . a1 \ufdfa ' 6.5.' \ud800 « 1e 漢".split(),
  *(" ", "5 ", "5 - ", ".' ", "' 's", "yes no ", "can't "),
)


@pytest.mark.parametrize("mark", MARKS, ids=ascii)
def test_long_answers_are_scored_in_linear_time(mark):
  text = mark * (100_000 // len(mark))
  start = time.process_time()
  for interval in ((), (1.0, 6e4)):
    answers.score_answer(text, ["x y", "1234"], interval)
    answers.score_default(text, ["x y", "1234"], interval)
  assert time.process_time() - start < 10  # CPU seconds.


# ---- Intervals.


def test_bootstrap_interval_matches_a_loop():
  values = np.random.default_rng(0).random(30)
  loop = random.Random(0)
  means = [np.mean(loop.choices(values, k=30)) for _ in range(4000)]
  mean, *bounds = bootstrap_interval(values, seed=1)
  assert mean == pytest.approx(values.mean())
  wanted = [*np.percentile(means, (2.5, 97.5))]
  assert bounds == pytest.approx(wanted, abs=0.01)


def test_bootstrap_interval_covers_the_mean():
  rng = np.random.default_rng(0)
  covered = collections.Counter()
  for seed in range(300):
    values = (rng.random(100) < 0.6).astype(float)
    _, low, high = bootstrap_interval(values, seed, draws=500)
    covered[low <= 0.6 <= high] += 1
  assert 0.90 < covered[True] / 300 < 0.99


def test_bootstrap_interval_depends_only_on_seed():
  values = np.random.default_rng(0).random(50)
  one, again, other = (bootstrap_interval(values, n) for n in (3, 3, 4))
  assert one == again != other


def test_bootstrap_interval_of_equal_values_has_no_width():
  assert bootstrap_interval(np.full(7, 0.25), 0) == (0.25, 0.25, 0.25)


def test_empty_values_are_rejected():
  with pytest.raises(ValueError, match="left empty"):
    bootstrap_interval(np.zeros(0), 0)
