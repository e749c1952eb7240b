"""Tables as passages write them, in the form of Open-WikiTable.

  [Title]T[Section title]S[Caption]C[Table name]N
  [Header]a[sep]b[Rows][Row]c[sep]d[Row]e[sep]f   (all of it in one line)

Prompts may show them with each cell behind the name of its column instead.  A
small model then reads a cell where it would have to count separators.
"""

import re
from typing import NamedTuple

_HEADINGS = re.compile(r"\[(?:Title|Section title|Caption|Table name)\]")


class Table(NamedTuple):
  """A table of text; its rows may have fewer or more cells than its header."""

  # Text before the marks, if any; title, section title, caption and name.
  headings: list[str]
  header: list[str]
  rows: list[list[str]]


def parse_table(text: str) -> Table | None:
  """Return the table that a passage writes, or None if it writes none."""
  head, mark, rest = text.partition("[Header]")
  header, found, body = rest.partition("[Rows]")
  if not (mark and found):
    return None
  before, *headings = (part.strip() for part in _HEADINGS.split(head))
  lines = body.split("[Row]")[1:]
  return Table(
    [before, *headings] if before else headings,
    header.split("[sep]"),
    [x.split("[sep]") for x in lines],
  )


def label_cells(text: str) -> str:
  """Write a passage's table anew, a line for each row, with labelled cells.

  A row is "first cell: column cell; column cell"; cells and headings that are
  empty, and headings that repeat, are left out.  A text without a table stays
  as it is.
  """
  table = parse_table(text)
  if table is None:
    return text
  headings = dict.fromkeys(part for part in table.headings if part)
  lines = [", ".join(headings)] if headings else []
  for first, *others in table.rows:
    # Cells beyond the header have no name.
    names = [*table.header[1:], *[""] * len(others)]
    cells = zip(names, others, strict=False)
    told = [f"{name} {cell}".strip() for name, cell in cells if cell.strip()]
    lines.append(f"{first}: {'; '.join(told)}" if told else first)
  return "\n".join(lines)
