r"""A user's own questions: JSON Lines, CSV or Parquet files, and their images.

A row is

  {"question": "...", "answer": "..." or [...], "id": "...", "image": "a.jpg",
   "family": "...", "interval": [low, high],
   "hops": [{"sub_question": "...", "routes": ["text"], "answers": ["..."],
             "evidence": ["guide.md#opening-hours"]}]}

and needs a question and its accepted answers, which may be called "answers",
too.  Numbers are answers like their texts.  Without "hops" the gold rounds are
unknown; an empty list says that nothing has to be searched for.  "evidence",
the ids of passages that say a hop's answer, may be left out.  null is the same
as no such key, and there are no other keys.  Ids are made of the name of the
file: "shop/a" for the id "a" in shop.csv, and the number of the line for a row
without an id.

A file by the name of MultimodalQA's questions, such as MMQA_train.jsonl.gz, has
the form in which it was published (`multimodalqa`).

In a CSV file, whose first line names the columns, a field without a text is not
there; several answers are separated by "|", or written as a JSON list, as are
"interval" and "hops".  Files of JSON Lines and CSV may end in .gz or .bz2.

What makes every row doubtful is a UserError: columns that are unknown, missing
or named twice, a quote that is never closed, a damaged file.  Any other fault
is a `RowError`, and costs its row alone.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from etils import epy
from msgspec import Meta

from r1router_jax.common import images as images_lib
from r1router_jax.common import parquet_rows, progress, row_files
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS, MAX_HOPS, Hop, Question
from r1router_jax.common.row_files import RejectedRow, RowError, SkipLog
from r1router_jax.data import benchmark_formats, multimodalqa, tfds_datasets
from r1router_jax.data import benchmark_schema as schema

# Imported when used, since it takes seconds.
with epy.lazy_imports():
  import tensorflow_datasets as tfds

SPLIT = "train"  # The one split of each file.
KEYS = "question answer answers id image family interval hops".split()

_ENDING = re.compile(r"(?s)(?<=.)\.((jsonl|csv)(\.gz|\.bz2)?|parquet)\Z")
_NAME_CURE = "Name a file that ends in .jsonl, .csv (or those with .gz or "
_NAME_CURE += ".bz2) or .parquet"
_KEYS_CURE = f"Known are {', '.join(KEYS)}: rename or remove the others"
# Characters of a text, far beyond what a prompt has room for.
_MAX_TEXT = 1 << 15

# Pairs of ("file:line", question), with a `RowError` in place of a bad row.
QuestionRows = Iterator[tuple[str, Question | RowError]]
_Text = Annotated[str, Meta(pattern=r"\S")]
_Texts = Annotated[tuple[_Text, ...], Meta(min_length=1)]
_Routes = Annotated[tuple[Literal[KBS], ...], Meta(min_length=1)]


class _Hop(msgspec.Struct, forbid_unknown_fields=True):
  sub_question: _Text
  routes: _Routes
  answers: _Texts
  evidence: tuple[str, ...] | None = None


_Hops = Annotated[tuple[_Hop, ...], Meta(max_length=MAX_HOPS)]


def is_file_name(place: str) -> bool:
  """Return whether a name ends like that of a file of questions."""
  return bool(_ENDING.search(place))


def check_file(path: str) -> None:
  """Raise UserError unless a path is that of a file of questions."""
  if not is_file_name(path):
    raise UserError(f"{path}: questions are not read from that.  {_NAME_CURE}.")
  if not os.path.isfile(path):
    fault = "is no file" if os.path.exists(path) else "there is no such file"
    raise UserError(f"{path}: {fault}.  {_NAME_CURE}.")


def load_questions(
  path: str, image_folder: str = "", split: str = SPLIT, seed: int = 0
) -> list[Question]:
  """Return the good questions of a file, in order; log which are left out.

  Args:
    path: the file.
    image_folder: folder that images are in, "" for that of the file.
    split: `SPLIT`, or slices of it, as TFDS spells them.
    seed: seed of the permutation that slices are taken of.

  Raises:
    UserError: if the file cannot be read, has no such split, or none of its
      rows there is good.
  """
  rows = list(read_questions(path, image_folder))
  if not rows:
    raise UserError(f"{path}: is empty.  Write one question in each line.")
  # Slices are taken of all rows, so that they stay the same, and are those of
  # `eval`, when a bad row is mended.
  splits = {SPLIT: tfds.core.SplitInfo(SPLIT, [len(rows)], 0)}
  chosen = tfds_datasets.choose_rows(splits, path, split, seed)
  rows = [rows[row] for _, numbers in chosen for row in numbers]
  skipped, good = SkipLog(f"{path}, {split}"), []
  for where, question in check_images(progress.show_progress(rows, path)):
    if isinstance(question, RowError):
      skipped(RejectedRow(where, *question.args))
    else:
      good.append(question)
  skipped.finish(len(good))
  return good


def read_questions(path: str, image_folder: str = "") -> QuestionRows:
  """Yield the questions of a file; their images are not opened.

  See `load_questions` for the arguments and errors.
  """
  check_file(path)
  if image_folder and not os.path.isdir(image_folder):
    raise UserError(f"{image_folder}: there is no such folder of images.")
  root = image_folder or os.path.dirname(os.path.abspath(path))
  stem, seen = _ENDING.sub("", os.path.basename(path)), {}
  for where, row in read_rows(path):
    try:
      if isinstance(row, RowError):
        raise row
      question = _parse_row(row, stem, int(where.rpartition(":")[2]), root)
      if (first := seen.setdefault(question.id, where)) != where:
        fault = f"it has the id {question.id!a:.80}, as {first} has"
        raise RowError(fault, "Name each question once")
    except RowError as fault:
      question = fault
    yield where, question


def check_images(
  rows: Iterable[tuple[str, Question | RowError]],
) -> QuestionRows:
  """Yield the same rows, with a `RowError` if the image cannot be read."""
  # Questions may share an image, which is decoded once.
  faults = {"": None}
  for where, question in rows:
    if isinstance(question, Question):
      path = question.image
      if path not in faults:
        faults[path] = _find_image_fault(path)
      question = faults[path] or question
    yield where, question


def _find_image_fault(path: str) -> RowError | None:
  try:
    images_lib.load_image(path)
  except images_lib.BadImage as error:
    fault = f'"image" is {str(error).rstrip(".")}'
    return RowError(fault, "Or leave the image out")
  return None


def read_rows(path: str) -> row_files.Rows:
  """Yield the rows of a file as dicts, without what is empty or null.

  The end of its name tells a file of CSV or Parquet; others are JSON Lines.
  Columns that are not those of questions raise UserError.
  """
  is_csv = bool(re.search(r"\.csv(\.gz|\.bz2)?$", path))
  is_published = multimodalqa.is_question_file(path)
  if is_csv:
    rows = row_files.read_csv_rows(path, check_columns=_check_columns)
  elif path.endswith(".parquet"):
    rows = parquet_rows.read_parquet_rows(path, _check_columns)
  else:
    # No field of a question takes NaN, and others are no matter here.
    rows = row_files.read_json_lines(path, parse_constant=float)
  for where, row in rows:
    try:
      if not isinstance(row, dict | RowError):
        raise RowError("it is no object", "Write one object in each line")
      if is_csv and isinstance(row, dict):
        row = _parse_fields(row)
      elif is_published and isinstance(row, dict):
        row = multimodalqa.join_answers(
          benchmark_formats.to_own("multimodalqa", row)
        )
    except RowError as fault:
      row = fault
    if isinstance(row, dict):
      row = {name: value for name, value in row.items() if value is not None}
    yield where, row


def _check_columns(names: Sequence[str]) -> None:
  """Raise a RowError unless a table with these columns has questions."""
  example = "Name the columns in the first line, such as question,answer"
  if not names:
    raise RowError("it is empty", example)
  unknown = [name for name in names if name not in KEYS]
  if unknown:
    fault = f"it has the unknown columns {unknown!a:.200}"
    raise RowError(fault, _KEYS_CURE)
  if len(set(names)) < len(names):
    raise RowError(f"it names a column twice: {names!a:.200}", example)
  if "question" not in names or ("answer" in names) == ("answers" in names):
    fault = f"it has the columns {names!a:.200}, wanted question and answer"
    raise RowError(f"{fault}, which may be called answers", example)


def _parse_fields(row: dict[str, str]) -> dict[str, Any]:
  """Return the values of a CSV file's row, without empty fields."""
  values = {}
  for name, text in row.items():
    text = text.strip()
    if not text:
      continue
    is_answer = name in ("answer", "answers")
    if name in ("hops", "interval") or (is_answer and text.startswith("[")):
      try:
        values[name] = row_files.parse_json(text.encode())
      except RowError as fault:
        cure = 'Write a JSON list there, such as ["a", "b"]'
        raise RowError(f'"{name}" is {fault.args[0]}', cure) from None
    elif is_answer and "|" in text:
      values[name] = [part.strip() for part in text.split("|")]
    else:
      values[name] = text
  return values


def _parse_row(
  row: dict[str, Any], stem: str, line: int, root: str
) -> Question:
  """Return the question of a row; its image need not exist.

  Raises:
    RowError: if the row does not have the form.
  """
  _check_keys(row)
  question = schema.parse_question("jsonl", row, line)
  question = dataclasses.replace(
    question,
    id=question.id.replace("jsonl", stem, 1),
    image=_resolve_image(row, root) if row.get("image", "") != "" else "",
    family=row.get("family", stem),
    benchmark="",
    hops=parse_hops(row),
  )
  _check_texts("question", [question.text])
  _check_texts("answer", question.answers)
  _check_texts("id", [question.id])
  _check_texts("family", [question.family])
  return question


def _check_keys(row: dict[str, Any]) -> None:
  """Raise RowError unless a row has known keys and those that it needs."""
  if unknown := [name for name in row if name not in KEYS]:
    raise RowError(f"it has the unknown keys {unknown!a:.200}", _KEYS_CURE)
  for names in ({"question"}, {"answer", "answers"}):
    if not names & row.keys():
      fault = f'it has no "{min(names)}"'
      raise RowError(fault, "Give a question and its accepted answers")
  if {"answer", "answers"} <= row.keys():
    raise RowError('it has "answer" and "answers"', "Keep one of them")


def parse_hops(row: schema.Row) -> tuple[Hop, ...] | None:
  """Return the gold hops of a row, or None if it does not say them.

  Raises:
    RowError: if they do not have the form.
  """
  if "hops" not in row:
    return None
  wanted = f"a list of at most {MAX_HOPS} objects with sub_question, routes "
  wanted += f"(of {', '.join(KBS)}) and answers, none of them empty"
  cure = "Write that, or leave it out if the gold rounds are unknown"
  hops = schema.read_field(row, "hops", _Hops, wanted, cure)
  if any(len(set(hop.routes)) < len(hop.routes) for hop in hops):
    raise RowError('"hops" names a route twice', "Name each route once")
  for hop in hops:
    _check_texts("hops", [hop.sub_question, *hop.answers])
  return tuple(
    Hop(hop.sub_question, hop.routes, hop.answers, hop.evidence or ())
    for hop in hops
  )


def _resolve_image(row: dict[str, Any], root: str) -> str:
  cure = "Name it as text, or leave it out"
  named = schema.read_field(row, "image", _Text, "the path of an image", cure)
  try:
    return images_lib.resolve_path(named, root)
  except images_lib.BadImage as error:
    fault = f'"image" is {str(error).rstrip(".")}'
    raise RowError(fault, "Or leave the image out") from error


def _check_texts(name: str, values: Iterable[str]) -> None:
  """Raise RowError for a text that is too long, or that no prompt may hold."""
  for value in values:
    row_files.validate_text(name, value)
    if len(value) > _MAX_TEXT:
      fault = f'"{name}" has {len(value):,} characters'
      raise RowError(fault, f"Shorten it to {_MAX_TEXT:,} at most")
