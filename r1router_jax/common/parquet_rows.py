"""Strict readers of Parquet and Arrow files, as `row_files` reads other rows.

Arrow files are those that `datasets.save_to_disk` writes, or Feather.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator

from etils import epy

from r1router_jax.common.row_files import (
  MAX_ROW_BYTES,
  BrokenFile,
  CheckColumns,
  OpenFile,
  RowError,
  Rows,
  open_local,
)

with epy.lazy_imports():
  import pyarrow as pa
  from pyarrow import ipc, parquet

# Rows that are in memory at one time, and those that may hold images.
_BATCH_ROWS, _BATCH_RECORDS = 256, 16

# A function that yields some columns of a file in batches.
_ReadColumns = Callable[[list[str]], Iterable["pa.RecordBatch"]]


def read_parquet_rows(
  path: str, check_columns: CheckColumns, with_records: bool = False
) -> Rows:
  """Yield the rows of a .parquet file as dicts; a row's line is its number.

  A damaged file raises a BrokenFile, and so do columns that hold bytes or
  records in place of texts, unless the file is said to be `with_records`.
  """
  with _translate_errors(path), parquet.ParquetFile(path) as file:
    _check_types(path, file.schema_arrow, check_columns, with_records)
    batch_rows = _BATCH_RECORDS if with_records else _BATCH_ROWS
    yield from _number_rows(path, file.iter_batches(batch_rows))


def read_column_names(path: str, open_file: OpenFile = open_local) -> list[str]:
  """Return the names of the columns of a .parquet or .arrow file.

  A damaged file raises a BrokenFile.
  """
  with _open_columns(path, open_file) as (schema, _):
    return schema.names


def read_text_rows(
  path: str,
  columns: Collection[str],
  check_columns: CheckColumns,
  open_file: OpenFile = open_local,
) -> Rows:
  """Yield the rows of a .parquet or .arrow file as `read_parquet_rows` does.

  Of the columns only those that are named are read, as far as there are such.
  A row that is too long is a `RowError`.
  """
  with _open_columns(path, open_file) as (schema, read_batches):
    # That a name stands twice is found by the first check.
    _check_types(path, schema, check_columns, with_records=True)
    names = [name for name in schema.names if name in columns]
    fields = pa.schema([schema.field(name) for name in names])
    _check_types(path, fields, lambda _: None, with_records=False)
    for where, row in _number_rows(path, read_batches(names)):
      if isinstance(row, dict):
        texts = (value for value in row.values() if isinstance(value, str))
        if sum(map(len, texts)) > MAX_ROW_BYTES:
          row = RowError(
            f"longer than {MAX_ROW_BYTES:,} characters", "Split it"
          )
      yield where, row


@contextlib.contextmanager
def _translate_errors(path: str) -> Iterator[None]:
  """Turn what pyarrow raises for a damaged file into a BrokenFile."""
  try:
    yield
  except BrokenFile:
    raise
  # What pyarrow raises for other files, and for damaged ones; names of columns
  # may not be UTF-8.
  except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
    if isinstance(error, OSError) and error.errno is not None:
      raise  # The disk failed; the content may be intact.
    kind = "Parquet" if path.lower().endswith(".parquet") else "Arrow"
    # It may have several lines, or none where a damaged size is a huge one.
    reason = " ".join(str(error).split())[:200] or "its parts are too large"
    fault = f"is no intact {kind} file ({reason})", "Write it again"
    raise BrokenFile(path, *fault) from None


@contextlib.contextmanager
def _open_columns(
  path: str, open_file: OpenFile
) -> Iterator[tuple["pa.Schema", _ReadColumns]]:
  """Open a .parquet or .arrow file; yield its schema, and what reads columns.

  Raises a BrokenFile if it is damaged, also while it is read.
  """
  with _translate_errors(path), open_file(path) as file:
    if path.lower().endswith(".parquet"):
      with parquet.ParquetFile(file) as opened:

        def read_batches(names: list[str]) -> Iterable["pa.RecordBatch"]:
          return opened.iter_batches(_BATCH_ROWS, columns=names)

        yield opened.schema_arrow, read_batches
      return
    # Feather is a file with an index, what `datasets` writes is a stream.
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    opened = ipc.open_file(file) if is_file else ipc.open_stream(file)

    def read_batches(names: list[str]) -> Iterable["pa.RecordBatch"]:
      numbers = range(opened.num_record_batches) if is_file else ()
      batches = map(opened.get_batch, numbers) if is_file else opened
      for batch in batches:
        batch = batch.select(names)
        _check_offsets(batch)
        for start in range(0, len(batch), _BATCH_ROWS):
          yield batch.slice(start, _BATCH_ROWS)

    yield opened.schema, read_batches


def _check_offsets(batch: "pa.RecordBatch") -> None:
  """Raise an ArrowInvalid if values are not where an Arrow file says."""
  as_bytes = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
  for column in batch.columns:
    # A text that is not UTF-8 costs its row alone, and is found later.
    if column.type in as_bytes:
      column = column.view(as_bytes[column.type])
    column.validate(full=True)


def _check_types(
  path: str,
  schema: "pa.Schema",
  check_columns: CheckColumns,
  with_records: bool,
) -> None:
  """Raise BrokenFile for wrong names of columns, or a type without text."""
  refused = pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary
  refused = () if with_records else refused
  try:
    check_columns(schema.names)
    for column in schema:
      if any(is_such(column.type) for is_such in refused):
        fault = f"its column {column.name!a} is of type {column.type!s:.60}"
        raise RowError(fault, "Write texts; name images by their paths")
  except RowError as fault:
    raise BrokenFile(path, *fault.args) from None


def _number_rows(path: str, batches: Iterable["pa.RecordBatch"]) -> Rows:
  """Yield the rows of all batches, numbered from 1."""
  number = 0
  for batch in batches:
    for at in range(len(batch)):
      number += 1
      yield f"{path}:{number}", _read_row(batch.slice(at, 1))


def _read_row(row: "pa.RecordBatch") -> dict | RowError:
  """Return a batch of one row as a dict."""
  try:
    return row.to_pylist()[0]
  # Rows are converted one by one, so that a text that is not UTF-8, or a time
  # that Python cannot hold, costs its row alone.
  except (pa.ArrowException, ValueError, OverflowError) as error:
    return RowError(f"cannot be read ({error})", "Write texts, as UTF-8")
