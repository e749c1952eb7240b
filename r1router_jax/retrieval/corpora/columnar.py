"""Rows of a corpus in Parquet files, and Arrow files as `datasets` saves them.

Columns have the names of keys in JSON Lines, see user_files.py; others are not
read.
"""

from collections.abc import Sequence

from r1router_jax.common import parquet_rows, row_files
from r1router_jax.common.row_files import RowError

FILE_PATTERN = r"(?i).*\.(parquet|arrow)"
COLUMNS = ("id", "text", "contents", "title", "section_title", "caption")
COLUMNS += ("name", "image", "header", "rows", "whole")

# Files of a folder that `datasets` saved: what describes it, and what later
# programs remembered there.
DESCRIPTIONS = ("dataset_dict.json", "dataset_info.json", "state.json")
CACHE_PATTERN = r"(cache|tmp)-.*\.arrow"


def read_rows(
  path: str, open_file: row_files.OpenFile = row_files.open_local
) -> row_files.Rows:
  """Yield the rows of a file as dicts.

  Raises a `row_files.BrokenFile` if it is damaged, or no corpus.
  """
  yield from parquet_rows.read_text_rows(
    path, COLUMNS, _check_columns, open_file
  )


def find_kb(path: str) -> str:
  """Return the kind of knowledge base that the rows of a file are for.

  Raises a RowError if it is no corpus, a `row_files.BrokenFile` if it is
  damaged.
  """
  names = parquet_rows.read_column_names(path)
  _check_columns(names)
  if "rows" in names:
    return "table"
  return "image" if "image" in names else "text"


def _check_columns(names: Sequence[str]) -> None:
  """Raise a RowError unless columns are those of a corpus."""
  fault = f"its columns are {names!a:.200}"
  if "id" not in names or not {"text", "contents", "rows"} & set(names):
    raise RowError(f"{fault}, wanted id, and text or contents", "Rename them")
  if len(set(names)) < len(names):
    raise RowError(f"{fault}, one of them twice", "Name each column once")
