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
from r1router_jax.common.records import Question
from r1router_jax.common.row_files import RejectedRow, RowError
from r1router_jax.metrics import numeric_range

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class BenchmarkSpec:
  """The form of a question file as it was published.

  Attributes:
    file: name of the file.
    count: number of questions in it.
    id_key: key of a question's id, or "" if only the line number tells it.
    answer_key: key of the accepted answers.
    has_images: whether questions have an "image_id".
  """

  file: str
  count: int
  id_key: str = ""
  answer_key: str = "answer"
  has_images: bool = False


BENCHMARK_SPECS = {
  "infoseek": BenchmarkSpec(
    "infoseek_val.jsonl", 1000, "data_id", "answer_eval", has_images=True
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
_AS_PUBLISHED = "Take the row as it was published"


def parse_rows(
  path: str, parse: Callable[[Any, int], T]
) -> list[tuple[str, T]]:
  """Parse every row of a .jsonl file.

  Args:
    path: the file.
    parse: takes a row and its line number from 0; raises RowError.

  Returns:
    ("file:line", parsed row) of each row.

  Raises:
    ValueError: if a row cannot be used, or there are no rows.
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
  if bad or not found:
    raise ValueError(
      f"{path}: {len(bad):,} of {len(bad) + len(found):,} rows cannot be "
      f"used; none may be left out.  {first_few(bad)}"
      if bad
      else f"{path}: is empty.  Write one object in each line."
    )
  return found


def parse_question(name: str, row: Mapping[str, Any], number: int) -> Question:
  """Return the question of a row, without its image.

  Args:
    name: name of the benchmark.
    row: the row as in the file.
    number: number of its line, from 0.

  Raises:
    RowError: if the row does not have the benchmark's form.
  """
  text = row.get("question")
  if not isinstance(text, str) or not text.strip():
    raise RowError(f'"question" is {text!a:.60}, wanted a text', _AS_PUBLISHED)
  answers, interval = parse_answers(name, row)
  _check_characters(text, *answers)
  return Question(
    f"{name}/{_parse_id(name, row, number)}",
    text,
    answers,
    family=name,
    benchmark=name,
    hops=None,
    interval=interval,
  )


def parse_answers(
  name: str, row: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[float, ...]]:
  """Return the accepted answers of a row of questions or predictions.

  Returns:
    The answers, and the interval of accepted numbers or ().

  Raises:
    RowError: if they are missing or do not have the benchmark's form.
  """
  key = BENCHMARK_SPECS.get(name, _USER_FILE).answer_key
  value = row.get(key)
  # InfoSeek marks numeric questions by {"wikidata": .., "range": [low, high]}.
  if (
    name == "infoseek"
    and isinstance(value, list)
    and any(isinstance(each, dict) for each in value)
  ):
    if len(value) > 1:
      raise RowError(f'"{key}" holds an interval and more', _AS_PUBLISHED)
    return (
      _parse_texts("answer", row.get("answer")),
      _parse_interval("range", value[0].get("range")),
    )
  # Only a user's own file may say an interval under its own key.
  own = row.get("interval") if name == "jsonl" else None
  return (
    _parse_texts(key, value),
    () if own is None else _parse_interval("interval", own),
  )


def check_count(name: str, path: str, count: int) -> None:
  """Warn if there are not as many rows as were published."""
  wanted = BENCHMARK_SPECS.get(name, _USER_FILE).count
  if wanted and count != wanted:
    logging.warning(
      "%s has %d rows, %s was published with %d: means are of other questions.",
      path,
      count,
      name,
      wanted,
    )


def check_ids(path: str, ids: Iterable[tuple[str, str]]) -> None:
  """Check that all ids of (id, "file:line") pairs differ.

  Raises:
    ValueError: if two are equal; the message names both lines.
  """
  seen, twice = {}, []
  for each, where in ids:
    if each in seen:
      twice.append(f"{seen[each]} and {where} both have the id {each!a:.80}.")
    seen.setdefault(each, where)
  if twice:
    raise ValueError(f"{path}: {first_few(twice)}  Keep one of them.")


def first_few(things: Sequence[Any]) -> str:
  """Return the first few things as text, and the number of the others."""
  more = len(things) - row_files.MAX_WARNINGS
  return "  ".join(map(str, things[: row_files.MAX_WARNINGS])) + (
    f"  And {more:,} more." if more > 0 else ""
  )


def has_id(name: str, row: Mapping[str, Any]) -> bool:
  """Return whether a row has, or must have, an id besides its line number."""
  key = BENCHMARK_SPECS.get(name, _USER_FILE).id_key
  return bool(key) and (name != "jsonl" or key in row)


def _parse_id(name: str, row: Mapping[str, Any], number: int) -> str:
  if not has_id(name, row):
    return str(number)
  # `True` is an int in Python, and would become the id "True".
  key = BENCHMARK_SPECS.get(name, _USER_FILE).id_key
  value = row.get(key)
  if (
    isinstance(value, bool)
    or not isinstance(value, str | int)
    or (not str(value).strip())
  ):
    raise RowError(
      f'"{key}" is {value!a:.60}, wanted a name', "Name each question once"
    )
  _check_characters(str(value))
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
  return (
    isinstance(value, str) and bool(value.strip()) or _is_finite_number(value)
  )


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


def _check_characters(*texts: str) -> None:
  for text in texts:
    try:
      text.encode()
    except UnicodeEncodeError:
      raise RowError(
        f"{text!a:.60} holds half a surrogate pair", "Write whole characters"
      ) from None
