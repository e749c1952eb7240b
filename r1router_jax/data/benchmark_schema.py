"""The form of the rows in benchmarks' question and prediction files.

Six benchmarks are read as R1-Router published them, and others as their own
authors did (`benchmark_formats`).  A row of R1-Router's predictions is the
question's row with more keys, so that the accepted answers of both are read
here.  A fault of a row is a `RowError`, and `parse_rows` refuses a file with
such a row.

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
_Members = Annotated[list[_Answer], Meta(min_length=1)]
_Answers = _Answer | _Members
# An answer in a list may be a list, of which no member may be missing.
_Lists = _Answer | Annotated[list[_Answer | _Members], Meta(min_length=1)]
_Bound = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]


@dataclasses.dataclass(frozen=True)
class BenchmarkSpec:
  """The form of a question file as it was published.

  Attributes:
    file: its name.
    count: its number of questions, 0 if it is not known.
    id_key: the key of a question's id, "" if only the line number tells it.
    answer_key: the key of its accepted answers.
    images: how a row gives its image: the "stem" of a file's name, as
      "image_id"; the "path" of a file, as "image"; "inside" the row, as
      "picture"; "" if there are none.
    is_own: whether rows have this project's own form (`question_files`), as
      they are or once `benchmark_formats` has read them.
    place: where it is published.
  """

  file: str
  count: int = 0
  id_key: str = ""
  answer_key: str = "answer"
  images: str = ""
  is_own: bool = False
  place: str = "R1-Router publishes it in datasets/"


# Benchmarks as R1-Router published them.
_OF_R1_ROUTER = (
  ("infoseek", "infoseek_val.jsonl", 1000, "data_id", "answer_eval", "stem"),
  ("dyn_vqa", "DynVQA_en.202412.jsonl", 715, "question_id", "answer", "stem"),
  ("webqa", "webqa_val.jsonl", 1000, "", "answer", "stem"),
  ("2wikimultihopqa", "2wikimultihopqa_val.jsonl", 3000),
  ("openwikitqa", "openwikitqa_val.jsonl", 3000),
  ("tabfact", "tabfact_val.jsonl", 1000),
)
# Benchmarks as their authors published them.
_BY_AUTHORS = (
  ("multimodalqa", "MMQA_dev.jsonl.gz", 2441, "", "allenai/multimodalqa"),
  ("e_vqa", "test.csv", 0, "stem", "google-research/google-research"),
  ("fvqa", "fvqa_test.parquet", 1800, "inside", "lmms-lab/FVQA"),
  ("mmsearch", "end2end.parquet", 300, "inside", "CaraJ/MMSearch"),
  ("livevqa", "benchmark.json", 0, "path", "fumingyang2004/LIVEVQA"),
  ("hotpotqa", "hotpot_dev_fullwiki_v1.json", 7405, "", "hotpotqa/hotpot"),
  ("musique", "musique_ans_v1.0_dev.jsonl", 2417, "", "StonyBrookNLP/musique"),
)
_USER_FILE = BenchmarkSpec("", id_key="id", images="path", is_own=True)
BENCHMARK_SPECS = {name: BenchmarkSpec(*of) for name, *of in _OF_R1_ROUTER}
BENCHMARK_SPECS |= {
  name: dataclasses.replace(
    _USER_FILE,
    file=file,
    count=count,
    answer_key="answers",
    images=images,
    place=f"it is published as {place}",
  )
  for name, file, count, images, place in _BY_AUTHORS
}
# The official file of InfoSeek tells what is unseen: its question or entity.
_FAMILY_KEYS = {"infoseek": "data_split"}
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
  spec = find_spec(name)
  cure = _AS_TEXT if spec.is_own else AS_PUBLISHED
  text = read_field(row, "question", _Text, "a text", cure)
  answers, interval = parse_answers(name, row)
  if has_id(name, row):
    key, cure = spec.id_key, "Name each question once"
    number = read_field(row, key, _Text | int, "a name", cure)
  family, key = name, "family" if spec.is_own else _FAMILY_KEYS.get(name, "")
  if row.get(key) is not None:
    family = read_field(row, key, _Text, "a text", _AS_TEXT)
  members = _read_members(row, _answer_key(name, row))
  more = dict(family=family, benchmark=name, hops=None)
  more |= dict(interval=interval, members=members)
  return Question(f"{name}/{number}", text, answers, **more)


def parse_answers(
  name: str, row: Row
) -> tuple[tuple[str, ...], tuple[float, ...]]:
  """Return the accepted answers of a row, and the interval of numbers or ().

  Raises:
    RowError: if they are missing or do not have the benchmark's form.
  """
  key = _answer_key(name, row)
  values = row.get(key) if isinstance(row.get(key), list) else []
  # InfoSeek marks numeric questions by {"wikidata": .., "range": [low, high]}.
  if name == "infoseek" and any(isinstance(each, dict) for each in values):
    if len(values) > 1:
      raise RowError(f'"{key}" holds an interval and more', AS_PUBLISHED)
    return _read_texts(row, "answer"), _read_interval(values[0], "range")
  # Only a user's own file may say an interval under its own key.
  is_range = name == "jsonl" and row.get("interval") is not None
  interval = _read_interval(row, "interval") if is_range else ()
  with_lists = find_spec(name).is_own and name != "jsonl"
  return _read_texts(row, key, with_lists), interval


def _answer_key(name: str, row: Row) -> str:
  key, other = find_spec(name).answer_key, "answers"
  # A user may call several answers so.
  is_other = name == "jsonl" and other in row and key not in row
  return other if is_other else key


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
  spec = find_spec(name)
  return bool(spec.id_key) and (not spec.is_own or spec.id_key in row)


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


def _read_texts(
  row: Row, key: str, with_lists: bool = False
) -> tuple[str, ...]:
  """Return answers given as a text, a number, or a list of them.

  With `with_lists` an answer in a list may be a list: its members, joined.
  """
  wanted = "a text, a number or a list of them, none empty"
  cure = "Write the accepted answers there"
  kind = _Lists if with_lists else _Answers
  found = read_field(row, key, kind, wanted, cure)
  found = found if isinstance(found, list) else [found]
  return tuple(
    ", ".join(map(str, x)) if isinstance(x, list) else str(x) for x in found
  )


def _read_members(row: Row, key: str) -> tuple[tuple[str, ...], ...]:
  """Return the members of each answer if one is a list, or else ()."""
  found = row[key] if isinstance(row[key], list) else []
  if not any(isinstance(each, list) for each in found):
    return ()
  lists = (each if isinstance(each, list) else [each] for each in found)
  return tuple(tuple(map(str, each)) for each in lists)


def _read_interval(row: Row, key: str) -> tuple[float, float]:
  wanted = f"[low, high] with low <= high and neither beyond {LARGEST:.0e}"
  cure = "Write two numbers, in a larger unit if they are larger"
  low, high = read_field(row, key, tuple[_Bound, _Bound], wanted, cure)
  if low > high:
    raise RowError(f'"{key}" is {row[key]!a:.60}, wanted {wanted}', cure)
  return low, high
