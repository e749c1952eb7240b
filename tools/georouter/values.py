"""Turns the Factbook's free text into clean values.

A value is read by the retriever, which matches words, by a tiny policy, which
copies it up to the next delimiter, and by the reward, which compares strings.
So values hold no quotes, brackets, notes, "; " or ". ", and the parsers return
None for a text that gives no such value.
"""

import re

MONTHS = (
  "January|February|March|April|May|June|July|August|September|October|"
  "November|December"
)

_SCALES = {"million": 1e6, "billion": 1e9, "trillion": 1e12}

_CURRENCIES = {
  "Cooperation Financiere en Afrique Centrale francs": (
    "Central African CFA francs"
  ),
  "Communaute Financiere Africaine francs": "West African CFA francs",
  "Comptoirs Francais du Pacifique francs": "CFP francs",
  "NZ dollars": "New Zealand dollars",
}

# The first item of a list is no answer if it contains one of these.
_NO_ITEM = re.compile(
  r"homogen|nominal|local|mixture|note|eclectic|composite|mainland|majority|"
  r"population|predominant|Peninsular|traditional|^over|^$"
)

# Texts that say that there is no value.
_NOTHING = re.compile(
  r"(none|na|no|not|note|unnamed|unknown|negl|operates)\b", re.IGNORECASE
)

# Words of the longest chunk of prose, without the name before it.
PROSE_WORDS = 38


def strip_notes(text: str) -> str:
  """Return the text without brackets and quotes, up to its first semicolon."""
  text = re.sub(r"\s*[(\[][^)\]]*[)\]]", "", text.split("++")[0])
  text = re.split(r";| - |: |\(", text)[0].replace('"', "")
  text = text.replace("St. ", "Saint ").replace("Mt. ", "Mount ")
  return re.sub(r"\s+", " ", text).strip(" .,")


def short_value(text: str, words: int) -> str | None:
  """Return the text as a value of at most `words` words without digits."""
  value = strip_notes(text)
  if _NOTHING.match(value) or re.search(r"\d|%|[/*]|\. ", value):
    return None
  if not value or len(value.split()) > words:
    return None
  return value.rstrip("!?")


def first_item(text: str, words: int = 3) -> str | None:
  """Return the first item of a list: "Sara 27.7%, Arab 12.3%" -> "Sara"."""
  name = re.split(
    r"[,\d(%;<:~/]| - | and (?!Tobago)| or | over| at least| only", text
  )[0]
  return None if _NO_ITEM.search(name.strip()) else short_value(name, words)


def parse_number(text: str) -> float | None:
  """Return the newest figure: "$29.53 billion (2014 est.) ++" -> 2.953e10."""
  found = re.search(r"([\d,]*\d(?:\.\d+)?)\s*(million|billion|trillion)?", text)
  if not found or text.startswith("NA"):
    return None
  value = float(found.group(1).replace(",", ""))
  return value * _SCALES.get(found.group(2), 1)


def parse_date(text: str) -> str | None:
  """Return the date: "11 August 1960 (from France)" -> "11 August 1960"."""
  found = re.search(rf"\d{{1,2}} (?:{MONTHS}) \d{{3,4}}", text)
  return found and found.group()


def parse_peak(text: str) -> tuple[str | None, float | None]:
  """Return name and meters of a peak; one without a name keeps its meters."""
  found = re.match(r"(.+?) ([\d,.]*\d) ?m\b", text)
  if not found:
    return None, None
  return (
    short_value(re.split(r",| on | in |/", found.group(1))[0], 4),
    float(found.group(2).replace(",", "")),
  )


def parse_holiday(text: str) -> str | None:
  """Return a holiday: "Birthday of AKIHITO, ..." -> "Birthday of Akihito"."""
  name = short_value(re.split(r",|/| and ", text)[0], 5)
  return name and " ".join(
    w.capitalize() if w.isupper() and len(w) > 2 else w for w in name.split()
  )


def parse_symbol(text: str) -> str | None:
  """Return the first symbol, unless it is the start of a phrase."""
  name = re.split(r"national colou?rs?", text)[0].split(",")[0]
  if re.match(r"(white|yellow|red|ten|four|five|six|a|the|encircled)\b", name):
    return None
  return short_value(name, 4)


def parse_anthem(text: str) -> str | None:
  """Return the anthem: '"La Tchadienne" (The Chadian)' -> "La Tchadienne"."""
  quoted = re.match(r'"([^"]+)"', text)
  return short_value(quoted.group(1) if quoted else text, 6)


def parse_currency(text: str) -> str | None:
  """Return a currency: "Omani rials (OMR) per US dollar" -> "Omani rials"."""
  if text.startswith("the US dollar"):
    return "US dollars"
  found = re.match(r"(.+?) (?:\([^)]*\) ?)?per US dollar", text)
  name = found and found.group(1).split("/")[0]
  return _CURRENCIES.get(name, name and short_value(name, 4))


def parse_city(text: str) -> str | None:
  """Return the first city: "DOHA (capital) 718,000 (2015)" -> "Doha"."""
  name = short_value(re.split(r"[,(\d]", text)[0], 4)
  if not name or not name.isupper():
    return None
  name = "".join(
    w.capitalize() if len(w) > 2 else w.lower()
    for w in re.split(r"([ '-])", name)
  )
  return name[0].upper() + name[1:]


def split_prose(text: str) -> list[str]:
  """Split a text into runs of sentences of at most `PROSE_WORDS` words."""
  text = re.sub(r"\s*\([^)]*\)", "", text.replace('"', ""))
  found, words = [], []
  for sentence in re.split(r"(?<=[a-z0-9]{2}[.;]) +(?=[A-Z])", text):
    sentence = sentence.split()
    if words and len(words) + len(sentence) > PROSE_WORDS:
      found.append(" ".join(words))
      words = []
    if len(sentence) <= PROSE_WORDS:
      words += sentence
  return [*found, " ".join(words)] if len(words) > 8 else found
