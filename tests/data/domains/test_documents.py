"""Passages of invented domains: what gold hops name as evidence tells it."""

import collections
import functools
import re

import pytest

from r1router_jax.data.domains.documents import capitalise
from r1router_jax.data.domains.domain import Number, Relation
from r1router_jax.data.domains.lexicon import HALVES
from r1router_jax.data.domains.questions import UNKNOWN
from r1router_jax.data.domains.world import make_world


@functools.cache
def world(half):
  return make_world(half, domains=8, questions=400, seed=11)


def hops(half):
  """Yield each gold hop that has an answer, with the passages it names."""
  for member in world(half).domains:
    passages = {
      passage.id: passage
      for of_kb in member.documents.passages.values()
      for passage in of_kb
    }
    for trace in member.traces:
      for traced in trace.hops:
        if traced.hop.answers != UNKNOWN:
          evidence = [passages[name] for name in traced.hop.evidence]
          yield member, trace, traced.hop, evidence


def read_table(text):
  """Return the rows of a flattened table, each as a dict by its header."""
  header, _, rows = text.partition("[Header]")[2].partition("[Rows]")
  names = header.split("[sep]")
  lines = [line.split("[sep]") for line in rows.split("[Row]")[1:]]
  return [dict(zip(names, cells, strict=True)) for cells in lines]


@pytest.mark.parametrize("half", HALVES)
def test_each_evidence_passage_tells_the_answer(half):
  for _, trace, hop, evidence in hops(half):
    assert evidence, hop
    for passage in evidence:
      assert passage.kb in hop.routes
      text = passage.text.lower()
      if trace.question.family.startswith("count") and (
        hop is trace.hops[-1].hop
      ):
        continue  # A number of rows stands in no cell.
      assert any(form.lower() in text for form in hop.answers), hop


@pytest.mark.parametrize("half", HALVES)
def test_each_passage_names_the_thing_that_it_tells_about(half):
  for member in world(half).domains:
    texts = {
      passage.id: passage.text.lower()
      for of_kb in member.documents.passages.values()
      for passage in of_kb
    }
    for (thing, _, _), names in member.documents.evidence.items():
      bare = thing.name.removeprefix("the ").lower()
      assert all(bare in texts[name] for name in names)


@pytest.mark.parametrize("half", HALVES)
def test_tables_hold_the_facts_and_no_others(half):
  sizes = set()
  for member in world(half).domains:
    documents = member.documents
    groups = {group.kind.many: group for group in member.domain.groups}
    for passage in documents.passages["table"]:
      rows = read_table(passage.text)
      sizes.add(len(rows[0]))
      title = passage.text.partition("[Section title]")[0].lower()
      (group,) = [group for kinds, group in groups.items() if kinds in title]
      things = {
        thing.name.lower().removeprefix("the "): thing for thing in group.things
      }
      headers = {
        each.header: each
        for record_class in (Relation, Number)
        for each in group.attributes_of(record_class, "table")
      }
      for row in rows:
        (_, name), *cells = row.items()
        thing = things[name.lower().removeprefix("the ")]
        for header, cell in cells:
          told = thing.facts[headers[header].name].text
          assert told == cell or re.fullmatch(rf"{re.escape(cell)} \D+", told)
  assert {2, 3} <= sizes <= {2, 3, 4, 5, 6, 7, 8}


@pytest.mark.parametrize("half", HALVES)
def test_superlatives_and_counts_by_the_rows_of_tables(half):
  found = collections.Counter()
  for member, trace, hop, evidence in hops(half):
    kind = trace.question.family.partition("_")[0]
    if kind in ("extreme", "count") and hop is trace.hops[-1].hop:
      for passage in evidence:
        rows = read_table(passage.text)
        told = read_answers(member.domain, hop.sub_question, rows)
        assert told == {hop.answers[0].lower().removeprefix("the ")}, hop
        found[kind] += 1
  assert len(found) == 2 and min(found.values()) >= 2


def read_answers(domain, asked, rows):
  """Return what the rows of a table say to a superlative or a count."""
  names = [[*row.values()][0].lower().removeprefix("the ") for row in rows]
  answers = set()
  for group in domain.groups:
    kind, kinds = (
      f"{words} of {domain.place}"
      for words in (group.kind.one, group.kind.many)
    )
    for number in group.attributes_of(Number, "table"):
      for text, direction in number.most:
        if asked == capitalise(text.format(kind=kind, kinds=kinds)):
          cells = [row[number.header].split()[0] for row in rows]
          amounts = [float(re.sub(r"[^\d.-]", "", cell)) for cell in cells]
          best = max(amounts) if direction == "more" else min(amounts)
          assert amounts.count(best) == 1
          answers.add(names[amounts.index(best)])
    for relation in group.attributes_of(Relation, "table"):
      for text in relation.count:
        cells = [row.get(relation.header) for row in rows]
        for cell in {*cells} - {None}:
          if asked == capitalise(text.format(kinds=kinds, y=cell)):
            answers.add(str(cells.count(cell)))
  return answers


@pytest.mark.parametrize("half", HALVES)
def test_passages_are_short_and_their_ids_differ(half):
  passages = [
    passage
    for member in world(half).domains
    for of_kb in member.documents.passages.values()
    for passage in of_kb
  ]
  assert len({passage.id for passage in passages}) == len(passages)
  for passage in passages:
    words = len(passage.text.split())
    assert words <= (130 if passage.kb == "text" else 400), passage
    assert "{" not in passage.text and "  " not in passage.text
    assert passage.text[0] == passage.text[0].upper()
