"""Readers of raw corpora: files to passages, one bad row at a time.

A corpus is crawled, so a reader expects anything.  It yields a `Passage` for
each good row and a `BadRow` for each bad one, which says where, why, and the
cure; whoever reads decides how many are too many.

JSON lines are objects with "id" and "text", and optionally "title" and "image"
(a path below the pictures' folder).  A row of the table knowledge base may
give instead of "text" a "header" and "rows", with "title", "section_title",
"caption" and "name"; it is flattened as in Open-WikiTable.  CSV files have
these names in their first line.  A folder of pictures takes captions from
NAME.txt beside NAME.png, or from the name.

Texts of the text knowledge base longer than 100 words are cut into windows of
100 words, one every 50, each headed by its title.  (The original meant to head
them so and wrote Python's builtin `id` there.)
"""

import importlib.resources
import os
from collections.abc import Iterator
from typing import Any

from r1router_jax.inputs import images
from r1router_jax.inputs import rows as files
from r1router_jax.inputs.rows import BadRow, Fault
from r1router_jax.records import Passage
from r1router_jax.retrieval import texts

WORLD = "georouter"  # The source that comes with the package.
WINDOW, STRIDE = 100, 50  # Words.
_FIELDS = ("id", "text", "title", "section_title", "caption", "name", "image")


def world_folder() -> str:
  """Where the embedded world lies."""
  return str(importlib.resources.files("r1router_jax") / "data/files/georouter")


def picture_folder(source: str) -> str:
  """The folder that a source's pictures are named below."""
  if source == WORLD:
    return world_folder()
  return source if os.path.isdir(source) else os.path.dirname(source) or "."


def read(kb: str, source: str) -> Iterator[Passage | BadRow]:
  """Passages of knowledge base `kb`, with the paths of pictures relative.

  Args:
    kb: "text", "image" or "table".
    source: `WORLD`, a .jsonl or .csv file, or a folder of pictures.

  Raises:
    ValueError: where the source as a whole cannot be read.
  """
  folder = picture_folder(source)
  path = os.path.join(folder, f"kb_{kb}.jsonl") if source == WORLD else source
  if not os.path.exists(path):
    raise ValueError(
        f"The source {path} does not exist.  Give {WORLD}, a .jsonl or .csv "
        "file, or a folder of pictures.")
  if os.path.isdir(path) and kb == "image":
    rows = files.pictures(path)
  elif path.endswith(".jsonl"):
    rows = files.json_lines(path)
  elif path.endswith(".csv"):
    rows = files.csv_lines(path)
  else:
    raise ValueError(
        f"The source {path} is none that the {kb} knowledge base reads.  Give "
        "a .jsonl or .csv file"
        + (", or a folder of pictures." if kb == "image" else "."))
  return _passages(kb, folder, rows)


def _passages(kb: str, folder: str, rows: files.Rows
              ) -> Iterator[Passage | BadRow]:
  """Checks rows, and that no id comes twice."""
  seen = {}
  for where, row in rows:
    try:
      if isinstance(row, Fault):
        raise row
      fields = _fields(kb, row)
      name = fields["id"]
      if name in seen:
        raise Fault(f"the id {name!a} is that of {seen[name]}, too",
                     "Give each row its own")
      if fields["image"]:
        images.load(fields["image"], folder)
      yield from _cut(kb, fields)
      seen[name] = where
    except images.BadImage as error:
      yield BadRow(where, str(error).rstrip("."), "Or leave the row out")
    except Fault as fault:
      yield BadRow(where, *fault.args)


def _fields(kb: str, row: Any) -> dict[str, str]:
  """The strings of a row, checked; its text composed."""
  if not isinstance(row, dict):
    raise Fault(f"a {type(row).__name__} where a row should be",
                 'Write an object such as {"id": "a", "text": "b"}')
  fields = {name: row.get(name, "") for name in _FIELDS}
  if kb == "table" and "rows" in row:
    fields["text"] = _flatten(row)
  for name, value in fields.items():
    texts.check(name, value)
  for name in ("id", "text"):
    if not fields[name].strip():
      raise Fault(f'"{name}" is missing or empty', "Give one")
  return fields


def _flatten(row: dict) -> str:
  """A table in one line, with Open-WikiTable's marks."""
  header, rows = row.get("header"), row["rows"]
  if not (isinstance(header, list) and isinstance(rows, list) and rows):
    raise Fault('"header" and "rows" are no lists, or empty', "Write "
                 '"header": ["Country"], "rows": [["Chad"]]')
  lines = [header, *rows]
  for number, line in enumerate(lines):
    if not isinstance(line, list) or len(line) != len(header):
      raise Fault(f"row {number} of the table has not the {len(header)} cells "
                   "of its header", "Pad or split the table")
    if not all(isinstance(cell, (str, int, float)) for cell in line):
      raise Fault(f"row {number} of the table holds something else than text "
                   "and numbers", "Write cells as strings")
  head = "".join(
      f"[{mark}]{row.get(key, '')}" for mark, key in (
          ("Title", "title"), ("Section title", "section_title"),
          ("Caption", "caption"), ("Table name", "name")))
  cells = ["[sep]".join(map(str, line)) for line in lines]
  return (f"{head}[Header]{cells[0]}[Rows]"
          + "".join(f"[Row]{line}" for line in cells[1:]))


def _cut(kb: str, fields: dict[str, str]) -> Iterator[Passage]:
  """One passage, or one for each window of a long text."""
  title, text = fields["title"], fields["text"].strip()
  parts = windows(text) if kb == "text" else [text]
  for number, part in enumerate(parts):
    name = fields["id"] if len(parts) == 1 else f"{fields['id']}#{number}"
    # A table says its title itself.
    headed = f"{title} {part}" if title and kb != "table" else part
    yield Passage(id=name, kb=kb, text=headed, image=fields["image"])


def windows(text: str) -> list[str]:
  """`WINDOW` words every `STRIDE`, and the last `WINDOW` words."""
  words = text.split()
  if len(words) <= WINDOW:
    return [text]
  starts = list(range(0, len(words) - WINDOW + 1, STRIDE))
  if starts[-1] + WINDOW < len(words):
    starts.append(len(words) - WINDOW)
  return [" ".join(words[start:start + WINDOW]) for start in starts]
