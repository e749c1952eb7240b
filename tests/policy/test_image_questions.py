"""Questions with an image, for a policy that reads texts alone."""

import logging

import pytest

from r1router_jax.common.records import Passage, Question, Step
from r1router_jax.data import georouter, gold_steps, r1_router_rows
from r1router_jax.policy import image_questions
from r1router_jax.policy.config import PromptOptions
from r1router_jax.protocol.messages import Segment

MARKED = PromptOptions(style="compact", image_marker="[picture]")

FLAG = Question("q", "Whose flag?", ("Chad",), "flag.png")


def shown(options, kind, **fields):
  """Return the user turn of a step, and the sources of its pieces."""
  prompt = options.build_prompt(Step("q/0", kind, FLAG, **fields))
  assert not prompt.images
  return "".join(s.text for s in prompt.user), [s.source for s in prompt.user]


def test_marker_stands_in_the_place_of_the_question_image():
  text, sources = shown(MARKED, "plan")
  assert text == "[picture]Q: Whose flag?\n"
  # Trusted, beside the untrusted question.
  assert sources == ["template", "template", "question", "template"]
  assert shown(MARKED, "final")[0] == text
  # Answer steps of this style show no image of the question.
  asked = dict(sub_question="Which country?")
  assert shown(MARKED, "answer", **asked)[0] == "Q: Which country?\n"
  full = PromptOptions(image_marker=" (see the picture)")
  assert shown(full, "plan")[0] == (
    "Origin question: Whose flag?\n (see the picture)"
  )
  assert shown(full, "answer", **asked)[0].endswith(
    "country? (see the picture)"
  )


def test_marker_stands_in_the_place_of_images_of_passages():
  options = PromptOptions(
    style="compact", image_marker="[picture]", passage_images=1
  )
  passages = [Passage(f"{n}", "image", f"flag {n}", "no.png") for n in "01"]
  step = Step("q/1", "answer", FLAG, sub_question="?", passages=tuple(passages))
  prompt = options.build_prompt(step)
  text = "".join(segment.text for segment in prompt.user)
  assert text == "Q: ?\n[picture]flag 0\nflag 1\n"
  # It goes with its passage, where that is left out.
  assert Segment("[picture]", "template", ("image", 0)) in prompt.user


def test_without_a_marker_prompts_keep_their_images():
  prompt = PromptOptions().build_prompt(Step("q/0", "plan", FLAG))
  assert prompt.images == ("flag.png",)


def find_no_passages(queries):
  return [()] * len(queries)


@pytest.mark.parametrize("marker", ["", "[picture]"])
def test_questions_that_need_vision(marker):
  options = PromptOptions(image_marker=marker)
  questions = georouter.load_questions("val")
  lost = {
    q.family for q in questions if image_questions.lacks_vision(options, q)
  }
  # The data card names one family whose picture answers.
  assert lost == ({"none_visual"} if marker else set())
  traces = gold_steps.make_gold_steps(questions, find_no_passages)
  for question, steps in zip(questions, traces, strict=True):
    found = [image_questions.lacks_vision(options, step) for step in steps]
    assert found == [question.family in lost] * len(steps)
  # Nobody knows what a question without gold searches.
  unknown = Question("q", "Whose flag?", ("Chad",), "flag.png", hops=None)
  assert not image_questions.lacks_vision(options, unknown)


def test_steps_of_published_rows_tell_it_without_hops():
  questions = georouter.load_questions("val")
  traces = gold_steps.make_gold_steps(questions, find_no_passages)
  for question, steps in zip(questions, traces, strict=True):
    # A row has one last plan at most, and passages are nobody's business here.
    row = r1_router_rows.to_published_row(steps)
    reread = r1_router_rows.parse_trajectory(row, question.id)
    assert len(reread) == len(steps)
    for step in reread:
      needs_vision = question.family == "none_visual"
      assert image_questions.lacks_vision(MARKED, step) == needs_vision


def test_questions_that_need_vision_are_counted_once(caplog):
  questions = [FLAG, FLAG, Question("r", "Who?"), Question("s", "?", hops=None)]
  with caplog.at_level(logging.WARNING):
    image_questions.log_lacking_vision("Texts", MARKED, questions)
    image_questions.log_lacking_vision("Vision", PromptOptions(), questions)
    image_questions.log_lacking_vision("Nothing", MARKED, questions[2:])
  (record,) = caplog.records
  said = record.getMessage()
  assert said.startswith("Texts reads texts alone") and "2 of 4" in said
  assert image_questions.VISION_POLICY in said
