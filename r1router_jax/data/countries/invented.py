"""Worlds of invented countries, with passages in GeoRouter's forms.

A country has the flag of a country of the training split, an invented name, and
facts that are drawn anew: numbers of the size of some training country's, words
and names of theirs or of nobody's.
"""

import dataclasses
import functools
import json
import random
import re
import string

import PIL.Image

from r1router_jax.data import georouter
from r1router_jax.data.countries import (
  gold_hops,
  kb_passages,
  relations,
  train_countries,
)
from r1router_jax.data.countries.country import Country
from r1router_jax.data.domains.names import STYLES

COUNTRIES = 14  # Of a world.

_WORD = re.compile("\u0120([A-Za-z]{2,10})")
_PIECE = re.compile("[a-z]{1,6}")
_MONTHS = (
  "January February March April May June July August September October "
  "November December"
).split()


class WorldMaker:
  """Makes worlds of invented countries.

  Args:
    rng: the source of all random choices.
  """

  def __init__(self, rng: random.Random):
    self._rng = rng
    self._pool = train_countries.load_train_countries()
    self._words, self._pieces = load_words(), _load_pieces()
    self._flagged = [c for c in self._pool if c.id in _clear_flags()]
    # Nothing is said about a country of another split, be it by chance.
    self._forbidden = _held_out_names()

  def __call__(self) -> gold_hops.FactWorld:
    """Return a world of its own."""
    taken = self._rng.sample(self._flagged, COUNTRIES)
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
      drawings={key: read_picture(path) for key, path in flags.items()},
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
      other = self._rng.choice(known)
      if relation.is_number:
        # Rates and ages vary less than counts.
        spread = 0.15 if relation.format == "{:.1f}" else 0.8
        number = other.numbers[field] * self._rng.lognormvariate(0, spread)
        # What is compared is what is written.
        written = relation.format.format(max(number, 1.0))
        numbers[field] = float(written.replace(",", ""))
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
      if rng.random() < 0.08:
        words = f"{''.join(rng.choices(string.ascii_uppercase, k=2))} {words}"
    if rng.random() < 0.15:
      words = rng.choice(("the {} Islands", "Saint {}", "{} Republic")).format(
        words
      )
    return words

  def _draw_root(self) -> str:
    rng = self._rng
    if rng.random() < 0.4:
      # Any tokens, so that all are met in names.
      return "".join(
        rng.choices(self._pieces, k=rng.randint(2, 3))
      ).capitalize()
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
    drawn = rng.choices(self._words, k=rng.choice((1, 1, 2, 2, 3, 4)))
    if rng.random() < 0.3:
      # As in "Ja, vi elsker dette landet".
      drawn = [word.lower() for word in drawn]
      drawn[0] = self._draw_root() + rng.choice(("", "", ",", "'s"))
    words = " ".join(drawn)
    return words if rng.random() < 0.6 else words.title()


@functools.cache
def load_words() -> list[str]:
  """Return the words that are tokens of the tiny policy."""
  return [m[1] for m in map(_WORD.fullmatch, _load_vocabulary()) if m]


@functools.cache
def _load_pieces() -> list[str]:
  """Return the tokens of the tiny policy that words go on with."""
  return [text for text in _load_vocabulary() if _PIECE.fullmatch(text)]


def _load_vocabulary() -> list[str]:
  tree = json.loads(georouter.tokenizer_path().read_text(encoding="utf-8"))
  return [*tree["model"]["vocab"]]


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
def read_picture(path: str) -> PIL.Image.Image:
  """Return a picture of GeoRouter, by its path within the folder."""
  with PIL.Image.open(georouter.FOLDER / path) as picture:
    return picture.convert("RGB")
