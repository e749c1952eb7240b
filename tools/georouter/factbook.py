"""Countries and their facts, read from the World Factbook of 2015.

A country has one spelling everywhere ("the Bahamas" even at the start of a
passage), so that a policy can copy it from one place to another.
"""

import hashlib
import json
import pathlib
import re
import unicodedata

from r1router_jax.data.countries.country import Country
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


# Names of countries that the Factbook names differently, or not at all, by its
# file names.
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


def read_countries(folder: pathlib.Path) -> list[Country]:
  """Read all countries that have a capital, a population and an ISO code."""
  countries = []
  for path in sorted(folder.glob("*/*.json")):
    if path.parent.name in REGIONS:
      profile = _Profile(json.loads(path.read_text("utf-8")))
      country = _make_country(path.stem, REGIONS[path.parent.name], profile)
      if country is not None:
        countries.append(country)
  return sorted(countries, key=lambda country: country.id)


def assign_split(name: str) -> str:
  """Assign a country to a split: 70 % train, 8 % val, 22 % test."""
  bucket = (
    int(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(), 16) % 100
  )
  return "train" if bucket < 70 else "val" if bucket < 78 else "test"


def make_slug(name: str) -> str:
  """Return a name in lower-case ASCII, with hyphens between words."""
  plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
  return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


class _Profile:
  """The page of a country: a tree of headings with a text at each leaf."""

  def __init__(self, tree: dict):
    self._tree = tree

  def __call__(self, *headings: str) -> str:
    """Return the text below these headings, or ""."""
    node = self._tree
    for heading in headings:
      node = (node or {}).get(heading) if isinstance(node, dict) else None
    text = node.get("text") if isinstance(node, dict) else node
    return re.sub(r"\s+", " ", text or "").strip()


def _make_country(code: str, region: str, page: _Profile) -> Country | None:
  """Make a country of its page, or return None if it lacks something."""
  name = _country_name(code, page)
  iso = re.search(
    r"\.([a-z]{2})\b", page("Communications", "Internet country code")
  )
  # Codes of countries whose domain differs, or is another's.
  iso = {"kv": "xk", "uk": "gb", "fr": "fr", "gz": None}.get(
    code, iso and iso.group(1)
  )
  names, numbers = _nominal_facts(page, code, iso), _numeric_facts(page)
  if not (name and iso and "capital" in names and "population" in numbers):
    return None
  climate, terrain, location = (
    values.strip_notes(page("Geography", heading))
    for heading in ("Climate", "Terrain", "Location")
  )
  prose = [
    (topic, chunk)
    for topic, text, most in (
      ("background", page("Introduction", "Background"), 2),
      ("economy", page("Economy", "Economy - overview"), 1),
      (
        "nature",
        f"Climate is {climate}. Terrain is {terrain}.",
        1,
      ),
    )
    for chunk in values.split_prose(text)[:most]
  ]
  long_form = values.strip_notes(
    page("Government", "Country name", "conventional long form")
  )
  aliases = [
    *_ALIASES.get(name, ()),
    page("Government", "Country name", "conventional short form"),
    long_form,
  ]
  return Country(
    id=make_slug(name),
    name=name,
    iso=iso,
    split=assign_split(name),
    region=region,
    names=names,
    numbers=numbers,
    flag=values.strip_notes(page("Government", "Flag description")),
    location=location,
    prose=tuple(prose),
    aliases=tuple(a for a in aliases if a and a.lower() != "none"),
  )


def _country_name(code: str, page: _Profile) -> str:
  """Return the one name of a country, or "" if its page has none."""
  name = page("Government", "Country name", "conventional short form")
  if not name or name.lower() == "none":
    name = page("Government", "Country name", "conventional long form")
  name = re.sub(r"^The ", "", re.sub(r"\s*[(;].*", "", name))
  return _NAMES.get(code) or _with_article(name)


def _with_article(name: str) -> str:
  """Return the name with "the" before it if English uses it so."""
  return f"the {name}" if name in _WITH_ARTICLE else name


def _nominal_facts(
  page: _Profile, code: str, iso: str | None
) -> dict[str, str]:
  """Return the nominal facts, by field, without those that stay unclean."""

  def government(*headings: str) -> str:
    return page("Government", *headings)

  def people(*headings: str) -> str:
    return page("People and Society", *headings)

  def economy(*headings: str) -> str:
    return page("Economy", *headings)

  zone = re.match(
    r"UTC ?([+-]?\d+(?:\.\d+)?)", government("Capital", "time difference")
  )
  found = {
    "capital": values.short_value(
      re.split(r",| in ", government("Capital", "name"))[0], 4
    ),
    "government type": values.short_value(government("Government type"), 5),
    "independence date": values.parse_date(government("Independence")),
    "national holiday": values.parse_holiday(government("National holiday")),
    "nationality": values.short_value(
      re.split(r",| or |/", people("Nationality", "adjective"))[0], 3
    ),
    "currency": values.parse_currency(economy("Exchange rates")),
    "internet domain": iso and "." + {"gb": "uk"}.get(iso, iso),
    "time zone": zone and "UTC" + zone.group(1),
    "highest point": values.parse_peak(_highest_point(page))[0],
    "national anthem": values.parse_anthem(
      government("National anthem", "name")
    ),
    "national symbol": values.parse_symbol(government("National symbol(s)")),
    "main export good": values.short_value(
      economy("Exports - commodities").split(",")[0], 4
    ),
    "main crop": values.first_item(economy("Agriculture - products")),
    "main export market": _trade_partner(economy("Exports - partners")),
    "main import source": _trade_partner(economy("Imports - partners")),
    "largest ethnic group": values.first_item(people("Ethnic groups")),
    "main language": values.first_item(people("Languages")),
    "main religion": values.first_item(people("Religions")),
    "largest city": values.parse_city(people("Major urban areas - population")),
  }
  if code == "kv":  # Its code, which finds its flag, is no official domain.
    del found["internet domain"]
  return {field: value for field, value in found.items() if value}


def _numeric_facts(page: _Profile) -> dict[str, float]:
  """Return the numeric facts, by field, in the units of `relations`."""
  borders = page("Geography", "Land boundaries", "border countries")
  divisions = re.match(
    r"(\d+) [a-z]", page("Government", "Administrative divisions")
  )
  age = re.match(r"(\d+) years", page("Government", "Suffrage"))
  code = re.search(
    r"country code - (?:\[?1\]?-)?(\d+)",
    page("Communications", "Telephone system", "international"),
  )
  gdp = (
    values.parse_number(page("Economy", "GDP (purchasing power parity)")) or 0
  )
  found = {
    "number of administrative divisions": divisions and divisions.group(1),
    "voting age": age and age.group(1),
    "calling code": code and code.group(1),
    "highest elevation": values.parse_peak(_highest_point(page))[1],
    "number of neighbours": len(re.findall(r"\d km", borders)),
    "gross domestic product": gdp / 1e9,
  }
  found |= {
    field: values.parse_number(page(*headings))
    for field, headings in _FIGURES.items()
  }
  # A smaller number would be written as 0, which is not a fact.
  return {
    field: float(value)
    for field, value in found.items()
    if value and float(value) >= 0.1
  }


def _highest_point(page: _Profile) -> str:
  return page("Geography", "Elevation extremes", "highest point")


def _trade_partner(text: str) -> str | None:
  """Return the first country of a list of trade partners."""
  name = values.first_item(text.replace("St. ", "Saint "), words=4)
  return name and _ABBREVIATED.get(name, _with_article(name))
