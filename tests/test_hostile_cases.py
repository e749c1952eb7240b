"""Each bad input that is named has a test, and each kind its figures."""

import ast
import re

from tests import hostile_cases


def test_each_case_has_a_test_of_its_own():
  rows = hostile_cases.read_rows()
  tests = [row["test"] for row in rows]
  assert len({*tests}) == len(tests) and all(all(row.values()) for row in rows)
  functions = {}
  for test in tests:
    path, name = test.split("::")
    if path not in functions:
      tree = ast.parse((hostile_cases.ROOT / path).read_text())
      functions[path] = {getattr(node, "name", "") for node in tree.body}
    assert name in functions[path], test


def test_figures_by_kind_are_those_of_the_table():
  start, end = hostile_cases.MARKERS
  text = hostile_cases.PAGE.read_text()
  assert "python -m tests.hostile_cases" in text.split(start)[0]
  table = text.split(start)[1].split(end)[0]
  row = r"^\| ([a-z].*) \| (\d+) \| (\d+) \|$"
  *kinds, total = re.findall(row, table, re.M)
  rows = hostile_cases.read_rows()
  wanted = dict.fromkeys(row["kind"] for row in rows)
  assert [kind for kind, _, _ in kinds] == [*wanted]
  tried, held = (sum(int(line[at]) for line in kinds) for at in (1, 2))
  assert total == ("all", str(tried), str(held)) and tried == held >= 400
