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
  named, found = [], []
  for row in parsed.rows:
    for column, cell in list(zip(parsed.header, row, strict=False))[1:]:
      if _tells(cell, answer):
        shared = count_shared_words(f"{row[0]} {column}", asked)
        named.append((shared, f"{row[0]}: {column} {cell}"))
      if _tells(row[0], answer) and cell:
        told = _tells(asked, cell)
        shared = count_shared_words(column, asked) + 10 * told
        found.append((shared, f"{column} {cell}: {row[0]}"))
  best = max(named + found, key=lambda pair: pair[0], default=(0, ""))
  return best[1] if len(best[1]) <= MAX_CHARACTERS else ""


def _tells(text: str, part: str) -> bool:
  """Return whether whole words of a text are `part`: 1200 does not tell 12."""
  words = rf"(?<!\w){re.escape(part.lower())}(?!\w)"
  return bool(re.search(words, text.lower()))


def count_shared_words(text: str, other: str) -> int:
  """Return the number of different words that two texts share."""
  words = (set(re.findall(r"\w+", x.lower())) for x in (text, other))
  return len(set.intersection(*words))
