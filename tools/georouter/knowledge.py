"""The three knowledge bases: text, captioned pictures, tables.

Rows are dicts {"id", "text"} and, in the image knowledge base, "image".  Where
a fact stands is kept beside them, as evidence for the questions.
"""

import dataclasses
import re

from tools.georouter import relations
from tools.georouter.factbook import Country

_CAPTION_WORDS = 14


@dataclasses.dataclass
class Knowledge:
  """Rows of each knowledge base, and where each fact stands.

  Attributes:
    rows: by knowledge base.
    evidence: ids of the rows that hold (country id, field), by knowledge base.
  """

  rows: dict[str, list[dict[str, str]]]
  evidence: dict[tuple[str, str, str], str]


def value(country: Country, field: str) -> str | None:
  """The fact as every knowledge base writes it, or None where unknown."""
  relation = relations.ALL[field]
  if not relation.number:
    return country.names.get(field)
  number = country.numbers.get(field)
  text = "" if number is None else relation.format.format(number)
  return text if text.strip("0.,") else None


def build(
  countries: list[Country], flags: dict[str, str], maps: dict[str, str]
) -> Knowledge:
  """Everything; `flags` and `maps` give a picture's path by country id."""
  known = Knowledge({"text": [], "image": [], "table": []}, {})
  _add_text(countries, known)
  _add_pictures(countries, flags, maps, known)
  _add_tables(countries, known)
  return known


def _add_text(countries: list[Country], known: Knowledge):
  for number, country in enumerate(countries):
    for topic, fields in relations.PASSAGES.items():
      facts = {f: value(country, f) for f in fields if value(country, f)}
      if not facts:
        continue
      row_id = f"text/{country.id}/{topic}"
      parts = [
        f"{relations.ALL[f].label}{_unit(f)}: {facts[f]}." for f in facts
      ]
      known.rows["text"].append(
        dict(id=row_id, text=f"{country.name}. {' '.join(parts)}")
      )
      for field in facts:
        known.evidence[country.id, field, "text"] = row_id
    # A little running text, of varied kind, as natural distraction.
    if country.prose:
      topic, chunk = country.prose[number % len(country.prose)]
      known.rows["text"].append(
        dict(id=f"text/{country.id}/{topic}", text=f"{country.name}. {chunk}")
      )


def _unit(field: str) -> str:
  """The unit stands with the label, so that a value ends where it ends."""
  unit = relations.ALL[field].unit
  return f" ({unit})" if unit in ("m", "sq km", "years") else ""


def _add_pictures(countries, flags, maps, known):
  for kind, paths, said in (
    ("flag", flags, lambda c: c.flag),
    ("map", maps, lambda c: c.location),
  ):
    for country in countries:
      if country.id not in paths:
        continue
      row_id = f"image/{kind}/{country.id}"
      caption = _caption(
        f"{kind.capitalize()} of {country.name}", said(country)
      )
      known.rows["image"].append(
        dict(id=row_id, text=caption, image=paths[country.id])
      )
      known.evidence[country.id, kind, "image"] = row_id


def _caption(head: str, said: str) -> str:
  """At most `_CAPTION_WORDS` words, cut where the text itself pauses."""
  if not said:
    return head
  room = _CAPTION_WORDS - len(head.split())
  words = said.split()
  if len(words) > room:
    cut = " ".join(words[:room])
    pause = max(cut.rfind(","), cut.rfind(" with "))
    said = cut[:pause] if pause > len(cut) // 2 else cut
    said = re.sub(
      r"(,? (a|an|the|of|and|with|in|on|by|to|is|at|from|that|"
      r"between( \w+)+))+$",
      "",
      said,
    )
  return f"{head}: {said.rstrip(' ,')}"


def _add_tables(countries, known):
  """One statistic a table, one or two countries of one split and region.

  A table never joins splits, so no row of a test country is evidence for a
  training question.
  """
  groups = {}
  for country in countries:
    groups.setdefault((country.split, country.region), []).append(country)
  number = 0
  for section, fields in relations.SECTIONS.items():
    for field in fields:
      shift = len(field)  # So that neighbours differ from table to table.
      for _, members in sorted(groups.items()):
        rows = [c for c in members if value(c, field)]
        rows = (
          rows[shift % max(len(rows), 1) :] + rows[: shift % max(len(rows), 1)]
        )
        while rows:
          size = 1 + number % 2
          chunk, rows = rows[:size], rows[size:]
          number += 1
          row_id = f"table/{number}"
          known.rows["table"].append(
            dict(id=row_id, text=_table(number, section, field, chunk))
          )
          for country in chunk:
            known.evidence[country.id, field, "table"] = row_id


def _table(number: int, section: str, field: str, chunk: list[Country]) -> str:
  relation = relations.ALL[field]
  rows = "".join(
    f"[Row]{country.name}[sep]{value(country, field)}" for country in chunk
  )
  names = " and ".join(country.name for country in chunk)
  return (
    f"[Title]World Factbook 2015[Section title]{section}"
    f"[Caption]{relation.label} of {names}[Table name]table_{number}"
    f"[Header]Country[sep]{relation.header}[Rows]{rows}"
  )
