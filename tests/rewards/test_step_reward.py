"""Step rewards, against a slow restatement of the reference's rules."""

import dataclasses
import functools
import re
import unicodedata
import zlib

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_allclose

from r1router_jax.common.records import Question, Step
from r1router_jax.metrics import answers as answers_lib
from r1router_jax.protocol.format import ROUTE_NAMES
from r1router_jax.rewards import presets, step_reward
from r1router_jax.rewards.step_reward import StepReward, make_reward

QUESTION = Question("q", "Q?")

RULES = dict(sub_question="Who rules Chad?", routes=("text", "table"))
CHAD = Step("q/0", "plan", QUESTION, **RULES)

STOP = Step("q/1", "plan", QUESTION, sub_question="None", routes=("none",))


def answer_step(*answers, kind="answer"):
  return Step("q/2", kind, QUESTION, answers=answers)


def embed(texts):
  """Return unit vectors of word counts: cosines are at least 0, 1 if equal."""
  vectors = np.zeros((len(texts), 64), np.float32)
  for row, text in zip(vectors, texts, strict=True):
    # No vector is 0, and no cosine is negative.
    row[0] = 1
    for word in text.lower().split():
      row[1 + zlib.crc32(word.encode()) % 63] += 1
  return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def plan(sub_question, route, thought="t"):
  return (
    f"<think>{thought}</think><sub-question>{sub_question}"
    f"</sub-question><ret>{route}</ret>"
  )


def answer(text):
  return f"<think>t</think>\n<answer> {text}\n</answer>"


def reward_of(step, text, preset):
  (value,) = StepReward(embed, preset)([step], [text])
  return value


# ---- The reference's rules, restated.


def reference_oracle(step, text):
  """Return the reward of reward_score/step.py, with `embed`."""
  text = text.lower()

  def first(tag):
    match = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return match and match.group(1).strip()

  if step.kind != "plan":
    if first("think") is None or first("answer") is None:
      return 0
    recall = answers_lib.score_answer(first("answer"), step.answers).recall
    if len(step.answers) == 1 and len(step.answers[0].split(" ")) > 5:
      return recall
    return 1 if recall == 1 else 0
  if None in (first("think"), first("sub-question"), first("ret")):
    return 0
  names = [name.strip() for name in first("ret").split(",")]
  for name in names:
    if name == "none" and len(names) > 1:
      return 0
    if name not in map(str.lower, ROUTE_NAMES.values()):
      return 0
  # Only the first accepted route counts, and one name alone.
  a, b = embed([first("sub-question"), step.sub_question.lower()])
  gold = ROUTE_NAMES[step.routes[0]].lower()
  return 0.5 * (a @ b) + 0.5 * (len(names) == 1 and names[0] == gold)


# Texts of the protocol's tags in any order, closed or not.
PIECES = (
  *"<think> </think> <sub-question> </sub-question> <Think> None".split(),
  *"<ret> </ret> <answer> </answer> ,".split(),
  *("Text Retriever", "table retriever", "text image retriever", " ", "\n"),
  *("who rules chad", "idriss deby"),
  "it is the Idriss Deby of Chad since 1990",
)

pieces = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)

ODD_ROUTES = (
  "none, none|x|table retriever,text retriever|Text Retriever.".split("|")
)

ASKED = ["Who rules Chad?", "none", "", "Where is chad?"]

ROUTES = [*ROUTE_NAMES.values(), *ODD_ROUTES]

formed = st.builds(plan, st.sampled_from(ASKED), st.sampled_from(ROUTES))

NAMES = ["idriss deby", "deby idriss in 1990 since", "idriss", ""]

answered = st.builds(answer, pieces | st.sampled_from(NAMES))

STEPS = [CHAD, STOP, answer_step("idriss deby"), answer_step("the")]
STEPS += [answer_step("Idriss Deby", "Deby")]
STEPS += [answer_step("it is idriss deby since the year 1990")]
STEPS += [answer_step("Idriss Deby", kind="final")]

steps = st.sampled_from(STEPS)


@given(st.lists(st.tuples(steps, pieces | formed | answered), max_size=6))
def test_reference_preset_follows_the_references_rules(rows):
  reward = StepReward(embed, "reference")
  got = reward([step for step, _ in rows], [text for _, text in rows])
  wanted = [reference_oracle(*row) for row in rows]
  assert_allclose(got, wanted, atol=1e-6)


TWO_ROUTES = (
  "x<ret>Text Retriever</ret><sub-question>q</sub-question><think></think>"
  "<ret>None</ret>"
)
FILM = "frank wisbar directed the film in that year"


# Measured by running the reference's code, with every similarity 1.
@pytest.mark.parametrize(
  "step, text, expected",
  [
    (CHAD, plan("q", "Text Retriever"), 1.0),
    (CHAD, plan("q", "Table Retriever"), 0.5),
    (CHAD, plan("q", "None"), 0.5),
    (CHAD, plan("none", "text retriever"), 1.0),
    (STOP, plan("none", "text retriever"), 0.5),
    (CHAD, plan("q", "text retriever, table retriever"), 0.5),
    (CHAD, plan("q", "text retriever."), 0.0),
    (CHAD, plan("q", "none, text retriever"), 0.0),
    (CHAD, "<ret>none</ret><sub-question>q</sub-question>", 0.0),
    (CHAD, TWO_ROUTES, 1.0),
    (answer_step(FILM), answer("frank wisbar"), 2 / 7),
    (answer_step("frank wisbar"), answer("frank wisbar directed"), 1.0),
    (answer_step("frank wisbar", "wisbar, frank"), answer("frank"), 0.0),
    (answer_step("yes"), answer("yes and no"), 1.0),
    (answer_step("yes"), "<answer>yes</answer><think></think>", 1.0),
    (answer_step("yes"), "<answer>yes</answer>", 0.0),
  ],
)
def test_reference_preset_values(step, text, expected):
  ones = functools.partial(np.ones, dtype=np.float32)
  alike = StepReward(lambda texts: ones((len(texts), 1)), "reference")
  assert alike([step], [text])[0] == pytest.approx(expected)


def test_vectors_of_golds_are_bounded(monkeypatch):
  monkeypatch.setattr(step_reward, "_MAX_GOLDS", 2)
  reward, texts = step_reward.StepReward(embed), ["who rules", "of chad"]
  golds = [f"who rules land {n}" for n in range(5)]
  steps = [dataclasses.replace(CHAD, sub_question=gold) for gold in golds]
  for some in (steps[:2], steps, steps[3:], steps):
    asked = [plan(texts[n % 2], "Text Retriever") for n in range(len(some))]
    pairs = zip(some, asked, strict=True)
    wanted = [reward_of(step, text, "default") for step, text in pairs]
    assert_allclose(reward(some, asked), wanted)
    assert len(reward._gold_vectors) <= 2


# ---- The default preset.


@pytest.mark.parametrize(
  "step, text, expected",
  [
    (CHAD, plan("Who rules Chad?", "Text Retriever"), 1.0),
    (CHAD, plan("Who rules Chad?", "Table Retriever"), 1.0),
    (CHAD, plan("Who rules Chad?", "Text Image Retriever"), 0.1 + 0.9 / 2),
    (CHAD, plan("None", "None"), 0.1),
    (CHAD, plan("None", "Text Retriever"), 0.0),
    (CHAD, plan("Who rules Chad?", "None"), 0.0),
    (CHAD, plan("Who rules Chad?", "Text Retriever") + "!", 0.0),
    (CHAD, "", 0.0),
    (STOP, plan("none", "none"), 1.0),
    (STOP, plan("None", "None"), 1.0),
    (STOP, plan("None?", "Text Retriever"), 0.1),
    (answer_step("yes"), "yes", 0.0),
  ],
)
def test_default_preset_of_plans_and_malformed_text(step, text, expected):
  assert reward_of(step, text, "default") == pytest.approx(expected)


@pytest.mark.parametrize(
  "golds, text, expected",
  [
    (("N'Djamena",), "n'djamena", 1.0),
    (("Port Louis",), "Louis", 0.0),
    (("yes",), "yes and no", 0.0),
    (("Port Louis", "the city of Port Louis in Mauritius"), "Port Louis", 1.0),
    (("one two three four five six",), "one two three", 2 / 3),
    (("United States", "USA"), "USA", 1.0),
    # Spellings of the same, by the default rules of scores.
    (("São Tomé",), unicodedata.normalize("NFD", "São Tomé"), 1.0),
    (("29,700",), "２９,７００", 1.0),  # noqa: RUF001 (full width)
    (("-5",), "\u22125", 1.0),
    (("29,700",), "29700", 1.0),
    (("5",), "-5", 0.0),
  ],
)
def test_default_preset_of_answers(golds, text, expected):
  got = reward_of(answer_step(*golds), answer(text), "default")
  assert got == pytest.approx(0.1 + 0.9 * expected)


@given(
  st.sampled_from(sorted(presets.REWARD_PRESETS)),
  st.lists(st.tuples(steps, pieces | formed | answered), max_size=6),
)
def test_rewards_lie_between_0_and_1(preset, rows):
  reward = StepReward(embed, preset)
  texts = [text for _, text in rows]
  components = reward.score([step for step, _ in rows], texts)
  assert np.all((components.total >= 0) & (components.total <= 1))
  assert np.all(components.total[components.well_formed == 0] == 0)


@given(st.lists(st.tuples(steps, formed | answered), min_size=1))
def test_reward_does_not_depend_on_other_responses(rows):
  together = StepReward(embed)(*map(list, zip(*rows, strict=True)))
  wanted = [reward_of(*row, "default") for row in rows]
  assert_allclose(together, wanted, atol=1e-6)


# ---- The embedder.


def test_each_text_of_a_batch_is_embedded_once_and_golds_are_kept():
  calls = []

  def spy(texts):
    calls.append(list(texts))
    return embed(texts)

  reward = StepReward(spy)
  texts = [plan(asked, "Text Retriever") for asked in ("A?", "B?", "A?")]
  reward([CHAD] * 3 + [STOP], [*texts, plan("None", "None")])
  # Stops need no embedding, and a text that comes twice is sent once.
  assert calls == [["A?", "B?", CHAD.sub_question]]
  reward([CHAD] * 2, texts[:2])
  # The gold is known from the first batch.
  assert calls[1:] == [["A?", "B?"]]
  reward([CHAD], [plan(CHAD.sub_question, "Text Retriever")])
  reward([answer_step("x")], [answer("x")])
  assert len(calls) == 2


@pytest.mark.parametrize(
  "names, earned",
  [
    ("Text Retriever", 1),
    ("Table Retriever, Text Retriever", 1),
    ("Text Retriever, Table Retriever", 1),
    ("Text Retriever, Text Image Retriever", 0.55),
    ("Text Image Retriever, Text Retriever", 0.55),
    ("Text Retriever, Table Retriever, Text Image Retriever", 0),
  ],
)
def test_several_routes_are_right_if_each_is_accepted(names, earned):
  """By hand: 0.1 for the format, 0.45 each for sub-question and routes."""
  text = plan("Who rules Chad?", names)

  def score(preset, max_routes):
    reward = StepReward(embed, preset, max_routes)
    return float(reward([CHAD], [text])[0])

  assert score("default", 2) == pytest.approx(earned)
  # A plan that names more routes than it may is malformed.
  assert score("default", 1) == pytest.approx(earned * ("," not in names))
  wanted = pytest.approx(0.5 if "," in names else 1)
  assert score("reference", 2) == score("reference", 1) == wanted


def test_components_of_a_reward():
  components = StepReward(embed).score(
    [CHAD, CHAD, answer_step("x")],
    [plan("Who rules Chad?", "Text Image Retriever"), "", answer("x")],
  )
  np.testing.assert_array_equal(components.route, [0, 0, np.nan])
  assert_allclose(components.similarity, [1, 0, np.nan], rtol=1e-6)
  np.testing.assert_array_equal(components.answer, [np.nan, np.nan, 1])
  means = components.means()
  assert means["well_formed"] == pytest.approx(2 / 3)
  assert means["similarity"] == pytest.approx(0.5)
  assert "answer" not in StepReward(embed).score([STOP], [""]).means()


HERE = "tests.rewards.test_step_reward:"


@pytest.mark.parametrize(
  "step, names, searches, earned",
  [
    (CHAD, "Text Retriever", 1, 0.95),
    (CHAD, "Text Image Retriever", 1, 0.5),
    (CHAD, "Text Retriever, Table Retriever", 2, 0.9),
    (STOP, "None", 0, 1),
  ],
)
def test_searches_cost_reward(step, names, searches, earned):
  """By hand: 0.05 per search; the reward stays at least 0."""
  asked = "None" if step is STOP else "Who rules Chad?"
  rows = ([step, answer_step("x")], [plan(asked, names), answer("x")])
  cheap = StepReward(embed, max_routes=2, search_cost=0.05)
  components = cheap.score(*rows)
  assert_allclose(components.total, [earned, 1], rtol=1e-6)
  np.testing.assert_array_equal(components.searches, [searches, np.nan])
  expensive = StepReward(embed, max_routes=2, search_cost=9.0)
  assert expensive.score(*rows).total.tolist() == [float(not searches), 1]


def reward_lengths(steps, texts):
  return [len(text) / 10 for text in texts]


def reward_nan(steps, texts):
  return [float("nan")] * len(texts)


def test_users_reward_is_found_by_its_name():
  reward = make_reward(HERE + "reward_lengths")
  components = reward.score([CHAD, STOP], ["abc", ""])
  assert_allclose(components.total, [0.3, 0])
  assert components.means() == {"total": pytest.approx(0.15)}
  with pytest.raises(ValueError, match="wanted 1 finite"):
    make_reward(HERE + "reward_nan").score([CHAD], ["a"])
  for name in (HERE + "absent", "no.such.module:f"):
    with pytest.raises(ValueError, match="cannot be imported"):
      make_reward(name)


def test_unknown_presets_bad_embedders_and_missing_golds_are_rejected():
  with pytest.raises(ValueError, match="reference, default"):
    StepReward(embed, "paper")
  # An embedder that failed without a word.
  broken = StepReward(lambda texts: embed(texts) * np.nan)
  with pytest.raises(ValueError, match="unit vectors"):
    broken([CHAD], [plan("A?", "Text Retriever")])
  with pytest.raises(ValueError, match="no gold"):
    StepReward(embed)([answer_step()], ["x"])
