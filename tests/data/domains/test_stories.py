"""Stories written by hand, with new names each time."""

import pathlib
import re
import tomllib

import msgspec
import numpy as np
import pytest

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS
from r1router_jax.data.domains import lexicon, steps, stories

LEXICON = lexicon.load_lexicon("train")
PAGE = pathlib.Path(__file__).parents[3] / "docs/domains.md"


def tell(story, seed=0):
  documents, traces = stories.tell_story(
    story, LEXICON, "p", np.random.default_rng(seed)
  )
  return documents, list(traces)


def read_example():
  """Return the story that the page shows."""
  (block,) = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.M | re.S)
  (row,) = tomllib.loads(block)["story"]
  return msgspec.convert(row, lexicon.Story)


def split_words(text):
  """Return a text as its words, with one space before and after each."""
  return " ".join(["", *re.findall(r"\w+", text.lower()), ""])


def test_every_answer_stands_in_its_evidence():
  for story in (*LEXICON.stories, read_example()):
    documents, traces = tell(story)
    texts = {p.id: p.text for kb in KBS for p in documents.passages[kb]}
    for hop in (hop.hop for trace in traces for hop in trace.hops):
      told = [split_words(texts[name]) for name in hop.evidence]
      is_told = any(
        split_words(a) in text for a in hop.answers for text in told
      )
      assert is_told or "unknown" in hop.answers, hop
      assert all(
        name.startswith(f"p/{hop.routes[0]}/") for name in hop.evidence
      )


def test_example_of_the_page_shows_all_that_a_story_has():
  story = read_example()
  documents, traces = tell(story)
  assert all(documents.passages[kb] for kb in KBS)
  # No question of it is left out.
  assert len(traces) == len(story.questions)
  assert {len(trace.hops) for trace in traces} == {1, 2, 3}
  assert any(trace.picture for trace in traces)
  assert any(trace.final_thought for trace in traces)
  assert any("unknown" in trace.question.answers for trace in traces)


def test_names_change_and_every_slot_is_filled():
  for story in LEXICON.stories:
    first, second = (tell(story, seed)[0].passages["text"] for seed in range(2))
    assert first != second
    assert not re.search(r"[{}]", " ".join(p.text for p in first))


STORY = lexicon.Story(
  title="The mill of {Town}",
  texts=("{Miller} ground bones there. His cat was called {Cat}.",),
  questions=(
    # In one hop the question is its own sub-question.
    lexicon.StoryQuestion("What was ground?", (("text", "Q", "bones"),)),
    # A name that nobody has told yet is no part of a sub-question.
    lexicon.StoryQuestion(
      "He had a cat. Its name?", (("text", "Whose cat was {Cat}?", "{Cat}"),)
    ),
    lexicon.StoryQuestion(
      "What was the cat of the miller of {Town} called?",
      (
        ("text", "Who was the miller of {Town}?", "{Miller}"),
        ("text", "What was the cat of {Miller} called?", "{Cat}|the {Cat}"),
      ),
    ),
    lexicon.StoryQuestion(
      "Did the miller of {Town} keep a dog?",
      (("text", "Which animal did the miller of {Town} keep?", "cat"),),
      "no",
    ),
    lexicon.StoryQuestion(
      "How old was the miller of {Town}?", (("text", "Age?", "unknown"),)
    ),
    lexicon.StoryQuestion(
      "What did the owner of this sign grind?",
      (
        ("image", "Whose sign is in the picture?", "{Miller}"),
        ("text", "What did {Miller} grind?", "bones"),
      ),
      picture=2,
    ),
  ),
  slots=dict(Town="place", Miller="person", Cat="creature"),
  captions=("{Cat}, asleep.", "Sign of {Miller}: a wheel."),
)


def test_questions_of_a_story():
  documents, (ground, nested, dog, age, sign) = tell(STORY)
  assert [hop.hop.sub_question for hop in ground.hops] == ["What was ground?"]
  who, called = (hop.hop for hop in nested.hops)
  assert called.sub_question == f"What was the cat of {who.answers[0]} called?"
  assert nested.question.answers == (
    called.answers[0],
    f"the {called.answers[0]}",
  )
  assert nested.question.family == "story_text_text"
  assert dog.question.answers == ("no",) and dog.final_thought == "cat"
  assert age.question.answers[0] == "unknown"
  assert not age.hops[0].hop.evidence
  # Its own picture is what the question shows, and what tells the answer.
  caption = documents.passages["image"][1]
  assert sign.picture == caption.id and not nested.picture
  assert sign.hops[0].hop.evidence == (caption.id,)
  assert caption.text == f"Sign of {who.answers[0]}: a wheel."


def test_evidence_has_the_answer_as_a_word_of_its_own():
  story = msgspec.structs.replace(
    STORY,
    texts=("When the mill was built, mills cost 19 crowns.", "It had 9 men."),
    questions=(
      lexicon.StoryQuestion("Men of the mill?", (("text", "Q", "9"),)),
    ),
  )
  _, (trace,) = tell(story)
  assert trace.hops[0].hop.evidence == ("p/text/1",)


@pytest.mark.parametrize(
  "declared", ["preson", "numbr 2 9", "number 2", "number 2 many", "year"]
)
def test_wrong_slot_is_named(declared):
  story = msgspec.structs.replace(STORY, slots=dict(Town=declared))
  with pytest.raises(UserError, match=f"The mill of.*Town as '{declared}'"):
    tell(story)


@pytest.mark.parametrize("split, expected", [("train", True), ("test", False)])
def test_stories_are_half_of_the_domains_that_are_learnt_from(split, expected):
  families = [
    steps_of[0].question.family for steps_of in steps.make_steps(split, 48, 0)
  ]
  told = [family.startswith("story") for family in families]
  assert told == [expected and n // 12 % 2 == 1 for n in range(48)]
