"""Reader of a user's own corpus: a folder of documents, or files of rows.

A folder holds documents, tables and images, see folders.py; a path may also
name one such document or table.

Files of rows name each passage.  JSON Lines are objects with "id" and "text",
and optionally "title" and "image" (a path below the image folder); in place of
"text" they may have "contents", whose first line is the title if it is in
quotes, as in the dumps of Search-R1 and FlashRAG.  A row of
the table knowledge base may give a "header" and "rows" instead of "text", with
"title", "section_title", "caption" and "name"; it is flattened as in
Open-WikiTable.  Parquet and Arrow files have these names as columns.  CSV files
have id and text in their first line; without them they are tables, see
documents.py.

Texts of the text knowledge base that are longer than 100 words are cut into
windows of 100 words, one every 50, each headed by the title.  Those of row "a"
are "a#0", "a#1" and so on; another row of such a name is left out.  A row that
says "whole": true is a passage already: its text stays as it is, and may be
empty if the row has an image.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

from r1router_jax.common import images, row_files
from r1router_jax.common.records import KBS, Passage
from r1router_jax.common.row_files import RowError
from r1router_jax.retrieval.corpora import (
  columnar,
  documents,
  folders,
  open_wikitable,
)

SUPPORTED_KBS = KBS
FILE_PATTERN = r"(?i).*\.((jsonl|csv|tsv)(\.gz|\.bz2)?|parquet|arrow)"

_FIELDS = ("id", "text", "title", "section_title", "caption", "name", "image")
_QUOTED_TITLE = re.compile(r'"(.*)"\r?\n')


def document_kbs(path: str) -> tuple[str, ...]:
  """Return the kinds that a document or a folder is for, none for rows."""
  if os.path.isdir(path):
    return KBS
  if re.fullmatch(documents.PDF_PATTERN, path):
    return ("text",)
  if re.fullmatch(documents.DOCUMENT_PATTERN, path):
    return tuple(documents.ROW_READERS)
  is_csv = re.fullmatch(documents.CSV_PATTERN, path) and os.path.isfile(path)
  return ("table",) if is_csv and not documents.corpus_columns(path) else ()


def read_rows(
  kb: str, path: str, open_file: row_files.OpenFile = row_files.open_local
) -> row_files.Rows:
  """Read the raw rows of a file or of a folder; those of JSON stay bytes."""
  if os.path.isdir(path):
    return folders.read_rows(kb, path)
  if re.fullmatch(documents.DOCUMENT_PATTERN, path):
    return _read_document(kb, path, open_file)
  if re.fullmatch(columnar.FILE_PATTERN, path):
    return columnar.read_rows(path, open_file)
  if not re.fullmatch(documents.CSV_PATTERN, path):
    return row_files.read_lines(path, open_file)
  if kb == "table" and not documents.corpus_columns(path, open_file):
    return documents.csv_table_rows(path, os.path.basename(path), open_file)
  return row_files.read_csv_rows(path, open_file)


def _read_document(
  kb: str, path: str, open_file: row_files.OpenFile
) -> row_files.Rows:
  """Yield the rows of one document, or the fault of it."""
  name = os.path.basename(path)
  try:
    yield from documents.document_rows(kb, path, name, open_file)
  except RowError as fault:
    yield path, fault


def to_passages(
  kb: str, row: Any, image_folder: str, whole: bool = False
) -> tuple[str, list[Passage]]:
  """Return the id of a JSON line or dict, and a passage for each window.

  If it should be `whole`, it is one passage, whatever the row says.

  Raises:
    RowError: the row is invalid.
    images.BadImage: its image is missing or invalid.
  """
  if isinstance(row, bytes):
    row = row_files.parse_json(row)
  if not isinstance(row, dict):
    cure = 'Write an object such as {"id": "a", "text": "b"}'
    raise RowError(f"a {type(row).__name__} where a row should be", cure)
  if whole:
    row = row | {"whole": True}
  fields = _validate_fields(kb, row)
  row_id, text, image = fields["id"], fields["text"], fields["image"]
  if image:
    images.load_image(image, image_folder)

  # Long texts become windows, unless the row is a passage already.
  text = text if row.get("whole") else text.strip()
  is_long = kb == "text" and not row.get("whole")
  parts = row_files.split_windows(text) if is_long else [text]
  # The text of a table begins with its title.
  head = f"{fields['title']} " if fields["title"] and kb != "table" else ""
  return row_id, number_windows(row_id, kb, [head + x for x in parts], image)


def number_windows(
  row_id: str, kb: str, texts: Sequence[str], image: str = ""
) -> list[Passage]:
  """Return a passage for each text; if there are several, "id#0" and on."""
  if len(texts) == 1:
    return [Passage(row_id, kb, texts[0], image)]
  return [Passage(f"{row_id}#{i}", kb, x, image) for i, x in enumerate(texts)]


def _validate_fields(kb: str, row: dict) -> dict[str, str]:
  """Return the text fields of a row, or raise a RowError."""
  # What is null is absent; columns of Parquet files have no other way.
  fields = {name: row[name] for name in _FIELDS if row.get(name) is not None}
  fields = dict.fromkeys(_FIELDS, "") | fields
  if type(fields["id"]) is int:  # Not isinstance: True and False are ints, too.
    fields["id"] = str(fields["id"])
  if not fields["text"] and row.get("contents"):
    contents = row_files.validate_text("contents", row["contents"])
    title = _QUOTED_TITLE.match(contents)
    fields["text"] = contents[title.end() :] if title else contents
    fields["title"] = fields["title"] or (title[1] if title else "")
  if kb == "table" and "rows" in row:
    fields["text"] = open_wikitable.flatten_table(row)
  # All values are texts; CSV rows have no others.
  for name, value in fields.items():
    row_files.validate_text(name, value)
  whole = row.get("whole", False)
  if not isinstance(whole, bool):
    raise RowError(f'"whole" is {str(whole)[:40]!a}', "Write true or false")

  # An image can be found without a caption, but only as a passage.
  for name in ("id",) if whole and fields["image"] else ("id", "text"):
    if not fields[name].strip():
      raise RowError(f'"{name}" is missing or empty', "Give one")
  return fields
