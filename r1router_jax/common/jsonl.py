"""JSON Lines files that programs append to, and may be killed while doing so.

Files that people or crawlers wrote are read by `row_files`, which is strict.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath


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
  text = "\n" * torn + "".join(json.dumps(row) + "\n" for row in rows)
  # A single write, so that a kill tears at most the last line.
  with path.open("a", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())


def read_rows(path: epath.PathLike) -> list[dict[str, Any]]:
  """Read the rows of a file, or return none if the file does not exist.

  A line that is not a JSON object was torn when a run was killed; it is
  skipped.
  """
  path, rows = epath.Path(path), []
  if not path.exists():
    return rows
  with path.open() as file:
    for line in file:
      with contextlib.suppress(ValueError):
        rows.append(json.loads(line))
  return [row for row in rows if isinstance(row, dict)]
