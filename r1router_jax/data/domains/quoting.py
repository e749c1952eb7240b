"""Quote from a table the cell that tells an answer: the thought before it.

A policy that first names the row and the column finds the cell in what it has
written.  (Sentences are not quoted: which one tells the answer would have to be
known before the answer is.)
"""

import re

from r1router_jax.protocol.tables import parse_table

MAX_CHARACTERS = 170  # Of a quotation.


def quote_cell(table: str, asked: str, answer: str) -> str:
  """Return "row: column cell", or for a row "column cell: row".

  The cell is the one whose row and column are most like the sub-question; ""
  if none has the answer, or if its words are too many.
  """
  parsed = parse_table(table)
  if parsed is None:
    return ""
  asked, answer = asked.lower(), answer.lower()
  named, found = [], []
  for row in parsed.rows:
    for column, cell in list(zip(parsed.header, row, strict=False))[1:]:
      if answer in cell.lower():
        shared = _count_shared(f"{row[0]} {column}", asked)
        named.append((shared, f"{row[0]}: {column} {cell}"))
      if row[0] and answer in row[0].lower() and cell:
        told = cell.lower() in asked
        shared = _count_shared(column, asked) + 10 * told
        found.append((shared, f"{column} {cell}: {row[0]}"))
  best = max(named + found, key=lambda pair: pair[0], default=(0, ""))
  return best[1] if len(best[1]) <= MAX_CHARACTERS else ""


def _count_shared(text: str, other: str) -> int:
  words = (set(re.findall(r"\w+", x.lower())) for x in (text, other))
  return len(set.intersection(*words))
