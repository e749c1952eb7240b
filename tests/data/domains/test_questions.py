"""Gold of the grammar's questions: the one right answer in all documents.

A question is made from a thing towards its wording.  Here wordings are read the
other way round: every template that a sub-question may have been made of is
matched, and all things of the world are tried.  All readings together must give
the gold answer, and no other.
"""

import collections
import copy
import functools
import re

import numpy as np
import pytest

from r1router_jax.common.records import MAX_HOPS
from r1router_jax.data.domains.documents import write_documents
from r1router_jax.data.domains.domain import (
  Number,
  Relation,
  Visual,
  make_domain,
)
from r1router_jax.data.domains.lexicon import HALVES, load_lexicon
from r1router_jax.data.domains.questions import UNKNOWN, QuestionMaker
from r1router_jax.data.domains.references import ReferenceMaker
from r1router_jax.data.domains.world import make_world

# What may stand in slots that do not hold names or words.
SLOTS = dict(item=r"\w+", v=r"\d.*")


@functools.cache
def world(half):
  return make_world(half, domains=8, questions=600, seed=3)


def traces(half):
  return [trace for member in world(half).domains for trace in member.traces]


def bare(text):
  """Return a text as it is compared.

  Case, article, end and commas in numbers do not matter.
  """
  text = re.sub(r"(?<=\d),(?=\d)", "", text)
  return re.sub(r"^the ", "", text.strip().rstrip("?.").lower())


@functools.cache
def compile_template(template):
  """Return a pattern that finds what stands in the slots of a template."""
  parts = re.split(r"\{(\w+)\}", template.rstrip("?."))
  texts = [
    f"(?P<{part}>{SLOTS.get(part, '.+')})" if i % 2 else re.escape(part)
    for i, part in enumerate(parts)
  ]
  return re.compile("".join(texts), re.I)


class Reader:
  """Reads questions of a world by its templates."""

  def __init__(self, drawn):
    self.things = {}  # Bare name -> (place of the domain, thing).
    # Slots of a template and what to do with them, by pattern.
    self.patterns = []
    for member in drawn.domains:
      for group in member.domain.groups:
        for thing in group.things:
          assert bare(thing.name) not in self.things, thing.name
          self.things[bare(thing.name)] = (member.domain.place, thing)
    # Those that no thing has, and numbers of one year, which groups alone have.
    lexicon = drawn.lexicon
    attributes = {each.name: each for each in lexicon.relations}
    attributes |= {each.name: each for each in lexicon.numbers}
    for member in drawn.domains:
      for group in member.domain.groups:
        attributes |= group.attributes
    self.attributes = [
      each for each in attributes.values() if not isinstance(each, Visual)
    ]
    for attribute in self.attributes:
      self.add_attribute(attribute, lexicon.phrases.by_number)
    for visual in lexicon.visuals:
      for text in visual.ask:
        self.add(text, self.look_up, visual)

  def add(self, template, answer, *given):
    self.patterns.append((compile_template(template), answer, given))

  def add_attribute(self, attribute, by_number):
    for text in attribute.ask:
      self.add(text, self.look_up, attribute)
    for _, question in attribute.check:
      self.add(question, self.look_up, attribute)
    if isinstance(attribute, Relation):
      for _, question in attribute.describe:
        self.add(question, self.find_kind, attribute)
      for _, question in attribute.chain:
        self.add(question, self.look_up, attribute)
      for text in attribute.count:
        self.add(text, self.count, attribute)
      return
    for _, question, _ in (*attribute.compare, *attribute.compare_check):
      self.add(question, self.look_up, attribute)
    for _, question in by_number:
      question = question.replace("{name}", attribute.name)
      self.add(question, self.find_kind, attribute)
    for text, direction in attribute.most:
      self.add(text, self.find_extreme, attribute, direction)

  def read(self, question):
    """Return the answers of all readings of a question without references."""
    found = set()
    for pattern, answer, given in self.patterns:
      if match := pattern.fullmatch(question.rstrip("?.")):
        found |= answer(*given, **match.groupdict())
    return found

  def look_up(self, attribute, x, item=""):
    del item
    thing = self.things.get(bare(x), (None, None))[1]
    if thing is None or attribute.name not in thing.facts:
      return set()
    return {bare(thing.facts[attribute.name].text)}

  def of_kind(self, words):
    """Return the things that words such as "mills of Orva" stand for."""
    for place, thing in self.things.values():
      names = {thing.kind.one, thing.kind.many}
      if words in names or words in {f"{name} of {place}" for name in names}:
        yield thing

  def find_kind(self, attribute, kind="", kinds="", y="", v=""):
    return {
      bare(thing.name)
      for thing in self.of_kind(kind or kinds)
      if attribute.name in thing.facts
      and bare(thing.facts[attribute.name].text) == bare(y or v)
    }

  def count(self, relation, kinds, y):
    found = self.find_kind(relation, kinds, y=y)
    return {str(len(found))} if found else set()

  def find_extreme(self, number, direction, kind="", kinds=""):
    amounts = {
      bare(thing.name): thing.facts[number.name].amount
      for thing in self.of_kind(kind or kinds)
      if number.name in thing.facts
    }
    best = (max if direction == "more" else min)(amounts.values(), default=0)
    return {name for name, amount in amounts.items() if amount == best}


@functools.cache
def reader(half):
  return Reader(world(half))


@pytest.mark.parametrize("half", HALVES)
def test_each_hop_has_one_right_answer_in_the_world(half):
  read, seen = reader(half), collections.Counter()
  for trace in traces(half):
    for traced in trace.hops:
      hop = traced.hop
      # There the picture tells what is meant, and no word.
      if trace.picture and trace.picture in hop.evidence:
        continue
      found = read.read(hop.sub_question)
      if hop.answers == UNKNOWN:
        assert not found, hop
        assert not hop.evidence
        seen["unknown"] += 1
      else:
        assert found == {bare(hop.answers[0])}, hop
        seen[hop.routes] += 1
  assert set(seen) >= {"unknown", ("text",), ("table",), ("image",)}


@pytest.mark.parametrize("half", HALVES)
def test_final_answers_of_comparisons_and_checks(half):
  read, checked = reader(half), collections.Counter()
  lexicon = world(half).lexicon
  openings = tuple(text.lower() for text in lexicon.phrases.openings)
  for trace in traces(half):
    kind = trace.question.family.partition("_")[0]
    if kind not in ("compare", "check"):
      continue
    question = trace.question.text.lower()
    for opening in openings:
      question = question.removeprefix(opening)
    is_yes_no = trace.question.answers[0] in ("yes", "no")
    found = set()
    for attribute in read.attributes:
      found |= decide(read, attribute, question.rstrip("?."), is_yes_no)
    # One with a reference is no wording of names alone.
    if found:
      assert found == {bare(trace.question.answers[0])}, trace.question
      checked[kind, is_yes_no] += 1
  assert min(checked.values()) >= 5 and len(checked) == 3


def decide(read, attribute, question, is_yes_no):
  """Return what an attribute's facts say to a comparison or check."""
  found = set()
  rows = [(text, "=") for text, _ in attribute.check] if is_yes_no else []
  if isinstance(attribute, Number):
    pairs = attribute.compare_check if is_yes_no else attribute.compare
    rows += [(text, direction) for text, _, direction in pairs]
  for template, direction in rows:
    match = compile_template(template).fullmatch(question)
    slots = match.groupdict() if match else {}
    things = [
      read.things.get(bare(slots.get(name, "")), (None, None))[1]
      for name in ("x" if direction == "=" else "ab")
    ]
    if None in things or any(attribute.name not in t.facts for t in things):
      continue
    facts = [thing.facts[attribute.name] for thing in things]
    if direction == "=":
      value = slots.get("y", slots.get("v"))
      found.add("yes" if bare(facts[0].text) == bare(value) else "no")
      continue
    is_first = (facts[0].amount > facts[1].amount) == (direction == "more")
    if is_yes_no:
      found.add("yes" if is_first else "no")
    else:
      found.add(bare(things[0 if is_first else 1].name))
  return found


@pytest.mark.parametrize("half", HALVES)
def test_sub_questions_copy_names_from_question_or_answers(half):
  names = {thing.name for _, thing in reader(half).things.values()}
  for trace in traces(half):
    known = trace.question.text
    for traced in trace.hops:
      hop = traced.hop
      for name in names:
        if name in hop.sub_question:
          assert name.lower() in known.lower(), (name, trace.question)
      known += " " + hop.answers[0]


@pytest.mark.parametrize("is_written_otherwise", [False, True])
def test_number_describes_no_thing_that_shares_it(is_written_otherwise):
  lexicon, rng = load_lexicon("test"), np.random.default_rng(3)
  domain = make_domain(lexicon, rng)
  documents = write_documents(lexicon, domain, "p", rng)
  others = copy.deepcopy(domain).groups if is_written_otherwise else []
  for group, other in zip(domain.groups, others, strict=False):
    other.kind = group.kind
    for thing in other.things:
      for fact in thing.facts.values():
        fact.text += ".0"
  maker = ReferenceMaker(lexicon, domain, documents, rng, others)
  described = 0
  for group in domain.groups * 10:
    numbers = [number.name for number in group.attributes_of(Number)]
    for thing in group.things:
      text = maker.refer_to(thing, 1).text
      described += any(
        name in text and thing.facts[name].text in text for name in numbers
      )
  assert bool(described) != is_written_otherwise


@pytest.mark.parametrize("half", HALVES)
def test_last_hop_answers_what_is_asked_for(half):
  for trace in traces(half):
    kind = trace.question.family.partition("_")[0]
    if kind in ("attribute", "name", "visual", "count", "extreme", "unknown"):
      assert trace.question.answers == trace.hops[-1].hop.answers


@pytest.mark.parametrize("half", HALVES)
def test_kinds_of_questions_and_numbers_of_hops(half):
  kinds, hops, orders = set(), collections.Counter(), set()
  for trace in traces(half):
    kinds.add(trace.question.family)
    hops[len(trace.hops)] += 1
    orders.add(tuple(traced.hop.routes[0] for traced in trace.hops))
    assert trace.question.hops == tuple(x.hop for x in trace.hops)
    assert bool(trace.picture) == any(
      trace.picture in traced.hop.evidence for traced in trace.hops
    )
  for kind in QuestionMaker.KINDS:
    assert any(family.startswith(kind) for family in kinds), kind
  assert set(hops) == {*range(MAX_HOPS + 1)} and hops[2] > 60
  assert {("image", "text"), ("text", "image"), ("table", "text")} <= orders


def test_question_that_brings_its_evidence_needs_no_search():
  recalls = [t for t in traces("test") if t.question.family == "recall"]
  assert len(recalls) > 5
  for trace in recalls:
    assert not trace.hops
    # The answer stands in the question.
    assert any(
      answer.lower() in trace.question.text.lower()
      for answer in trace.question.answers
    )


@pytest.mark.parametrize("half", HALVES)
def test_world_is_the_same_for_one_seed_and_another_for_others(half):
  first, again = (make_world(half, 2, 20, 7) for _ in range(2))
  other = make_world(half, 2, 20, 8)
  texts = [
    [t.question for member in each.domains for t in member.traces]
    for each in (first, again, other)
  ]
  assert texts[0] == texts[1] != texts[2]
  for one, two in zip(first.domains, again.domains, strict=True):
    assert one.documents.passages == two.documents.passages


def test_visual_facts_are_told_by_captions_alone():
  visuals = {visual.name for visual in world("test").lexicon.visuals}
  told = {
    kb
    for member in world("test").domains
    for _, name, kb in member.documents.evidence
    if name in visuals
  }
  assert told == {"image"}


@pytest.mark.parametrize("half", HALVES)
def test_statements_about_one_year_name_it(half):
  found = 0
  for member in world(half).domains:
    for group in member.domain.groups:
      for number in group.attributes_of(Number):
        if year := re.search(r" in (\d{4})$", number.name):
          found += 1
          assert all(year[1] in text for text in number.say)
  assert found
