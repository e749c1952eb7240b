"""Questions about invented countries: labels, names, wordings, seeds."""

import collections
import itertools
import random
import re

import numpy as np
import PIL.Image
import pytest

from r1router_jax.common.errors import UserError
from r1router_jax.data import georouter
from r1router_jax.data.countries import (
  noisy_wordings,
  phrases,
  relations,
  train_countries,
  wordings,
)
from r1router_jax.data.countries import steps as steps_lib
from r1router_jax.protocol import format
from r1router_jax.training import sft_targets
from tests.data import held_out_wordings

TRACES = [*steps_lib.make_steps("train", 1200, 0)]
QUESTIONS = [steps[0].question for steps in TRACES]


def number(text):
  return float(text.split()[-1].replace(",", ""))


def final_of(steps):
  return format.parse_response("final", sft_targets.sft_target(steps[-1]))


def test_same_seed_gives_same_steps_and_splits_differ():
  again = [*steps_lib.make_steps("train", 120, 0)]
  assert again == TRACES[: len(again)]
  names = [
    {s for q in asked for hop in q.hops for s in hop.answers}
    for asked in (
      [steps[0].question for steps in steps_lib.make_steps("val", 120, 0)],
      QUESTIONS[:120],
    )
  ]
  assert len(names[0] & names[1]) < 0.5 * len(names[0])
  with pytest.raises(UserError, match="no split 'test'"):
    next(steps_lib.make_steps("test", 1, 0))


def test_facts_of_training_countries_are_those_of_their_questions():
  """The facts are read from passages; the questions' answers were not."""
  countries = {c.name: c for c in train_countries.load_train_countries()}
  fields, checked = "|".join(relations.RELATIONS), 0
  for question in georouter.load_questions("train"):
    for hop in question.hops:
      pattern = rf"What is the ({fields}) of (.*)\?"
      if asked := re.fullmatch(pattern, hop.sub_question):
        field, country = asked[1], countries[asked[2]]
        if relations.RELATIONS[field].is_number:
          value = number(hop.answers[0])
          assert country.numbers[field] == value, (country.name, field)
        else:
          assert country.names[field] == hop.answers[0]
        checked += 1
  assert len(countries) == 164 and checked > 4000


def test_answers_stand_in_their_passages():
  for steps in TRACES:
    for step in steps:
      if step.kind == "answer":
        assert step.answers[0] in step.passages[0].text, step


def facts_of(question):
  """The (field, name, value) that each hop finds, without those of names."""
  fields = "|".join(relations.RELATIONS)
  pattern = re.compile(rf"What is the ({fields}) of (.*)\?")
  found = [(pattern.fullmatch(h.sub_question), h) for h in question.hops]
  return [(m[1], m[2], hop.answers[0]) for m, hop in found if m]


def test_final_answers_follow_from_the_facts_that_were_found():
  checked = collections.Counter()
  verbs = steps_lib.load_more_wordings()["verbs"]
  for question in QUESTIONS:
    facts = facts_of(question)
    if len(facts) == 2:
      (field, *one), (_, *other) = facts
      low, high = sorted((one, other), key=lambda fact: number(fact[1]))
    if "compare" in question.family:
      below = (*relations.RELATIONS[field].below, *verbs[field][1])
      asks_less = any(verb in question.text for verb in below)
      right = (low if asks_less else high)[0]
    elif "yesno" in question.family and len(facts) == 2:
      right = "yes" if high == one else "no"
    elif "yesno" in question.family:
      said = rf"(?<![\w,.]){re.escape(facts[0][2])}(?!\w|[.,]\d)"
      right = "yes" if re.search(said, question.text, re.I) else "no"
    elif question.hops:
      right = question.hops[-1].answers[0]
    else:
      continue
    assert question.answers[0] == right, question
    checked[question.family] += 1
  assert len(checked) == 10 and min(checked.values()) > 20


def test_colors_named_by_a_thought_are_in_the_picture():
  """By the nearest pure color, which the generator does not use."""
  pure = dict(
    red=(210, 20, 40),
    green=(0, 130, 60),
    blue=(0, 60, 160),
    yellow=(255, 210, 0),
    white=(255, 255, 255),
    black=(0, 0, 0),
  )
  table = np.array([*pure.values(), (128, 128, 128)])
  agreed, parts = [], 0
  for steps in TRACES:
    question = steps[0].question
    if question.family != "none_visual":
      continue
    *listed, last = final_of(steps).thought.split(". ")
    seen = dict(entry.split(": ") for entry in listed)
    # What was asked for is repeated, and is the answer.
    asked, answer = last.split(": ")
    assert seen[asked] == answer == question.answers[0]
    assert asked in question.text.lower()
    if asked not in pure:
      assert [*seen] == ["top", "bottom", "left", "right"]
      parts += 1
      continue
    assert [*seen] == [*pure]
    with PIL.Image.open(question.image) as picture:
      pixels = np.asarray(picture.convert("RGB"), float).reshape(-1, 3)
    nearest = np.linalg.norm(pixels[:, None] - table, axis=-1).argmin(1)
    for number, color in enumerate(pure):
      is_there = (nearest == number).mean() > 0.02
      agreed.append(is_there == (seen[color] == "yes"))
  assert parts > 20 and len(agreed) > 300 and np.mean(agreed) > 0.85


def test_parts_named_by_a_thought_are_those_of_the_picture():
  # Austria: red, white, red; in the picture it is round.
  thought = steps_lib._describe_flag("pictures/query/at.png", "left")
  parts = "top: red. bottom: red. left: white. right: white."
  assert thought == f"{parts} left: white"


def test_thoughts_compare_numbers_by_their_first_difference():
  compare = steps_lib._compare_numbers
  cases = [
    ("7,203", "22", "7,203 (4). B: 22 (2). 4 2: first more"),
    ("130", "1,300", "130 (3). B: 1,300 (4). 3 4: second more"),
    ("21,409", "39,000", "21,409 (5). B: 39,000 (5). 5 5, 2 3: second more"),
    (
      *("1 May 1971", "1964"),
      "1971 (4). B: 1964 (4). 4 4, 1 1, 9 9, 7 6: first more",
    ),
    ("61.5", "60.2", "61.5 (2). B: 60.2 (2). 2 2, 6 6, 1 0: first more"),
  ]
  for one, other, thought in cases:
    assert compare(["A", "B"], [one, other], "no") == f"A: {thought}"
  # Whose was asked for, if it is a country.
  for answer, end in (("B", "more: second, B"), ("A", "less: first, A")):
    thought = compare(["A", "B"], ["3", "4"], answer)
    assert thought == f"A: 3 (1). B: 4 (1). 1 1, 3 4: second more; asked {end}"


def test_thoughts_set_facts_side_by_side():
  pattern = re.compile(
    r"(.+): ([\d.,]+) \(\d+\)\. (.+): ([\d.,]+) \(\d+\)\. [\d, ]+: "
    r"(first|second) more(?:; asked (?:more|less): (?:first|second), (.+))?"
  )
  compared = claimed = 0
  for steps in TRACES:
    question, thought = steps[0].question, final_of(steps).thought
    if found := pattern.fullmatch(thought):
      one, first, other, second, more, asked = found.groups()
      assert more == ("first", "second")[number(first) < number(second)]
      if question.answers[0] in ("yes", "no"):
        assert not asked
        assert question.answers[0] == ("yes" if more == "first" else "no")
      else:
        assert asked == question.answers[0]
      # Questions spell their first word in upper or lower case.
      assert one[1:] in question.text and other in question.text
      compared += 1
    elif "yesno" in question.family:
      said, found, verdict = re.fullmatch(
        "they say (.+), it is (.+): (the same|another)", thought
      ).groups()
      assert (verdict == "the same") == (said == found)
      assert question.answers[0] == ("yes" if said == found else "no")
      claimed += 1
    else:
      assert "compare" not in question.family
  assert compared > 150 and claimed > 80


def test_final_steps_alone_are_of_families_that_decide():
  alone = [steps for steps in TRACES if len(steps) == 1]
  assert len(TRACES) == 2400 and len(alone) == 1200
  assert {steps[0].kind for steps in alone} == {"final"}
  families = {steps[0].question.family for steps in alone}
  assert families == {*steps_lib._DECISION_FAMILIES}
  assert all(final_of(s).thought for s in alone if s[0].history)


def test_noisy_wordings_keep_what_matters():
  noisy = noisy_wordings.make_noisy_wordings(
    random.Random(0), ["wa", "wo"], relations.BRIDGE_FIELDS
  )
  places = dict(
    frames=("NOUN", 1),
    compare=("VERB", 2),
    check=("NOUN", 1),
    check_pair=("VERB", 2),
    which_flag=("", 0),
    given=("NOUN", 1),
    given_pair=("NOUN", 4),
    flag=("", 0),
  )
  assert noisy.keys() == {*places, "bridges"}
  for name, (field, count) in places.items():
    for text in noisy[name]:
      assert field in text and text.count("{}") == count, text
      assert ("VALUE" in text) == (name in ("check", "given"))
      assert "WORDS" not in text and re.search(r"\bw[ao]\b", text), text
  for field, texts in noisy["bridges"].items():
    assert all(field in t and t.count("{}") == 1 for t in texts)


def test_thoughts_of_answers_quote_their_passage():
  quoted = collections.Counter()
  for steps in TRACES:
    for step in steps:
      if step.kind == "answer":
        response = sft_targets.sft_target(step)
        answer = format.parse_response("answer", response)
        assert answer.thought in step.passages[0].text
        assert answer.text == step.answers[0]
        quoted[step.passages[0].kb] += 1
  assert min(quoted[kb] for kb in ("text", "image", "table")) > 200


def test_no_country_of_another_split_is_asked_about():
  held = {
    c["name"] for c in georouter.load_countries() if c["split"] != "train"
  }
  for steps in TRACES:
    for step in steps:
      for passage in step.passages:
        if passage.kb == "table":
          names = re.findall(r"\[Row\](.*?)\[sep\]", passage.text)
        else:
          pattern = r"(?:Flag of )?(.*?)(?:\. |: |$)"
          names = [re.match(pattern, passage.text)[1]]
        assert not held.intersection(names), passage


def test_families_without_demonstrations_stay_so():
  families = {question.family for question in QUESTIONS}
  assert len(families) == 12
  assert not families & {q.family for q in georouter.load_questions("compose")}


def test_no_wording_is_held_out():
  held = re.compile("|".join(held_out_wordings.patterns()))
  more = steps_lib.load_more_wordings()
  for field, (nouns, sentences) in more["fields"].items():
    assert not [text for text in sentences if held.search(text)], field
    held_nouns = phrases.PHRASES[field][1]
    assert not [a for a in nouns if any(b in a for b in held_nouns)], field
  for name in ("prefixes", "frames", "flag", "which_flag", "compare", "check"):
    seen = {text.lower() for text in more[name]}
    assert len(seen) == len(more[name]) > 5
    assert not seen & {
      text.lower() for text in getattr(wordings, f"HELD_{name.upper()}")
    }


def test_every_field_has_more_wordings_with_one_place():
  more = steps_lib.load_more_wordings()
  assert more["fields"].keys() == relations.RELATIONS.keys()
  for nouns, sentences in more["fields"].values():
    assert len({*nouns}) >= 3 and len({*sentences}) >= 6
    assert all(text.count("{}") == 1 for text in sentences)
  compared = {f for f, r in relations.RELATIONS.items() if r.above}
  assert more["verbs"].keys() == compared


def test_names_hardly_repeat_between_worlds():
  names = collections.Counter(
    hop.answers[0]
    for question in QUESTIONS
    for hop in question.hops
    if hop.routes == ("image",)
  )
  worlds = itertools.groupby(QUESTIONS, lambda q: q.id.rpartition("/")[0])
  assert len(list(worlds)) == 20 and len(names) > 100
