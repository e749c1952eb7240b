"""Answers questions in chunks, saves every chunk, and resumes after a kill.

A saved answer holds for the same question alone, with the same bytes of its
image, and only if the question could be read.
"""

import collections
import hashlib
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from absl import logging

from r1router_jax.common import images, jsonl, progress
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Question

T = TypeVar("T")

Row = Mapping[str, Any]


def run_resumable(
  questions: Sequence[Question],
  answer_chunk: Callable[[Sequence[Question]], Sequence[T]],
  *,
  to_row: Callable[[T], Row],
  from_row: Callable[[Row, Question], T],
  row_kind: type,
  title: str,
  label: Row,
  path: pathlib.Path,
  chunk_size: int,
) -> dict[str, tuple[T, float]]:
  """Return the answer to each question and the seconds it took, by id.

  Args:
    questions: the questions to answer; no two have the same id.
    answer_chunk: answers some questions; returns one answer to each.
    to_row: turns an answer into a row with "id", "question" and "faults".
    from_row: restores an answer from its row and its question.
    row_kind: the schema of rows with their "seconds"; what does not fit it is
      answered again.
    title: the name of the run in the log.
    label: fields that rows of this very run have, and rows of no other.
    path: the JSON Lines file that rows are appended to, and that answers of an
      interrupted run are taken from.
    chunk_size: the number of questions that are answered together.
  """
  check_distinct_ids(questions)
  by_id = {question.id: question for question in questions}

  # 1. Take over what an earlier run has answered.
  # Rows of other runs may be in the file; of several of a question, the last
  # one counts.
  answers, num_outdated = {}, 0
  digests = {q.id: _image_digest(q.image) for q in questions}
  # The score of a passage may be NaN, which is then in its row.
  for row in jsonl.read_rows(path, row_kind, parse_constant=float):
    question = by_id.get(row["id"])
    if question is None or row["question"] != question.text:
      continue
    if any(row.get(key) != value for key, value in label.items()):
      continue
    # An image may have been missing then, or replaced since; rows of older
    # versions do not say.
    is_read = not any(x.startswith("input:") for x in row["faults"])
    if is_read and row.get("image_digest", "") == digests[question.id]:
      answers[question.id] = from_row(row, question), row["seconds"]
    else:
      num_outdated += 1
  if num_outdated:
    text = "%s: %d earlier answers are not taken over: the question was not "
    text += "read, or had another image."
    logging.info(text, title, num_outdated)
  if answers:
    known = f"{len(answers)} of {len(questions)}"
    logging.info("%s: %s questions were answered earlier.", title, known)

  # 2. Answer the rest, and save each chunk before the next one starts.
  rest = [question for question in questions if question.id not in answers]
  unit = f"{title}, {chunk_size} questions each"
  for chunk in progress.show_chunks(rest, chunk_size, unit):
    start = time.perf_counter()
    # A chunk that is interrupted is lost as a whole.
    new = answer_chunk(chunk)
    seconds = (time.perf_counter() - start) / len(chunk)
    for question, answer in zip(chunk, new, strict=True):
      answers[question.id] = answer, seconds
    # One write per chunk: a kill tears one row at most, skipped later.
    rows = [
      dict(label, **to_row(answer), seconds=seconds, image_digest=digests[q.id])
      for q, answer in zip(chunk, new, strict=True)
    ]
    jsonl.append_rows(path, rows)
  return answers


def _image_digest(path: str) -> str:
  """Return a digest of an image's bytes, "" for none or an unreadable one."""
  try:
    data = images.read_image_bytes(path) if path else b""
  except images.BadImage:
    return ""  # Whoever asks about it says what is wrong.
  return hashlib.sha256(data).hexdigest()[:16] if data else ""


def check_distinct_ids(questions: Sequence[Question]) -> None:
  """Raise a UserError if two questions have the same id."""
  ids = collections.Counter(question.id for question in questions)
  if len(ids) < len(questions):
    twice, _ = ids.most_common(1)[0]
    raise UserError(f"Two questions have the id {twice!r}: give each its own.")
