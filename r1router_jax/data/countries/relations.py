"""The kinds of facts: their knowledge bases, formats and user wordings.

Each relation has one canonical sub-question, "What is the FIELD of COUNTRY?",
and many user wordings.  A wording is either a frame around one of the nouns of
the relation or a sentence of its own; held-out wordings are kept from training.

The wording says little about the route, on purpose: "How many ..." may need the
text (neighbours) or a table (airports), "main export good" stands in the text
and "main export market" in a table.
"""

import dataclasses

from r1router_jax.data.countries import phrases
from r1router_jax.data.countries.wordings import FRAMES, HELD_FRAMES


@dataclasses.dataclass(frozen=True)
class Relation:
  """One kind of fact.

  Attributes:
    field: name of the fact in knowledge bases and in the canonical
      sub-question.
    kbs: knowledge bases that hold the fact, the preferred one first.
    is_number: whether the values are numbers.
    format: the format of a number.
    header: the field as a table's header writes it, with the unit.
    unit: the unit that may follow the number in an answer, or "".
    above: verb phrases for "has the larger value"; empty if values of this
      field are not compared.
    below: verb phrases for "has the smaller value".
  """

  field: str
  kbs: tuple[str, ...]
  is_number: bool = False
  format: str = "{:,.0f}"
  header: str = ""
  unit: str = ""
  above: tuple[str, ...] = ()
  below: tuple[str, ...] = ()

  @property
  def sub_question(self) -> str:
    """The canonical sub-question, with {} for the country."""
    return f"What is the {self.field} of {{}}?"

  @property
  def label(self) -> str:
    """The field as the start of a sentence."""
    return self.field[0].upper() + self.field[1:]

  def wordings(
    self,
    held_out: bool,
    more_frames: tuple[str, ...] = (),
    more_nouns: tuple[str, ...] = (),
    more_sentences: tuple[str, ...] = (),
  ) -> tuple[str, ...]:
    """Return the user wordings with {} for the country."""
    nouns, held_nouns, sentences, held_sentences = phrases.PHRASES[self.field]
    frames = FRAMES
    if held_out:
      nouns, sentences, frames = held_nouns, held_sentences, HELD_FRAMES
    nouns, sentences = (*nouns, *more_nouns), (*sentences, *more_sentences)
    frames = (*frames, *more_frames)
    framed = [f.replace("NOUN", noun) for noun in nouns for f in frames]
    # A relation's own sentences weigh as much as all the frames together.
    repeat = max(1, len(framed) // len(sentences))
    return (*framed, *sentences * repeat)


def _text_relation(field: str, **options) -> Relation:
  return Relation(field, ("text",), **options)


def _number_relation(
  field: str,
  header: str,
  unit: str = "",
  form: str = "{:,.0f}",
  kbs: tuple[str, ...] = ("table",),
  **options,
) -> Relation:
  return Relation(
    field,
    kbs,
    is_number=True,
    header=header,
    unit=unit,
    format=form,
    **options,
  )


RELATIONS = {
  relation.field: relation
  for relation in (
    _text_relation("government type"),
    _text_relation(
      "independence date",
      above=("became independent later", "gained independence later"),
      below=(
        "became independent earlier",
        "became independent first",
        "gained independence earlier",
      ),
    ),
    _text_relation("national holiday"),
    _text_relation("nationality"),
    _text_relation("internet domain"),
    _text_relation("time zone"),
    _text_relation("highest point"),
    _text_relation("national anthem"),
    _text_relation("national symbol"),
    _text_relation("main export good"),
    _text_relation("main crop"),
    Relation("capital", ("text",)),
    Relation("currency", ("text", "table"), header="Currency"),
    _number_relation(
      "number of administrative divisions",
      "",
      kbs=("text",),
      above=(
        "has more administrative divisions",
        "is cut into more administrative divisions",
      ),
      below=("has fewer administrative divisions",),
    ),
    _number_relation("voting age", "", "years", kbs=("text",)),
    _number_relation("calling code", "", form="{:.0f}", kbs=("text",)),
    _number_relation(
      "highest elevation",
      "",
      "m",
      kbs=("text",),
      above=("has the higher highest point", "rises higher above the sea"),
      below=("has the lower highest point",),
    ),
    _number_relation(
      "number of neighbours",
      "",
      kbs=("text",),
      above=("borders more countries", "has more neighbours"),
      below=("borders fewer countries",),
    ),
    _number_relation(
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
    _number_relation(
      "area",
      "Area (sq km)",
      "sq km",
      kbs=("table", "text"),
      above=("has the larger area", "covers more land", "is bigger by area"),
      below=("has the smaller area", "is smaller by area"),
    ),
    _number_relation(
      "gross domestic product",
      "Gross domestic product (billion $)",
      "billion dollars",
      "{:,.1f}",
      above=("has the higher GDP", "has the larger GDP"),
      below=("has the lower GDP",),
    ),
    _number_relation(
      "GDP per capita",
      "GDP per capita ($)",
      "dollars",
      above=("has the higher GDP per capita", "has the larger GDP per capita"),
      below=("has the lower GDP per capita",),
    ),
    _number_relation(
      "life expectancy", "Life expectancy (years)", "years", "{:.1f}"
    ),
    _number_relation("median age", "Median age (years)", "years", "{:.1f}"),
    _number_relation(
      "birth rate",
      "Birth rate (per 1,000)",
      "births per 1,000",
      "{:.1f}",
      above=("has the higher birth rate", "has more births per person"),
      below=("has the lower birth rate",),
    ),
    _number_relation(
      "number of airports",
      "Number of airports",
      "airports",
      above=("has more airports", "has the larger number of airports"),
      below=("has fewer airports",),
    ),
    _number_relation(
      "length of roadways",
      "Length of roadways (km)",
      "km",
      above=("has more roadways", "has the longer road network"),
      below=("has fewer roadways",),
    ),
    _number_relation(
      "length of railways",
      "Length of railways (km)",
      "km",
      above=("has more railways", "has the longer rail network"),
      below=("has fewer railways",),
    ),
    _number_relation(
      "length of coastline",
      "Length of coastline (km)",
      "km",
      above=("has the longer coastline", "has more coastline"),
      below=("has the shorter coastline",),
    ),
    _number_relation(
      "number of internet users",
      "Number of internet users",
      "users",
      above=("has more internet users", "has more people online"),
      below=("has fewer internet users",),
    ),
    _number_relation(
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


# The fields that a text passage holds together, by the passage's topic; chosen
# by how well MiniLM finds each of them.
PASSAGE_FIELDS = {
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

# The fields of tables, by the section of the Factbook that a table names.
SECTION_FIELDS = {
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

# Facts that may describe a country, as in "the country whose capital is ...".
BRIDGE_FIELDS = ("capital", "highest point", "national anthem")
