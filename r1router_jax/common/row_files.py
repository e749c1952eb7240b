"""Files of rows, read strictly: what is not right is named, never guessed.

Each reader yields (where, row), with the row a `Fault` where it cannot be read.
Files whose names end in .gz or .bz2 are read as what they hold.
"""

import bz2
import contextlib
import csv
import dataclasses
import gzip
import io
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from absl import logging

from r1router_jax.common import text as text_lib

MAX_ROW = 1 << 20  # Bytes.

NAMED = 5  # So many bad rows are named by a warning, the others are debugging.


class Fault(ValueError):
  """What is wrong with a row, and the cure."""

  def __init__(self, reason: str, cure: str):
    super().__init__(reason, cure)


@dataclasses.dataclass(frozen=True)
class BadRow:
  """A row that cannot be used.

  Attributes:
    where: "file:line".
    reason: what is wrong with it.
    cure: what to do.
  """

  where: str
  reason: str
  cure: str

  def __str__(self) -> str:
    return f"{self.where}: {self.reason}.  {self.cure}."

  @property
  def kind(self) -> str:
    """The reason without names and numbers, to count rows by."""
    return re.sub(r"'[^']*'|\d[\d,]*", "...", self.reason)


class Skipped:
  """What is left out of `source`: counted and named, never silent."""

  def __init__(self, source: str):
    self._source, self._count, self._first = source, 0, ""

  def __call__(self, why: BadRow | str) -> None:
    """Counts a row that is left out."""
    why = text_lib.clean(str(why), 600)
    self._count, self._first = self._count + 1, self._first or why
    logging.log(
      logging.WARNING if self._count <= NAMED else logging.DEBUG,
      "skipped %s",
      why,
    )

  def end(self, kept: int) -> None:
    """Says how many of how many were left out.

    Raises:
      ValueError: where none is kept.
    """
    if self._count:
      logging.warning(
        "%s: skipped %d of %d; --verbosity=1 names them all.",
        self._source,
        self._count,
        self._count + kept,
      )
    if not kept:
      raise ValueError(
        f"{self._source}: nothing of it can be used.  "
        + (
          f"The first of {self._count} faults: {self._first}"
          if self._count
          else "It is empty."
        )
      )


Rows = Iterator[tuple[str, Any]]


Open = Callable[[str], BinaryIO]  # Of a file's bytes, as they are stored.


def stored(path: str) -> BinaryIO:
  """The bytes of a local file."""
  return open(path, "rb")


@contextlib.contextmanager
def unpacked(path: str, open_file: Open = stored) -> Iterator[BinaryIO]:
  """What a file holds, decompressed where its name says so.

  Args:
    path: of the file.
    open_file: opens it, where it is not a local one.

  Raises:
    ValueError: while it is read, where a compressed file is damaged.
  """
  with open_file(path) as file:
    try:
      if path.endswith(".bz2"):
        file = bz2.open(file)
      elif path.endswith(".gz"):
        file = gzip.open(file)
      yield file
    except (EOFError, zlib.error, OSError) as error:
      if isinstance(error, OSError) and error.errno is not None:
        raise  # Of the disk, not of what is on it.
      raise ValueError(
        f"{path}: damaged ({error}).  Fetch the file again."
      ) from None


def lines(path: str, open_file: Open = stored, limit: int = MAX_ROW) -> Rows:
  """The lines of a file, as bytes of at most `limit`; blank ones are left out.

  Raises:
    ValueError: where a compressed file is damaged.
  """
  with unpacked(path, open_file) as file:
    number = 0
    while line := file.readline(limit + 1):
      number += 1
      where = f"{path}:{number}"
      if len(line) > limit:
        while line and not line.endswith(b"\n"):
          line = file.readline(limit)
        yield where, Fault(f"longer than {limit:,} bytes", "Split it")
        continue
      if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
      if line.strip():
        yield where, line.rstrip(b"\r\n")


def json_lines(
  path: str,
  open_file: Open = stored,
  constant: Callable[[str], Any] | None = None,
) -> Rows:
  """The objects of a .jsonl file; blank lines are passed over.

  Args:
    path: of the file.
    open_file: opens it.
    constant: see `parse`.
  """
  for where, line in lines(path, open_file):
    try:
      yield where, line if isinstance(line, Fault) else parse(line, constant)
    except Fault as fault:
      yield where, fault


def parse(line: bytes, constant: Callable[[str], Any] | None = None) -> Any:
  """One strict JSON value: UTF-8, finite numbers, no key twice.

  Args:
    line: its bytes.
    constant: makes the value of NaN, Infinity or -Infinity, where these are
      not refused.

  Raises:
    Fault: where it is not that.
  """
  try:
    return json.loads(
      line.decode("utf-8"),
      parse_constant=constant or _not_json,
      parse_float=_finite,
      object_pairs_hook=_unique,
    )
  except UnicodeDecodeError as error:
    raise Fault(
      f"not UTF-8 at byte {error.start}", "Save it as UTF-8"
    ) from None
  except RecursionError:
    raise Fault("nested too deeply", "Write a flat object") from None
  except Fault:
    raise
  except ValueError as error:
    raise Fault(
      f"not JSON ({str(error)[:80]})", "Write one object in each line"
    ) from None


def _not_json(constant: str) -> None:
  raise Fault(f"{constant} is not JSON", "Write a number or leave it out")


def _finite(text: str) -> float:
  if not math.isfinite(number := float(text)):
    raise Fault(f"the number {text} is too large", "Write a smaller one")
  return number


def _unique(pairs: list[tuple[str, Any]]) -> dict:
  found = {}
  for key, value in pairs:
    if key in found:
      raise Fault(f"the key {key!a} occurs twice", "Keep one of them")
    found[key] = value
  return found


def csv_lines(path: str, open_file: Open = stored) -> Rows:
  """The lines of a .csv file as dicts; the first line names the columns."""
  with (
    unpacked(path, open_file) as file,
    io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text,
  ):
    reader = csv.DictReader(text, strict=True)
    try:
      if not {"id", "text"} <= set(reader.fieldnames or ()):
        raise ValueError(
          f"{path}: its first line names {reader.fieldnames}, wanted at "
          "least id and text.  Name the columns there."
        )
      while (row := _csv_row(reader)) is not None:
        yield f"{path}:{reader.line_num}", row
    except UnicodeDecodeError:
      raise ValueError(
        f"{path}: not UTF-8 soon after line {reader.line_num}.  Save it as "
        "UTF-8."
      ) from None


def _csv_row(reader: csv.DictReader) -> dict | Fault | None:
  """The next row, None at the end."""
  try:
    row = next(reader, None)
  except csv.Error as error:
    return Fault(f"not CSV ({error})", "Quote texts with commas or line breaks")
  if row is not None and (None in row or None in row.values()):
    return Fault(
      "has not as many fields as the first line",
      "Quote texts with commas or line breaks",
    )
  return row


def pictures(folder: str) -> Rows:
  """A row for each picture below `folder`, in order of their names."""
  for base, folders, files in os.walk(folder):
    folders.sort()
    for file in sorted(files):
      stem, kind = os.path.splitext(file)
      if kind.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        continue
      name = os.path.relpath(os.path.join(base, file), folder)
      caption = os.path.join(base, stem + ".txt")
      text = re.sub(r"[-_]+", " ", stem)
      try:
        if os.path.isfile(caption):
          with open(caption, encoding="utf-8-sig") as lines:
            text = " ".join(lines.read(MAX_ROW).split())
        yield os.path.join(base, file), dict(id=name, text=text, image=name)
      except (OSError, UnicodeDecodeError) as error:
        yield caption, Fault(f"cannot be read ({error})", "Save it as UTF-8")


WINDOW, STRIDE = 100, 50  # Words.

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def check(name: str, value: object) -> str:
  """`value`, where it is harmless text.

  Args:
    name: of the field, to be named.
    value: from anywhere.

  Raises:
    Fault: where it is something else.
  """
  if not isinstance(value, str):
    raise Fault(f'"{name}" is a {type(value).__name__}', "Write it as a string")
  if control := _CONTROL.search(value):
    raise Fault(
      f'"{name}" holds the control character {control[0]!a}', "Remove it"
    )
  try:
    value.encode()
  except UnicodeEncodeError:
    raise Fault(
      f'"{name}" holds half a surrogate pair', "Write whole characters"
    ) from None
  return value


def windows(text: str) -> list[str]:
  """`WINDOW` words every `STRIDE`, and the last `WINDOW` words."""
  words = text.split()
  if len(words) <= WINDOW:
    return [text]
  starts = list(range(0, len(words) - WINDOW + 1, STRIDE))
  if starts[-1] + WINDOW < len(words):
    starts.append(len(words) - WINDOW)
  return [" ".join(words[start : start + WINDOW]) for start in starts]
