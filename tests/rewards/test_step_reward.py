"""Rewards against a slow restatement of the reference's rules."""

import re
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from r1router_jax.common.records import Question, Step
from r1router_jax.metrics import answers as answers_lib
from r1router_jax.protocol.format import ROUTE_NAMES
from r1router_jax.rewards import presets, step_reward

QUESTION = Question("q", "Q?")

CHAD = Step(
  "q/0",
  "plan",
  QUESTION,
  sub_question="Who rules Chad?",
  routes=("text", "table"),
)

STOP = Step("q/1", "plan", QUESTION, sub_question="None", routes=("none",))


def answer_step(*answers, kind="answer"):
  return Step("q/2", kind, QUESTION, answers=answers)


def embed(texts):
  """Unit vectors of letter counts; a non-negative cosine, 1 if equal."""
  vectors = np.zeros((len(texts), 64), np.float32)
  for row, text in zip(vectors, texts, strict=True):
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


def one(step, text, preset):
  (value,) = step_reward.StepReward(embed, preset)([step], [text])
  return value


# ---- The reference's rules, restated.


def oracle(step, text):
  text = text.lower()

  def first(tag):
    match = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return match and match.group(1).strip()

  if step.kind != "plan":
    if first("think") is None or first("answer") is None:
      return 0
    recall = answers_lib.score(first("answer"), step.answers).recall
    if len(step.answers) == 1:
      if len(step.answers[0].split(" ")) <= 5:
        return 1 if recall == 1 else 0
      return recall
    return 1 if recall == 1 else 0
  if None in (first("think"), first("sub-question"), first("ret")):
    return 0
  names = [name.strip() for name in first("ret").split(",")]
  for name in names:
    if name == "none" and len(names) > 1:
      return 0
    if name not in (
      "text retriever",
      "text image retriever",
      "table retriever",
      "none",
    ):
      return 0
  a, b = embed([first("sub-question"), step.sub_question.lower()])
  gold = ROUTE_NAMES[step.routes[0]].lower()
  return 0.5 * (a @ b) + 0.5 * (len(names) == 1 and names[0] == gold)


pieces = st.lists(
  st.sampled_from(
    [
      "<think>",
      "</think>",
      "<sub-question>",
      "</sub-question>",
      "<ret>",
      "</ret>",
      "<answer>",
      "</answer>",
      "<Think>",
      "None",
      "Text Retriever",
      "table retriever",
      "text image retriever",
      ",",
      " ",
      "\n",
      "who rules chad",
      "idriss deby",
      "it is the Idriss Deby of Chad since 1990",
    ]
  ),
  max_size=12,
).map("".join)

formed = st.builds(
  plan,
  st.sampled_from(["Who rules Chad?", "none", "", "Where is chad?"]),
  st.sampled_from(
    [
      *ROUTE_NAMES.values(),
      "none, none",
      "x",
      "table retriever,text retriever",
      "Text Retriever.",
    ]
  ),
)

answered = st.builds(
  answer,
  pieces
  | st.sampled_from(["idriss deby", "deby idriss in 1990 since", "idriss", ""]),
)

steps = st.sampled_from(
  [
    CHAD,
    STOP,
    answer_step("idriss deby"),
    answer_step("Idriss Deby", "Deby"),
    answer_step("it is idriss deby since the year 1990"),
    answer_step("the"),
    answer_step("Idriss Deby", kind="final"),
  ]
)


@hypothesis.given(
  st.lists(st.tuples(steps, pieces | formed | answered), max_size=6)
)
def test_reference_preset_is_the_references_rules(rows):
  reward = step_reward.StepReward(embed, "reference")
  got = reward([step for step, _ in rows], [text for _, text in rows])
  np.testing.assert_allclose(got, [oracle(*row) for row in rows], atol=1e-6)


# Measured on the reference's code, with every similarity 1.
@pytest.mark.parametrize(
  "step, text, wanted",
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
    (
      CHAD,
      "x<ret>Text Retriever</ret><sub-question>q</sub-question>"
      "<think></think><ret>None</ret>",
      1.0,
    ),
    (
      answer_step("frank wisbar directed the film in that year"),
      answer("frank wisbar"),
      2 / 7,
    ),
    (answer_step("frank wisbar"), answer("frank wisbar directed"), 1.0),
    (answer_step("frank wisbar", "wisbar, frank"), answer("frank"), 0.0),
    (answer_step("yes"), answer("yes and no"), 1.0),
    (answer_step("yes"), "<answer>yes</answer><think></think>", 1.0),
    (answer_step("yes"), "<answer>yes</answer>", 0.0),
  ],
)
def test_reference_values(step, text, wanted):
  alike = step_reward.StepReward(
    lambda texts: np.ones((len(texts), 1), np.float32), "reference"
  )
  assert alike([step], [text])[0] == pytest.approx(wanted)


# ---- The default preset.


@pytest.mark.parametrize(
  "text, wanted",
  [
    (plan("Who rules Chad?", "Text Retriever"), 1.0),
    (plan("Who rules Chad?", "Table Retriever"), 1.0),
    (plan("Who rules Chad?", "Text Image Retriever"), 0.1 + 0.9 / 2),
    (plan("None", "None"), 0.1),
    (plan("None", "Text Retriever"), 0.0),
    (plan("Who rules Chad?", "None"), 0.0),
    (plan("Who rules Chad?", "Text Retriever") + "!", 0.0),
    (plan("Who rules Chad?", "Text Retriever, Table Retriever"), 0.0),
    ("", 0.0),
  ],
)
def test_default_plans(text, wanted):
  assert one(CHAD, text, "default") == pytest.approx(wanted)


@pytest.mark.parametrize(
  "text, wanted",
  [
    (plan("none", "none"), 1.0),
    (plan("None", "None"), 1.0),
    (plan("None?", "Text Retriever"), 0.1),
  ],
)
def test_default_stops(text, wanted):
  assert one(STOP, text, "default") == pytest.approx(wanted)


@pytest.mark.parametrize(
  "golds, text, wanted",
  [
    (("N'Djamena",), "n'djamena", 1.0),
    (("Port Louis",), "Louis", 0.0),
    (("yes",), "yes and no", 0.0),
    (("Port Louis", "the city of Port Louis in Mauritius"), "Port Louis", 1.0),
    (("one two three four five six",), "one two three", 2 / 3),
    (("United States", "USA"), "USA", 1.0),
  ],
)
def test_default_answers(golds, text, wanted):
  got = one(answer_step(*golds), answer(text), "default")
  assert got == pytest.approx(0.1 + 0.9 * wanted)


def test_malformed_answers_earn_nothing():
  assert one(answer_step("yes"), "yes", "default") == 0


@hypothesis.given(
  st.sampled_from(sorted(presets.REWARDS)),
  st.lists(st.tuples(steps, pieces | formed | answered), max_size=6),
)
def test_rewards_lie_between_0_and_1(preset, rows):
  reward = step_reward.StepReward(embed, preset)
  parts = (
    reward.parts(*map(list, zip(*rows, strict=True)))
    if rows
    else (reward.parts([], []))
  )
  assert np.all((parts.total >= 0) & (parts.total <= 1))
  assert np.all(parts.total[parts.well_formed == 0] == 0)


@hypothesis.given(st.lists(st.tuples(steps, formed | answered), min_size=1))
def test_a_reward_does_not_depend_on_its_neighbours(rows):
  together = step_reward.StepReward(embed)(*map(list, zip(*rows, strict=True)))
  np.testing.assert_allclose(
    together, [one(*row, "default") for row in rows], atol=1e-6
  )


# ---- The embedder.


def test_each_text_is_embedded_once():
  calls = []

  def spy(texts):
    calls.append(list(texts))
    return embed(texts)

  reward = step_reward.StepReward(spy)
  texts = [plan(asked, "Text Retriever") for asked in ("A?", "B?", "A?")]
  reward([CHAD] * 3 + [STOP], [*texts, plan("None", "None")])
  assert calls == [["A?", "B?", CHAD.sub_question]]
  reward([CHAD] * 2, texts[:2])
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
def test_several_routes_are_right_where_each_is_accepted(names, earned):
  """By hand: 0.1 for its form, 0.45 each for its sub-question and routes."""
  text = plan("Who rules Chad?", names)
  score = lambda preset, routes: float(
    step_reward.StepReward(embed, preset, routes)([CHAD], [text])[0]
  )
  assert score("default", 2) == pytest.approx(earned)
  assert score("default", 1) == pytest.approx(earned * ("," not in names))
  assert (
    score("reference", 2)
    == score("reference", 1)
    == pytest.approx(0.5 if "," in names else 1)
  )


def test_parts_say_where_a_reward_comes_from():
  parts = step_reward.StepReward(embed).parts(
    [CHAD, CHAD, answer_step("x")],
    [plan("Who rules Chad?", "Text Image Retriever"), "", answer("x")],
  )
  np.testing.assert_array_equal(parts.route, [0, 0, np.nan])
  np.testing.assert_allclose(parts.similarity, [1, 0, np.nan], rtol=1e-6)
  np.testing.assert_array_equal(parts.answer, [np.nan, np.nan, 1])
  means = parts.means()
  assert means["well_formed"] == pytest.approx(2 / 3)
  assert means["similarity"] == pytest.approx(0.5)
  assert (
    "answer" not in step_reward.StepReward(embed).parts([STOP], [""]).means()
  )


@pytest.mark.parametrize(
  "step, names, searches, earned",
  [
    (CHAD, "Text Retriever", 1, 0.95),
    (CHAD, "Text Image Retriever", 1, 0.5),
    (CHAD, "Text Retriever, Table Retriever", 2, 0.9),
    (STOP, "None", 0, 1),
  ],
)
def test_a_search_has_its_cost(step, names, searches, earned):
  """By hand: 0.05 a search, less where nothing is left to take from."""
  asked = "None" if step is STOP else "Who rules Chad?"
  rows = [step, answer_step("x")], [plan(asked, names), answer("x")]
  parts = step_reward.StepReward(embed, routes=2, search_cost=0.05).parts(*rows)
  np.testing.assert_allclose(parts.total, [earned, 1], rtol=1e-6)
  np.testing.assert_array_equal(parts.searches, [searches, np.nan])
  dear = step_reward.StepReward(embed, routes=2, search_cost=9.0).parts(*rows)
  assert dear.total.tolist() == [float(not searches), 1]
  with pytest.raises(ValueError, match="search_cost=0"):
    step_reward.make("tests.learning.test_rewards:lengths", search_cost=0.1)


def lengths(steps, texts):
  return [len(text) / 10 for text in texts]


def wrong(steps, texts):
  return [float("nan")] * len(texts)


def test_a_users_own_reward_is_found_by_its_name():
  here = "tests.learning.test_rewards:"
  parts = step_reward.make(here + "lengths").parts([CHAD, STOP], ["abc", ""])
  np.testing.assert_allclose(parts.total, [0.3, 0])
  assert parts.means() == {"total": pytest.approx(0.15)}
  with pytest.raises(ValueError, match="wanted 1 finite"):
    step_reward.make(here + "wrong").parts([CHAD], ["a"])
  for name in (here + "absent", "no.such.module:f"):
    with pytest.raises(ValueError, match="cannot be imported"):
      step_reward.make(name)


def test_faults_of_ours_raise():
  with pytest.raises(ValueError, match="reference, default"):
    step_reward.StepReward(embed, "paper")
  broken = step_reward.StepReward(
    lambda texts: np.full((len(texts), 2), np.nan, np.float32)
  )
  with pytest.raises(ValueError, match="unit vectors"):
    broken([CHAD], [plan("A?", "Text Retriever")])
  with pytest.raises(ValueError, match="no gold"):
    step_reward.StepReward(embed)([answer_step()], ["x"])
