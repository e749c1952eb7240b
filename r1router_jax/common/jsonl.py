"""Reads, appends and atomically replaces JSON and JSON Lines files."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any


def append(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
  """Adds a line for each row, all in one go."""
  path = pathlib.Path(path)
  torn = False
  if path.exists() and path.stat().st_size:
    with path.open("rb") as file:
      file.seek(-1, os.SEEK_END)
      torn = file.read() != b"\n"
  text = "".join(json.dumps(row) + "\n" for row in rows)
  with path.open("a", encoding="utf-8") as file:
    file.write("\n" * torn + text)
    file.flush()
    os.fsync(file.fileno())


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The rows of the file, none where there is no file."""
  rows = []
  path = pathlib.Path(path)
  for line in path.open(encoding="utf-8") if path.exists() else ():
    try:
      rows.append(json.loads(line))
    except ValueError:
      continue  # Torn when a run was killed.
  return [row for row in rows if isinstance(row, dict)]


def replace(path: str | os.PathLike, value: Any) -> None:
  """Writes a JSON file that is either whole or as it was before."""
  path = pathlib.Path(path)
  draft = path.with_name(path.name + ".partial")
  draft.write_text(json.dumps(value, indent=1), encoding="utf-8")
  os.replace(draft, path)


def write_json(path: str, value: dict) -> None:
  """Writes a file that is either whole or absent."""
  with open(path + ".partial", "w", encoding="utf-8") as file:
    json.dump(value, file, indent=2)
  os.replace(path + ".partial", path)
