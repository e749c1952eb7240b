"""Renamed steps stay consistent; look-up rows hold their answers."""

import re

import numpy as np
import pytest

from r1router_jax.common.records import Hop, Passage, Question, Step
from r1router_jax.training import copy_curriculum
from tests import tiny_policy

NAMES = ("Chad", "Niger", "Nigeria", "South Sudan", "Sudan", "Guinea")

GIVEN_NAMES = ("Chad", "South Sudan", "Guinea")

WORDS = ("river", "stone", "purple", "lantern")


@pytest.fixture(scope="module")
def renamer():
  return copy_curriculum.EntityRenamer(NAMES, GIVEN_NAMES, WORDS)


def make_step(answer, text, kind="answer", asked="Which of Chad and Niger?"):
  # The answer is the value of the last hop, and so it is looked up.
  hops = (Hop("h?", ("text",), (answer,)),)
  return Step(
    "q/1",
    kind,
    Question("q", asked, (answer,), hops=hops),
    history=(("On Chad?", answer),),
    sub_question="What of Chad?",
    answers=(answer,),
    passages=(Passage("p", "text", text),),
  )


def all_texts(step):
  return [
    step.question.text,
    step.sub_question,
    *step.answers,
    *(t for pair in step.history for t in pair),
    *(p.text for p in step.passages),
    *(a for hop in step.question.hops for a in hop.answers),
  ]


@pytest.mark.parametrize(
  "answer, text",
  [
    ("N'Djamena", "Chad. Capital: N'Djamena. Chad borders Niger."),
    ("Niger", "Chad borders Niger, Sudan and Nigeria."),
    ("cotton", "Chad [Row] exports [sep]cotton[Row] area [sep]1,284,000"),
    ("1,284,000", "Chad [Row] area [sep]1,284,000[Row] people [sep]17"),
    ("12.5 %", "Of Chad 12.5 % is forest."),
    ("1960", "Chad became independent in 1960."),
  ],
)
@pytest.mark.parametrize("kind", ["answer", "final"])
def test_renamed_answer_still_stands_in_the_passage(
  renamer, answer, text, kind
):
  for seed in range(40):
    new = renamer(make_step(answer, text, kind), np.random.default_rng(seed))
    assert new.answers[0] in new.passages[0].text
    assert (
      new.answers[0] == new.history[0][1] == new.question.hops[0].answers[0]
    )


def test_name_is_replaced_in_the_same_way_throughout(renamer):
  """The new names are read from the places of the old ones."""
  step = make_step("cotton", "Chad, Niger, Chad; South Sudan, Sudan.")
  changed = 0
  for seed in range(40):
    new = renamer(step, np.random.default_rng(seed))
    chad = re.fullmatch(r"What of (.*)\?", new.sub_question)[1]
    assert new.history[0][0] == f"On {chad}?"
    first, second = re.fullmatch(
      r"Which of (.*) and (.*)\?", new.question.text
    ).groups()
    assert first == chad
    south, sudan = re.fullmatch(
      re.escape(f"{chad}, {second}, {chad}; ") + r"(.*), (.*)\.",
      new.passages[0].text,
    ).groups()
    # A given name may be the old one by chance.
    changed += chad != "Chad"
    assert south and sudan
  assert changed > 30


def test_held_out_names_are_never_given(renamer):
  for seed in range(200):
    new = renamer(make_step("cotton", "Chad."), np.random.default_rng(seed))
    name = re.fullmatch(r"What of (.*)\?", new.sub_question)[1]
    # "Niger", "Nigeria" and "Sudan" are held out.
    assert name in GIVEN_NAMES or set(name.split()) <= set(WORDS)


def test_names_within_words_are_kept(renamer):
  step = make_step("cotton", "Chadian music, Nigerien food, the Niger")
  for seed in range(20):
    text = renamer(step, np.random.default_rng(seed)).passages[0].text
    # Only the last word of the text is a name.
    assert text.startswith("Chadian music, Nigerien food, the ")


@pytest.mark.parametrize("answer", ["yes", "No", "YES"])
def test_yes_and_no_are_kept(renamer, answer):
  step = make_step(answer, f"Is Chad dry? {answer}.", kind="final")
  for seed in range(20):
    new = renamer(step, np.random.default_rng(seed))
    assert new.answers == (answer,)


def test_numbers_keep_their_form(renamer):
  step = make_step("11,631,456", "Chad has [sep]11,631,456[Row] and [sep]0.75")
  seen = set()
  for seed in range(30):
    new = renamer(step, np.random.default_rng(seed))
    # Digits differ, and commas and points stay.
    assert re.fullmatch(r"[1-9]{2},[1-9]{3},[1-9]{3}", new.answers[0])
    seen.add(new.answers[0])
    assert re.search(r"\[sep\][1-9]\.[1-9]{2}$", new.passages[0].text)
  assert len(seen) > 25


def test_step_without_names_is_kept(renamer):
  step = Step(
    "q/0",
    "plan",
    Question("q", "Who painted it?"),
    sub_question="Who?",
    routes=("image",),
  )
  assert renamer(step, np.random.default_rng(0)) == step


def test_ids_and_kinds_are_kept(renamer):
  step = make_step("cotton", "Chad exports cotton.")
  new = renamer(step, np.random.default_rng(3))
  assert (new.id, new.kind, new.question.id) == (step.id, "answer", "q")
  assert new.passages[0].id == "p" and len(all_texts(new)) == len(
    all_texts(step)
  )


# ---- Look-up rows.


def test_recall_answer_can_be_looked_up():
  tokenizer = tiny_policy.tokenizer()
  recall = copy_curriculum.RecallSampler(tokenizer)
  forms = set()
  for seed in range(200):
    prompt, response = recall(np.random.default_rng(seed))
    text = tokenizer.decode(response)
    body = re.fullmatch(r"<think>\s*</think><answer>(.*)</answer>", text)[1]
    assert response[-1] == tokenizer.eos_id and body.strip()
    # The tokens of the answer stand somewhere in the prompt.
    inner = response[len(recall.before_answer) : -len(recall.after_answer)]
    spots = [
      i
      for i in range(len(prompt.ids))
      if prompt.ids[i : i + len(inner)] == inner
    ]
    assert spots, seed
    shown = tokenizer._trusted.decode(prompt.ids, skip_special_tokens=False)
    assert shown.startswith("<|answer|>") and shown.endswith("<|im_start|>")
    forms.add("table" if "[Row]" in shown else "text or caption")
    assert not prompt.images and tokenizer.image_id not in prompt.ids
  assert forms == {"table", "text or caption"}


def test_recall_rows_depend_on_the_generator_alone():
  recall = copy_curriculum.RecallSampler(tiny_policy.tokenizer())
  first, again, other = (
    recall(np.random.default_rng(seed))[0].ids for seed in (3, 3, 4)
  )
  assert first == again != other
