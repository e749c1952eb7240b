"""Steps that a policy cannot learn from are left out and named."""

import dataclasses

import pytest

from r1router_jax.common.records import Passage, Question, Step
from r1router_jax.policy import policy
from r1router_jax.training import train_data
from tests import tiny_policy

KNOWN = dataclasses.replace(
  tiny_policy.POLICY_CONFIG,
  model=dataclasses.replace(tiny_policy.FULL_VOCAB_CONFIG, vision=None),
)

TEXT_POLICY = policy.Policy(KNOWN, tiny_policy.TOKENIZER, {})

QUESTION = Question("q", "What is the capital of Chad?", ("N'Djamena",))

GOOD = Step("q/0", "final", QUESTION, answers=("N'Djamena",))

LONG_TEXT = "A word of Chad and Niger. " * 40


def test_shapes_are_the_padded_lengths():
  long = Step(
    "q/1",
    "answer",
    QUESTION,
    sub_question="Which one?",
    answers=("no",),
    passages=(Passage("p", "text", LONG_TEXT),),
  )
  kept, shapes = train_data.filter_trainable(TEXT_POLICY, [GOOD, long], "some")
  assert kept == [GOOD, long]  # Only passages are truncated to fit.
  assert shapes == [(24, 0, 12), (48, 0, 12)]


def test_passage_with_an_unreadable_image_is_named(caplog):
  vision_policy = policy.Policy(
    dataclasses.replace(tiny_policy.POLICY_CONFIG, passage_images=1),
    tiny_policy.TOKENIZER,
    {},
  )
  step = Step(
    "q/1",
    "answer",
    QUESTION,
    sub_question="Which one?",
    answers=("no",),
    passages=(Passage("p", "image", "x", "no.png"),),
  )
  with caplog.at_level("WARNING"):
    kept, shapes = train_data.filter_trainable(
      vision_policy, [step, GOOD, step], "some.jsonl"
    )
  assert kept == [step, GOOD, step] and shapes[0] == (24, 0, 12)
  assert "some.jsonl: 2 images of passages are left out" in caplog.text
  assert "q/1: 'no.png'" in caplog.text


@pytest.mark.parametrize(
  "bad, message",
  [
    (
      dataclasses.replace(GOOD, id="q/7", answers=("",)),
      "q/7: the gold answer '' has no word. Give one",
    ),
    (dataclasses.replace(GOOD, id="q/7", answers=(" the ",)), "has no word"),
    (
      dataclasses.replace(
        GOOD, id="q/7", question=dataclasses.replace(QUESTION, text=LONG_TEXT)
      ),
      "q/7: .*prompt_tokens",
    ),
    (
      dataclasses.replace(
        GOOD, id="q/7", question=dataclasses.replace(QUESTION, image="a.png")
      ),
      "q/7: 'a.png': this policy reads texts alone",
    ),
  ],
)
def test_step_that_teaches_nothing_is_skipped_and_named(bad, message, caplog):
  with caplog.at_level("WARNING"):
    kept, shapes = train_data.filter_trainable(
      TEXT_POLICY, [bad, GOOD, bad], "some.jsonl"
    )
  assert kept == [GOOD] and len(shapes) == 1
  assert "some.jsonl: skipped 2 of 3" in caplog.text
  # Nothing but bad steps is an error.
  with pytest.raises(ValueError, match=f"some.jsonl: nothing.*{message}"):
    train_data.filter_trainable(TEXT_POLICY, [bad], "some.jsonl")
