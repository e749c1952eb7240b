"""Gold steps about invented countries, for a policy that is to read.

A policy that meets 164 countries in training remembers them.  Here each sixty
questions are about a world of their own, so that the only way to answer is to
read.  They come in more wordings than GeoRouter's training questions, none of
them a held-out one, and answers in thoughts that make them easy:

  a search     what the passage says, from the name or label before the answer
  two facts    both side by side, and whose is more
  a claim      what is said, and what was found
  a flag       its colors
"""

import dataclasses
import functools
import json
import pathlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Answer, Passage, Question, Step
from r1router_jax.data import georouter, gold_steps
from r1router_jax.data.countries import flag_colors, invented, relations
from r1router_jax.data.countries.question_generator import QuestionGenerator
from r1router_jax.protocol import format

FOLDER = pathlib.Path(__file__).parents[1] / "files" / "countries"

# Both invent countries from the facts of the training split.
SPLITS = ("train", "val")

_QUESTIONS = 60  # Of each world.

# Families, with their share of the questions; none that is never trained on.
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
_COLOR_SHARE = 0.03  # Least share of a flag of a color that a thought names.


@functools.cache
def load_more_wordings() -> Mapping[str, Any]:
  """Return further wordings, by the lower-case names of `wordings.py`.

  "verbs" and "fields" hold those of each field: verb phrases for larger and for
  smaller values; nouns and sentences.
  """
  return json.loads((FOLDER / "wordings.json").read_text(encoding="utf-8"))


def make_steps(split: str, count: int, seed: int) -> Iterator[list[Step]]:
  """Yield the gold steps of `count` questions, one list for each.

  A split that is not one of `SPLITS` raises UserError.
  """
  if split not in SPLITS:
    raise UserError(
      f"Invented countries have no split {split!r}: take one of "
      f"{', '.join(SPLITS)}."
    )
  more, families = load_more_wordings(), list(_FAMILIES)
  for number in range(-(-count // _QUESTIONS)):
    rng = random.Random(f"{split}/{seed}/{number}")
    world = invented.WorldMaker(rng)()
    draw = QuestionGenerator(world, "train", rng, more)
    world_names = {country.id: country.name for country in world.countries}
    passages = {
      row["id"]: georouter.to_passage(row, kb)
      for kb, rows in world.kbs.rows.items()
      for row in rows
    }
    for n in range(min(_QUESTIONS, count - _QUESTIONS * number)):
      row = None
      while row is None:
        (family,) = rng.choices(families, [*_FAMILIES.values()])
        row = getattr(draw, family)()
      row_id = f"countries/{split}/{seed}/{number}/{n}"
      if rng.random() < _NOISE:
        # A policy should not stumble over an opening that it never met.
        noise = " ".join(
          rng.choices(invented.load_words(), k=rng.randint(1, 4))
        )
        row["text"] = noise + rng.choice((", ", ": ", ". ")) + row["text"]
      said = row.pop("said")
      row |= dict(id=row_id, family=family, benchmark="")
      question = georouter.to_question(row)
      evidence = [passages[hop.evidence[0]] for hop in question.hops]
      names = [world_names[subject] for subject in question.subjects]
      yield _make_question_steps(question, evidence, names, said)


def _make_question_steps(
  question: Question,
  evidence: Sequence[Passage],
  names: Sequence[str],
  said: Sequence[str],
) -> list[Step]:
  """Return gold steps, whose thoughts prepare their answers.

  `names` are those of the question's subjects, and `said` the values that it
  claims or gives.
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
      thought = _compare_facts(step, names, said)
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


def _compare_facts(
  step: Step, names: Sequence[str], said: Sequence[str]
) -> str:
  """Return what a final answer has to compare, side by side; "" if nothing."""
  question, facts = step.question, [answer for _, answer in step.history]
  if question.family == "none_visual":
    path = pathlib.Path(question.image).relative_to(georouter.FOLDER)
    return f"it shows {_name_colors(str(path))}"
  if len(names) == 2:
    # Of dates the years are compared.
    facts = [fact.split()[-1] for fact in facts or said]
    numbers = [float(fact.replace(",", "")) for fact in facts]
    more = names[numbers.index(max(numbers))]
    return f"{names[0]}: {facts[0]}. {names[1]}: {facts[1]}. More: {more}"
  if said and facts:
    return f"they say {said[0]}, it is {facts[0]}"
  return ""


@functools.cache
def _name_colors(path: str) -> str:
  shares = flag_colors.color_shares(invented.read_picture(path))
  return ", ".join(name for name in shares if shares[name] > _COLOR_SHARE)
