"""Refer to things of a domain: noun phrases, and the hops that find names.

A thing is named, shown in a picture, described by what a relation or a number
says of it ("the bridge that Mira Toll designed"), the object of a relation
("the designer of the Orvane Light") or an extreme of its kind.  References may
be nested; each but a name is one hop, innermost first, and the hop's
sub-question has the words of the reference, with names for what is known.
"""

import dataclasses
import operator
from collections.abc import Sequence

import numpy as np

from r1router_jax.common.records import Hop
from r1router_jax.data.domains.documents import Documents, capitalise
from r1router_jax.data.domains.domain import (
  Attribute,
  Domain,
  Group,
  Number,
  Relation,
  Thing,
  pick,
  sample,
  usual_home,
)
from r1router_jax.data.domains.lexicon import Lexicon


@dataclasses.dataclass(frozen=True)
class TracedHop:
  """A gold hop, with the thoughts of its plan and of its answer."""

  hop: Hop
  plan_thought: str = ""  # "" for the usual one.
  answer_thought: str = ""
  usual_home: str = ""  # Where one would look first; "" if nobody can say.


@dataclasses.dataclass(frozen=True)
class Reference:
  """A noun phrase for a thing, and the hops that find the thing's name."""

  text: str
  name: str
  hops: tuple[TracedHop, ...] = ()
  picture: str = ""  # Id of the passage whose picture the question shows.
  statement: str = ""  # What the noun phrase says, as a sentence.


class ReferenceMaker:
  """Makes references to the things of one domain.

  `others` are groups of other domains whose documents are searched, too: no
  description fits one of their things.
  """

  def __init__(
    self,
    lexicon: Lexicon,
    domain: Domain,
    documents: Documents,
    rng: np.random.Generator,
    others: Sequence[Group],
  ):
    self._lexicon, self._domain = lexicon, domain
    self._documents, self._rng = documents, rng
    self._others = others
    # Things by identity.
    self._group_of = {t: g for g in domain.groups for t in g.things}

  def refer_to(self, thing: Thing, depth: int) -> Reference:
    """Return a reference to a thing that takes at most `depth` hops."""
    ways = [
      self.describe_by_relation,
      self.describe_by_relation,
      self._describe_as_object,
      self._describe_by_picture,
      self._describe_by_picture,
      self._describe_as_extreme,
      self._describe_by_number,
    ]
    if depth > 0:
      for way in sample(self._rng, ways, 2):
        reference = way(thing, depth)
        if reference is not None:
          return reference
    return Reference(thing.name, thing.name)

  def refer_to_object(self, thing: Thing, name: str, depth: int) -> Reference:
    """Return a reference to the object of a relation of `thing`."""
    fact = thing.facts[name]
    if fact.thing is not None and self._rng.random() < 0.6:
      return self.refer_to(fact.thing, depth)
    return Reference(fact.text, fact.text)

  def describe_by_relation(self, thing: Thing, depth: int) -> Reference | None:
    """Return "the bridge that .. designed", None if nothing tells it apart."""
    group = self._group_of[thing]
    relations = [
      relation
      for relation in group.attributes_of(Relation)
      if self._is_unique(group, thing, relation)
    ]
    if not relations:
      return None
    relation = pick(self._rng, relations)
    wording, question = pick(self._rng, relation.describe)
    other = self.refer_to_object(thing, relation.name, depth - 1)
    words = dict(kind=group.kind.one, kinds=group.kind.many)
    text = wording.format(y=other.text, **words)
    asked = question.format(y=other.name, **words)
    hop = self.make_hop(asked, thing, relation, name_forms(thing.name), text)
    hops, some = (*other.hops, hop), f"a certain {group.kind.one}"
    told = pick(self._rng, relation.say).format(x=some, y=other.text)
    return Reference(text, thing.name, hops, other.picture, told)

  def _describe_by_number(self, thing: Thing, depth: int) -> Reference | None:
    del depth
    group = self._group_of[thing]
    numbers = [
      number
      for number in group.attributes_of(Number)
      if self._is_unique(group, thing, number)
    ]
    if not numbers:
      return None
    number = pick(self._rng, numbers)
    wording, question = pick(self._rng, self._lexicon.phrases.by_number)
    words = dict(kind=group.kind.one, name=number.name)
    words |= dict(v=thing.facts[number.name].text, kinds=group.kind.many)
    text, asked = wording.format(**words), question.format(**words)
    hop = self.make_hop(asked, thing, number, name_forms(thing.name), text)
    told = pick(self._rng, number.say)
    told = told.format(x=f"a certain {group.kind.one}", v=words["v"])
    return Reference(text, thing.name, (hop,), statement=told)

  def _describe_as_object(self, thing: Thing, depth: int) -> Reference | None:
    found = [
      (subject, relation)
      for group in self._domain.groups
      for relation in group.attributes_of(Relation)
      if relation.chain
      for subject in group.things
      if subject.facts[relation.name].thing is thing
    ]
    if not found:
      return None
    subject, relation = pick(self._rng, found)
    wording, question = pick(self._rng, relation.chain)
    other = self.refer_to(subject, depth - 1)
    text = wording.format(x=other.text)
    asked = question.format(x=other.name)
    hop = self.make_hop(asked, subject, relation, name_forms(thing.name), text)
    return Reference(text, thing.name, (*other.hops, hop), other.picture)

  def _describe_by_picture(self, thing: Thing, depth: int) -> Reference | None:
    del depth
    group = self._group_of[thing]
    if not group.item:
      return None
    picture = self.find_picture(thing)
    wording, question = pick(self._rng, self._lexicon.phrases.pictures)
    words = dict(kind=group.kind.one, item=group.item)
    hop = Hop(
      capitalise(question.format(**words)),
      ("image",),
      name_forms(thing.name),
      (picture,),
    )
    return Reference(
      wording.format(**words), thing.name, (TracedHop(hop),), picture
    )

  def _describe_as_extreme(self, thing: Thing, depth: int) -> Reference | None:
    del depth
    group = self._group_of[thing]
    for number in group.attributes_of(Number, "table"):
      for question, direction in sample(self._rng, number.most, 3):
        # Only such a question is a noun phrase, too.
        if not question.startswith("Which {kind} "):
          continue
        if find_extreme(group, number, direction) is not thing:
          continue
        if (group.kind.one, number.name) not in self._documents.whole_tables:
          continue
        kind = f"{group.kind.one} of {self._domain.place}"
        asked = question.format(kind=kind)
        verb = question.removeprefix("Which {kind} ").rstrip("?")
        pronoun = "who" if group.kind.category == "person" else "that"
        text = f"the {kind} {pronoun} {verb}"
        hop = self.make_extreme_hop(group, number, asked, thing)
        return Reference(text, thing.name, (hop,))
    return None

  def _is_unique(
    self, group: Group, thing: Thing, attribute: Attribute
  ) -> bool:
    """Return whether a value tells a thing from all others of its kind."""
    # Domains may write a number differently: 1,200 and 1200.
    is_number = isinstance(attribute, Number)
    read = operator.attrgetter("amount" if is_number else "text")
    values = [
      read(other.facts[attribute.name])
      for each in (group, *self._others)
      for other in each.things
      if each.kind is group.kind and attribute.name in other.facts
    ]
    return values.count(read(thing.facts[attribute.name])) == 1

  def find_picture(self, thing: Thing) -> str:
    """Return the id of the passage with the picture of a thing."""
    pictures = self._documents.pictures.items()
    return next(name for name, shown in pictures if shown is thing)

  def make_hop(
    self,
    asked: str,
    thing: Thing,
    attribute: Attribute,
    answers: tuple[str, ...],
    thought: str = "",
  ) -> TracedHop:
    """Return the hop that looks up an attribute of a thing."""
    routes = self._group_of[thing].homes[attribute.name]
    evidence = [
      passage
      for route in routes
      for passage in self._documents.evidence[thing, attribute.name, route]
    ]
    hop = Hop(capitalise(asked), routes, answers, tuple(evidence))
    return TracedHop(hop, thought, usual_home=usual_home(attribute))

  def make_extreme_hop(
    self, group: Group, number: Number, asked: str, thing: Thing
  ) -> TracedHop:
    """Return the hop that finds the thing with most or least of a number."""
    evidence = self._documents.whole_tables[group.kind.one, number.name]
    hop = Hop(
      capitalise(asked), ("table",), name_forms(thing.name), tuple(evidence)
    )
    # The answer stands at an end.
    values = rank_things(group.things, number)
    shown = [*values[:2], "..", values[-1]] if len(values) > 3 else values
    return TracedHop(hop, "", " > ".join(shown), usual_home="table")


def rank_things(things: Sequence[Thing], number: Number) -> list[str]:
  """Return "value (name)" of each thing, the larger numbers first."""
  ranked = sorted(things, key=lambda thing: -thing.facts[number.name].amount)
  return [f"{thing.facts[number.name].text} ({thing.name})" for thing in ranked]


def find_extreme(group: Group, number: Number, direction: str) -> Thing | None:
  """Return the thing with most or least of a number, if it is the only one."""
  sign = 1 if direction == "more" else -1
  amounts = [sign * thing.facts[number.name].amount for thing in group.things]
  if amounts.count(max(amounts)) > 1:
    return None
  return group.things[int(np.argmax(amounts))]


def name_forms(name: str) -> tuple[str, ...]:
  """Return a name as answers accept it: with and without its article."""
  bare = name.removeprefix("the ")
  return (name,) if bare == name else (name, bare)


def answer_forms(thing: Thing, attribute: Attribute) -> tuple[str, ...]:
  """Return an attribute's value as answers accept it."""
  text = thing.facts[attribute.name].text
  if isinstance(attribute, Number) and attribute.unit:
    return text, text.removesuffix(f" {attribute.unit}")
  return name_forms(text)
