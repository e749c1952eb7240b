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
      if has_words(cell, answer):
        shared = count_shared_words(f"{row[0]} {column}", asked)
        named.append((shared, f"{row[0]}: {column} {cell}"))
      if has_words(row[0], answer) and cell:
        told = has_words(asked, cell)
        shared = count_shared_words(column, asked) + 10 * told
        found.append((shared, f"{column} {cell}: {row[0]}"))
  best = max(named + found, key=lambda pair: pair[0], default=(0, ""))
  return best[1] if len(best[1]) <= MAX_CHARACTERS else ""


def has_words(text: str, words: str) -> bool:
  """Return whether a text has these words or numbers, and not within others.

  Case does not matter.  12 does not stand in 1200, nor in 3.12 or 12,000.
  """
  text, words = text.lower(), words.lower()
  pattern = rf"(?<!\w)(?<!\d[.,]){re.escape(words)}(?!\w)(?![.,]\d)"
  # Most texts do not have them at all, which is told sooner.
  return words in text and bool(re.search(pattern, text))


def count_shared_words(text: str, other: str) -> int:
  """Return the number of different words that two texts share."""
  words = (set(re.findall(r"\w+", x.lower())) for x in (text, other))
  return len(set.intersection(*words))
