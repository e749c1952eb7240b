"""Quote from a passage what tells an answer: the thought before the answer.

A policy that first copies the sentence, or names the row and the column of a
table, finds the answer in what it has written.
"""

import re

from r1router_jax.common.records import Passage

MAX_CHARACTERS = 170  # Of a quoted sentence.

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[^a-z])")


def quote(passage: Passage, asked: str, answer: str) -> str:
  """Return the sentence or the cell that answers a sub-question, or ""."""
  if passage.kb == "table":
    return _quote_cell(passage.text, asked, answer)
  if passage.kb == "image":
    return ""
  sentences = [x.removesuffix(".") for x in _SENTENCE.split(passage.text)]
  holding = [x for x in sentences if answer.lower() in x.lower()]
  if not holding:
    return ""
  best = max(holding, key=lambda sentence: _count_shared(sentence, asked))
  if best.lower() == answer.lower():
    # A heading names what the other sentences are about.
    told = max(sentences, key=lambda sentence: _count_shared(sentence, asked))
    best = best if told == best else f"{best}: {told}"
  if len(best) <= MAX_CHARACTERS:
    return best
  return _crop(best, answer)


def _crop(sentence: str, answer: str) -> str:
  """Return the words of a long sentence around an answer."""
  at = sentence.lower().index(answer.lower())
  spare = max(0, MAX_CHARACTERS - len(answer)) // 2
  start, end = max(0, at - spare), at + len(answer) + spare
  # Whole words alone.
  start = sentence.find(" ", start) + 1 if start else 0
  end = (
    sentence.rfind(" ", at + len(answer), end) if end < len(sentence) else end
  )
  return sentence[start : end if end > 0 else None].strip(" .,;")


def _quote_cell(table: str, asked: str, answer: str) -> str:
  """Return "row: column cell", or for a row "column cell: row"."""
  header, _, body = table.partition("[Header]")[2].partition("[Rows]")
  columns = header.split("[sep]")
  rows = [row.split("[sep]") for row in body.split("[Row]")[1:]]
  asked, answer = asked.lower(), answer.lower()
  named, found = [], []
  for row in rows:
    for column, cell in list(zip(columns, row, strict=False))[1:]:
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
