"""JSON Lines files that programs append to, and may be killed while doing so.

A row that is appended ends with its checksum, "crc", by which a changed one is
noticed.  Files that people or crawlers wrote are read by `row_files`, which is
strict.
"""

import io
import json
import os
import pathlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from absl import logging
from etils import epath

from r1router_jax.common import row_files, schema
from r1router_jax.common.errors import UserError
from r1router_jax.common.text import sanitize_text

MAX_LINE_BYTES = 1 << 26  # Of a row, with all passages that were read.


def append_rows(
  path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]
) -> None:
  """Append one line per row in a single write, and flush it to the disk."""
  path = pathlib.Path(path)
  torn = False
  if path.exists() and path.stat().st_size:
    with path.open("rb") as file:
      file.seek(-1, os.SEEK_END)
      torn = file.read() != b"\n"
  # A killed run left half a line, which must not swallow the next.
  lines = (json.dumps({**row, "crc": _checksum(row)}) + "\n" for row in rows)
  text = "\n" * torn + "".join(lines)
  # A single write, so that a kill tears at most the last line.
  with path.open("a", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())


def _checksum(row: Mapping[str, Any]) -> int:
  """Return a CRC-32 of a row but for its seconds, which no run repeats."""
  fields = {name: x for name, x in row.items() if name != "seconds"}
  return zlib.crc32(json.dumps(fields).encode())


def read_rows(
  path: epath.PathLike,
  *kinds: Any,
  parse_constant: row_files.MakeNumber = None,
) -> list[dict[str, Any]]:
  """Read the rows of a file, or return none if the file does not exist.

  A line that is torn or changed, or does not fit all `kinds`, types of
  `schema`, is left out; a warning names it.  For `parse_constant` see
  `row_files.parse_json`.
  """
  rows, damaged, first = [], [], ""
  # Rows are kept in memory anyway, and files in buckets know no `readline`.
  file = epath.Path(path)
  data = io.BytesIO(file.read_bytes() if file.exists() else b"")
  lines = row_files.read_lines(str(path), lambda _: data, MAX_LINE_BYTES)
  for where, line in lines:
    try:
      rows.append(_parse_row(line, kinds, parse_constant))
    except UserError as error:
      damaged.append(where.rpartition(":")[2])
      first = first or sanitize_text(error.args[0], 300)
  if damaged:
    shown = path, len(damaged), ", ".join(damaged[:5]), first
    text = "%s: %d damaged lines (%s) are left out, and may be made again: %s."
    logging.warning(text, *shown)
  return rows


def _parse_row(
  line: Any, kinds: Iterable[Any], parse_constant: row_files.MakeNumber
) -> dict[str, Any]:
  """Return the row in a line; raise a UserError if it is damaged."""
  if isinstance(line, UserError):
    raise line
  row = row_files.parse_json(line, parse_constant)
  for kind in (dict[str, Any], *kinds):
    schema.convert(row, kind)
  # Rows of older versions have none.
  if row.pop("crc", None) not in (None, _checksum(row)):
    raise UserError("its checksum is another one")
  return row
