"""Countries and their facts, read and cleaned from the World Factbook of 2015.

A value must survive three readers: the retriever, which matches words; a tiny
policy, which copies it up to the next delimiter; and the reward, which compares
strings.  So values hold no quotes, brackets, notes, "; " or ". ", and names have
one spelling everywhere ("the Bahamas", also at the head of a passage).
"""

import dataclasses
import hashlib
import json
import pathlib
import re
import unicodedata

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
    "ae": "the United Arab Emirates", "cc": "Curaçao", "cf": "Congo Republic",
    "cg": "DR Congo", "ct": "the Central African Republic",
    "ck": "the Cocos Islands", "dr": "the Dominican Republic",
    "fk": "the Falkland Islands", "fm": "Micronesia", "iv": "Côte d'Ivoire",
    "sh": "Saint Helena", "sk": "Sint Maarten", "tb": "Saint Barthélemy",
    "tp": "São Tomé and Príncipe", "vq": "the US Virgin Islands",
    "vt": "Vatican City", "pc": "the Pitcairn Islands", "sv": "Svalbard",
}
_WITH_ARTICLE = (
    "Bahamas", "British Virgin Islands", "Cayman Islands", "Comoros",
    "Cook Islands", "Czech Republic", "Faroe Islands", "Gambia",
    "Isle of Man", "Maldives", "Marshall Islands", "Netherlands",
    "Northern Mariana Islands", "Philippines", "Seychelles",
    "Solomon Islands", "Turks and Caicos Islands", "United Kingdom",
    "United States", "West Bank", "Gaza Strip",
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
    "US": "the United States", "UK": "the United Kingdom",
    "UAE": "the United Arab Emirates", "NZ": "New Zealand",
    "Democratic Republic of the Congo": "DR Congo",
    "Republic of the Congo": "Congo Republic", "Cote d'Ivoire": "Côte d'Ivoire",
    "Curacao": "Curaçao", "Netherland": "the Netherlands",
    "Czech Rep": "the Czech Republic",
}
_MONTHS = (
    "January|February|March|April|May|June|July|August|September|October|"
    "November|December")
_SCALES = {"million": 1e6, "billion": 1e9, "trillion": 1e12}
_PROSE_WORDS = 38  # Longest prose chunk, without the name before it.


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
  bucket = int(hashlib.md5(
      name.encode(), usedforsecurity=False).hexdigest(), 16) % 100
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
  iso = re.search(r"\.([a-z]{2})\b", page("Communications",
                                          "Internet country code"))
  iso = {"kv": "xk", "uk": "gb", "fr": "fr", "gz": None}.get(
      code, iso and iso.group(1))
  names, numbers = _names(page, code, iso), _numbers(page)
  if not (name and iso and "capital" in names and "population" in numbers):
    return None
  prose = [
      (topic, chunk) for topic, text, most in (
          ("background", page("Introduction", "Background"), 2),
          ("economy", page("Economy", "Economy - overview"), 1),
          ("land", f"Climate is {_plain(page('Geography', 'Climate'))}. "
           f"Terrain is {_plain(page('Geography', 'Terrain'))}.", 1))
      for chunk in _chunks(text)[:most]]
  long_form = _plain(page(
      "Government", "Country name", "conventional long form"))
  aliases = [*_ALIASES.get(name, ()), page(
      "Government", "Country name", "conventional short form"), long_form]
  return Country(
      id=slug(name), name=name, iso=iso, split=split_of(name), region=region,
      names=names, numbers=numbers,
      flag=_plain(page("Government", "Flag description")),
      location=_plain(page("Geography", "Location")),
      prose=tuple(prose),
      aliases=tuple(a for a in aliases if a and a.lower() != "none"))


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
  date = re.search(rf"\d{{1,2}} (?:{_MONTHS}) \d{{3,4}}",
                   page("Government", "Independence"))
  top = _highest(page)
  zone = re.match(r"UTC ?([+-]?\d+(?:\.\d+)?)",
                  page("Government", "Capital", "time difference"))
  anthem = page("Government", "National anthem", "name")
  quoted = re.match(r'"([^"]+)"', anthem)
  symbol = re.split(r"national colou?rs?", page(
      "Government", "National symbol(s)"))[0]
  city = page("People and Society", "Major urban areas - population")
  found = {
      "capital": _short(page("Government", "Capital", "name").split(",")[0], 4),
      "government type": _short(page("Government", "Government type"), 5),
      "independence date": date and date.group(),
      "national holiday": _short(
          re.split(r",|/| and | of ", page(
              "Government", "National holiday"))[0], 4),
      "nationality": _short(re.split(r",| or |/", page(
          "People and Society", "Nationality", "adjective"))[0], 3),
      "currency": _currency(page("Economy", "Exchange rates")),
      "internet domain": iso and "." + {"gb": "uk"}.get(iso, iso),
      "time zone": zone and "UTC" + zone.group(1),
      "highest point": top[0],
      "national anthem": _short(quoted.group(1) if quoted else anthem, 6),
      "national symbol": _short(
          re.sub(r"^(white|yellow|red|ten|four|five|a|the)\b.*", "",
                 symbol.split(",")[0]), 4),
      "main export good": _short(
          page("Economy", "Exports - commodities").split(",")[0], 4),
      "main crop": _short(
          page("Economy", "Agriculture - products").split(",")[0], 3),
      "main export partner": _partner(page("Economy", "Exports - partners")),
      "main import partner": _partner(page("Economy", "Imports - partners")),
      "largest ethnic group": _first_item(
          page("People and Society", "Ethnic groups")),
      "main language": _first_item(page("People and Society", "Languages")),
      "main religion": _first_item(page("People and Society", "Religions")),
      "largest city": _city(city),
  }
  if code == "xk":
    del found["internet domain"]
  return {field: value for field, value in found.items() if value}


def _numbers(page: _Profile) -> dict[str, float]:
  """Numeric facts, by field, in the unit of `relations.FORMATS`."""
  borders = page("Geography", "Land boundaries", "border countries")
  divisions = re.match(r"(\d+) [a-z]", page(
      "Government", "Administrative divisions"))
  age = re.match(r"(\d+) years", page("Government", "Suffrage"))
  code = re.search(r"country code - (?:\[?1\]?-)?(\d+)", page(
      "Communications", "Telephone system", "international"))
  gdp = _number(page("Economy", "GDP (purchasing power parity)"))
  found = {
      "number of administrative divisions": divisions and int(
          divisions.group(1)),
      "voting age": age and int(age.group(1)),
      "calling code": code and int(code.group(1)),
      "highest elevation": _highest(page)[1],
      "number of neighbours": len(re.findall(r"\d km", borders)) or None,
      "population": _number(page("People and Society", "Population")),
      "area": _number(page("Geography", "Area", "total")),
      "GDP": gdp and gdp / 1e9,
      "GDP per capita": _number(page("Economy", "GDP - per capita (PPP)")),
      "life expectancy": _number(page(
          "People and Society", "Life expectancy at birth",
          "total population")),
      "median age": _number(page("People and Society", "Median age", "total")),
      "birth rate": _number(page("People and Society", "Birth rate")),
      "number of airports": _number(page("Transportation", "Airports")),
      "length of roadways": _number(page(
          "Transportation", "Roadways", "total")),
      "length of railways": _number(page(
          "Transportation", "Railways", "total")),
      "length of coastline": _number(page("Geography", "Coastline")),
      "number of internet users": _number(page(
          "Communications", "Internet users", "total")),
      "number of mobile phones": _number(page(
          "Communications", "Telephones - mobile cellular", "total")),
  }
  return {field: float(value) for field, value in found.items() if value}


def _number(text: str) -> float | None:
  """The newest figure: "$29.53 billion (2014 est.) ++ ..." -> 2.953e10."""
  found = re.search(r"([\d,]*\d(?:\.\d+)?)\s*(million|billion|trillion)?", text)
  if not found or text.startswith("NA"):
    return None
  value = float(found.group(1).replace(",", ""))
  return value * _SCALES.get(found.group(2), 1)


def _highest(page: _Profile) -> tuple[str | None, float | None]:
  """Name and metres of the highest point; an unnamed one keeps its metres."""
  found = re.match(r"(.+?) ([\d,.]*\d) ?m\b", page(
      "Geography", "Elevation extremes", "highest point"))
  if not found:
    return None, None
  return (_short(re.split(r",| on | in ", found.group(1))[0], 4),
          float(found.group(2).replace(",", "")))


def _currency(text: str) -> str | None:
  if text.startswith("the US dollar"):
    return "US dollars"
  found = re.match(r"(.+?) (?:\([^)]*\) ?)?per US dollar", text)
  name = found and found.group(1).split("/")[0]
  return {
      "Cooperation Financiere en Afrique Centrale francs":
          "Central African CFA francs",
      "Communaute Financiere Africaine francs": "West African CFA francs",
      "Comptoirs Francais du Pacifique francs": "CFP francs",
  }.get(name, name and _short(name, 4))


def _partner(text: str) -> str | None:
  name = _first_item(text.replace("St. ", "Saint "), words=4)
  return name and _ABBREVIATED.get(name, _articled(name))


def _first_item(text: str, words: int = 3) -> str | None:
  """"Sara 27.7%, Arab 12.3%" -> "Sara"."""
  name = re.split(
      r"[,\d(%;<:~/]| - | and (?!Tobago)| over| at least| only", text)[0].strip()
  if re.search(r"homogen|nominal|local|mixture|note|eclectic", name):
    return None
  return _short(name, words)


def _city(text: str) -> str | None:
  """"DOHA (capital) 718,000 (2015)" -> "Doha"."""
  name = _short(re.split(r"[,(\d]", text)[0], 4)
  if not name or not name.isupper():
    return None
  name = "".join(w.capitalize() if len(w) > 2 else w.lower()
                 for w in re.split(r"([ '-])", name))
  return name[0].upper() + name[1:]


def _plain(text: str) -> str:
  """The text without brackets, quotes and what follows a semicolon."""
  text = re.sub(r"\s*[(\[][^)\]]*[)\]]", "", text.split("++")[0])
  text = re.split(r";| - |: |\(", text)[0].replace('"', "")
  text = text.replace("St. ", "Saint ").replace("Mt. ", "Mount ")
  return re.sub(r"\s+", " ", text).strip(" .,")


def _short(text: str, words: int) -> str | None:
  """A clean value of at most so many words, or None."""
  value = _plain(text)
  if re.match(r"(none|na|no|not|note|unnamed|unknown|NEGL)\b", value, re.I):
    return None
  if re.search(r"\d|%|[/*]", value):
    return None
  if not value or ". " in value or len(value.split()) > words:
    return None
  return value.rstrip("!?")


def _chunks(text: str) -> list[str]:
  """Consecutive whole sentences of at most `_PROSE_WORDS` words together."""
  text = re.sub(r"\s*\([^)]*\)", "", text.replace('"', ""))
  chunks, words = [], []
  for sentence in re.split(r"(?<=[a-z0-9]{2}[.;]) +(?=[A-Z])", text):
    sentence = sentence.split()
    if words and len(words) + len(sentence) > _PROSE_WORDS:
      chunks.append(" ".join(words))
      words = []
    if len(sentence) <= _PROSE_WORDS:
      words += sentence
  return [*chunks, " ".join(words)] if len(words) > 8 else chunks
