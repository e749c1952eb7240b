"""Reader of Open-WikiTable's `splitted_tables.json`: one passage per chunk.

The file is a pandas table, stored by columns: {"flattened": {"0": "[Title]...",
"1": ...}, "header": {...}, ...}.  The text of a chunk is its "flattened", to
the letter.  Without such a column it is composed of the others, in one line:

  [Title]T[Section title]S[Caption]C[Table name]N[Header]a[sep]b[Rows]
  [Row]1[sep]2[Row]3[sep]4

The passage of row i has the id "i", and is row i of the index as long as no row
is bad.  (Questions of Open-WikiTable count rows from 1.)

As Python objects 100 MB of JSON would take many times as much memory, so a cell
stays as its bytes until its row is read.

Source: arxiv.org/abs/2305.07288.
"""

import msgspec

from r1router_jax.common import row_files
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Passage
from r1router_jax.common.row_files import RowError

SUPPORTED_KBS = ("table",)
FILE_PATTERN = r"splitted_tables\.json(\.gz|\.bz2)?"

MAX_BYTES = 2 << 30

# Marks of a flattened table, and the fields whose values follow them.
_MARKS = {
  "Title": "title",
  "Section title": "section_title",
  "Caption": "caption",
  "Table name": "name",
}

# Columns that a text is composed of; the last two are required.
_COLUMNS = ("page_title", "section_title", "caption", "name", "header", "rows")

# The number of a row, and the JSON of its cells by column.
RawRow = tuple[int, dict[str, bytes]]


def read_rows(
  kb: str, path: str, open_file: row_files.OpenFile = row_files.open_local
) -> row_files.Rows:
  """Yield the chunks of a file; raise a UserError if it cannot be read."""
  del kb  # Chunks are tables.
  # One byte more than allowed tells a larger file without reading it all.
  with row_files.open_decompressed(path, open_file) as file:
    data = file.read(MAX_BYTES + 1)
  if len(data) > MAX_BYTES:
    raise UserError(f"{path} has over {MAX_BYTES:,} bytes.  Split it.")
  columns = _find_columns(path, data)
  wanted = ("flattened",) if "flattened" in columns else _COLUMNS
  if not set(wanted[-2:]) <= set(columns):
    raise UserError(
      f"{path} has the columns {', '.join(columns)}, wanted flattened, or "
      "header and rows.  Give Open-WikiTable's splitted_tables.json."
    )
  columns = {name: columns[name] for name in wanted if name in columns}
  for number, row_name in enumerate(columns[wanted[-1]]):
    cells = {name: bytes(cells[row_name]) for name, cells in columns.items()}
    yield f"{path}: row {number}", (number, cells)


def to_passages(
  kb: str, row: RawRow, image_folder: str
) -> tuple[str, list[Passage]]:
  """Return the id of a chunk and its one passage, or raise a RowError."""
  del image_folder  # Tables have no images.
  number, cells = row
  fields = {name: row_files.parse_json(value) for name, value in cells.items()}
  text = fields.get("flattened")
  # None of a column that is there is an error, and not a reason to compose.
  if "flattened" not in fields:
    text = flatten_table(fields | {"title": fields.get("page_title", "")})
  if not row_files.validate_text("flattened", text).strip():
    raise RowError('"flattened" is empty', "Give the table's text")
  return str(number), [Passage(str(number), kb, text)]


def flatten_table(row: dict) -> str:
  """Write a table in one line, with Open-WikiTable's marks.

  Raises a RowError if its "header" and "rows" are no table.
  """
  header, rows = row.get("header"), row.get("rows")
  if not (isinstance(header, list) and isinstance(rows, list) and rows):
    cure = 'Write "header": ["Country"], "rows": [["Chad"]]'
    raise RowError('"header" and "rows" are no lists, or empty', cure)
  lines = [header, *rows]
  for number, line in enumerate(lines):
    where = f"row {number} of the table"
    if not isinstance(line, list) or len(line) != len(header):
      reason = f"{where} has not the {len(header)} cells of its header"
      raise RowError(reason, "Pad or split the table")
    if not all(isinstance(cell, (str, int, float)) for cell in line):
      reason = f"{where} holds something else than text and numbers"
      raise RowError(reason, "Write cells as strings")
  title = "".join(f"[{mark}]{row.get(key, '')}" for mark, key in _MARKS.items())
  first, *others = ("[sep]".join(map(str, line)) for line in lines)
  body = "".join(f"[Row]{line}" for line in others)
  return f"{title}[Header]{first}[Rows]{body}"


def _find_columns(path: str, data: bytes) -> dict[str, dict[str, msgspec.Raw]]:
  """Return the unparsed cells of each column by the names of their rows.

  Raises a UserError if the data are no JSON of columns with the same rows.
  """
  cells = dict[str, dict[str, msgspec.Raw]]
  try:
    columns = msgspec.json.decode(data, type=cells)
  except (msgspec.MsgspecError, RecursionError):
    columns = {}
  first, *others = map(list, columns.values()) if columns else [[]]
  if not first or any(names != first for names in others):
    raise UserError(
      f"{path} is no table by columns, all with the same rows.  Give "
      "Open-WikiTable's splitted_tables.json, or write it again with "
      "DataFrame.to_json."
    )
  return columns
