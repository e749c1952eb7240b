"""Runs the named cases of bad input, and says which hold.

  python -m tests.hostile_cases

Each line of hostile_cases.tsv has a kind of input, a case, what happened
`before` there was a test of it ("held" if all was well), and the test.  All
parameters of a test count as cases; `before` tells of the one that was tried
then.  The last table also goes to docs/reliability.md.
"""

import collections
import csv
import os
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
# What stands between them is the table of kinds.
MARKERS = "<!-- python -m tests.hostile_cases -->\n", "<!-- end -->\n"


def read_rows() -> list[dict[str, str]]:
  """Return the lines of the table, by the names of its columns."""
  with (ROOT / "tests" / "hostile_cases.tsv").open() as file:
    return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


class Outcomes:
  """Counts how the cases of each test ended, as a plugin of pytest."""

  def __init__(self):
    self._passed = {}  # By the id of a case.

  def pytest_runtest_logreport(self, report):
    is_over = report.when == "call" or not report.passed
    if is_over:
      before = self._passed.get(report.nodeid, True)
      self._passed[report.nodeid] = before and report.passed

  def count(self, test: str) -> tuple[int, int]:
    """Return how many cases of a test were tried, and how many held."""
    found = [
      passed
      for case, passed in self._passed.items()
      if case == test or case.startswith(test + "[")
    ]
    return len(found), sum(found)


def to_table(header, rows) -> str:
  """Return lines of Markdown."""
  lines = [header, ["---"] * len(header), *rows]
  return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def main() -> int:
  os.chdir(ROOT)
  rows, outcomes = read_rows(), Outcomes()
  tests = [row["test"] for row in rows]
  code = pytest.main(["-q", "--no-header", *tests], plugins=[outcomes])
  if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
    return code
  kinds, lines = collections.defaultdict(collections.Counter), []
  for row in rows:
    tried, held = outcomes.count(row["test"])
    kinds[row["kind"]].update(tried=tried, held=held)
    # Also if there is no such case, or its test was skipped.
    after = "held" if held == tried > 0 else f"fails ({held} of {tried} held)"
    lines.append([row["kind"], row["case"], row["before"], after])
  print(to_table(("kind", "case", "before", "after"), lines))

  counts = [[kind, x["tried"], x["held"]] for kind, x in kinds.items()]
  totals = [sum(column) for column in list(zip(*counts, strict=True))[1:]]
  table = to_table(("kind", "tried", "held"), [*counts, ["all", *totals]])
  print(table)
  start, end = MARKERS
  text = PAGE.read_text()
  pattern = f"(?<={re.escape(start)}).*(?={re.escape(end)})"
  PAGE.write_text(re.sub(pattern, table, text, flags=re.S))
  return int(any(after != "held" for *_, after in lines))


if __name__ == "__main__":
  sys.exit(main())
