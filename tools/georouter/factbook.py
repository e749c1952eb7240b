"""Countries and their facts, read from the World Factbook of 2015.

A country has one spelling everywhere, "the Bahamas" also at the head of a
passage, so that a policy can copy it from one place to another.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
import unicodedata

from tools.georouter import values

REGIONS = {
  "africa": "Africa",
  "australia-oceania": "Oceania",
  "central-america-n-caribbean": "Central America and Caribbean",
  "central-asia": "Central Asia",
  "east-n-southeast-asia": "East Asia",
  "europe": "Europe",
  "middle-east": "Middle East",
  "north-america": "North America",
  "south-america": "South America",
  "south-asia": "South Asia",
}


# The Factbook names these otherwise, or not at all; keys are its file names.
_NAMES = {
  "ae": "the United Arab Emirates",
  "cc": "Curaçao",
  "cf": "Congo Republic",
  "cg": "DR Congo",
  "ct": "the Central African Republic",
  "ck": "the Cocos Islands",
  "dr": "the Dominican Republic",
  "fk": "the Falkland Islands",
  "fm": "Micronesia",
  "iv": "Côte d'Ivoire",
  "sh": "Saint Helena",
  "sk": "Sint Maarten",
  "tb": "Saint Barthélemy",
  "tp": "São Tomé and Príncipe",
  "vq": "the US Virgin Islands",
  "vt": "Vatican City",
  "pc": "the Pitcairn Islands",
  "sv": "Svalbard",
}

_WITH_ARTICLE = (
  "Bahamas",
  "British Virgin Islands",
  "Cayman Islands",
  "Comoros",
  "Cook Islands",
  "Czech Republic",
  "Faroe Islands",
  "Gambia",
  "Isle of Man",
  "Maldives",
  "Marshall Islands",
  "Netherlands",
  "Northern Mariana Islands",
  "Philippines",
  "Seychelles",
  "Solomon Islands",
  "Turks and Caicos Islands",
  "United Kingdom",
  "United States",
  "Dominican Republic",
  "Central African Republic",
)

_ALIASES = {
  "the United States": ("USA", "US", "United States of America"),
  "the United Kingdom": ("UK", "Great Britain"),
  "the United Arab Emirates": ("UAE",),
  "DR Congo": ("Democratic Republic of the Congo", "Congo (Kinshasa)"),
  "Congo Republic": ("Republic of the Congo", "Congo (Brazzaville)"),
  "Côte d'Ivoire": ("Ivory Coast",),
  "Burma": ("Myanmar",),
  "the Czech Republic": ("Czechia",),
  "Swaziland": ("Eswatini",),
  "Timor-Leste": ("East Timor",),
  "Vatican City": ("Holy See",),
  "Cabo Verde": ("Cape Verde",),
  "Macedonia": ("North Macedonia",),
}

_ABBREVIATED = {
  "US": "the United States",
  "UK": "the United Kingdom",
  "UAE": "the United Arab Emirates",
  "NZ": "New Zealand",
  "Democratic Republic of the Congo": "DR Congo",
  "Republic of the Congo": "Congo Republic",
  "Cote d'Ivoire": "Côte d'Ivoire",
  "Curacao": "Curaçao",
  "Netherland": "the Netherlands",
  "Czech Rep": "the Czech Republic",
}


_FIGURES = {  # Field: where the Factbook gives its number.
  "population": ("People and Society", "Population"),
  "area": ("Geography", "Area", "total"),
  "GDP per capita": ("Economy", "GDP - per capita (PPP)"),
  "life expectancy": (
    "People and Society",
    "Life expectancy at birth",
    "total population",
  ),
  "median age": ("People and Society", "Median age", "total"),
  "birth rate": ("People and Society", "Birth rate"),
  "number of airports": ("Transportation", "Airports"),
  "length of roadways": ("Transportation", "Roadways", "total"),
  "length of railways": ("Transportation", "Railways", "total"),
  "length of coastline": ("Geography", "Coastline"),
  "number of internet users": ("Communications", "Internet users", "total"),
  "number of mobile phones": (
    "Communications",
    "Telephones - mobile cellular",
    "total",
  ),
}


@dataclasses.dataclass(frozen=True)
class Country:
  """A country or territory.

  Attributes:
    id: its name as a slug, e.g. "the-bahamas".
    name: as written everywhere, e.g. "the Bahamas".
    iso: two-letter code, which names its flag's file.
    split: "train", "val" or "test", by a hash of the name.
    region: one of `REGIONS`' values.
    names: nominal facts, by field.
    numbers: numeric facts, by field.
    flag: what its flag looks like, in words; "" where not known.
    location: where it lies, in words.
    prose: chunks of running text, (topic, chunk).
    aliases: other accepted names.
  """

  id: str
  name: str
  iso: str
  split: str
  region: str
  names: dict[str, str]
  numbers: dict[str, float]
  flag: str
  location: str
  prose: tuple[tuple[str, str], ...]
  aliases: tuple[str, ...]


def read(folder: pathlib.Path) -> list[Country]:
  """All countries that have a capital, a population and a flag's code."""
  countries = []
  for path in sorted(folder.glob("*/*.json")):
    if path.parent.name in REGIONS:
      profile = _Profile(json.loads(path.read_text("utf-8")))
      country = _country(path.stem, REGIONS[path.parent.name], profile)
      if country is not None:
        countries.append(country)
  return sorted(countries, key=lambda country: country.id)


def split_of(name: str) -> str:
  """The split of an entity: 70 % train, 8 % val, 22 % test."""
  bucket = (
    int(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(), 16) % 100
  )
  return "train" if bucket < 70 else "val" if bucket < 78 else "test"


def slug(name: str) -> str:
  plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
  return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


class _Profile:
  """One country's page: a tree of headings with a text at each leaf."""

  def __init__(self, tree: dict):
    self._tree = tree

  def __call__(self, *headings: str) -> str:
    node = self._tree
    for heading in headings:
      node = (node or {}).get(heading) if isinstance(node, dict) else None
    text = node.get("text") if isinstance(node, dict) else node
    return re.sub(r"\s+", " ", text or "").strip()


def _country(code: str, region: str, page: _Profile) -> Country | None:
  name = _name(code, page)
  iso = re.search(
    r"\.([a-z]{2})\b", page("Communications", "Internet country code")
  )
  iso = {"kv": "xk", "uk": "gb", "fr": "fr", "gz": None}.get(
    code, iso and iso.group(1)
  )
  names, numbers = _names(page, code, iso), _numbers(page)
  if not (name and iso and "capital" in names and "population" in numbers):
    return None
  land = lambda heading: values.plain(page("Geography", heading))
  prose = [
    (topic, chunk)
    for topic, text, most in (
      ("background", page("Introduction", "Background"), 2),
      ("economy", page("Economy", "Economy - overview"), 1),
      (
        "nature",
        f"Climate is {land('Climate')}. Terrain is {land('Terrain')}.",
        1,
      ),
    )
    for chunk in values.chunks(text)[:most]
  ]
  long_form = values.plain(
    page("Government", "Country name", "conventional long form")
  )
  aliases = [
    *_ALIASES.get(name, ()),
    page("Government", "Country name", "conventional short form"),
    long_form,
  ]
  return Country(
    id=slug(name),
    name=name,
    iso=iso,
    split=split_of(name),
    region=region,
    names=names,
    numbers=numbers,
    flag=values.plain(page("Government", "Flag description")),
    location=land("Location"),
    prose=tuple(prose),
    aliases=tuple(a for a in aliases if a and a.lower() != "none"),
  )


def _name(code: str, page: _Profile) -> str:
  name = page("Government", "Country name", "conventional short form")
  if not name or name.lower() == "none":
    name = page("Government", "Country name", "conventional long form")
  name = re.sub(r"^The ", "", re.sub(r"\s*[(;].*", "", name))
  return _NAMES.get(code) or _articled(name)


def _articled(name: str) -> str:
  return f"the {name}" if name in _WITH_ARTICLE else name


def _names(page: _Profile, code: str, iso: str | None) -> dict[str, str]:
  """Nominal facts, by field; a fact that cannot be made clean is left out."""
  government = lambda *headings: page("Government", *headings)
  people = lambda *headings: page("People and Society", *headings)
  economy = lambda *headings: page("Economy", *headings)
  zone = re.match(
    r"UTC ?([+-]?\d+(?:\.\d+)?)", government("Capital", "time difference")
  )
  found = {
    "capital": values.short(
      re.split(r",| in ", government("Capital", "name"))[0], 4
    ),
    "government type": values.short(government("Government type"), 5),
    "independence date": values.date(government("Independence")),
    "national holiday": values.holiday(government("National holiday")),
    "nationality": values.short(
      re.split(r",| or |/", people("Nationality", "adjective"))[0], 3
    ),
    "currency": values.currency(economy("Exchange rates")),
    "internet domain": iso and "." + {"gb": "uk"}.get(iso, iso),
    "time zone": zone and "UTC" + zone.group(1),
    "highest point": values.peak(_peak(page))[0],
    "national anthem": values.anthem(government("National anthem", "name")),
    "national symbol": values.symbol(government("National symbol(s)")),
    "main export good": values.short(
      economy("Exports - commodities").split(",")[0], 4
    ),
    "main crop": values.first_item(economy("Agriculture - products")),
    "main export market": _partner(economy("Exports - partners")),
    "main import source": _partner(economy("Imports - partners")),
    "largest ethnic group": values.first_item(people("Ethnic groups")),
    "main language": values.first_item(people("Languages")),
    "main religion": values.first_item(people("Religions")),
    "largest city": values.city(people("Major urban areas - population")),
  }
  if code == "kv":  # The domain that we gave it for its flag is unofficial.
    del found["internet domain"]
  return {field: value for field, value in found.items() if value}


def _numbers(page: _Profile) -> dict[str, float]:
  """Numeric facts, by field, in the unit that `relations` gives."""
  borders = page("Geography", "Land boundaries", "border countries")
  divisions = re.match(
    r"(\d+) [a-z]", page("Government", "Administrative divisions")
  )
  age = re.match(r"(\d+) years", page("Government", "Suffrage"))
  code = re.search(
    r"country code - (?:\[?1\]?-)?(\d+)",
    page("Communications", "Telephone system", "international"),
  )
  gdp = values.number(page("Economy", "GDP (purchasing power parity)")) or 0
  found = {
    "number of administrative divisions": divisions and divisions.group(1),
    "voting age": age and age.group(1),
    "calling code": code and code.group(1),
    "highest elevation": values.peak(_peak(page))[1],
    "number of neighbours": len(re.findall(r"\d km", borders)),
    "gross domestic product": gdp / 1e9,
  }
  found |= {
    field: values.number(page(*headings))
    for field, headings in _FIGURES.items()
  }
  # What rounds to nothing would be written as 0, which is not a fact.
  return {
    field: float(value)
    for field, value in found.items()
    if value and float(value) >= 0.1
  }


def _peak(page: _Profile) -> str:
  return page("Geography", "Elevation extremes", "highest point")


def _partner(text: str) -> str | None:
  name = values.first_item(text.replace("St. ", "Saint "), words=4)
  return name and _ABBREVIATED.get(name, _articled(name))
