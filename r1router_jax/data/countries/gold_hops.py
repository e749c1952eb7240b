"""Gold hops: the canonical sub-question, its routes, answers and evidence."""

import dataclasses
import re

import PIL.Image

from r1router_jax.data.countries import flag_colors, kb_passages, relations
from r1router_jax.data.countries.country import Country
from r1router_jax.data.countries.kb_passages import format_value

FLAG_QUESTION = "Which country does this flag belong to?"

MAP_QUESTION = "Which country is shown on this map?"


@dataclasses.dataclass(frozen=True)
class FactWorld:
  """The facts and images that questions are drawn from.

  Attributes:
    countries: all countries.
    kbs: the knowledge bases, with evidence.
    flags: path of the flag that questions show, by country id.
    maps: path of the map that questions show, by country id.
    clear_flags: ids of countries whose flag is unlike any other.
    drawings: the flags that questions show, by country id.
  """

  countries: list[Country]
  kbs: kb_passages.KnowledgeBases
  flags: dict[str, str]
  maps: dict[str, str]
  clear_flags: set[str]
  drawings: dict[str, PIL.Image.Image]

  def fact_hop(self, country: Country, field: str) -> dict:
    """Return the hop that finds a fact of a named country."""
    relation = relations.RELATIONS[field]
    return dict(
      sub_question=relation.sub_question.format(country.name),
      routes=list(relation.kbs),
      answers=accepted_answers(country, field),
      evidence=[
        self.kbs.evidence[country.id, field, kb] for kb in relation.kbs
      ],
    )

  def flag_hop(self, country: Country) -> dict:
    """Return the hop that finds the country of a flag."""
    return self._image_hop(FLAG_QUESTION, country, "flag")

  def map_hop(self, country: Country) -> dict:
    """Return the hop that finds the country of a map."""
    return self._image_hop(MAP_QUESTION, country, "map")

  def _image_hop(self, question: str, country: Country, kind: str) -> dict:
    return dict(
      sub_question=question,
      routes=["image"],
      answers=country_answers(country),
      evidence=[self.kbs.evidence[country.id, kind, "image"]],
    )

  def bridge_hop(self, country: Country, field: str) -> dict:
    """Return the hop that finds the country of a fact."""
    return dict(
      sub_question=f"Which country has the {field} {country.names[field]}?",
      routes=["text"],
      answers=country_answers(country),
      evidence=[self.kbs.evidence[country.id, field, "text"]],
    )

  def is_unique_fact(self, field: str, country: Country) -> bool:
    """Return whether a fact is one country's alone and does not name it."""
    text = country.names[field]
    owners = sum(text in c.names.get(field, "") for c in self.countries)
    return owners == 1 and country.name.removeprefix("the ") not in text

  def color_shares(self, country: Country, part: str) -> dict[str, float]:
    """Return the share of each named color in a part of a country's flag."""
    return flag_colors.color_shares(self.drawings[country.id], part)


def comparable_value(country: Country, field: str) -> float:
  """Return the number that comparisons compare; of a date, the year."""
  if field == "independence date":
    return float(country.names[field].split()[-1])
  return country.numbers[field]


def accepted_answers(country: Country, field: str) -> list[str]:
  """Return a fact as it is written, then other ways of writing it."""
  relation = relations.RELATIONS[field]
  text = format_value(country, field)
  forms = [text]
  if relation.is_number:
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


def country_answers(country: Country) -> list[str]:
  """Return the accepted names of a country, the canonical one first."""
  bare = country.name.removeprefix("the ")
  forms = [country.name, bare, *country.aliases]
  return list(dict.fromkeys(forms))


def yes_no_answers(is_true: bool) -> list[str]:
  """Return the accepted answers to a yes-or-no question."""
  return ["yes", "true"] if is_true else ["no", "false"]
