"""Passages of invented domains: what gold hops name as evidence tells it."""

import functools
import re

import pytest

from r1router_jax.data.domains.domain import Number, Relation
from r1router_jax.data.domains.questions import UNKNOWN
from r1router_jax.data.domains.world import make_world

HALVES = ("train", "test")


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
          yield trace, traced.hop, evidence


def read_table(text):
  """Return the rows of a flattened table, each as a dict by its header."""
  header, _, rows = text.partition("[Header]")[2].partition("[Rows]")
  names = header.split("[sep]")
  lines = [line.split("[sep]") for line in rows.split("[Row]")[1:]]
  return [dict(zip(names, cells, strict=True)) for cells in lines]


@pytest.mark.parametrize("half", HALVES)
def test_each_evidence_passage_tells_the_answer(half):
  for trace, hop, evidence in hops(half):
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
  found = dict(extreme=0, count=0)
  for trace, hop, evidence in hops(half):
    kind = trace.question.family.partition("_")[0]
    if kind not in found or hop is not trace.hops[-1].hop:
      continue
    for passage in evidence:
      columns = {}
      for row in read_table(passage.text):
        (_, name), *cells = row.items()
        for header, cell in cells:
          columns.setdefault(header, {})[name.lower()] = cell
      answers = [form.lower() for form in hop.answers]
      # Some column has the answer: one of these is that which is asked for.
      assert any(
        is_answer(kind, values, answers, hop.sub_question)
        for values in columns.values()
      ), hop
      found[kind] += 1
  assert min(found.values()) >= 2


def is_answer(kind, values, answers, question):
  """Return whether one column of a table gives an answer."""
  if kind == "count":
    counted = [value for value in values.values() if value in question]
    return str(len(counted)) in answers
  numbers = {
    name: float(re.sub(r"[^\d.]", "", value.split()[0]) or "nan")
    for name, value in values.items()
  }
  ranked = sorted(numbers, key=numbers.get)
  return any(
    name.removeprefix("the ") in answers for name in (ranked[0], ranked[-1])
  )


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
