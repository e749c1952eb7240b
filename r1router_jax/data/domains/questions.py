"""Ask about a domain: questions of up to three hops, with their gold traces.

A question refers to things as `references.py` does, by hops of their own.

Questions ask for an attribute or a name, compare two numbers, check a value,
count the rows of a table, need no search because they bring their evidence, or
have no answer in any document: the right answer is then "unknown".
"""

import dataclasses
from collections.abc import Sequence

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
  usual_home,
)
from r1router_jax.data.domains.lexicon import Lexicon
from r1router_jax.data.domains.references import (
  Reference,
  ReferenceMaker,
  TracedHop,
  answer_forms,
  find_extreme,
  name_forms,
  rank_things,
)

UNKNOWN = ("unknown", "not stated", "it is not known")

_NUMBER_WORDS = "zero one two three four five six seven eight nine ten".split()


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
    self._documents, self._rng = documents, rng
    self._references = ReferenceMaker(lexicon, domain, documents, rng, others)

  def __call__(self, question_id: str) -> Trace:
    """Return a question of a random kind that the domain allows."""
    rng = self._rng
    kinds = list(self.KINDS)
    shares = np.array([share for share, _ in self.KINDS.values()], float)
    while True:
      kind = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
      _, ask = self.KINDS[kind]
      try:
        trace = ask(self)
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
      names = [t.name for g in self._domain.groups for t in g.things]
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

  # --- Kinds of questions -----------------------------------------------------

  def _ask_attribute(self) -> Trace:
    group, thing = self._draw_thing()
    attribute = self._draw_attribute(group, (Relation, Number))
    depth = int(self._rng.choice([0, 1, 2], p=[0.28, 0.42, 0.3]))
    reference = self._references.refer_to(thing, depth)
    template = pick(self._rng, attribute.ask)
    answers = answer_forms(thing, attribute)
    hop = self._references.make_hop(
      template.format(x=reference.name), thing, attribute, answers
    )
    text = self._word_question(template, reference, group)
    return _trace(text, answers, (*reference.hops, hop), reference.picture)

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
    reference = self._references.describe_by_relation(
      thing, int(self._rng.integers(1, 4))
    )
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
    return _trace(text, name_forms(thing.name), hops, reference.picture)

  def _ask_visual(self) -> Trace:
    groups = [g for g in self._domain.groups if g.item]
    if not groups:
      raise Unaskable
    group = pick(self._rng, groups)
    thing = pick(self._rng, group.things)
    attribute = pick(self._rng, group.attributes_of(Visual))
    answers = (thing.facts[attribute.name].text,)
    template = pick(self._rng, attribute.ask)
    # The caption of the picture that is found says all.
    if self._rng.random() < 0.3:
      wording, _ = pick(self._rng, self._lexicon.phrases.pictures)
      shown = wording.format(kind=group.kind.one, item=group.item)
      text = template.format(x=shown, item=group.item)
      picture = self._references.find_picture(thing)
      hop = self._references.make_hop(text, thing, attribute, answers)
      return _trace(text, answers, (hop,), picture)
    reference = self._references.refer_to(thing, int(self._rng.integers(0, 3)))
    if reference.picture:
      raise Unaskable
    asked = template.format(x=reference.name, item=group.item)
    hop = self._references.make_hop(asked, thing, attribute, answers)
    text = template.format(x=reference.text, item=group.item)
    return _trace(text, answers, (*reference.hops, hop))

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
    reference = self._references.refer_to(thing, int(self._rng.integers(0, 2)))
    wording, question = pick(self._rng, attribute.check)
    text = wording.format(x=reference.text, y=value, v=value)
    # A description that says what is checked leaves nothing to check.
    if fact.text in reference.text:
      raise Unaskable
    answers = answer_forms(thing, attribute)
    asked = question.format(x=reference.name)
    hop = self._references.make_hop(asked, thing, attribute, answers)
    sign = "=" if wanted == "yes" else "is not"
    return _trace(
      text,
      (wanted,),
      (*reference.hops, hop),
      reference.picture,
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
    references = [self._references.refer_to(one, int(rng.random() < 0.25))]
    references.append(Reference(other.name, other.name))
    hops = [*references[0].hops]
    for thing, reference in zip((one, other), references, strict=True):
      asked = question.format(x=reference.name)
      answers = answer_forms(thing, number)
      hops.append(self._references.make_hop(asked, thing, number, answers))
    first_wins = (amounts[0] > amounts[1]) == (direction == "more")
    thought = " > ".join(rank_things((one, other), number))
    answers = name_forms((one if first_wins else other).name)
    if is_check:
      answers = ("yes",) if first_wins else ("no",)
    text = wording.format(a=references[0].text, b=other.name)
    return _trace(text, answers, tuple(hops), references[0].picture, thought)

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
    reference = self._references.refer_to_object(thing, relation.name, 1)
    template = pick(rng, relation.count)
    kinds = f"{group.kind.many} of {self._domain.place}"
    answers = (str(len(same)), _NUMBER_WORDS[len(same)])
    evidence = self._documents.whole_tables[group.kind.one, relation.name]
    asked = template.format(kinds=kinds, y=reference.name)
    hop = Hop(capitalise(asked), ("table",), answers, tuple(evidence))
    named = ", ".join(t.name for t in same)
    traced = TracedHop(hop, "", named, usual_home="table")
    text = template.format(kinds=kinds, y=reference.text)
    return _trace(text, answers, (*reference.hops, traced), reference.picture)

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
    thing = find_extreme(group, number, direction)
    if thing is None:
      raise Unaskable
    text = question.format(
      kind=f"{group.kind.one} of {self._domain.place}",
      kinds=f"{group.kind.many} of {self._domain.place}",
    )
    hop = self._references.make_extreme_hop(group, number, text, thing)
    return _trace(text, name_forms(thing.name), (hop,))

  def _ask_recall(self) -> Trace:
    """Ask what the question itself tells; no search is needed."""
    rng = self._rng
    group, thing = self._draw_thing()
    attribute = self._draw_attribute(group, (Relation, Number))
    facts = make_statement(thing, attribute, rng)
    question = pick(rng, attribute.ask).format(x=thing.name)
    answers, thought = answer_forms(thing, attribute), ""
    if isinstance(attribute, Number) and rng.random() < 0.5:
      (other,) = sample(rng, [t for t in group.things if t is not thing], 1)
      amounts = [t.facts[attribute.name].amount for t in (thing, other)]
      if amounts[0] == amounts[1]:
        raise Unaskable
      facts += " " + make_statement(other, attribute, rng)
      wording, _, direction = pick(rng, attribute.compare)
      question = wording.format(a=thing.name, b=other.name)
      first_wins = (amounts[0] > amounts[1]) == (direction == "more")
      answers = name_forms((thing if first_wins else other).name)
      thought = " > ".join(rank_things((thing, other), attribute))
    template = pick(rng, self._lexicon.phrases.recalls)
    text = template.format(fact=facts, question=capitalise(question))
    return _trace(text, answers, (), thought=thought)

  def _ask_unknown(self) -> Trace:
    """Ask what no document tells: two searches, and then "unknown"."""
    rng = self._rng
    group, thing = self._draw_thing()
    untold = self._domain.untold[group.kind.one]
    if untold and rng.random() < 0.6:
      attribute = pick(rng, untold)
      template = pick(rng, attribute.ask)
      first = usual_home(attribute)
    else:
      template, first = pick(rng, self._lexicon.phrases.fictions), "text"
    reference = self._references.refer_to(thing, int(rng.random() < 0.3))
    asked = template.format(x=reference.name)
    routes = (first, "table" if first == "text" else "text")
    hops = [
      TracedHop(Hop(capitalise(asked), (route,), UNKNOWN)) for route in routes
    ]
    text = template.format(x=reference.text)
    return _trace(text, UNKNOWN, (*reference.hops, *hops), reference.picture)

  # Share of each kind of question, and what asks it.
  KINDS = dict(
    attribute=(46, _ask_attribute),
    name=(10, _ask_name),
    visual=(6, _ask_visual),
    check=(9, _ask_check),
    compare=(10, _ask_compare),
    compare_check=(5, _ask_compare_check),
    count=(4, _ask_count),
    extreme=(4, _ask_extreme),
    recall=(3, _ask_recall),
    unknown=(5, _ask_unknown),
  )

  # --- Pieces -----------------------------------------------------------------

  def _draw_thing(self) -> tuple[Group, Thing]:
    """Return a random thing, more often than others one of the first kind."""
    groups = self._domain.groups
    group = groups[0] if self._rng.random() < 0.35 else pick(self._rng, groups)
    return group, pick(self._rng, group.things)

  def _draw_attribute(
    self, group: Group, classes: tuple[type, ...]
  ) -> Attribute:
    attributes = group.attributes_of(classes)
    if not attributes:
      raise Unaskable
    return pick(self._rng, attributes)


def _trace(
  text: str,
  answers: tuple[str, ...],
  hops: tuple[TracedHop, ...],
  picture: str = "",
  thought: str = "",
) -> Trace:
  return Trace(Question("", text, answers), hops, thought, picture)
