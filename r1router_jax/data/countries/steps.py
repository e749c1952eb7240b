"""Gold steps about invented countries, for a policy that is to read.

A policy that meets 164 countries in training remembers them.  Here each sixty
questions are about a world of their own, so that the only way to answer is to
read.  They come in more wordings than GeoRouter's training questions, none of
them a held-out one, and answers in thoughts that make them easy:

  a search     what the passage says, from the name or label before the answer
  two facts    both side by side, how long they are, and whose is more
  a claim      what is said, what was found, and whether that is the same
  a flag       each color or part, then the one that was asked about
"""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Answer, Passage, Question, Step
from r1router_jax.data import georouter, gold_steps
from r1router_jax.data.countries import (
  flag_colors,
  invented,
  noisy_wordings,
  relations,
)
from r1router_jax.data.countries.question_generator import QuestionGenerator
from r1router_jax.protocol import format

FOLDER = pathlib.Path(__file__).parents[1] / "files" / "countries"

# Both invent countries from the facts of the training split.
SPLITS = ("train", "val")

_QUESTIONS = 60  # Of each world.

# Final steps alone, as many as questions, of families whose answers are a
# decision: that is one token in a hundred, and takes long to learn.
_DECISION_FAMILIES = {
  "table_compare_2hop": 6,
  "text_compare_2hop": 5,
  "none_text": 3,
  "tabfact_yesno": 6,
  "text_yesno": 3,
  "none_visual": 5,
}

# The families that have demonstrations, with their weights.
_FAMILIES = {
  "text_1hop": 12,
  "table_1hop": 12,
  "image_1hop": 4,
  "image_text_2hop": 10,
  "image_table_2hop": 10,
  "table_compare_2hop": 12,
  "text_compare_2hop": 8,
  "text_table_2hop": 12,
  "tabfact_yesno": 10,
  "text_yesno": 6,
  "none_text": 8,
  "none_visual": 12,
}

_FIELD = "|".join(relations.RELATIONS)
_ASKS_FACT = re.compile(rf"What is the ({_FIELD}) of (.*)\?")
_ASKS_OWNER = re.compile(rf"Which country has the ({_FIELD}) (.*)\?")

_NOISE = 0.15  # Probability that a question begins with words without meaning.
_COLOR_SHARE = 0.03  # Least share of a flag of a color that it has,
_MAIN_SHARE = 0.6  # and of a part of it that has one color.


@functools.cache
def load_more_wordings() -> Mapping[str, Any]:
  """Return further wordings, by the lower-case names of `wordings.py`.

  "verbs" and "fields" hold those of each field: verb phrases for larger and for
  smaller values; nouns and sentences.
  """
  return json.loads((FOLDER / "wordings.json").read_text(encoding="utf-8"))


def make_steps(split: str, count: int, seed: int) -> Iterator[list[Step]]:
  """Yield the gold steps of `count` questions, one list for each.

  As many further lists hold one final step alone, of questions whose answer is
  a decision.  A split that is not one of `SPLITS` raises UserError.
  """
  if split not in SPLITS:
    raise UserError(
      f"Invented countries have no split {split!r}: take one of "
      f"{', '.join(SPLITS)}."
    )
  for number in range(-(-count // _QUESTIONS)):
    rng = random.Random(f"{split}/{seed}/{number}")
    world = invented.WorldMaker(rng)()
    draw = QuestionGenerator(world, "train", rng, _draw_wordings(rng))
    world_names = {country.id: country.name for country in world.countries}
    passages = {
      row["id"]: georouter.to_passage(row, kb)
      for kb, rows in world.kbs.rows.items()
      for row in rows
    }
    wanted = min(_QUESTIONS, count - _QUESTIONS * number)
    chosen = rng.choices([*_FAMILIES], [*_FAMILIES.values()], k=wanted)
    chosen += rng.choices(
      [*_DECISION_FAMILIES], [*_DECISION_FAMILIES.values()], k=wanted
    )
    for n, family in enumerate(chosen):
      row = _draw_question(draw, family, rng)
      row |= dict(id=f"countries/{split}/{seed}/{number}/{n}", benchmark="")
      said = row.pop("said")
      question = georouter.to_question(row)
      evidence = [passages[hop.evidence[0]] for hop in question.hops]
      names = [world_names[subject] for subject in question.subjects]
      steps = _make_question_steps(question, evidence, names, said)
      yield steps if n < wanted else steps[-1:]


def _draw_question(
  draw: QuestionGenerator, family: str, rng: random.Random
) -> dict[str, Any]:
  """Return the row of a question of a family, some of them with an opening."""
  row = None
  while row is None:
    row = getattr(draw, family)()
  if rng.random() < _NOISE:
    # A policy should not stumble over an opening that it never met.
    words = rng.choices(invented.load_words(), k=rng.randint(1, 4))
    pause = rng.choice((", ", ": ", ". "))
    row["text"] = " ".join(words) + pause + row["text"]
  return row | dict(family=family)


def _draw_wordings(rng: random.Random) -> dict[str, Any]:
  """Return the further wordings of one world, some of them mostly noise."""
  more = dict(load_more_wordings())
  # Names begin with a capital, but for a few: other words do not.
  words = [word for word in invented.load_words() if word.islower()]
  noisy = noisy_wordings.make_noisy_wordings(
    rng, words, relations.BRIDGE_FIELDS
  )
  bridges = noisy.pop("bridges")
  for name, wordings in noisy.items():
    more[name] = (*more[name], *wordings)
  more["bridges"] = {
    field: (*known, *bridges[field]) for field, known in more["bridges"].items()
  }
  return more


def _make_question_steps(
  question: Question,
  evidence: Sequence[Passage],
  names: Sequence[str],
  said: Sequence[str],
) -> list[Step]:
  """Return gold steps, whose thoughts prepare their answers.

  `names` are those of the question's subjects; `said` is what it tells, see
  `question_generator`.
  """

  def find(asked):
    del asked
    return [(passage,) for passage in evidence]

  (steps,) = gold_steps.make_gold_steps([question], find)
  written = []
  for step in steps:
    thought = ""
    if step.kind == "answer":
      thought = _quote_evidence(step)
    elif step.kind == "final":
      thought = _prepare_answer(step, names, said)
    if thought:
      response = format.render_answer(Answer(thought, step.answers[0]))
      step = dataclasses.replace(step, response=response)
    written.append(step)
  return written


def _quote_evidence(step: Step) -> str:
  """Return what the passage says: the answer, behind what stands before it."""
  (passage,), answer = step.passages, step.answers[0]
  if passage.kb == "image":
    return f"Flag of {answer}"
  if _ASKS_FACT.match(step.sub_question):
    field, name = _ASKS_FACT.match(step.sub_question).groups()
    if passage.kb == "table":
      return f"{name}[sep]{answer}"
    label = re.escape(relations.RELATIONS[field].label)
    return re.search(rf"{label}[^:]*: ", passage.text)[0] + answer
  # The passage begins with the country whose fact was asked about.
  field, value = _ASKS_OWNER.fullmatch(step.sub_question).groups()
  return f"{relations.RELATIONS[field].label}: {value}"


def _prepare_answer(
  step: Step, names: Sequence[str], said: Sequence[str]
) -> str:
  """Return what a final answer follows from; "" if it is the last fact."""
  question, facts = step.question, [answer for _, answer in step.history]
  if question.family == "none_visual":
    path = pathlib.Path(question.image).relative_to(georouter.FOLDER)
    return _describe_flag(str(path), said[0])
  if len(names) == 2:
    return _compare_numbers(names, facts or said, step.answers[0])
  if said and facts:
    verdict = "the same" if said[0] == facts[0] else "another"
    return f"they say {said[0]}, it is {facts[0]}: {verdict}"
  return ""


def _compare_numbers(
  names: Sequence[str], facts: Sequence[str], answer: str
) -> str:
  """Return which of two numbers is larger, in steps of one token.

  First come both with the number of their digits, then what differs: this
  number, or the first digits that do; at last whose is larger, and whose was
  asked for, unless the answer is yes or no.
  """
  # Of dates the years are compared.
  numbers = [fact.split()[-1] for fact in facts]
  digits = [number.split(".")[0].replace(",", "") for number in numbers]
  values = [float(number.replace(",", "")) for number in numbers]
  listed = [
    f"{name}: {number} ({len(figures)})."
    for name, number, figures in zip(names, numbers, digits, strict=True)
  ]
  pairs = [tuple(str(len(figures)) for figures in digits)]
  if len(digits[0]) == len(digits[1]):
    same = len(os.path.commonprefix(digits))
    pairs += itertools.islice(zip(*digits, strict=True), same + 1)
  steps = ", ".join(" ".join(pair) for pair in pairs)

  larger, ranks = values.index(max(values)), ("first", "second")
  thought = f"{' '.join(listed)} {steps}: {ranks[larger]} more"
  if answer not in names:
    return thought
  asked = names.index(answer)
  direction = "more" if asked == larger else "less"
  return f"{thought}; asked {direction}: {ranks[asked]}, {answer}"


@functools.cache
def _describe_flag(path: str, asked: str) -> str:
  """Return all that a flag could be asked about, then what it was asked about.

  That is a color, which it has or has not, or a part, which has a color.
  """
  picture = invented.read_picture(path)
  seen = {}
  if asked in flag_colors.PARTS:
    for part in flag_colors.PARTS:
      shares = flag_colors.color_shares(picture, part)
      color = max(shares, key=shares.get)
      seen[part] = color if shares[color] > _MAIN_SHARE else "mixed"
  else:
    for color, share in flag_colors.color_shares(picture).items():
      seen[color] = "yes" if share > _COLOR_SHARE else "no"
  listed = [f"{name}: {value}." for name, value in seen.items()]
  return " ".join([*listed, f"{asked}: {seen[asked]}"])
