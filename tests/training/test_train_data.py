"""Which steps are left out, and that it is said."""

import dataclasses

import pytest

from r1router_jax.common.records import Passage, Question, Step
from r1router_jax.policy import policy
from r1router_jax.training import train_data
from tests import tiny_policy

SETTINGS = dataclasses.replace(
  tiny_policy.SETTINGS,
  model=dataclasses.replace(tiny_policy.SPOKEN, vision=None),
)

TEXTS = policy.Policy(SETTINGS, tiny_policy.TOKENIZER, {})

ASKED = Question("q", "What is the capital of Chad?", ("N'Djamena",))

GOOD = Step("q/0", "final", ASKED, answers=("N'Djamena",))

LONG = "A word of Chad and Niger. " * 40


def test_a_shape_is_what_a_row_is_padded_to():
  cut = Step(
    "q/1",
    "answer",
    ASKED,
    sub_question="Which one?",
    answers=("no",),
    passages=(Passage("p", "text", LONG),),
  )
  kept, shapes = train_data.choose(TEXTS, [GOOD, cut], "some")
  assert kept == [GOOD, cut]  # Passages are cut to fit, and nothing else is.
  assert shapes == [(24, 0, 12), (48, 0, 12)]


def test_a_passage_whose_picture_cannot_be_read_is_named(caplog):
  seeing = policy.Policy(
    dataclasses.replace(tiny_policy.SETTINGS, passage_pictures=1),
    tiny_policy.TOKENIZER,
    {},
  )
  step = Step(
    "q/1",
    "answer",
    ASKED,
    sub_question="Which one?",
    answers=("no",),
    passages=(Passage("p", "image", "x", "no.png"),),
  )
  with caplog.at_level("WARNING"):
    kept, shapes = train_data.choose(seeing, [step, GOOD, step], "some.jsonl")
  assert kept == [step, GOOD, step] and shapes[0] == (24, 0, 12)
  assert "some.jsonl: 2 pictures of passages are left out" in caplog.text
  assert "q/1: 'no.png'" in caplog.text


@pytest.mark.parametrize(
  "bad, says",
  [
    (
      dataclasses.replace(GOOD, id="q/7", answers=("",)),
      "q/7: the gold answer '' has no word. Give one",
    ),
    (dataclasses.replace(GOOD, id="q/7", answers=(" the ",)), "has no word"),
    (
      dataclasses.replace(
        GOOD, id="q/7", question=dataclasses.replace(ASKED, text=LONG)
      ),
      "q/7: .*prompt_tokens",
    ),
    (
      dataclasses.replace(
        GOOD, id="q/7", question=dataclasses.replace(ASKED, image="a.png")
      ),
      "q/7: 'a.png': this policy reads texts alone",
    ),
  ],
)
def test_a_step_that_cannot_teach_is_named(bad, says, caplog):
  with caplog.at_level("WARNING"):
    kept, shapes = train_data.choose(TEXTS, [bad, GOOD, bad], "some.jsonl")
  assert kept == [GOOD] and len(shapes) == 1
  assert "some.jsonl: skipped 2 of 3" in caplog.text
  with pytest.raises(ValueError, match=f"some.jsonl: nothing.*{says}"):
    train_data.choose(TEXTS, [bad], "some.jsonl")
