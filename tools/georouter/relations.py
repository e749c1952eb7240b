"""What can be asked of a country, where it stands, and how users say it.

Each relation has one canonical sub-question, "What is the FIELD of COUNTRY?",
and many user wordings.  A wording is either a frame around one of its nouns or
a sentence of its own; those marked `held` are kept from training.

The surface says little about the route, on purpose: "How many ..." may need
the text (neighbours) or a table (airports), "main export good" is told in the
text and "main export market" in a table.
"""

import dataclasses

from tools.georouter import phrases
from tools.georouter import wordings as wordings_lib


@dataclasses.dataclass(frozen=True)
class Relation:
  """One kind of fact.

  Attributes:
    field: its name in every knowledge base and in the canonical sub-question.
    kbs: where it stands, the preferred one first.
    number: whether its values are numbers.
    format: how a number is written.
    header: the field as a table's header writes it, with the unit.
    unit: what may follow the number in an answer, or "".
    above: verb phrases for "has the larger one", for comparisons; else empty.
    below: the same for the smaller one.
  """

  field: str
  kbs: tuple[str, ...]
  number: bool = False
  format: str = "{:,.0f}"
  header: str = ""
  unit: str = ""
  above: tuple[str, ...] = ()
  below: tuple[str, ...] = ()

  @property
  def sub_question(self) -> str:
    return f"What is the {self.field} of {{}}?"

  @property
  def label(self) -> str:
    return self.field[0].upper() + self.field[1:]

  def wordings(self, held: bool) -> tuple[str, ...]:
    """User wordings with {} for the country."""
    nouns, held_nouns, asks, held_asks = phrases.OF[self.field]
    if held:
      nouns, asks, frames = held_nouns, held_asks, wordings_lib.HELD_FRAMES
    else:
      frames = wordings_lib.FRAMES
    framed = [f.replace("NOUN", noun) for noun in nouns for f in frames]
    # A relation's own sentences weigh as much as all the frames together.
    repeat = max(1, len(framed) // len(asks))
    return (*framed, *asks * repeat)

  def nouns(self, held: bool) -> tuple[str, ...]:
    nouns, held_nouns, _, _ = phrases.OF[self.field]
    return held_nouns if held else nouns


def _text(field, **kw):
  return Relation(field, ("text",), **kw)


def _number(field, header, unit="", form="{:,.0f}", above=(), below=(), **kw):
  return Relation(
    field,
    kw.pop("kbs", ("table",)),
    number=True,
    header=header,
    unit=unit,
    format=form,
    above=above,
    below=below,
  )


ALL = {
  relation.field: relation
  for relation in (
    _text("government type"),
    _text(
      "independence date",
      above=("became independent later", "gained independence later"),
      below=(
        "became independent earlier",
        "became independent first",
        "gained independence earlier",
      ),
    ),
    _text("national holiday"),
    _text("nationality"),
    _text("internet domain"),
    _text("time zone"),
    _text("highest point"),
    _text("national anthem"),
    _text("national symbol"),
    _text("main export good"),
    _text("main crop"),
    Relation("capital", ("text",)),
    Relation("currency", ("text", "table"), header="Currency"),
    _number(
      "number of administrative divisions",
      "",
      kbs=("text",),
      above=(
        "has more administrative divisions",
        "is cut into more administrative divisions",
      ),
      below=("has fewer administrative divisions",),
    ),
    _number("voting age", "", "years", kbs=("text",)),
    _number("calling code", "", form="{:.0f}", kbs=("text",)),
    _number(
      "highest elevation",
      "",
      "m",
      kbs=("text",),
      above=("has the higher highest point", "rises higher above the sea"),
      below=("has the lower highest point",),
    ),
    _number(
      "number of neighbours",
      "",
      kbs=("text",),
      above=("borders more countries", "has more neighbours"),
      below=("borders fewer countries",),
    ),
    _number(
      "population",
      "Population",
      "people",
      kbs=("table", "text"),
      above=(
        "has the larger population",
        "has more people",
        "has more inhabitants",
      ),
      below=("has the smaller population", "has fewer people"),
    ),
    _number(
      "area",
      "Area (sq km)",
      "sq km",
      kbs=("table", "text"),
      above=("has the larger area", "covers more land", "is bigger by area"),
      below=("has the smaller area", "is smaller by area"),
    ),
    _number(
      "gross domestic product",
      "Gross domestic product (billion $)",
      "billion dollars",
      "{:,.1f}",
      above=("has the higher GDP", "has the larger GDP"),
      below=("has the lower GDP",),
    ),
    _number(
      "GDP per capita",
      "GDP per capita ($)",
      "dollars",
      above=("has the higher GDP per capita", "has the larger GDP per capita"),
      below=("has the lower GDP per capita",),
    ),
    _number("life expectancy", "Life expectancy (years)", "years", "{:.1f}"),
    _number("median age", "Median age (years)", "years", "{:.1f}"),
    _number(
      "birth rate",
      "Birth rate (per 1,000)",
      "births per 1,000",
      "{:.1f}",
      above=("has the higher birth rate", "has more births per person"),
      below=("has the lower birth rate",),
    ),
    _number(
      "number of airports",
      "Number of airports",
      "airports",
      above=("has more airports", "has the larger number of airports"),
      below=("has fewer airports",),
    ),
    _number(
      "length of roadways",
      "Length of roadways (km)",
      "km",
      above=("has more roadways", "has the longer road network"),
      below=("has fewer roadways",),
    ),
    _number(
      "length of railways",
      "Length of railways (km)",
      "km",
      above=("has more railways", "has the longer rail network"),
      below=("has fewer railways",),
    ),
    _number(
      "length of coastline",
      "Length of coastline (km)",
      "km",
      above=("has the longer coastline", "has more coastline"),
      below=("has the shorter coastline",),
    ),
    _number(
      "number of internet users",
      "Number of internet users",
      "users",
      above=("has more internet users", "has more people online"),
      below=("has fewer internet users",),
    ),
    _number(
      "number of mobile phones",
      "Number of mobile phones",
      "phones",
      above=("has more mobile phones", "has more cell phones"),
      below=("has fewer mobile phones",),
    ),
    Relation("main export market", ("table",), header="Main export market"),
    Relation("main import source", ("table",), header="Main import source"),
    Relation("largest ethnic group", ("table",), header="Largest ethnic group"),
    Relation("main language", ("table",), header="Main language"),
    Relation("main religion", ("table",), header="Main religion"),
    Relation("largest city", ("table",), header="Largest city"),
  )
}


# Which fields a text passage holds together, by the passage's topic; chosen by
# how well MiniLM finds each of them.
PASSAGES = {
  "government": ("capital", "government type"),
  "borders": ("number of neighbours", "number of administrative divisions"),
  "people": ("nationality", "national holiday"),
  "citizens": ("voting age", "time zone"),
  "goods": ("main export good", "main crop"),
  "independence": ("independence date",),
  "money": ("currency",),
  "land": ("highest point", "highest elevation"),
  "symbols": ("national anthem", "national symbol"),
  "codes": ("calling code", "internet domain"),
  "size": ("population", "area"),
}

# Which section of the Factbook a table is said to come from.
SECTIONS = {
  "Geography": ("area", "length of coastline"),
  "People": (
    "population",
    "life expectancy",
    "median age",
    "birth rate",
    "largest ethnic group",
    "main language",
    "main religion",
    "largest city",
  ),
  "Economy": (
    "gross domestic product",
    "GDP per capita",
    "currency",
    "main export market",
    "main import source",
  ),
  "Transportation": (
    "number of airports",
    "length of roadways",
    "length of railways",
  ),
  "Communications": ("number of internet users", "number of mobile phones"),
}

# Facts that name their country alone, for "the country whose capital is ...".
BRIDGES = ("capital", "highest point", "national anthem")
