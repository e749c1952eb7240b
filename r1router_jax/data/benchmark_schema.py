"""The form of the rows in benchmarks' question and prediction files.

A row of R1-Router's predictions is the question's row with more keys, so that
the accepted answers of both are read here.  A fault of a row is a `RowError`,
and `parse_rows` refuses a file with such a row.

Source: github.com/OpenBMB/R1-Router (datasets/, src/evaluate.py).
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from absl import logging
from msgspec import Meta

from r1router_jax.common import row_files
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Question
from r1router_jax.common.row_files import RejectedRow, RowError
from r1router_jax.metrics.numeric_range import LARGEST

T = TypeVar("T")
Row = Mapping[str, Any]

# JSON types of fields: no text is blank, no number infinite or NaN.
_Text = Annotated[str, Meta(pattern=r"\S")]
_Finite = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
_Answer = _Text | int | _Finite
_Answers = _Answer | Annotated[list[_Answer], Meta(min_length=1)]
_Bound = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]


@dataclasses.dataclass(frozen=True)
class BenchmarkSpec:
  """The form of a question file as it was published.

  The `file` has `count` questions.  `id_key` is "" if only the line number
  tells a question's id; `has_images` says that questions have an "image_id".
  """

  file: str
  count: int
  id_key: str = ""
  answer_key: str = "answer"
  has_images: bool = False


_PUBLISHED = (
  ("infoseek", "infoseek_val.jsonl", 1000, "data_id", "answer_eval", True),
  ("dyn_vqa", "DynVQA_en.202412.jsonl", 715, "question_id", "answer", True),
  ("webqa", "webqa_val.jsonl", 1000, "", "answer", True),
  ("2wikimultihopqa", "2wikimultihopqa_val.jsonl", 3000),
  ("openwikitqa", "openwikitqa_val.jsonl", 3000),
  ("tabfact", "tabfact_val.jsonl", 1000),
)
BENCHMARK_SPECS = {name: BenchmarkSpec(*of) for name, *of in _PUBLISHED}
_USER_FILE = BenchmarkSpec("", 0, "id")
AS_PUBLISHED = "Take the row as it was published"
_AS_TEXT = "Write it as text"


def find_spec(name: str) -> BenchmarkSpec:
  """Return the form of a benchmark's file, or that of a user's own file."""
  return BENCHMARK_SPECS.get(name, _USER_FILE)


def parse_rows(
  path: str, parse: Callable[[Any, int], T], rows: row_files.Rows | None = None
) -> list[tuple[str, T]]:
  """Return ("file:line", parsed row) of every row of a file.

  `parse` takes a row and its line number from 0, and raises RowError; without
  `rows` of its own the file is one of JSON Lines.

  Raises:
    UserError: if a row cannot be used, or there are no rows.
  """
  found, bad = [], []
  if rows is None:
    rows = row_files.read_json_lines(path, parse_constant=float)
  for where, row in rows:
    try:
      if isinstance(row, RowError):
        raise row
      if not isinstance(row, dict):
        raise RowError("it is no object", "Write one object in each line")
      found.append((where, parse(row, int(where.rpartition(":")[2]) - 1)))
    except RowError as fault:
      bad.append(RejectedRow(where, *fault.args))
  # A question left out would change every mean, so one bad row is an error.
  if bad:
    raise UserError(
      f"{path}: {len(bad):,} of {len(bad) + len(found):,} rows cannot be "
      f"used; none may be left out.  {first_few(bad)}"
    )
  if not found:
    raise UserError(f"{path}: is empty.  Write one object in each line.")
  return found


def parse_question(name: str, row: Row, number: int) -> Question:
  """Return the question of a row of benchmark `name`, without its image.

  Raises:
    RowError: if the row does not have the benchmark's form.
  """
  own = name == "jsonl"
  cure = _AS_TEXT if own else AS_PUBLISHED
  text = read_field(row, "question", _Text, "a text", cure)
  answers, interval = parse_answers(name, row)
  if has_id(name, row):
    key, cure = find_spec(name).id_key, "Name each question once"
    number = read_field(row, key, _Text | int, "a name", cure)
  family = name
  if own and row.get("family") is not None:
    family = read_field(row, "family", _Text, "a text", _AS_TEXT)
  kind = dict(family=family, benchmark=name, hops=None)
  return Question(f"{name}/{number}", text, answers, interval=interval, **kind)


def parse_answers(
  name: str, row: Row
) -> tuple[tuple[str, ...], tuple[float, ...]]:
  """Return the accepted answers of a row, and the interval of numbers or ().

  Raises:
    RowError: if they are missing or do not have the benchmark's form.
  """
  key = find_spec(name).answer_key
  # A user may call several answers so.
  if name == "jsonl" and "answers" in row and key not in row:
    key = "answers"
  values = row.get(key) if isinstance(row.get(key), list) else []
  # InfoSeek marks numeric questions by {"wikidata": .., "range": [low, high]}.
  if name == "infoseek" and any(isinstance(each, dict) for each in values):
    if len(values) > 1:
      raise RowError(f'"{key}" holds an interval and more', AS_PUBLISHED)
    return _read_texts(row, "answer"), _read_interval(values[0], "range")
  # Only a user's own file may say an interval under its own key.
  is_range = name == "jsonl" and row.get("interval") is not None
  interval = _read_interval(row, "interval") if is_range else ()
  return _read_texts(row, key), interval


def check_count(name: str, path: str, count: int) -> None:
  """Warn if there are not as many rows as were published."""
  wanted = find_spec(name).count
  if wanted and count != wanted:
    logging.warning(
      f"{path} has {count} rows, {name} was published with {wanted}: means are "
      "of other questions."
    )


def check_ids(path: str, ids: Iterable[tuple[str, str]]) -> None:
  """Raise UserError if two ids of (id, "file:line") pairs are equal."""
  seen, twice = {}, []
  for each, where in ids:
    if (first := seen.setdefault(each, where)) != where:
      twice.append(f"{first} and {where} both have the id {each!a:.80}.")
  if twice:
    raise UserError(f"{path}: {first_few(twice)}  Keep one of them.")


def first_few(things: Sequence[Any]) -> str:
  """Return the first few things as text, and the number of the others."""
  shown = "  ".join(map(str, things[: row_files.MAX_WARNINGS]))
  more = len(things) - row_files.MAX_WARNINGS
  return shown + (f"  And {more:,} more." if more > 0 else "")


def has_id(name: str, row: Row) -> bool:
  """Return whether a row has, or must have, an id besides its line number."""
  key = find_spec(name).id_key
  return bool(key) and (name != "jsonl" or key in row)


def read_field(
  row: Row, key: str, kind: Any, wanted: str, cure: str = AS_PUBLISHED
) -> Any:
  """Return a field of a row, which is of a type that msgspec knows.

  Raises:
    RowError: if the field is missing or not what is `wanted`.
  """
  value = row.get(key)
  try:
    return msgspec.convert(value, kind)
  except msgspec.ValidationError as error:
    fault = f'"{key}" is {value!a:.60}, wanted {wanted}'
    raise RowError(fault, cure) from error


def _read_texts(row: Row, key: str) -> tuple[str, ...]:
  """Return answers given as a text, a number, or a list of them."""
  wanted = "a text, a number or a list of them, none empty"
  cure = "Write the accepted answers there"
  found = read_field(row, key, _Answers, wanted, cure)
  return tuple(map(str, found if isinstance(found, list) else [found]))


def _read_interval(row: Row, key: str) -> tuple[float, float]:
  wanted = f"[low, high] with low <= high and neither beyond {LARGEST:.0e}"
  cure = "Write two numbers, in a larger unit if they are larger"
  low, high = read_field(row, key, tuple[_Bound, _Bound], wanted, cure)
  if low > high:
    raise RowError(f'"{key}" is {row[key]!a:.60}, wanted {wanted}', cure)
  return low, high
