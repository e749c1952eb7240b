"""Your own corpus: JSON lines, CSV files, or a folder of pictures.

JSON lines are objects with "id" and "text", and optionally "title" and "image"
(a path below the pictures' folder).  A row of the table knowledge base may
give instead of "text" a "header" and "rows", with "title", "section_title",
"caption" and "name"; it is flattened as in Open-WikiTable.  CSV files have
these names in their first line.  A folder of pictures takes captions from
NAME.txt beside NAME.png, or from the name.

Texts of the text knowledge base longer than 100 words are cut into windows of
100 words, one every 50, each headed by its title.  A row that says "whole":
true is a passage already: its text stays as it is, and where it has a picture
it may be empty.
"""

import os
import re
from typing import Any

from r1router_jax.common import images, row_files
from r1router_jax.common.records import Passage
from r1router_jax.common.row_files import Fault
from r1router_jax.retrieval.corpora import open_wikitable

_FIELDS = ("id", "text", "title", "section_title", "caption", "name", "image")


def rows(
  path: str, open_file: row_files.Open = row_files.stored
) -> row_files.Rows:
  """The rows of a file, not parsed yet, or of a folder of pictures."""
  if os.path.isdir(path):
    return row_files.pictures(path)
  csv = re.search(r"\.csv(\.gz|\.bz2)?$", path)
  return (row_files.csv_lines if csv else row_files.lines)(path, open_file)


def passages(kb: str, row: Any, pictures: str) -> tuple[str, list[Passage]]:
  """The id of a row and its passages, one for each window of a long text.

  Raises:
    Fault: where the row is bad.
    images.BadImage: where its picture is.
  """
  if isinstance(row, bytes):
    row = row_files.parse(row)
  if not isinstance(row, dict):
    raise Fault(
      f"a {type(row).__name__} where a row should be",
      'Write an object such as {"id": "a", "text": "b"}',
    )
  fields = _fields(kb, row)
  name, title, text, image = (
    fields[key] for key in ("id", "title", "text", "image")
  )
  if image:
    images.load(image, pictures)
  if row.get("whole"):
    parts = [text]
  else:
    text = text.strip()
    parts = row_files.windows(text) if kb == "text" else [text]
  # A table says its title itself.
  head = f"{title} " if title and kb != "table" else ""
  return name, [
    Passage(
      name if len(parts) == 1 else f"{name}#{number}", kb, head + part, image
    )
    for number, part in enumerate(parts)
  ]


def _fields(kb: str, row: dict) -> dict[str, str]:
  """The strings of a row, checked; its text composed."""
  fields = {name: row.get(name, "") for name in _FIELDS}
  if kb == "table" and "rows" in row:
    fields["text"] = open_wikitable.flatten(row)
  for name, value in fields.items():
    row_files.check(name, value)
  whole = row.get("whole", False)
  if not isinstance(whole, bool):
    raise Fault(f'"whole" is {str(whole)[:40]!a}', "Write true or false")
  for name in ("id", "text"):
    shown = name == "text" and whole and fields["image"]
    if not (fields[name].strip() or shown):
      raise Fault(f'"{name}" is missing or empty', "Give one")
  return fields
