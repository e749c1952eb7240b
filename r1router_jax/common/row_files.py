"""Strict readers of row files: JSON Lines and CSV.

Files come from users and crawlers.  Each reader yields ("file:line", row), and
a row that cannot be read is a `RowError`; nothing is guessed.  Files whose
names end in .gz or .bz2 are decompressed while they are read.
"""

import bz2
import contextlib
import csv
import dataclasses
import functools
import gzip
import io
import itertools
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import msgspec
from absl import logging

from r1router_jax.common.errors import UserError
from r1router_jax.common.text import HALF, mend_json, sanitize_text

MAX_ROW_BYTES = 1 << 20
MAX_ARRAY_BYTES = 2 << 30
# Characters after which a row of a CSV file is taken for an unclosed quote.
MAX_CSV_ROW = 16 * MAX_ROW_BYTES

# Rejected rows that are logged as warnings; further ones as debug messages.
MAX_WARNINGS = 5

# Long texts are cut into windows of WINDOW_WORDS, one every STRIDE_WORDS.
WINDOW_WORDS, STRIDE_WORDS = 100, 50

# What may stand between the fields of a CSV file; a comma does in doubt.
CSV_DELIMITERS = ",;\t|"
# Lines, and their characters, that tell which of them does.
_SAMPLE_LINES, _SAMPLE_CHARS = 20, 1 << 16

# Excel's first line that names the separator, and a title above a header.
_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"?\s*', re.IGNORECASE)
_TITLE_LINE = re.compile('"?# ')
RECODE = "Save it as UTF-8, as by: iconv -f cp1252 -t utf-8 FILE"

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

# Pairs of ("file:line", row), with the row a `RowError` if it is unreadable.
Rows = Iterator[tuple[str, Any]]
# A function that opens a path for reading its bytes as they are stored.
OpenFile = Callable[[str], BinaryIO]
open_local: OpenFile = functools.partial(open, mode="rb")
# A function that makes the value of NaN, Infinity or -Infinity.
MakeNumber = Callable[[str], Any] | None
# A function that raises a RowError unless a file may have these columns.
CheckColumns = Callable[[Sequence[str]], None]


class RowError(UserError):
  """The reason why a row cannot be used, and the cure: its two arguments."""

  def __str__(self) -> str:
    return "; ".join(self.args)


@dataclasses.dataclass(frozen=True)
class RejectedRow:
  """A row that cannot be used: the `RowError` of "file:line"."""

  where: str
  reason: str
  cure: str

  def __str__(self) -> str:
    return f"{self.where}: {self.reason}.  {self.cure}."

  @property
  def kind(self) -> str:
    """The reason without names and numbers, by which rows are counted."""
    return re.sub(r"'[^']*'|\d[\d,]*", "...", self.reason)


class BrokenFile(UserError):
  """A file that cannot be read, or not any further: where, why, and the cure.

  These are its three arguments.
  """

  def __str__(self) -> str:
    return str(RejectedRow(*self.args))


class SkipLog:
  """A log of the rows of a source that are left out: counted and named.

  What is in `named`, which several logs may share, is not named again.
  """

  def __init__(self, source: str, named: set[str] | None = None):
    self._source, self._count, self._first = source, 0, ""
    self._named = set() if named is None else named
    self._num_warnings = 0

  def __call__(self, why: RejectedRow | str) -> None:
    """Count and log a row that is left out."""
    why = sanitize_text(str(why), 600)
    self._count += 1
    self._first = self._first or why
    level = logging.DEBUG
    if why not in self._named and self._num_warnings < MAX_WARNINGS:
      level = logging.WARNING
      self._num_warnings += 1
      self._named.add(why)
    logging.log(level, "skipped %s", why)

  def finish(self, kept: int) -> None:
    """Log how many rows were left out; if none was kept, raise UserError."""
    why = "It is empty."
    if count := self._count:
      why = f"The first of {count} faults: {self._first}"
      text = "%s: skipped %d of %d; --verbosity=1 names them all."
      logging.warning(text, self._source, count, count + kept)
    if not kept:
      raise UserError(f"{self._source}: nothing of it can be used.  {why}")


@contextlib.contextmanager
def open_decompressed(
  path: str, open_file: OpenFile = open_local
) -> Iterator[BinaryIO]:
  """Open a file, decompressed if its name ends in .gz or .bz2.

  Raises a BrokenFile if a compressed one turns out to be damaged while read.
  """
  with open_file(path) as file:
    try:
      # The decoders raise their errors while the caller reads inside the block.
      if path.lower().endswith(".bz2"):
        file = bz2.open(file)
      elif path.lower().endswith(".gz"):
        file = gzip.open(file)
      yield file
    except (EOFError, zlib.error, OSError) as error:
      if isinstance(error, OSError) and error.errno is not None:
        raise  # The disk failed; the content may be intact.
      fault = f"damaged ({error})", "Fetch the file again"
      raise BrokenFile(path, *fault) from None


def read_lines(
  path: str, open_file: OpenFile = open_local, limit: int = MAX_ROW_BYTES
) -> Rows:
  """Yield the lines of a file as bytes, without blank ones.

  A line of more than `limit` bytes is a `RowError`.
  """
  with open_decompressed(path, open_file) as file:
    lines = iter(functools.partial(file.readline, limit + 1), b"")
    for number, line in enumerate(lines, 1):
      where = f"{path}:{number}"
      if len(line) > limit:
        # Pass over the rest in pieces; the line may be larger than memory.
        while line and not line.endswith(b"\n"):
          line = file.readline(limit)
        yield where, RowError(f"longer than {limit:,} bytes", "Split it")
        continue
      if number == 1:  # Windows programs begin files with a byte order mark.
        line = line.removeprefix(b"\xef\xbb\xbf")
      if line.strip():
        yield where, line.rstrip(b"\r\n")


def read_json_lines(
  path: str, open_file: OpenFile = open_local, parse_constant: MakeNumber = None
) -> Rows:
  """Yield the values of a .jsonl file, without blank lines."""
  for where, row in read_lines(path, open_file):
    if not isinstance(row, RowError):
      try:
        row = parse_json(row, parse_constant)
      except RowError as error:
        row = error
    yield where, row


def read_json_array(path: str, open_file: OpenFile = open_local) -> Rows:
  """Yield the values of a .json file that is one array.

  A value's line is its number, from 1, as the whole array may be on one line.
  What is no array, or larger than `MAX_ARRAY_BYTES`, is a BrokenFile.
  """
  data = bytearray()
  with open_decompressed(path, open_file) as file:
    # In pieces: `read` takes the memory that a file may have, at once.
    while piece := file.read(MAX_ROW_BYTES):
      data += piece
      if len(data) > MAX_ARRAY_BYTES:
        raise BrokenFile(path, f"over {MAX_ARRAY_BYTES:,} bytes", "Split it")
  try:
    # Values stay as their bytes until they are read.
    values = msgspec.json.decode(data, type=list[msgspec.Raw])
  except (msgspec.MsgspecError, RecursionError) as error:
    fault = f"no array of JSON ({str(error)[:200]})", "Fetch the file again"
    raise BrokenFile(path, *fault) from None
  for number, value in enumerate(values, 1):
    row = RowError(f"longer than {MAX_ROW_BYTES:,} bytes", "Split it")
    if len(bytes(value)) <= MAX_ROW_BYTES:
      try:
        row = parse_json(bytes(value), parse_constant=float)
      except RowError as error:
        row = error
    yield f"{path}:{number}", row


def parse_json(line: bytes, parse_constant: MakeNumber = None) -> Any:
  """Parse one strict JSON value: UTF-8, finite numbers, no key twice.

  Else it raises a RowError; `parse_constant` makes the values of NaN and
  infinities, which are refused without it.
  """
  try:
    line = mend_json(line, "a row")
    # A very long number raises ValueError, too: Python limits its digits.
    return json.loads(
      line.decode("utf-8"),
      parse_constant=parse_constant or _reject_constant,
      parse_float=_parse_finite,
      object_pairs_hook=_unique_keys,
    )
  except RowError:  # A ValueError, too, but with a better reason.
    raise
  except UnicodeDecodeError as error:
    fault = f"not UTF-8 at byte {error.start}", "Save it as UTF-8"
  except RecursionError:
    fault = "nested too deeply", "Write a flat object"
  except ValueError as error:
    fault = f"not JSON ({str(error)[:80]})", "Write one object in each line"
  raise RowError(*fault)


def _reject_constant(constant: str) -> None:
  raise RowError(f"{constant} is not JSON", "Write a number or leave it out")


def _parse_finite(text: str) -> float:
  number = float(text)
  if not math.isfinite(number):
    raise RowError(f"the number {text} is too large", "Write a smaller one")
  return number


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict:
  """Make an object of its pairs; Python's json would keep the last of two."""
  found = {}
  for key, value in pairs:
    if key in found:
      raise RowError(f"the key {key!a} occurs twice", "Keep one of them")
    found[key] = value
  return found


def check_corpus_columns(names: Sequence[str]) -> None:
  """Raise a RowError unless columns are those of a corpus's CSV file."""
  fault = f"its first line names {names!a:.200}"
  if not {"id", "text"} <= set(names):
    cure = "Name the columns there, or take --kind=table for a table"
    raise RowError(f"{fault}, wanted at least id and text", cure)
  if len(set(names)) < len(names):
    raise RowError(f"{fault}, one of them twice", "Name each column once")


def read_csv_rows(
  path: str,
  open_file: OpenFile = open_local,
  check_columns: CheckColumns = check_corpus_columns,
) -> Rows:
  """Yield the rows of a .csv file as dicts; its first line names the columns.

  Quotes must be as in RFC 4180: around a whole field, and twice inside of it.
  If one is misplaced or never closed, what follows could be anything: this
  raises a BrokenFile, as do wrong names of columns and a damaged file.
  """
  with _open_csv(path, open_file) as rows:
    where, names = next(rows, (path, []))
    _check_header(where, names, check_columns)
    for where, fields in rows:
      row = _check_fields(fields, len(names))
      if not isinstance(row, RowError):
        row = dict(zip(names, row, strict=True))
      yield where, row


def read_csv_table(path: str, open_file: OpenFile = open_local) -> Rows:
  """Yield (title, header) of a table in a .csv file, then its rows, as lists.

  The title is that of a line "# title" above the header, or "".  A line of as
  many fields as the next one, none of them empty, is a header: a column may be
  called "# of visitors".  Faults are as in `read_csv_rows`.
  """
  with _open_csv(path, open_file) as rows:
    where, header = next(rows, (path, []))
    title = ""
    if header and header[0].startswith("# "):
      below = next(rows, (where, []))
      if len(header) > 1 and all(header) and len(header) == len(below[1]):
        rows = itertools.chain([below], rows)
      else:
        # The line may have commas of its own, and a spreadsheet adds some.
        title = ",".join(header)[2:].strip(", ")
        where, header = below
    _check_header(where, header, _check_table_columns)
    yield where, (title, header)
    for where, fields in rows:
      yield where, _check_fields(fields, len(header))


def _check_table_columns(names: Sequence[str]) -> None:
  """Raise a RowError unless this is the header of a table."""
  if not names:
    raise RowError("a table without a header", "Write one, and rows below it")


@contextlib.contextmanager
def _open_csv(path: str, open_file: OpenFile) -> Iterator[Rows]:
  """Open a .csv file as rows of fields, the first line among them."""
  csv.field_size_limit(MAX_CSV_ROW)
  # Bytes that are not UTF-8 cost only their row: they are kept as surrogates,
  # which UTF-8 has not.
  coding = dict(encoding="utf-8-sig", errors="surrogateescape")
  with (
    open_decompressed(path, open_file) as file,
    # The csv module splits lines itself, since a field may hold line breaks.
    io.TextIOWrapper(file, **coding, newline="") as text,
  ):
    lines = iter(functools.partial(text.readline, MAX_CSV_ROW), "")
    sample, num_chars = [], 0
    # The first lines are read before their turn, but not kept for long.
    while len(sample) < _SAMPLE_LINES and num_chars < _SAMPLE_CHARS:
      if not (line := next(lines, "")):
        break
      sample.append(line)
      num_chars += len(line)
    delimiter = find_delimiter(sample)
    # Excel names it in a first line of its own.
    skipped = int(bool(sample and _SEPARATOR_LINE.fullmatch(sample[0])))
    lines = itertools.chain(sample[skipped:], lines)
    yield _split_csv(path, lines, delimiter, 1 + skipped)


def find_delimiter(lines: Sequence[str]) -> str:
  """Return what stands between the fields of a CSV file, given its first lines.

  A line "sep=;", as Excel writes it, tells.  Else it is what cuts the most
  lines into as many fields, of at least two, as the first one; of several that
  cut them into more fields, and then the first of `CSV_DELIMITERS`.
  """
  if lines and (named := _SEPARATOR_LINE.fullmatch(lines[0])):
    return named[1]
  # A title above the header is a sentence.
  lines = lines[1:] if lines and _TITLE_LINE.match(lines[0]) else lines

  def rate(delimiter: str) -> tuple[int, int]:
    try:
      rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
    except csv.Error:  # The strict reader names it.
      return 0, 0
    width = len(rows[0]) if rows else 0
    return sum(len(row) == width for row in rows) if width > 1 else 0, width

  return max(CSV_DELIMITERS, key=rate)


def _check_header(
  where: str, names: list[str], check_columns: CheckColumns
) -> None:
  """Raise a BrokenFile unless a first line is UTF-8 and has right columns."""
  try:
    if any(map(HALF.search, names)):
      raise RowError("its first line is not UTF-8", RECODE)
    check_columns(names)
  except RowError as fault:
    raise BrokenFile(where, *fault.args) from None


def _check_fields(fields: list[str], width: int) -> list[str] | RowError:
  """Return the fields of a row of `width` columns, or what is wrong."""
  if any(map(HALF.search, fields)):
    return RowError("not UTF-8", RECODE)
  if len(fields) != width:
    fault = "has not as many fields as the first line"
    return RowError(fault, "Quote texts with separators or line breaks")
  if sum(map(len, fields)) > MAX_ROW_BYTES:
    return RowError(f"longer than {MAX_ROW_BYTES:,} characters", "Split it")
  return fields


def _split_csv(
  path: str, lines: Iterator[str], delimiter: str, first: int
) -> Rows:
  """Yield (where, fields) of the rows of a CSV file that are not blank.

  The first of the lines has the number `first` in the file.
  """
  read = io.StringIO()  # The lines of the row that is being read.

  def keep_lines():
    for line in lines:
      read.write(line)
      if read.tell() >= MAX_CSV_ROW:
        raise csv.Error(f"longer than {MAX_CSV_ROW:,} characters")
      yield line

  reader = csv.reader(keep_lines(), delimiter=delimiter, strict=True)
  before, row_pattern = first - 1, _csv_row_pattern(delimiter)
  try:
    for fields in reader:
      row = read.getvalue().rstrip("\r\n")
      # The csv module takes quotes inside of an unquoted field as they are.
      if '"' in row and not row_pattern.fullmatch(row):
        raise csv.Error("a quote inside of a field that is not quoted")
      if fields:
        yield f"{path}:{before + reader.line_num}", fields
      read.seek(0)
      read.truncate()
      first = before + reader.line_num + 1
  except csv.Error as error:
    raise BrokenFile(
      f"{path}:{first}",
      f"the row that begins here is not CSV ({error}, at line "
      f"{before + reader.line_num})",
      "Separate fields by commas; put texts with commas, quotes or line breaks "
      "in quotes, and quotes inside of them twice",
    ) from None


def _csv_row_pattern(delimiter: str) -> re.Pattern[str]:
  """Return the pattern of a row whose quotes are as in RFC 4180."""
  end = re.escape(delimiter)
  # The pluses after repetitions forbid to try others.
  field = rf'(?:"(?:[^"]++|"")*+"|[^"{end}]*+)'
  return re.compile(f"{field}(?:{end}{field})*+")


def validate_text(name: str, value: object) -> str:
  """Return the untrusted `value` of the field `name` if it is harmless text.

  Raises a RowError if it is no string, or no prompt may hold its characters.
  """
  if not isinstance(value, str):
    fault = f'"{name}" is a {type(value).__name__}'
    raise RowError(fault, "Write it as a string")
  if control := CONTROL.search(value):
    fault = f'"{name}" holds the control character {control[0]!a}'
    raise RowError(fault, "Remove it")
  # Bytes of a file's name that are not UTF-8 are such halves.
  if HALF.search(value):
    fault = f'"{name}" holds half a surrogate pair'
    raise RowError(fault, "Write whole characters")
  return value


def split_windows(text: str) -> list[str]:
  """Split a text into overlapping windows of `WINDOW_WORDS` words.

  A window starts every `STRIDE_WORDS` words, and the last one holds the last
  `WINDOW_WORDS` words.  A text of one window is returned as it stands.
  """
  words = text.split()
  last = len(words) - WINDOW_WORDS  # The start of the last window.
  if last <= 0:
    return [text]
  starts = [*range(0, last, STRIDE_WORDS), last]
  return [" ".join(words[start : start + WINDOW_WORDS]) for start in starts]
