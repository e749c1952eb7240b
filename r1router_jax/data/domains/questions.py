"""Ask about a domain: questions of one to three hops, with their gold traces.

A question refers to a thing by name, by its picture, by what a relation says
of it ("the bridge that Mira Toll designed"), as the object of a relation ("the
designer of the Orvane Light") or as an extreme of its kind, and references may
be nested.  Each reference but a name is one hop, innermost first; the hop's
sub-question has the words of the reference, with names for what is known.

Questions ask for an attribute or a name, compare two numbers, check a value,
count the rows of a table, need no search because they bring their evidence, or
have no answer in any document: the right answer is then "unknown".
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from r1router_jax.common.records import MAX_HOPS, Hop, Question
from r1router_jax.data.domains.documents import (
  Documents,
  capitalise,
  lower_first,
  make_statement,
)
from r1router_jax.data.domains.domain import (
  Attribute,
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

UNKNOWN = ("unknown", "not stated", "it is not known")

# Share of each kind of question; methods of `QuestionMaker`.
WEIGHTS = dict(
  attribute=46,
  name=10,
  visual=6,
  check=9,
  compare=10,
  compare_check=5,
  count=4,
  extreme=4,
  recall=3,
  unknown=5,
)

_NUMBER_WORDS = "zero one two three four five six seven eight nine ten".split()


@dataclasses.dataclass(frozen=True)
class TracedHop:
  """A gold hop, with the thoughts of its plan and of its answer."""

  hop: Hop
  plan_thought: str = ""  # "" for the usual one.
  answer_thought: str = ""


@dataclasses.dataclass(frozen=True)
class Trace:
  """A question, with the thoughts of its gold trajectory.

  Attributes:
    question: the question with its gold hops.
    hops: these hops with their thoughts.
    final_thought: the thought of the final step, "" for the usual one.
    picture: id of the passage whose picture the question shows, or "".
  """

  question: Question
  hops: tuple[TracedHop, ...]
  final_thought: str = ""
  picture: str = ""


@dataclasses.dataclass(frozen=True)
class Reference:
  """A noun phrase for a thing, and the hops that find the thing's name."""

  text: str
  name: str
  hops: tuple[TracedHop, ...] = ()
  picture: str = ""
  statement: str = ""  # What the noun phrase says, as a sentence.


class Unaskable(Exception):
  """The domain does not have what a kind of question needs."""


class QuestionMaker:
  """Makes questions about one domain."""

  def __init__(
    self,
    lexicon: Lexicon,
    domain: Domain,
    documents: Documents,
    rng: np.random.Generator,
    others: Sequence[Group] = (),
  ):
    """Prepare to ask about a domain.

    Args:
      lexicon: the words of the domain's half.
      domain: the domain.
      documents: what tells of it.
      rng: draws the questions.
      others: groups of other domains whose documents are searched, too: no
        description fits one of their things.
    """
    self._lexicon, self._domain = lexicon, domain
    self._others = others
    self._documents, self._rng = documents, rng
    # Things by identity: the group, and who is related to them.
    self._group_of = {t: g for g in domain.groups for t in g.things}

  def __call__(self, question_id: str) -> Trace:
    """Return a question of a random kind that the domain allows."""
    rng = self._rng
    kinds, weights = list(WEIGHTS), np.array([*WEIGHTS.values()], float)
    while True:
      kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
      make: Callable[[], Trace] = getattr(self, f"_ask_{kind}")
      try:
        trace = make()
      except Unaskable:
        continue
      # Nothing is asked that the question says itself, or a hop before.
      answer = trace.question.answers[0]
      known = [hop.hop.answers[0] for hop in trace.hops[:-1]]
      given = kind in ("attribute", "name", "visual", "count") and (
        answer in trace.question.text or answer in known
      )
      if given or len(trace.hops) > MAX_HOPS:
        continue
      return self._finish(trace, question_id, kind)

  def _finish(self, trace: Trace, question_id: str, kind: str) -> Trace:
    """Add id, family and an opening, as people write one."""
    rng, text = self._rng, trace.question.text
    if kind != "recall":
      text = capitalise(text)
      names = [thing.name for thing in self._group_of]
      # An opening does not stand before a request, which ends with a stop.
      if text.endswith("?") and rng.random() < 0.12:
        opening = pick(rng, self._lexicon.phrases.openings)
        if not opening.rstrip().endswith((".", "!", "?")):
          text = lower_first(self._lexicon, text, names)
        text = opening + text
      if rng.random() < 0.06:
        text = lower_first(self._lexicon, text, names).rstrip("?.")
    routes = [hop.hop.routes[0] for hop in trace.hops]
    question = dataclasses.replace(
      trace.question,
      id=question_id,
      text=text,
      family="_".join([kind, *routes]),
      hops=tuple(hop.hop for hop in trace.hops),
    )
    return dataclasses.replace(trace, question=question)

  # --- References -------------------------------------------------------------

  def _refer(self, thing: Thing, depth: int) -> Reference:
    """Return a reference to a thing that takes at most `depth` hops."""
    ways = [self._by_relation, self._by_relation, self._by_chain]
    ways += [self._by_picture, self._by_extreme, self._by_number]
    if depth > 0:
      for way in sample(self._rng, ways, 2):
        reference = way(thing, depth)
        if reference is not None:
          return reference
    return Reference(thing.name, thing.name)

  def _refer_object(self, thing: Thing, name: str, depth: int) -> Reference:
    """Return a reference to the object of a relation of `thing`."""
    fact = thing.facts[name]
    if fact.thing is not None and self._rng.random() < 0.6:
      return self._refer(fact.thing, depth)
    return Reference(fact.text, fact.text)

  def _by_relation(self, thing: Thing, depth: int) -> Reference | None:
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
    other = self._refer_object(thing, relation.name, depth - 1)
    words = dict(kind=group.kind.one, kinds=group.kind.many)
    text = wording.format(y=other.text, **words)
    asked = question.format(y=other.name, **words)
    hop = self._hop(asked, thing, relation, _name_forms(thing.name), text)
    hops, some = (*other.hops, hop), f"a certain {group.kind.one}"
    told = pick(self._rng, relation.say).format(x=some, y=other.text)
    return Reference(text, thing.name, hops, other.picture, told)

  def _by_number(self, thing: Thing, depth: int) -> Reference | None:
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
    hop = self._hop(asked, thing, number, _name_forms(thing.name), text)
    told = pick(self._rng, number.say)
    told = told.format(x=f"a certain {group.kind.one}", v=words["v"])
    return Reference(text, thing.name, (hop,), statement=told)

  def _by_chain(self, thing: Thing, depth: int) -> Reference | None:
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
    other = self._refer(subject, depth - 1)
    text = wording.format(x=other.text)
    asked = question.format(x=other.name)
    hop = self._hop(asked, subject, relation, _name_forms(thing.name), text)
    return Reference(text, thing.name, (*other.hops, hop), other.picture)

  def _by_picture(self, thing: Thing, depth: int) -> Reference | None:
    del depth
    group = self._group_of[thing]
    if not group.item:
      return None
    picture = self._picture_of(thing)
    wording, question = pick(self._rng, self._lexicon.phrases.pictures)
    words = dict(kind=group.kind.one, item=group.item)
    hop = Hop(
      capitalise(question.format(**words)),
      ("image",),
      _name_forms(thing.name),
      (picture,),
    )
    return Reference(
      wording.format(**words), thing.name, (TracedHop(hop),), picture
    )

  def _by_extreme(self, thing: Thing, depth: int) -> Reference | None:
    del depth
    group = self._group_of[thing]
    for number in group.attributes_of(Number, "table"):
      for question, direction in sample(self._rng, number.most, 3):
        # Only such a question is a noun phrase, too.
        if not question.startswith("Which {kind} "):
          continue
        if _extreme(group, number, direction) is not thing:
          continue
        if (group.kind.one, number.name) not in self._documents.whole_tables:
          continue
        kind = f"{group.kind.one} of {self._domain.place}"
        asked = question.format(kind=kind)
        verb = question.removeprefix("Which {kind} ").rstrip("?")
        pronoun = "who" if group.kind.category == "person" else "that"
        text = f"the {kind} {pronoun} {verb}"
        hop = self._extreme_hop(group, number, asked, thing)
        return Reference(text, thing.name, (hop,))
    return None

  # --- Kinds of questions -----------------------------------------------------

  def _ask_attribute(self) -> Trace:
    group, thing = self._draw_thing()
    attribute = self._draw_attribute(group, (Relation, Number))
    depth = int(self._rng.choice([0, 1, 2], p=[0.28, 0.42, 0.3]))
    reference = self._refer(thing, depth)
    template = pick(self._rng, attribute.ask)
    answers = _answer_forms(thing, attribute)
    hop = self._hop(
      template.format(x=reference.name), thing, attribute, answers
    )
    text = self._word_question(template, reference, group)
    return _trace(text, answers, (*reference.hops, hop), reference)

  def _word_question(
    self, template: str, reference: Reference, group: Group
  ) -> str:
    """Return a question in one sentence, or in two, as people also ask."""
    rng = self._rng
    share = 0.3 if reference.statement else 0.1
    if rng.random() >= share:
      return template.format(x=reference.text)
    told = reference.statement
    if not told or rng.random() < 0.3:
      told = pick(rng, self._lexicon.phrases.intros).format(x=reference.text)
    this = pick(rng, ("this", "that")) + f" {group.kind.one}"
    asked = template.format(x=this)
    return f"{capitalise(told)} {capitalise(asked)}"

  def _ask_name(self) -> Trace:
    group, thing = self._draw_thing()
    reference = self._by_relation(thing, int(self._rng.integers(1, 4)))
    if reference is None:
      raise Unaskable
    # The last hop is the question itself, but for what it refers to.
    *inner, last = reference.hops
    text = last.hop.sub_question
    if inner:
      # The object as the question knows it stands in the place of its name.
      known, named = inner[-1].hop.answers[0], inner[-1].plan_thought
      if not named or known not in text:
        raise Unaskable
      text = text.replace(known, named)
    last = dataclasses.replace(last, plan_thought="")
    hops = (*inner, last)
    return _trace(text, _name_forms(thing.name), hops, reference)

  def _ask_visual(self) -> Trace:
    groups = [g for g in self._domain.groups if g.item]
    if not groups:
      raise Unaskable
    group = pick(self._rng, groups)
    thing, attribute = (
      pick(self._rng, group.things),
      pick(self._rng, group.attributes_of(Visual)),
    )
    answers = (thing.facts[attribute.name].text,)
    template = pick(self._rng, attribute.ask)
    words = dict(item=group.item)
    # The caption of the picture that is found says all.
    if self._rng.random() < 0.3:
      wording, _ = pick(self._rng, self._lexicon.phrases.pictures)
      shown = wording.format(kind=group.kind.one, item=group.item)
      text = template.format(x=shown, **words)
      picture = self._picture_of(thing)
      reference = Reference(shown, thing.name, picture=picture)
      hop = self._hop(text, thing, attribute, answers)
      return _trace(text, answers, (hop,), reference)
    reference = self._refer(thing, int(self._rng.integers(0, 3)))
    if reference.picture:
      raise Unaskable
    asked = template.format(x=reference.name, **words)
    hop = self._hop(asked, thing, attribute, answers)
    text = template.format(x=reference.text, **words)
    return _trace(text, answers, (*reference.hops, hop), reference)

  def _ask_check(self) -> Trace:
    group, thing = self._draw_thing()
    attribute = self._draw_attribute(group, (Relation, Number))
    fact, wanted = thing.facts[attribute.name], "yes"
    value = fact.text
    if self._rng.random() < 0.5:
      others = {t.facts[attribute.name].text for t in group.things} - {value}
      if not others:
        raise Unaskable
      value, wanted = pick(self._rng, sorted(others)), "no"
    reference = self._refer(thing, int(self._rng.integers(0, 2)))
    wording, question = pick(self._rng, attribute.check)
    text = wording.format(x=reference.text, y=value, v=value)
    # A description that says what is checked leaves nothing to check.
    if fact.text in reference.text:
      raise Unaskable
    answers = _answer_forms(thing, attribute)
    asked = question.format(x=reference.name)
    hop = self._hop(asked, thing, attribute, answers)
    sign = "=" if wanted == "yes" else "is not"
    return _trace(
      text,
      (wanted,),
      (*reference.hops, hop),
      reference,
      f"{fact.text} {sign} {value}",
    )

  def _ask_compare(self) -> Trace:
    return self._compare(is_check=False)

  def _ask_compare_check(self) -> Trace:
    return self._compare(is_check=True)

  def _compare(self, is_check: bool) -> Trace:
    rng = self._rng
    group, _ = self._draw_thing()
    number = self._draw_attribute(group, (Number,))
    one, other = sample(rng, group.things, 2)
    amounts = [t.facts[number.name].amount for t in (one, other)]
    if amounts[0] == amounts[1]:
      raise Unaskable
    pairs = number.compare_check if is_check else number.compare
    wording, question, direction = pick(rng, pairs)
    # One of both may take a hop of its own.
    references = [self._refer(one, int(rng.random() < 0.25))]
    references.append(Reference(other.name, other.name))
    hops = [*references[0].hops]
    for thing, reference in zip((one, other), references, strict=True):
      asked = question.format(x=reference.name)
      answers = _answer_forms(thing, number)
      hops.append(self._hop(asked, thing, number, answers))
    first_wins = (amounts[0] > amounts[1]) == (direction == "more")
    high, low = (one, other) if amounts[0] > amounts[1] else (other, one)
    thought = " > ".join(
      f"{thing.facts[number.name].text} ({thing.name})" for thing in (high, low)
    )
    winner = (one if first_wins else other).name
    answers = _name_forms(winner)
    if is_check:
      answers = ("yes",) if first_wins else ("no",)
    text = wording.format(a=references[0].text, b=other.name)
    return _trace(text, answers, tuple(hops), references[0], thought)

  def _ask_count(self) -> Trace:
    rng = self._rng
    group, thing = self._draw_thing()
    relations = [
      relation
      for relation in group.attributes_of(Relation, "table")
      if relation.count
      and (group.kind.one, relation.name) in self._documents.whole_tables
    ]
    if not relations:
      raise Unaskable
    relation = pick(rng, relations)
    value = thing.facts[relation.name].text
    same = [t for t in group.things if t.facts[relation.name].text == value]
    reference = self._refer_object(thing, relation.name, 1)
    template = pick(rng, relation.count)
    kinds = f"{group.kind.many} of {self._domain.place}"
    answers = (str(len(same)), _NUMBER_WORDS[len(same)])
    evidence = self._documents.whole_tables[group.kind.one, relation.name]
    asked = template.format(kinds=kinds, y=reference.name)
    hop = Hop(capitalise(asked), ("table",), answers, tuple(evidence))
    traced = TracedHop(hop, "", ", ".join(t.name for t in same))
    text = template.format(kinds=kinds, y=reference.text)
    return _trace(text, answers, (*reference.hops, traced), reference)

  def _ask_extreme(self) -> Trace:
    rng = self._rng
    group, _ = self._draw_thing()
    numbers = [
      number
      for number in group.attributes_of(Number, "table")
      if (group.kind.one, number.name) in self._documents.whole_tables
    ]
    if not numbers:
      raise Unaskable
    number = pick(rng, numbers)
    question, direction = pick(rng, number.most)
    thing = _extreme(group, number, direction)
    if thing is None:
      raise Unaskable
    text = question.format(
      kind=f"{group.kind.one} of {self._domain.place}",
      kinds=f"{group.kind.many} of {self._domain.place}",
    )
    hop = self._extreme_hop(group, number, text, thing)
    return _trace(text, _name_forms(thing.name), (hop,), Reference("", ""))

  def _ask_recall(self) -> Trace:
    """Ask what the question itself tells; no search is needed."""
    rng = self._rng
    group, thing = self._draw_thing()
    attribute = self._draw_attribute(group, (Relation, Number))
    facts = make_statement(thing, attribute, rng)
    question = pick(rng, attribute.ask).format(x=thing.name)
    answers, thought = _answer_forms(thing, attribute), ""
    if isinstance(attribute, Number) and rng.random() < 0.5:
      (other,) = sample(rng, [t for t in group.things if t is not thing], 1)
      amounts = [t.facts[attribute.name].amount for t in (thing, other)]
      if amounts[0] == amounts[1]:
        raise Unaskable
      facts += " " + make_statement(other, attribute, rng)
      wording, _, direction = pick(rng, attribute.compare)
      question = wording.format(a=thing.name, b=other.name)
      first_wins = (amounts[0] > amounts[1]) == (direction == "more")
      answers = _name_forms((thing if first_wins else other).name)
      high, low = sorted(
        (thing, other), key=lambda t: -t.facts[attribute.name].amount
      )
      thought = " > ".join(
        f"{t.facts[attribute.name].text} ({t.name})" for t in (high, low)
      )
    template = pick(rng, self._lexicon.phrases.recalls)
    text = template.format(fact=facts, question=capitalise(question))
    return _trace(text, answers, (), Reference("", ""), thought)

  def _ask_unknown(self) -> Trace:
    """Ask what no document tells: two searches, and then "unknown"."""
    rng = self._rng
    group, thing = self._draw_thing()
    untold = self._domain.untold[group.kind.one]
    if untold and rng.random() < 0.6:
      attribute = pick(rng, untold)
      template = pick(rng, attribute.ask)
      first = "table" if isinstance(attribute, Number) else "text"
    else:
      template, first = pick(rng, self._lexicon.phrases.fictions), "text"
    reference = self._refer(thing, int(rng.random() < 0.3))
    asked = template.format(x=reference.name)
    routes = (first, "table" if first == "text" else "text")
    hops = [
      TracedHop(Hop(capitalise(asked), (route,), UNKNOWN)) for route in routes
    ]
    text = template.format(x=reference.text)
    return _trace(text, UNKNOWN, (*reference.hops, *hops), reference)

  # --- Pieces -----------------------------------------------------------------

  def _draw_thing(self) -> tuple[Group, Thing]:
    """Return a random thing; main kinds come first and are drawn more often."""
    groups = self._domain.groups
    group = groups[0] if self._rng.random() < 0.35 else pick(self._rng, groups)
    return group, pick(self._rng, group.things)

  def _draw_attribute(
    self, group: Group, classes: tuple[type, ...]
  ) -> Attribute:
    attributes = [a for c in classes for a in group.attributes_of(c)]
    if not attributes:
      raise Unaskable
    return pick(self._rng, attributes)

  def _is_unique(
    self, group: Group, thing: Thing, attribute: Attribute
  ) -> bool:
    """Return whether a value tells a thing from all others of its kind."""
    values = [
      other.facts[attribute.name].text
      for each in (group, *self._others)
      for other in each.things
      if each.kind is group.kind and attribute.name in other.facts
    ]
    return values.count(thing.facts[attribute.name].text) == 1

  def _picture_of(self, thing: Thing) -> str:
    pictures = self._documents.pictures.items()
    return next(name for name, shown in pictures if shown is thing)

  def _hop(
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
    return TracedHop(hop, thought)

  def _extreme_hop(
    self, group: Group, number: Number, asked: str, thing: Thing
  ) -> TracedHop:
    evidence = self._documents.whole_tables[group.kind.one, number.name]
    hop = Hop(
      capitalise(asked), ("table",), _name_forms(thing.name), tuple(evidence)
    )
    # The larger numbers first, so that the answer stands at an end.
    ranked = sorted(group.things, key=lambda t: -t.facts[number.name].amount)
    values = [f"{t.facts[number.name].text} ({t.name})" for t in ranked]
    shown = [*values[:2], "..", values[-1]] if len(values) > 3 else values
    return TracedHop(hop, "", " > ".join(shown))


def _trace(
  text: str,
  answers: tuple[str, ...],
  hops: tuple[TracedHop, ...],
  reference: Reference,
  thought: str = "",
) -> Trace:
  question = Question("", text, answers)
  return Trace(question, hops, thought, reference.picture)


def _extreme(group: Group, number: Number, direction: str) -> Thing | None:
  """Return the thing with most or least of a number, if it is the only one."""
  sign = 1 if direction == "more" else -1
  amounts = [sign * thing.facts[number.name].amount for thing in group.things]
  if amounts.count(max(amounts)) > 1:
    return None
  return group.things[int(np.argmax(amounts))]


def _name_forms(name: str) -> tuple[str, ...]:
  """Return a name as answers accept it: with and without its article."""
  bare = name.removeprefix("the ")
  return (name,) if bare == name else (name, bare)


def _answer_forms(thing: Thing, attribute: Attribute) -> tuple[str, ...]:
  """Return an attribute's value as answers accept it."""
  text = thing.facts[attribute.name].text
  if isinstance(attribute, Number) and attribute.unit:
    return text, text.removesuffix(f" {attribute.unit}")
  return _name_forms(text)
