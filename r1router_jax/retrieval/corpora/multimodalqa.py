"""Reader of MultimodalQA's texts, images and tables, each for its own kind.

  MMQA_texts.jsonl.gz   {"id", "title", "text"}: a paragraph of Wikipedia
  MMQA_images.jsonl.gz  {"id", "title", "path"}: an image whose caption is the
                        title, below the folder of final_dataset_images.zip
  MMQA_tables.jsonl.gz  {"id", "title", "table": {"table_name", "header",
                        "table_rows"}}: a column of the header has a
                        "column_name", a cell its "text"

Ids are those that gold hops name (`data.multimodalqa`).  A long text becomes
windows as a user's own texts do, and a long table chunks of a few rows with
their header: "id#0" and so on.

Source: github.com/allenai/multimodalqa.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from r1router_jax.common import images, row_files
from r1router_jax.common.records import KBS, Passage
from r1router_jax.common.row_files import RowError
from r1router_jax.retrieval.corpora import documents, open_wikitable, user_files

SUPPORTED_KBS = KBS
FILE_PATTERN = r"(MMQA_)?{kb}s\.jsonl(\.gz|\.bz2)?"

MAX_ROW_BYTES = 16 << 20  # Headers of tables hold the values of their columns.

_Text = Annotated[str, Meta(pattern=r"\S")]


class _Paragraph(msgspec.Struct):
  id: _Text
  title: str
  text: _Text


class _Image(msgspec.Struct):
  id: _Text
  title: _Text
  path: _Text


class _Column(msgspec.Struct):
  column_name: str


class _Cell(msgspec.Struct):
  text: str


class _Grid(msgspec.Struct):
  header: Annotated[list[_Column], Meta(min_length=1)]
  table_rows: Annotated[list[list[_Cell]], Meta(min_length=1)]
  table_name: str = ""


class _Table(msgspec.Struct):
  id: _Text
  title: str
  table: _Grid


_SCHEMAS = dict(text=_Paragraph, image=_Image, table=_Table)


def read_rows(
  kb: str, path: str, open_file: row_files.OpenFile = row_files.open_local
) -> row_files.Rows:
  """Yield the lines of a file as bytes."""
  del kb  # `to_passages` tells whether a line is of this kind.
  return row_files.read_lines(path, open_file, MAX_ROW_BYTES)


def to_passages(
  kb: str, row: bytes, image_folder: str
) -> tuple[str, list[Passage]]:
  """Return the id of a text, an image or a table, and its passages.

  Raises:
    RowError: the line is invalid, or of another kind.
    images.BadImage: its image is missing or invalid.
  """
  # Statistics of columns may be NaN, and are not read.
  fields = row_files.parse_json(row, parse_constant=float)
  try:
    item = msgspec.convert(fields, _SCHEMAS[kb])
  except msgspec.ValidationError as error:
    cure = f"Give MMQA_{kb}s.jsonl.gz as it was published"
    raise RowError(f"no {kb} of MultimodalQA ({error})", cure) from None
  if kb == "image":
    images.load_image(item.path, image_folder)
    caption = row_files.validate_text("title", item.title)
    return item.id, [Passage(item.id, kb, caption, item.path)]
  texts = _cut_text(item) if kb == "text" else _cut_table(item)
  texts = [row_files.validate_text(kb, text) for text in texts]
  return item.id, user_files.number_windows(item.id, kb, texts)


def _cut_text(item: _Paragraph) -> list[str]:
  # A short text is returned as it stands, so its white space is cleaned first.
  windows = row_files.split_windows(" ".join(item.text.split()))
  return [f"{item.title} {window}".strip() for window in windows]


def _cut_table(item: _Table) -> list[str]:
  """Return the chunks of a table, each a line with Open-WikiTable's marks."""
  grid = item.table
  header = [column.column_name for column in grid.header]
  rows = [[cell.text for cell in row] for row in grid.table_rows]
  if any(len(row) != len(header) for row in rows):
    fault = f"a row of its table has not the {len(header)} cells of its header"
    raise RowError(fault, "Pad or split the table")
  fields = dict(title=item.title, section_title=grid.table_name)
  numbered = ((item.id, row) for row in rows)
  chunks = documents.split_table(item.id, item.id, fields, header, numbered)
  return [_flatten(chunk) for _, chunk in chunks]


def _flatten(chunk: dict | RowError) -> str:
  # A table with too many columns is one fault in place of its chunks.
  if isinstance(chunk, RowError):
    raise chunk
  return open_wikitable.flatten_table(chunk)
