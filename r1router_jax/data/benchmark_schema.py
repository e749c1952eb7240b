"""The form of the rows in benchmarks' question and prediction files.

A row of R1-Router's predictions is the question's row with more keys, so that
the accepted answers of both are read here.  A fault of a row is a `RowError`,
and `parse_rows` refuses a file with such a row.

Source: github.com/OpenBMB/R1-Router (datasets/, src/evaluate.py).
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from absl import logging

from r1router_jax.common import row_files
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Question
from r1router_jax.common.row_files import RejectedRow, RowError
from r1router_jax.metrics import numeric_range

T = TypeVar("T")


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


BENCHMARK_SPECS = {
  "infoseek": BenchmarkSpec(
    "infoseek_val.jsonl", 1000, "data_id", "answer_eval", True
  ),
  "dyn_vqa": BenchmarkSpec(
    "DynVQA_en.202412.jsonl", 715, "question_id", has_images=True
  ),
  "webqa": BenchmarkSpec("webqa_val.jsonl", 1000, has_images=True),
  "2wikimultihopqa": BenchmarkSpec("2wikimultihopqa_val.jsonl", 3000),
  "openwikitqa": BenchmarkSpec("openwikitqa_val.jsonl", 3000),
  "tabfact": BenchmarkSpec("tabfact_val.jsonl", 1000),
}

_USER_FILE = BenchmarkSpec("", 0, "id")
AS_PUBLISHED = "Take the row as it was published"


def find_spec(name: str) -> BenchmarkSpec:
  """Return the form of a benchmark's file, or that of a user's own file."""
  return BENCHMARK_SPECS.get(name, _USER_FILE)


def parse_rows(
  path: str, parse: Callable[[Any, int], T]
) -> list[tuple[str, T]]:
  """Return ("file:line", parsed row) of every row of a .jsonl file.

  `parse` takes a row and its line number from 0, and raises RowError.

  Raises:
    UserError: if a row cannot be used, or there are no rows.
  """
  found, bad = [], []
  for where, row in row_files.read_json_lines(path, parse_constant=float):
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


def parse_question(name: str, row: Mapping[str, Any], number: int) -> Question:
  """Return the question of a row of benchmark `name`, without its image.

  Raises:
    RowError: if the row does not have the benchmark's form.
  """
  text = row.get("question")
  if not isinstance(text, str) or not text.strip():
    raise RowError(f'"question" is {text!a:.60}, wanted a text', AS_PUBLISHED)
  answers, interval = parse_answers(name, row)
  for each in (text, *answers):
    row_files.check_surrogates(each, f"{each!a:.60}")
  full_id = f"{name}/{_parse_id(name, row, number)}"
  kind = dict(family=name, benchmark=name, hops=None)
  return Question(full_id, text, answers, interval=interval, **kind)


def parse_answers(
  name: str, row: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[float, ...]]:
  """Return the accepted answers of a row, and the interval of numbers or ().

  Raises:
    RowError: if they are missing or do not have the benchmark's form.
  """
  key = find_spec(name).answer_key
  value = row.get(key)
  values = value if isinstance(value, list) else []
  # InfoSeek marks numeric questions by {"wikidata": .., "range": [low, high]}.
  if name == "infoseek" and any(isinstance(each, dict) for each in values):
    if len(values) > 1:
      raise RowError(f'"{key}" holds an interval and more', AS_PUBLISHED)
    texts = _parse_texts("answer", row.get("answer"))
    return texts, _parse_interval("range", values[0].get("range"))
  # Only a user's own file may say an interval under its own key.
  own = row.get("interval") if name == "jsonl" else None
  texts = _parse_texts(key, value)
  return texts, () if own is None else _parse_interval("interval", own)


def check_count(name: str, path: str, count: int) -> None:
  """Warn if there are not as many rows as were published."""
  wanted = find_spec(name).count
  if wanted and count != wanted:
    published = f"{name} was published with {wanted}"
    text = "%s has %d rows, %s: means are of other questions."
    logging.warning(text, path, count, published)


def check_ids(path: str, ids: Iterable[tuple[str, str]]) -> None:
  """Raise UserError if two ids of (id, "file:line") pairs are equal."""
  seen, twice = {}, []
  for each, where in ids:
    if each in seen:
      twice.append(f"{seen[each]} and {where} both have the id {each!a:.80}.")
    seen.setdefault(each, where)
  if twice:
    raise UserError(f"{path}: {first_few(twice)}  Keep one of them.")


def first_few(things: Sequence[Any]) -> str:
  """Return the first few things as text, and the number of the others."""
  shown = "  ".join(map(str, things[: row_files.MAX_WARNINGS]))
  more = len(things) - row_files.MAX_WARNINGS
  return shown + (f"  And {more:,} more." if more > 0 else "")


def has_id(name: str, row: Mapping[str, Any]) -> bool:
  """Return whether a row has, or must have, an id besides its line number."""
  key = find_spec(name).id_key
  return bool(key) and (name != "jsonl" or key in row)


def _is_name(value: Any) -> bool:
  """Return whether a value is a text or an integer, and not blank."""
  # `True` is an int in Python, and would become the name "True".
  if isinstance(value, bool) or not isinstance(value, str | int):
    return False
  return bool(str(value).strip())


def _parse_id(name: str, row: Mapping[str, Any], number: int) -> str:
  if not has_id(name, row):
    return str(number)
  key = find_spec(name).id_key
  value = row.get(key)
  if not _is_name(value):
    fault = f'"{key}" is {value!a:.60}, wanted a name'
    raise RowError(fault, "Name each question once")
  row_files.check_surrogates(str(value), f"{str(value)!a:.60}")
  return str(value)


def _parse_texts(key: str, value: Any) -> tuple[str, ...]:
  """Return answers given as a text, a number, or a list of them."""
  values = value if isinstance(value, list) else [value]
  if not values or not all(_is_answer(each) for each in values):
    raise RowError(
      f'"{key}" is {value!a:.60}, wanted a text, a number or a list '
      "of them, none empty",
      "Write the accepted answers there",
    )
  return tuple(map(str, values))


def _is_answer(value: Any) -> bool:
  is_text = isinstance(value, str) and bool(value.strip())
  return is_text or _is_finite_number(value)


def _is_finite_number(value: Any) -> bool:
  return not isinstance(value, bool) and (
    isinstance(value, int) or isinstance(value, float) and math.isfinite(value)
  )


def _parse_interval(key: str, value: Any) -> tuple[float, float]:
  if not (
    isinstance(value, list)
    and len(value) == 2
    and all(map(_is_finite_number, value))
    and value[0] <= value[1]
    and max(map(abs, value)) <= numeric_range.LARGEST
  ):
    raise RowError(
      f'"{key}" is {value!a:.60}, wanted [low, high] with low <= high and '
      f"neither beyond {numeric_range.LARGEST:.0e}",
      "Write two numbers, in a larger unit if they are larger",
    )
  return float(value[0]), float(value[1])
