"""The words of the grammar: kinds of things, relations, numbers, phrases.

They stand in TOML files, `files/domains/<half>/`.  The two halves, "train" and
"test", share no kind of thing, relation, number or wording, so that the test
half tells what a policy makes of words that it never learnt from.

Templates have slots: `{x}` a thing, `{y}` what it is related to, `{v}` a number
with its unit, `{kind}` and `{kinds}` its kind, `{a}` and `{b}` two things.  A
pair of templates is a wording and the question that looks it up in the same
words, so that a sub-question keeps the words of its question.
"""

import functools
import pathlib

import msgspec

from r1router_jax.common.errors import UserError

FOLDER = pathlib.Path(__file__).parents[1] / "files" / "domains"
HALVES = ("train", "test")

Pair = tuple[str, str]
Directed = tuple[str, str, str]  # A pair, and "more" or "less".


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """A record of a file; a misspelt key of it is an error."""


class Kind(_Row, frozen=True, rename={"category": "class"}):
  """A kind of thing, such as lighthouses."""

  one: str
  many: str
  category: str  # One of twelve classes, such as "structure".
  names: tuple[str, ...]  # Patterns of names.


class Relation(_Row, frozen=True):
  """An attribute whose value is a person, a place or a word."""

  name: str
  header: str  # Of its column in a table.
  of: tuple[str, ...]  # The classes of things that have it.
  object: str  # "person", "place", "organisation", "work" or "value".
  say: tuple[str, ...]
  it_say: tuple[str, ...]
  ask: tuple[str, ...]
  describe: tuple[Pair, ...]
  check: tuple[Pair, ...]
  values: tuple[str, ...] = ()
  chain: tuple[Pair, ...] = ()
  count: tuple[str, ...] = ()
  symmetric: bool = False  # Whether it holds the other way round, too.


class Number(_Row, frozen=True):
  """An attribute whose value is a number or a year."""

  name: str
  header: str
  of: tuple[str, ...]
  unit: str
  low: float
  high: float
  say: tuple[str, ...]
  it_say: tuple[str, ...]
  ask: tuple[str, ...]
  compare: tuple[Directed, ...]
  compare_check: tuple[Directed, ...]
  check: tuple[Pair, ...]
  most: tuple[Pair, ...]  # A question and "more" or "less".
  decimals: int = 0
  year: bool = False
  series: bool = False  # Changes over the years: tables have some of them.


class Visual(_Row, frozen=True):
  """An attribute that can be seen in a picture, and drawn by `drawing.py`."""

  name: str  # Key of `drawing.PARTS`.
  values: tuple[str, ...]
  part: str  # The words of a caption that tell it.
  ask: tuple[str, ...]


class Phrases(_Row, frozen=True):
  """Wordings that belong to no attribute; see the files for examples."""

  adjectives: tuple[str, ...]
  nouns: tuple[str, ...]
  openings: tuple[str, ...]  # Before a question.
  fillers: tuple[str, ...]  # Sentences without a fact that is asked for.
  joints: tuple[str, ...]  # Between two facts of one sentence.
  titles: tuple[str, ...]  # Of tables and documents.
  pictures: tuple[Pair, ...]  # Noun phrases of the thing in the picture.
  picture_items: tuple[str, ...]  # What pictures show: badges, signs.
  captions: tuple[str, ...]
  recalls: tuple[str, ...]  # Questions that bring their own evidence.
  intros: tuple[str, ...]  # Before a question about "this bridge".
  by_number: tuple[Pair, ...]  # Descriptions by the value of a number.
  fictions: tuple[str, ...]  # Questions that no document answers.


class StoryTable(_Row, frozen=True):
  """A table of a story."""

  title: str
  header: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]


class StoryQuestion(_Row, frozen=True):
  """A question about a story.

  Attributes:
    ask: the question.
    hops: knowledge base, sub-question and answer of each hop; accepted forms of
      an answer have | between them.
    answer: the final answer, if it is not that of the last hop.
    picture: place of the story's picture that the question shows, from 1; or 0.
  """

  ask: str
  hops: tuple[tuple[str, str, str], ...]
  answer: str = ""
  picture: int = 0


class Story(_Row, frozen=True):
  """A document written by hand, with slots for names and numbers.

  Attributes:
    title: stands before each of its passages.
    texts: its passages.
    questions: what is asked about it.
    slots: what each slot is filled with: "person", "year 1700 1900", "of: red;
      blue" or another word of `stories.py`.
    tables: its tables.
    captions: captions of its pictures, which nobody has drawn.
  """

  title: str
  texts: tuple[str, ...]
  questions: tuple[StoryQuestion, ...]
  slots: dict[str, str]
  tables: tuple[StoryTable, ...] = ()
  captions: tuple[str, ...] = ()


class _File(_Row, frozen=True):
  """The records of one file; those of a kind may be spread over several."""

  kind: tuple[Kind, ...] = ()
  relation: tuple[Relation, ...] = ()
  number: tuple[Number, ...] = ()
  visual: tuple[Visual, ...] = ()
  phrases: tuple[Phrases, ...] = ()
  story: tuple[Story, ...] = ()


class Lexicon(msgspec.Struct, frozen=True, eq=False):
  """All words of one half."""

  kinds: tuple[Kind, ...]
  relations: tuple[Relation, ...]
  numbers: tuple[Number, ...]
  visuals: tuple[Visual, ...]
  phrases: Phrases
  stories: tuple[Story, ...]


@functools.cache
def load_lexicon(half: str) -> Lexicon:
  """Return the words of a half, "train" or "test"; another is a UserError."""
  if half not in HALVES:
    raise UserError(f"The grammar has no half {half!r}: take train or test.")
  files = [_read_file(path) for path in sorted((FOLDER / half).glob("*.toml"))]
  return Lexicon(
    tuple(record for file in files for record in file.kind),
    tuple(record for file in files for record in file.relation),
    tuple(record for file in files for record in file.number),
    tuple(record for file in files for record in file.visual),
    *(record for file in files for record in file.phrases),
    tuple(record for file in files for record in file.story),
  )


def _read_file(path: pathlib.Path) -> _File:
  try:
    return msgspec.toml.decode(path.read_bytes(), type=_File)
  except msgspec.DecodeError as error:
    raise UserError(f"{path}: {error}.  Correct it there.") from error
