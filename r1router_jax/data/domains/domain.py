"""Draw one invented domain: things of a few kinds, and facts about them.

A domain has three to five kinds of things with relations and numbers.  Persons
and places that things are related to are things of the domain themselves, with
facts of their own, so that questions may go from one to the next.  Each
attribute of a kind stands in one place, its home: in texts, in a table, in
both, or, what can be seen, in the captions of pictures.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import msgspec
import numpy as np

from r1router_jax.data.domains.lexicon import (
  Kind,
  Lexicon,
  Number,
  Relation,
  Visual,
)
from r1router_jax.data.domains.names import NameMaker

Attribute = Relation | Number | Visual
_Item = TypeVar("_Item")

# By object of a relation: the class of the things that stand for it, and the
# pattern of their names if the domain has no such things.
_OBJECTS = dict(
  person=("person", "{full_name}"),
  place=("place", "{root}"),
  organisation=("group", "{root} {noun} Company"),
  work=("work", "{adjective} {noun}"),
)


@dataclasses.dataclass(eq=False)
class Fact:
  """The value of an attribute of a thing.

  Attributes:
    text: the value as documents write it, with its unit.
    amount: the number itself; 0 if the value is no number.
    thing: the thing of the domain that the value names, or None.
  """

  text: str
  amount: float = 0.0
  thing: "Thing | None" = None


@dataclasses.dataclass(eq=False)
class Thing:
  """A thing of the domain, with its facts by name of the attribute."""

  name: str
  kind: Kind
  facts: dict[str, Fact] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class Group:
  """All things of one kind, and where their attributes are told.

  Attributes:
    homes: the knowledge bases of each attribute, by its name.
    item: what pictures of these things show, such as a badge; "" for none.
  """

  kind: Kind
  things: list[Thing]
  attributes: dict[str, Attribute]
  homes: dict[str, tuple[str, ...]]
  item: str = ""

  def attributes_of(
    self, classes: type | tuple[type, ...], home: str = ""
  ) -> list:
    """Return the attributes of some classes, only those at home in `home`."""
    return [
      attribute
      for name, attribute in self.attributes.items()
      if isinstance(attribute, classes)
      and (not home or home in self.homes[name])
    ]


@dataclasses.dataclass(eq=False)
class Domain:
  """A domain: its name, that of a place, and its groups of things."""

  place: str
  groups: list[Group]
  # Attributes, by name of the kind, that no thing of this domain tells.
  untold: dict[str, list[Attribute]]


def pick(rng: np.random.Generator, items: Sequence[_Item]) -> _Item:
  """Return one of the items at random."""
  return items[int(rng.integers(len(items)))]


def sample(
  rng: np.random.Generator, items: Sequence[_Item], count: int
) -> list[_Item]:
  """Return up to `count` different items in random order."""
  order = rng.permutation(len(items))[:count]
  return [items[i] for i in order.tolist()]


def make_domain(
  lexicon: Lexicon,
  rng: np.random.Generator,
  taken: Sequence[Kind] = (),
  used: set[str] | None = None,
) -> Domain:
  """Draw a domain.

  Args:
    lexicon: the words of a half.
    rng: draws it.
    taken: kinds that are none of its main ones, as long as others are left.
    used: names that its things do not have; theirs are added.
  """
  names = NameMaker(lexicon.phrases, rng, used)
  place = names.fill("{root}")

  # 1. Kinds: one or two main ones, and those of the objects of relations.
  main = [k for k in lexicon.kinds if k not in taken] or lexicon.kinds
  kinds = sample(rng, main, int(rng.integers(1, 3)))
  for category in ("person", "place"):
    others = [k for k in lexicon.kinds if k.category == category]
    kinds += sample(rng, [k for k in others if k not in kinds], 1)
  if rng.random() < 0.4:
    others = [k for k in lexicon.kinds if k.category in ("group", "work")]
    kinds += sample(rng, [k for k in others if k not in kinds], 1)

  # 2. Things, and the attributes of each kind.
  groups, untold = [], {}
  for kind in kinds:
    count = int(rng.integers(4, 11))
    things = [
      Thing(names.fill(pick(rng, kind.names)), kind) for _ in range(count)
    ]
    group, rest = _make_group(lexicon, kind, things, rng)
    groups.append(group)
    untold[kind.one] = rest

  # 3. Facts, which may name things of other groups.
  has_commas = rng.random() < 0.5
  for group in groups:
    for attribute in group.attributes.values():
      values = _draw_values(attribute, group, groups, names, rng, has_commas)
      for thing, fact in zip(group.things, values, strict=True):
        thing.facts[attribute.name] = fact
  return Domain(place, groups, untold)


def _make_group(
  lexicon: Lexicon,
  kind: Kind,
  things: list[Thing],
  rng: np.random.Generator,
) -> tuple[Group, list[Attribute]]:
  """Return a group, still without facts, and the attributes left over."""
  relations = [r for r in lexicon.relations if kind.category in r.of]
  numbers = [n for n in lexicon.numbers if kind.category in n.of]
  relations = sample(rng, relations, len(relations))
  numbers = sample(rng, numbers, len(numbers))
  counts = int(rng.integers(2, 5)), int(rng.integers(1, 4))
  chosen: list[Attribute] = [*relations[: counts[0]], *numbers[: counts[1]]]
  homes = {a.name: _draw_home(a, rng) for a in chosen}
  # Pictures of things that have a badge or the like.
  item = ""
  if kind.category not in ("event", "substance") and rng.random() < 0.5:
    item = pick(rng, lexicon.phrases.picture_items)
    visuals = sample(rng, lexicon.visuals, 3)
    chosen += visuals
    homes |= {visual.name: ("image",) for visual in visuals}
  chosen = _split_series(chosen, homes, rng)
  group = Group(kind, things, {a.name: a for a in chosen}, homes, item)
  return group, [*relations[counts[0] :], *numbers[counts[1] :]]


def _split_series(
  attributes: Sequence[Attribute],
  homes: dict[str, tuple[str, ...]],
  rng: np.random.Generator,
) -> list[Attribute]:
  """Replace some numbers of tables by one for each of two or three years."""
  result: list[Attribute] = []
  for attribute in attributes:
    is_series = isinstance(attribute, Number) and attribute.series
    home = homes[attribute.name]
    if not is_series or home != ("table",) or rng.random() < 0.5:
      result.append(attribute)
      continue
    years = rng.integers(1700, 2020) + 10 * np.arange(rng.integers(2, 4))
    for year in years.tolist():
      result.append(_in_year(attribute, year))
      homes[result[-1].name] = home
  return result


def _in_year(number: Number, year: int) -> Number:
  """Return a number as it was in a year, which all its wordings name."""

  def add_year(entry):
    if isinstance(entry, tuple):
      return tuple(map(add_year, entry))
    # Directions, "more" and "less", have no end.
    end = entry[-1]
    return f"{entry[:-1]} in {year}{end}" if end in "?." else entry

  # Questions that bring their evidence, or take two sentences, state it, too.
  fields = ("say", "ask", "compare", "compare_check", "check", "most")
  wordings = {field: add_year(getattr(number, field)) for field in fields}
  return msgspec.structs.replace(
    number,
    name=f"{number.name} in {year}",
    header=f"{number.header}, {year}",
    **wordings,
  )


def usual_home(attribute: Attribute) -> str:
  """Return where one would look for an attribute first.

  People keep in tables what is counted or measured, and tell the rest.
  """
  is_measure = isinstance(attribute, Number) and not attribute.year
  return "table" if is_measure else "text"


def _draw_home(
  attribute: Attribute, rng: np.random.Generator
) -> tuple[str, ...]:
  """Return where an attribute is told.

  What is counted or measured is mostly in tables, as people keep it there:
  otherwise nothing in a question would tell which knowledge base to ask.
  """
  in_table = 0.25
  if isinstance(attribute, Number):
    in_table = 0.4 if attribute.year else 0.85
  draw = rng.random()
  if draw < 0.08:
    return ("text", "table")
  return ("table",) if draw < 0.08 + 0.92 * in_table else ("text",)


def _draw_values(
  attribute: Attribute,
  group: Group,
  groups: Sequence[Group],
  names: NameMaker,
  rng: np.random.Generator,
  has_commas: bool,
) -> list[Fact]:
  """Draw a value of an attribute for each thing of a group."""
  count = len(group.things)
  if isinstance(attribute, Number):
    return _draw_numbers(attribute, count, rng, has_commas)
  if isinstance(attribute, Visual) or attribute.object == "value":
    return [Fact(pick(rng, attribute.values)) for _ in range(count)]
  # Objects are things of the domain, of a fitting group, or names alone.
  category, pattern = _OBJECTS[attribute.object]
  fitting = [
    g for g in groups if g.kind.category == category and g is not group
  ]
  # The object of a symmetric relation has it, too: it must tell of no other.
  if fitting and not attribute.symmetric:
    objects = pick(rng, fitting).things
    return [
      Fact(x.name, thing=x) for x in (pick(rng, objects) for _ in range(count))
    ]
  objects = [names.fill(pattern) for _ in range(max(2, round(0.8 * count)))]
  return [Fact(pick(rng, objects)) for _ in range(count)]


def _draw_numbers(
  number: Number, count: int, rng: np.random.Generator, has_commas: bool
) -> list[Fact]:
  """Draw numbers, mostly different.

  Those of a wide range are spread evenly in their logarithm, unless years.
  """
  facts, seen = [], set()
  while len(facts) < count:
    low, high = number.low, number.high
    if number.year or low <= 0 or high / low < 20:
      amount = rng.uniform(low, high)
    else:
      amount = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    amount = float(round(amount, number.decimals))
    # A small range has few numbers: these may repeat.
    if amount in seen and rng.random() < 0.9:
      continue
    seen.add(amount)
    facts.append(Fact(format_amount(number, amount, has_commas), amount))
  return facts


def format_amount(number: Number, amount: float, has_commas: bool) -> str:
  """Return a number as documents write it, with its unit."""
  comma = "," if has_commas and not number.year else ""
  text = f"{amount:{comma}.{number.decimals}f}"
  return f"{text} {number.unit}" if number.unit else text
