"""Rows of benchmarks' question files, and of predictions beside their golds.

A row of R1-Router's predictions is the question's row and more, so that golds
of both are read here.  What is wrong with a row is a `Fault`, and a file with
such a row is refused: see `read`.

Source: github.com/OpenBMB/R1-Router (datasets/, src/evaluate.py).
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from absl import logging

from r1router_jax.common import row_files
from r1router_jax.common.records import Question
from r1router_jax.common.row_files import BadRow, Fault
from r1router_jax.metrics import numeric_range

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Published:
  """A question file, as it was published.

  Attributes:
    file: its name.
    count: how many questions it has.
    id: the key of a question's id, or "" where its line number is all it has.
    golds: the key of the accepted answers.
    pictures: whether questions have an "image_id".
  """

  file: str
  count: int
  id: str = ""
  golds: str = "answer"
  pictures: bool = False


PUBLISHED = {
  "infoseek": Published(
    "infoseek_val.jsonl", 1000, "data_id", "answer_eval", pictures=True
  ),
  "dyn_vqa": Published(
    "DynVQA_en.202412.jsonl", 715, "question_id", pictures=True
  ),
  "webqa": Published("webqa_val.jsonl", 1000, pictures=True),
  "2wikimultihopqa": Published("2wikimultihopqa_val.jsonl", 3000),
  "openwikitqa": Published("openwikitqa_val.jsonl", 3000),
  "tabfact": Published("tabfact_val.jsonl", 1000),
}

_OWN = Published("", 0, "id")  # A user's file.


_AS_PUBLISHED = "Take the row as it was published"


def read(path: str, parse: Callable[[Any, int], T]) -> list[tuple[str, T]]:
  """("file:line", what `parse` makes of it) of each row of a .jsonl file.

  Args:
    path: of the file.
    parse: takes the row and its line number from 0; raises Fault.

  Raises:
    ValueError: where rows cannot be used, or there are none.
  """
  found, bad = [], []
  for where, row in row_files.json_lines(path, constant=float):
    try:
      if isinstance(row, Fault):
        raise row
      if not isinstance(row, dict):
        raise Fault("it is no object", "Write one object in each line")
      found.append((where, parse(row, int(where.rpartition(":")[2]) - 1)))
    except Fault as fault:
      bad.append(BadRow(where, *fault.args))
  if bad or not found:
    raise ValueError(
      f"{path}: {len(bad):,} of {len(bad) + len(found):,} rows cannot be "
      f"used; none may be left out.  {some(bad)}"
      if bad
      else f"{path}: is empty.  Write one object in each line."
    )
  return found


def question(name: str, row: Mapping[str, Any], number: int) -> Question:
  """The record of a row, without its picture.

  Args:
    name: of the benchmark.
    row: as it stands in the file.
    number: of its line, from 0.

  Raises:
    Fault: where it is not of the form.
  """
  text = row.get("question")
  if not isinstance(text, str) or not text.strip():
    raise Fault(f'"question" is {text!a:.60}, wanted a text', _AS_PUBLISHED)
  answers, interval = gold(name, row)
  _check_characters(text, *answers)
  return Question(
    f"{name}/{_id(name, row, number)}",
    text,
    answers,
    family=name,
    benchmark=name,
    hops=None,
    interval=interval,
  )


def gold(
  name: str, row: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[float, ...]]:
  """What a row of a question file, or of predictions, accepts.

  Returns:
    The answers, and the interval of accepted numbers or ().

  Raises:
    Fault: where it is not there or not of the form.
  """
  key = PUBLISHED.get(name, _OWN).golds
  value = row.get(key)
  if (
    name == "infoseek"
    and isinstance(value, list)
    and any(isinstance(each, dict) for each in value)
  ):
    if len(value) > 1:
      raise Fault(f'"{key}" holds an interval and more', _AS_PUBLISHED)
    return (
      _texts("answer", row.get("answer")),
      _interval("range", value[0].get("range")),
    )
  own = row.get("interval") if name == "jsonl" else None
  return (_texts(key, value), () if own is None else _interval("interval", own))


def check_count(name: str, path: str, count: int) -> None:
  """Warns where there are not as many rows as were published."""
  wanted = PUBLISHED.get(name, _OWN).count
  if wanted and count != wanted:
    logging.warning(
      "%s has %d rows, %s was published with %d: means are of other questions.",
      path,
      count,
      name,
      wanted,
    )


def check_ids(path: str, ids: Iterable[tuple[str, str]]) -> None:
  """That no two (id, "file:line") have one id.

  Raises:
    ValueError: otherwise; names both lines.
  """
  seen, twice = {}, []
  for each, where in ids:
    if each in seen:
      twice.append(f"{seen[each]} and {where} both have the id {each!a:.80}.")
    seen.setdefault(each, where)
  if twice:
    raise ValueError(f"{path}: {some(twice)}  Keep one of them.")


def some(things: Sequence[Any]) -> str:
  """The first few, in words."""
  more = len(things) - row_files.NAMED
  return "  ".join(map(str, things[: row_files.NAMED])) + (
    f"  And {more:,} more." if more > 0 else ""
  )


def has_id(name: str, row: Mapping[str, Any]) -> bool:
  """Whether a row has, or must have, an id beside its line number."""
  key = PUBLISHED.get(name, _OWN).id
  return bool(key) and (name != "jsonl" or key in row)


def _id(name: str, row: Mapping[str, Any], number: int) -> str:
  if not has_id(name, row):
    return str(number)
  key = PUBLISHED.get(name, _OWN).id
  value = row.get(key)
  if (
    isinstance(value, bool)
    or not isinstance(value, str | int)
    or (not str(value).strip())
  ):
    raise Fault(
      f'"{key}" is {value!a:.60}, wanted a name', "Name each question once"
    )
  _check_characters(str(value))
  return str(value)


def _texts(key: str, value: Any) -> tuple[str, ...]:
  """Answers: a text, a number, or a list of them."""
  values = value if isinstance(value, list) else [value]
  if not values or not all(_good(each) for each in values):
    raise Fault(
      f'"{key}" is {value!a:.60}, wanted a text, a number or a list '
      "of them, none empty",
      "Write the accepted answers there",
    )
  return tuple(map(str, values))


def _good(value: Any) -> bool:
  return isinstance(value, str) and bool(value.strip()) or _number(value)


def _number(value: Any) -> bool:
  return not isinstance(value, bool) and (
    isinstance(value, int) or isinstance(value, float) and math.isfinite(value)
  )


def _interval(key: str, value: Any) -> tuple[float, float]:
  if not (
    isinstance(value, list)
    and len(value) == 2
    and all(map(_number, value))
    and value[0] <= value[1]
    and max(map(abs, value)) <= numeric_range.LARGEST
  ):
    raise Fault(
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
      raise Fault(
        f"{text!a:.60} holds half a surrogate pair", "Write whole characters"
      ) from None
