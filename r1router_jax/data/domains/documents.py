"""Write a domain down: passages of text, tables, and captions of pictures.

Texts tell the facts of a thing in one or two passages, in sentences, as a list
of fields, or several things in one passage, with sentences between them that
matter to nobody.  Tables have a row for each thing and one column or more
beside its name; large ones are cut into pieces.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np

from r1router_jax.common.records import Passage
from r1router_jax.data.domains.domain import (
  Domain,
  Group,
  Number,
  Relation,
  Thing,
  Visual,
  pick,
  sample,
)
from r1router_jax.data.domains.lexicon import Lexicon
from r1router_jax.retrieval.corpora import open_wikitable

# Of the facts of a passage; with title and fillers it may have some 40 more.
_MAX_WORDS = 90
_MAX_CELLS = 22  # Of a table, names included.

_Told = tuple[Thing, str]  # A fact: its thing, and name of the attribute.
_Part = tuple[str, list[_Told]]  # A text, and the facts that it tells.


@dataclasses.dataclass
class Documents:
  """The passages of a domain, and which of them tell which fact.

  Attributes:
    passages: by knowledge base.
    evidence: ids of the passages that tell a fact, by thing, name of the
      attribute and knowledge base.
    whole_tables: ids of the tables with all things of a kind, by singular of
      the kind and name of the attribute.
    pictures: the thing that each picture shows, by id of its passage.
  """

  passages: dict[str, list[Passage]]
  evidence: dict[tuple[Thing, str, str], list[str]]
  whole_tables: dict[tuple[str, str], list[str]]
  pictures: dict[str, Thing]


def write_documents(
  lexicon: Lexicon, domain: Domain, prefix: str, rng: np.random.Generator
) -> Documents:
  """Write all facts of a domain down; ids of passages begin with `prefix`."""
  writer = _Writer(lexicon, domain, prefix, rng)
  for group in domain.groups:
    writer.write_texts(group)
    writer.write_tables(group)
    writer.write_captions(group)
  return writer.documents


def capitalise(text: str) -> str:
  """Return a text with its first letter in upper case."""
  return text[:1].upper() + text[1:]


def lower_first(lexicon: Lexicon, text: str, names: Iterable[str]) -> str:
  """Return a text with its first word in lower case, if it is no name's.

  `names` are those that the text may begin with, such as "The Fox".
  """
  first = text.split(" ", 1)[0]
  is_word = first in first_words(lexicon)
  if not is_word or text.startswith(tuple(names)):
    return text
  return text[:1].lower() + text[1:]


@functools.lru_cache(maxsize=2)
def first_words(lexicon: Lexicon) -> frozenset[str]:
  """Return the words that sentences and questions begin with, names apart."""
  texts = [*lexicon.phrases.fictions]
  for each in (*lexicon.relations, *lexicon.numbers, *lexicon.visuals):
    for field in msgspec.structs.astuple(each):
      for entry in field if isinstance(field, tuple) else ():
        texts += [entry] if isinstance(entry, str) else entry
  words = {text.split(" ", 1)[0] for text in texts}
  return frozenset(w for w in words if w[:1].isalpha()) - {"I", "I'd"}


def make_statement(
  thing: Thing, attribute: Relation | Number, rng: np.random.Generator
) -> str:
  """Return a sentence that names the thing and tells a fact about it."""
  value = thing.facts[attribute.name].text
  template = pick(rng, attribute.say)
  return capitalise(template.format(x=thing.name, y=value, v=value))


class _Writer:
  """Writes one domain down, group by group, into `documents`."""

  def __init__(
    self,
    lexicon: Lexicon,
    domain: Domain,
    prefix: str,
    rng: np.random.Generator,
  ):
    self._lexicon, self._domain = lexicon, domain
    self._prefix, self._rng = prefix, rng
    passages = dict(text=[], image=[], table=[])
    self.documents = Documents(passages, collections.defaultdict(list), {}, {})

  def write_texts(self, group: Group) -> None:
    """Write the facts of a group that are at home in texts."""
    told = group.attributes_of((Relation, Number), "text")
    if not told:
      return
    lexicon, rng = self._lexicon, self._rng
    title = self._draw_title(group)
    parts: list[_Part] = []
    style = pick(
      rng, ("flow", "flow", "headed", "headed", "fields", "together")
    )
    if style == "together":
      for attribute in told:
        parts += _tell_together(lexicon, group.things, attribute, rng)
    else:
      for thing in group.things:
        parts += _TELL[style](lexicon, thing, told, rng)
    if style == "flow" and rng.random() < 0.4:
      parts = _join_parts(parts)
    has_title = rng.random() < 0.5
    for text, facts in parts:
      self._add("text", f"{title}. {text}" if has_title else text, facts)

  def write_tables(self, group: Group) -> None:
    """Write the facts of a group that are at home in tables."""
    rng = self._rng
    told = group.attributes_of((Relation, Number), "table")
    told = sample(rng, told, len(told))
    # One table of all columns, or one of each.
    sets = [told] if rng.random() < 0.6 else [[column] for column in told]
    drops_article = rng.random() < 0.5
    for columns in sets:
      if not columns:
        continue
      title = self._draw_title(group)
      rows = sample(rng, group.things, len(group.things))
      size = len(rows)
      if size > 5 and rng.random() < 0.2:
        size = -(-size // 2)
      # Many columns leave room for few rows.
      size = min(size, _MAX_CELLS // (1 + len(columns)))
      for start in range(0, len(rows), size):
        some = rows[start : start + size]
        text = _render_table(group, columns, some, title, drops_article, rng)
        facts = [(thing, column.name) for column in columns for thing in some]
        passage_id = self._add("table", text, facts)
        for column in columns if len(some) == len(rows) else ():
          key = group.kind.one, column.name
          self.documents.whole_tables.setdefault(key, []).append(passage_id)

  def write_captions(self, group: Group) -> None:
    """Write a caption for each thing of a group that pictures show."""
    visuals = group.attributes_of(Visual)
    for thing in group.things if visuals else ():
      parts = [v.part.format(v=thing.facts[v.name].text) for v in visuals]
      template = pick(self._rng, self._lexicon.phrases.captions)
      parts = ", ".join(sample(self._rng, parts, 3))
      text = template.format(item=group.item, x=thing.name, parts=parts)
      facts = [(thing, visual.name) for visual in visuals]
      passage_id = self._add("image", capitalise(text), facts)
      self.documents.pictures[passage_id] = thing

  def _draw_title(self, group: Group) -> str:
    template = pick(self._rng, self._lexicon.phrases.titles)
    title = template.format(kinds=group.kind.many, place=self._domain.place)
    return capitalise(title)

  def _add(self, kb: str, text: str, facts: Iterable[_Told]) -> str:
    """Add a passage that tells some facts; return its id."""
    passages = self.documents.passages[kb]
    passage_id = f"{self._prefix}/{kb}/{len(passages)}"
    passages.append(Passage(passage_id, kb, text))
    for thing, name in facts:
      self.documents.evidence[thing, name, kb].append(passage_id)
    return passage_id


def _tell_flow(
  lexicon: Lexicon,
  thing: Thing,
  told: Sequence[Relation | Number],
  rng: np.random.Generator,
) -> Iterator[_Part]:
  """Yield one or two passages of sentences about a thing."""
  order = sample(rng, told, len(told))
  cut = len(order)
  if cut > 1 and rng.random() < 0.3:
    cut = int(rng.integers(1, cut))
  for part in (order[:cut], order[cut:]):
    if not part:
      continue
    sentences, facts = [], []
    for attribute in part:
      value = thing.facts[attribute.name].text
      # The first sentence names the thing, later ones may say "it".
      if sentences and rng.random() < 0.7:
        text = pick(rng, attribute.it_say).format(y=value, v=value)
        sentence = capitalise(text)
      else:
        sentence = make_statement(thing, attribute, rng)
      if len(" ".join([*sentences, sentence]).split()) > _MAX_WORDS:
        yield " ".join(sentences), facts
        sentences, facts = [make_statement(thing, attribute, rng)], []
      elif sentences and rng.random() < 0.25:
        # Two facts in one sentence.
        joint = pick(rng, lexicon.phrases.joints)
        second = lower_first(lexicon, sentence, (thing.name, value))
        sentences[-1] = sentences[-1].removesuffix(".") + joint + second
      else:
        sentences.append(sentence)
      facts.append((thing, attribute.name))
    # Sentences that tell nothing; not before the name is known.
    for filler in sample(rng, lexicon.phrases.fillers, int(rng.integers(0, 4))):
      sentences.insert(int(rng.integers(1, len(sentences) + 1)), filler)
    yield " ".join(sentences), facts


def _tell_headed(
  lexicon: Lexicon,
  thing: Thing,
  told: Sequence[Relation | Number],
  rng: np.random.Generator,
) -> Iterator[_Part]:
  """Yield a passage whose heading alone names the thing."""
  order = sample(rng, told, len(told))
  sentences = []
  for attribute in order:
    value = thing.facts[attribute.name].text
    text = pick(rng, attribute.it_say).format(y=value, v=value)
    sentences.append(capitalise(text))
  for filler in sample(rng, lexicon.phrases.fillers, int(rng.integers(0, 4))):
    sentences.insert(int(rng.integers(0, len(sentences) + 1)), filler)
  text = " ".join([f"{capitalise(thing.name)}.", *sentences])
  yield text, [(thing, attribute.name) for attribute in order]


def _join_parts(parts: Sequence[_Part]) -> list[_Part]:
  """Join neighbouring texts as long as they fit into one passage."""
  joined = [parts[0]]
  for text, facts in parts[1:]:
    last, known = joined[-1]
    if len(f"{last} {text}".split()) <= _MAX_WORDS:
      joined[-1] = f"{last} {text}", [*known, *facts]
    else:
      joined.append((text, facts))
  return joined


def _tell_fields(
  lexicon: Lexicon,
  thing: Thing,
  told: Sequence[Relation | Number],
  rng: np.random.Generator,
) -> Iterator[_Part]:
  """Yield a passage "Name. Field: value. Field: value."."""
  del lexicon
  order = sample(rng, told, len(told))
  fields = [f"{a.header}: {thing.facts[a.name].text}." for a in order]
  text = " ".join([f"{capitalise(thing.name)}.", *fields])
  yield text, [(thing, attribute.name) for attribute in order]


# Ways of telling one thing.
_TELL = dict(flow=_tell_flow, headed=_tell_headed, fields=_tell_fields)


def _tell_together(
  lexicon: Lexicon,
  things: Sequence[Thing],
  attribute: Relation | Number,
  rng: np.random.Generator,
) -> Iterator[_Part]:
  """Yield passages that tell one attribute of several things each."""
  size = int(rng.integers(2, 5))
  order = sample(rng, things, len(things))
  for start in range(0, len(order), size):
    some = order[start : start + size]
    sentences = [make_statement(thing, attribute, rng) for thing in some]
    if rng.random() < 0.5:
      place = int(rng.integers(len(sentences) + 1))
      sentences.insert(place, pick(rng, lexicon.phrases.fillers))
    yield " ".join(sentences), [(thing, attribute.name) for thing in some]


def _render_table(
  group: Group,
  columns: Sequence[Relation | Number],
  things: Sequence[Thing],
  title: str,
  drops_article: bool,
  rng: np.random.Generator,
) -> str:
  """Return a table in one line, as build_kb flattens it."""
  names = [thing.name for thing in things]
  if drops_article:
    names = [name.removeprefix("the ") for name in names]
  # Units stand in the header, and in the cells of some columns, too.
  with_units = {c.name: bool(rng.random() < 0.4) for c in columns}
  rows = [
    [capitalise(name)]
    + [
      _table_cell(thing, column, with_units[column.name]) for column in columns
    ]
    for name, thing in zip(names, things, strict=True)
  ]
  first = pick(rng, ("Name", capitalise(group.kind.one)))
  header = [first, *(column.header for column in columns)]
  fields = dict(title=title)
  if rng.random() < 0.3:
    fields["caption"] = ", ".join(column.header for column in columns)
  return open_wikitable.flatten_table(fields | dict(header=header, rows=rows))


def _table_cell(
  thing: Thing, column: Relation | Number, with_unit: bool
) -> str:
  text = thing.facts[column.name].text
  if isinstance(column, Number) and column.unit and not with_unit:
    return text.removesuffix(f" {column.unit}")
  return text
