"""Questions about invented countries: GeoRouter's forms, no country of its own.

A policy that meets 164 countries in training remembers them.  Here each sixty
questions are about countries of their own: an invented name, the flag of a
country of the training split, and facts that are drawn anew, so that the only
way to answer is to read.  Comparisons and checks are labelled by these facts.
Questions come in more wordings than GeoRouter's training questions, none of
them a held-out one.
"""

import dataclasses
import functools
import json
import pathlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import PIL.Image

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Answer, Passage, Question, Step
from r1router_jax.data import georouter, gold_steps
from r1router_jax.data.countries import (
  flag_colors,
  gold_hops,
  kb_passages,
  relations,
)
from r1router_jax.data.countries.country import Country
from r1router_jax.data.countries.question_generator import QuestionGenerator
from r1router_jax.data.domains.names import STYLES
from r1router_jax.protocol import format

FOLDER = pathlib.Path(__file__).parents[1] / "files" / "countries"

# Both invent countries from the facts of the training split.
SPLITS = ("train", "val")

_COUNTRIES, _QUESTIONS = 14, 60  # Of each world.

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

_WORD = re.compile("\u0120([A-Za-z]{3,10})")
_MONTHS = (
  "January February March April May June July August September October "
  "November December"
).split()
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


@functools.cache
def load_train_countries() -> list[Country]:
  """Return the countries of the training split, read from the passages."""
  names = {
    row["name"]: row
    for row in georouter.load_countries()
    if row["split"] == "train"
  }
  facts = {name: {} for name in names}
  labels = {r.label: r.field for r in relations.RELATIONS.values()}
  for passage in georouter.load_passages("text"):
    name, _, rest = passage.text.partition(". ")
    if name in facts:
      for part in re.split(r"\. (?=[A-Z])", rest.removesuffix(".")):
        label, _, value = part.partition(": ")
        field = labels.get(re.sub(r" \(.*\)$", "", label))
        if field and value:
          facts[name][field] = value
  caption = re.compile(rf"\[Caption\]({'|'.join(labels)}) of ")
  for passage in georouter.load_passages("table"):
    field = labels[caption.search(passage.text)[1]]
    for name, value in re.findall(
      r"\[Row\]([^[]*)\[sep\]([^[]*)", passage.text
    ):
      if name in facts:
        facts[name].setdefault(field, value)
  flags = {}
  for passage in georouter.load_passages("image"):
    _, kind, owner = passage.id.split("/")
    if kind == "flag":
      flags[owner] = passage.text.partition(": ")[2]
  return [
    _make_country(names[name], facts[name], flags.get(names[name]["id"], ""))
    for name in names
  ]


def _make_country(
  row: Mapping[str, str], facts: Mapping[str, str], flag: str
) -> Country:
  nominal, numbers = {}, {}
  for field, value in facts.items():
    if relations.RELATIONS[field].is_number:
      numbers[field] = float(value.replace(",", ""))
    else:
      nominal[field] = value
  return Country(
    id=row["id"],
    name=row["name"],
    iso=row["iso"],
    split="train",
    region="",
    names=nominal,
    numbers=numbers,
    flag=flag,
    location="",
    prose=(),
    aliases=(),
  )


class WorldMaker:
  """Makes worlds of invented countries.

  Args:
    rng: the source of all random choices.
  """

  def __init__(self, rng: random.Random):
    self._rng = rng
    self._pool = load_train_countries()
    self._words = _load_words()
    self._flagged = [c for c in self._pool if c.id in _clear_flags()]
    # Nothing is said about a country of another split, be it by chance.
    self._forbidden = _held_out_names()

  def __call__(self) -> gold_hops.FactWorld:
    """Return a world of its own."""
    taken = self._rng.sample(self._flagged, _COUNTRIES)
    used, countries = set(), []
    for number, flag_of in enumerate(taken):
      countries.append(self._invent_country(number, flag_of, used))
    flags = {
      country.id: f"pictures/query/{flag_of.iso}.png"
      for country, flag_of in zip(countries, taken, strict=True)
    }
    kb_flags = {key: path.replace("query", "kb") for key, path in flags.items()}
    return gold_hops.FactWorld(
      countries=countries,
      kbs=kb_passages.build_passages(countries, kb_flags, {}),
      flags=flags,
      maps={},
      clear_flags=set(flags),
      drawings={key: _read_picture(path) for key, path in flags.items()},
    )

  def _invent_country(
    self, number: int, flag_of: Country, used: set[str]
  ) -> Country:
    name = self._draw_name()
    while name in used or name in self._forbidden:
      name = self._draw_name()
    used.add(name)
    nominal, numbers = {}, {}
    for field, relation in relations.RELATIONS.items():
      known = [c for c in self._pool if kb_passages.format_value(c, field)]
      if not known:
        continue
      other = self._rng.choice(known)
      if relation.is_number:
        # Rates and ages vary less than counts.
        spread = 0.15 if relation.format == "{:.1f}" else 0.8
        factor = self._rng.lognormvariate(0, spread)
        numbers[field] = max(round(other.numbers[field] * factor, 1), 1.0)
      else:
        nominal[field] = self._draw_value(field, other.names[field])
    return dataclasses.replace(
      flag_of,
      id=f"{number}",
      name=name,
      names=nominal,
      numbers=numbers,
    )

  def _draw_name(self) -> str:
    """Draw the name of a country, or of anything else."""
    rng, kind = self._rng, self._rng.random()
    if kind < 0.25:
      return rng.choice(self._pool).name
    if kind < 0.6:
      words = " ".join(rng.choices(self._words, k=rng.choice((1, 1, 1, 2))))
      words = words.title()
    else:
      words = self._draw_root()
      if rng.random() < 0.2:
        words += rng.choice((" ", "-")) + self._draw_root()
    if rng.random() < 0.15:
      words = rng.choice(("the {} Islands", "Saint {}", "{} Republic")).format(
        words
      )
    return words

  def _draw_root(self) -> str:
    rng = self._rng
    starts, middles, ends = (
      part.split() for part in STYLES[rng.choice(list(STYLES))]
    )
    middle = rng.choice(middles) if rng.random() < 0.4 else ""
    return rng.choice(starts) + middle + rng.choice(ends)

  def _draw_value(self, field: str, usual: str) -> str:
    """Draw the value of a nominal field; `usual` is another country's."""
    rng = self._rng
    if field == "independence date":
      year = 2011 - min(int(rng.expovariate(1 / 80)), 1200)
      return f"{rng.randint(1, 28)} {rng.choice(_MONTHS)} {year}"
    if field == "internet domain":
      return "." + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=2))
    if field == "time zone" or rng.random() < 0.4:
      return usual
    if rng.random() < 0.4:
      return self._draw_name()
    words = " ".join(rng.choices(self._words, k=rng.choice((1, 1, 2, 2, 3))))
    return words if rng.random() < 0.5 else words.title()


@functools.cache
def _load_words() -> list[str]:
  """Return the words that are tokens of the tiny policy."""
  tree = json.loads(georouter.tokenizer_path().read_text(encoding="utf-8"))
  return [m[1] for m in map(_WORD.fullmatch, tree["model"]["vocab"]) if m]


@functools.cache
def _held_out_names() -> set[str]:
  rows = georouter.load_countries()
  return {row["name"] for row in rows if row["split"] != "train"}


@functools.cache
def _clear_flags() -> set[str]:
  """Return the ids of training countries whose flag a question shows."""
  questions = georouter.load_questions("train")
  return {question.subjects[0] for question in questions if question.image}


@functools.cache
def _read_picture(path: str) -> PIL.Image.Image:
  with PIL.Image.open(georouter.FOLDER / path) as picture:
    return picture.convert("RGB")


@functools.cache
def _name_colors(path: str) -> str:
  shares = flag_colors.color_shares(_read_picture(path))
  return ", ".join(name for name in shares if shares[name] > _COLOR_SHARE)


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
    world = WorldMaker(rng)()
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
        noise = " ".join(rng.choices(_load_words(), k=rng.randint(1, 4)))
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
