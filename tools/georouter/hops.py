"""Gold rounds: the canonical sub-question, its routes, answers and evidence."""

import dataclasses
import re

import PIL.Image

from tools.georouter import knowledge, pictures, relations
from tools.georouter.factbook import Country

FLAG_QUESTION = "Which country does this flag belong to?"

MAP_QUESTION = "Which country is shown on this map?"


value = knowledge.value


@dataclasses.dataclass(frozen=True)
class World:
  """What the questions are drawn from.

  Attributes:
    countries: all of them.
    known: the knowledge bases, with evidence.
    flags: path of the question's drawing of a flag, by country id.
    maps: path of the question's drawing of an outline, by country id.
    clear_flags: countries whose flag is unlike any other.
    drawn: the question's drawings themselves, by country id.
  """

  countries: list[Country]
  known: knowledge.Knowledge
  flags: dict[str, str]
  maps: dict[str, str]
  clear_flags: set[str]
  drawn: dict[str, PIL.Image.Image]

  def fact_hop(self, country: Country, field: str) -> dict:
    relation = relations.ALL[field]
    return dict(
      sub_question=relation.sub_question.format(country.name),
      routes=list(relation.kbs),
      answers=answers(country, field),
      evidence=[
        self.known.evidence[country.id, field, kb] for kb in relation.kbs
      ],
    )

  def flag_hop(self, country: Country) -> dict:
    return self._picture_hop(FLAG_QUESTION, country, "flag")

  def map_hop(self, country: Country) -> dict:
    return self._picture_hop(MAP_QUESTION, country, "map")

  def _picture_hop(self, question, country, kind):
    return dict(
      sub_question=question,
      routes=["image"],
      answers=name_answers(country),
      evidence=[self.known.evidence[country.id, kind, "image"]],
    )

  def bridge_hop(self, country: Country, field: str) -> dict:
    return dict(
      sub_question=f"Which country has the {field} {country.names[field]}?",
      routes=["text"],
      answers=name_answers(country),
      evidence=[self.known.evidence[country.id, field, "text"]],
    )

  def names_one(self, field: str, country: Country) -> bool:
    """Whether the fact is this country's alone, and does not say its name."""
    text = country.names[field]
    owners = sum(text in c.names.get(field, "") for c in self.countries)
    return owners == 1 and country.name.removeprefix("the ") not in text

  def colours(self, country: Country, part: str) -> dict[str, float]:
    return pictures.colours(self.drawn[country.id], part)


def rank(country: Country, field: str) -> float:
  """What a comparison compares: the number, or the year of a date."""
  if field == "independence date":
    return float(country.names[field].split()[-1])
  return country.numbers[field]


def answers(country: Country, field: str) -> list[str]:
  """The fact as written, then other ways of writing it."""
  relation = relations.ALL[field]
  text = value(country, field)
  forms = [text]
  if relation.number:
    plain = text.replace(",", "")
    forms += [plain]
    if relation.unit:
      forms += [f"{text} {relation.unit}", f"{plain} {relation.unit}"]
  elif field == "independence date":
    day, month, year = text.split()
    forms += [f"{month} {day}, {year}", f"{month} {day} {year}"]
  elif text.startswith("the "):
    forms += [text.removeprefix("the ")]
  elif field in ("highest point", "national anthem", "currency"):
    forms += [f"the {text}"]
  if field == "currency":
    forms += [re.sub(r"s$", "", text)]
  return list(dict.fromkeys(forms))


def name_answers(country: Country) -> list[str]:
  bare = country.name.removeprefix("the ")
  forms = [country.name, bare, *country.aliases]
  return list(dict.fromkeys(forms))


def yes_no(true: bool) -> list[str]:
  return ["yes", "true"] if true else ["no", "false"]
