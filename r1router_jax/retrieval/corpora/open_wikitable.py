"""Open-WikiTable's `splitted_tables.json`: tables as text, one passage a chunk.

The file is a table of pandas, by columns: {"flattened": {"0": "[Title]...",
"1": ...}, "header": {...}, ...}.  A chunk's text is what "flattened" says, to
the letter, and where there is no such column it is composed of the others,
in one line:

  [Title]T[Section title]S[Caption]C[Table name]N[Header]a[sep]b[Rows]
  [Row]1[sep]2[Row]3[sep]4

The passage of row i has the id "i", and is row i of the index as long as no row
is bad.  (Questions of Open-WikiTable count rows from 1.)

As Python objects 100 MB of JSON would be many times as much, so columns are
found in the bytes, and a value is parsed when its row is asked for.

Source: arxiv.org/abs/2305.07288.
"""

import array
import re

from r1router_jax.common import row_files
from r1router_jax.common.records import Passage
from r1router_jax.common.row_files import Fault

MAX_BYTES = 2 << 30

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[][{}:,]', re.S)

_ENDS = {b",": 2, b"}": 1}  # What ends a value, and how deep it then stands.

# Marks of a flattened table, and the columns that stand behind them.
_MARKS = {
  "Title": "title",
  "Section title": "section_title",
  "Caption": "caption",
  "Table name": "name",
}

_COLUMNS = ("page_title", "section_title", "caption", "name", "header", "rows")


Row = tuple[int, dict[str, bytes]]


def rows(
  path: str, open_file: row_files.Open = row_files.stored
) -> row_files.Rows:
  """(number, JSON by column) of each chunk of the file.

  Raises:
    ValueError: where the file as a whole cannot be read.
  """
  with row_files.unpacked(path, open_file) as file:
    data = file.read(MAX_BYTES + 1)
  if len(data) > MAX_BYTES:
    raise ValueError(f"{path} has over {MAX_BYTES:,} bytes.  Split it.")
  columns = _columns(path, data)
  wanted = ("flattened",) if "flattened" in columns else _COLUMNS
  if not set(wanted[-2:]) <= set(columns):
    raise ValueError(
      f"{path} has the columns {', '.join(columns)}, wanted flattened, or "
      "header and rows.  Give Open-WikiTable's splitted_tables.json."
    )
  columns = {name: columns[name] for name in wanted if name in columns}
  for number in range(len(columns[wanted[-1]]) // 2):
    yield (
      f"{path}: row {number}",
      (
        number,
        {
          name: data[bounds[2 * number] : bounds[2 * number + 1]]
          for name, bounds in columns.items()
        },
      ),
    )


def passages(kb: str, row: Row, pictures: str) -> tuple[str, list[Passage]]:
  """The id of a chunk and its one passage.

  Raises:
    Fault: where the chunk is bad.
  """
  del pictures  # It has none.
  number, columns = row
  fields = {name: row_files.parse(value) for name, value in columns.items()}
  text = fields.get("flattened")
  if "flattened" not in fields:
    text = flatten(fields | {"title": fields.get("page_title", "")})
  if not row_files.check("flattened", text).strip():
    raise Fault('"flattened" is empty', "Give the table's text")
  return str(number), [Passage(str(number), kb, text)]


def flatten(row: dict) -> str:
  """A table in one line, with Open-WikiTable's marks.

  Args:
    row: "header" and "rows", and optionally what `_MARKS` names.

  Raises:
    Fault: where it is no table.
  """
  header, rows = row.get("header"), row.get("rows")
  if not (isinstance(header, list) and isinstance(rows, list) and rows):
    raise Fault(
      '"header" and "rows" are no lists, or empty',
      'Write "header": ["Country"], "rows": [["Chad"]]',
    )
  lines = [header, *rows]
  for number, line in enumerate(lines):
    if not isinstance(line, list) or len(line) != len(header):
      raise Fault(
        f"row {number} of the table has not the {len(header)} cells "
        "of its header",
        "Pad or split the table",
      )
    if not all(isinstance(cell, (str, int, float)) for cell in line):
      raise Fault(
        f"row {number} of the table holds something else than text and numbers",
        "Write cells as strings",
      )
  head = "".join(f"[{mark}]{row.get(key, '')}" for mark, key in _MARKS.items())
  cells = ["[sep]".join(map(str, line)) for line in lines]
  return f"{head}[Header]{cells[0]}[Rows]" + "".join(
    f"[Row]{line}" for line in cells[1:]
  )


def _columns(path: str, data: bytes) -> dict[str, array.array]:
  """Where the values of each column start and stop, in turns.

  Raises:
    ValueError: where this is no JSON of columns with the same rows.
  """
  columns, keys = {}, {}
  depth, name, last = 0, "", b""
  for token in _TOKEN.finditer(data):
    mark = token[0][:1]
    depth -= mark in b"]}"
    if mark == b'"':
      last = token[0]
    elif mark == b":" and depth == 1:
      name = last.decode(errors="replace").strip('"')
      columns[name], keys[name] = array.array("q"), 0
    elif mark == b":" and depth == 2 and columns:
      columns[name].append(token.end())
      keys[name] = hash((keys[name], last))
    elif columns and len(columns[name]) % 2 and depth == _ENDS.get(mark):
      columns[name].append(token.start())
    depth += mark in b"[{"
  sizes = {len(bounds) for bounds in columns.values()}
  if depth or len(set(keys.values())) != 1 or len(sizes) != 1 or 0 in sizes:
    raise ValueError(
      f"{path} is no table by columns, all with the same rows.  Give "
      "Open-WikiTable's splitted_tables.json, or write it again with "
      "DataFrame.to_json."
    )
  return columns
