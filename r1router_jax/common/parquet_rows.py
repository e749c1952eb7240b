"""Strict reader of Parquet files, as `row_files` reads other files of rows."""

from etils import epy

from r1router_jax.common.errors import UserError
from r1router_jax.common.row_files import (
  CheckColumns,
  RejectedRow,
  RowError,
  Rows,
)

with epy.lazy_imports():
  import pyarrow as pa
  from pyarrow import parquet

# Rows that are in memory at one time, and those that may hold images.
_BATCH_ROWS, _BATCH_RECORDS = 256, 16


def read_parquet_rows(
  path: str, check_columns: CheckColumns, with_records: bool = False
) -> Rows:
  """Yield the rows of a .parquet file as dicts; a row's line is its number.

  A damaged file raises a UserError, and so do columns that hold bytes or
  records in place of texts, unless the file is said to be `with_records`.
  """
  try:
    with parquet.ParquetFile(path) as file:
      _check_types(path, file.schema_arrow, check_columns, with_records)
      number = 0
      batch_rows = _BATCH_RECORDS if with_records else _BATCH_ROWS
      for batch in file.iter_batches(batch_rows):
        for at in range(len(batch)):
          number += 1
          yield f"{path}:{number}", _read_row(batch.slice(at, 1))
  except UserError:
    raise
  # What pyarrow raises for files that are not Parquet, or damaged; names of
  # columns may not be UTF-8.
  except (pa.ArrowException, OSError, ValueError) as error:
    if isinstance(error, OSError) and error.errno is not None:
      raise  # The disk failed; the content may be intact.
    reason = " ".join(str(error).split())[:200]  # It may have several lines.
    fault = f"{path}: is no intact Parquet file ({reason})"
    raise UserError(f"{fault}.  Write it again.") from None


def _check_types(
  path: str,
  schema: "pa.Schema",
  check_columns: CheckColumns,
  with_records: bool,
) -> None:
  """Raise UserError for wrong names of columns, or a type without text."""
  refused = pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary
  refused = () if with_records else refused
  try:
    check_columns(schema.names)
    for column in schema:
      if any(is_such(column.type) for is_such in refused):
        fault = f"its column {column.name!a} is of type {column.type!s:.60}"
        raise RowError(fault, "Write texts; name images by their paths")
  except RowError as fault:
    raise UserError(str(RejectedRow(path, *fault.args))) from None


def _read_row(row: "pa.RecordBatch") -> dict | RowError:
  """Return a batch of one row as a dict."""
  try:
    return row.to_pylist()[0]
  # Rows are converted one by one, so that a text that is not UTF-8, or a time
  # that Python cannot hold, costs its row alone.
  except (pa.ArrowException, ValueError, OverflowError) as error:
    return RowError(f"cannot be read ({error})", "Write texts, as UTF-8")
