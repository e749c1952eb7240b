"""The three knowledge bases: text, captioned images, tables.

Rows are dicts {"id", "text"} and, in the image knowledge base, "image".  The
row of each fact is kept beside them, as evidence for the questions.
"""

import dataclasses
import re

from r1router_jax.data.countries import relations
from r1router_jax.data.countries.country import Country

_CAPTION_WORDS = 14  # Longest caption.


@dataclasses.dataclass
class KnowledgeBases:
  """The rows of each knowledge base, and the row of each fact.

  Attributes:
    rows: by knowledge base.
    evidence: id of the row that holds a fact, by (country id, field, knowledge
      base).
  """

  rows: dict[str, list[dict[str, str]]]
  evidence: dict[tuple[str, str, str], str]


def format_value(country: Country, field: str) -> str | None:
  """Return a fact as every knowledge base writes it, or None if unknown."""
  relation = relations.RELATIONS[field]
  if not relation.is_number:
    return country.names.get(field)
  number = country.numbers.get(field)
  text = "" if number is None else relation.format.format(number)
  return text if text.strip("0.,") else None


def build_passages(
  countries: list[Country], flags: dict[str, str], maps: dict[str, str]
) -> KnowledgeBases:
  """Build all knowledge bases.

  Args:
    countries: all countries.
    flags: path of the flag of the knowledge base, by country id.
    maps: path of the map of the knowledge base, by country id.
  """
  known = KnowledgeBases({"text": [], "image": [], "table": []}, {})
  _add_text_passages(countries, known)
  _add_captions(countries, flags, maps, known)
  _add_tables(countries, known)
  return known


def _add_text_passages(countries: list[Country], known: KnowledgeBases) -> None:
  """Add passages of a few facts each, by topic, and some running text."""
  for number, country in enumerate(countries):
    for topic, fields in relations.PASSAGE_FIELDS.items():
      facts = {f: format_value(country, f) for f in fields}
      facts = {f: text for f, text in facts.items() if text}
      if not facts:
        continue
      row_id = f"text/{country.id}/{topic}"
      parts = [
        f"{relations.RELATIONS[f].label}{_unit_suffix(f)}: {facts[f]}."
        for f in facts
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


def _unit_suffix(field: str) -> str:
  """Return the unit for the label of a field, so that values have none."""
  unit = relations.RELATIONS[field].unit
  return f" ({unit})" if unit in ("m", "sq km", "years") else ""


def _add_captions(
  countries: list[Country],
  flags: dict[str, str],
  maps: dict[str, str],
  known: KnowledgeBases,
) -> None:
  """Add a captioned image for each flag and each map."""
  for kind, paths, attribute in (
    ("flag", flags, "flag"),
    ("map", maps, "location"),
  ):
    for country in countries:
      if country.id not in paths:
        continue
      row_id = f"image/{kind}/{country.id}"
      caption = _make_caption(
        f"{kind.capitalize()} of {country.name}", getattr(country, attribute)
      )
      known.rows["image"].append(
        dict(id=row_id, text=caption, image=paths[country.id])
      )
      known.evidence[country.id, kind, "image"] = row_id


def _make_caption(head: str, description: str) -> str:
  """Join both to at most `_CAPTION_WORDS` words, cut where the text pauses."""
  if not description:
    return head
  room = _CAPTION_WORDS - len(head.split())
  words = description.split()
  if len(words) > room:
    cut = " ".join(words[:room])
    pause = max(cut.rfind(","), cut.rfind(" with "))
    description = cut[:pause] if pause > len(cut) // 2 else cut
    # No caption ends with a word that announces another.
    description = re.sub(
      r"(,? (a|an|the|of|and|with|in|on|by|to|is|at|from|that|"
      r"between( \w+)+))+$",
      "",
      description,
    )
  return f"{head}: {description.rstrip(' ,')}"


def _add_tables(countries: list[Country], known: KnowledgeBases) -> None:
  """Add tables of one statistic of one or two countries.

  The countries of a table are of one region and one split, so no row of a test
  country is evidence for a training question.
  """
  groups = {}
  for country in countries:
    groups.setdefault((country.split, country.region), []).append(country)
  number = 0
  for section, fields in relations.SECTION_FIELDS.items():
    for field in fields:
      # Rotated by another number for each field, so that the two countries of a
      # table differ from field to field.
      shift = len(field)
      for _, members in sorted(groups.items()):
        rows = [c for c in members if format_value(c, field)]
        start = shift % max(len(rows), 1)
        rows = rows[start:] + rows[:start]
        while rows:
          size = 1 + number % 2
          chunk, rows = rows[:size], rows[size:]
          number += 1
          row_id = f"table/{number}"
          known.rows["table"].append(
            dict(id=row_id, text=_make_table(number, section, field, chunk))
          )
          for country in chunk:
            known.evidence[country.id, field, "table"] = row_id


def _make_table(
  number: int, section: str, field: str, chunk: list[Country]
) -> str:
  relation = relations.RELATIONS[field]
  rows = "".join(
    f"[Row]{country.name}[sep]{format_value(country, field)}"
    for country in chunk
  )
  names = " and ".join(country.name for country in chunk)
  return (
    f"[Title]World Factbook 2015[Section title]{section}"
    f"[Caption]{relation.label} of {names}[Table name]table_{number}"
    f"[Header]Country[sep]{relation.header}[Rows]{rows}"
  )
