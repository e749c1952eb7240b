r"""Scores of answers that something else has written.

  python -m r1router_jax.eval --score_only --benchmark=infoseek \
      --predictions=infoseek_r1-router3.jsonl --data=datasets

A line of predictions is R1-Router's: the question's row and "llm_answer", a
text or {"thought", "answer"}.  Golds are read from the rows themselves.  With
--data they must be those of the benchmark's question file, and each of its
questions must have one prediction; without, only ids are looked at.

One JSON line is printed.  F1-Recall is by the reference's rules; F1, exact
match and best recall are by the default ones; see metrics.py.
"""

import collections
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

from r1router_jax.common.records import Question
from r1router_jax.common.row_files import Fault
from r1router_jax.data import benchmark_schema, benchmarks
from r1router_jax.metrics import answers

_CURE = 'Write {"thought": "...", "answer": "..."} or a text there'


class Row(NamedTuple):
  """A question, what it is matched by, and its answer if it has one."""

  question: Question
  key: Hashable
  answer: str = ""


def run(benchmark: str, predictions: str, data: str = "") -> dict[str, Any]:
  """Scores x 100 of a file of predictions, and what they are scores of.

  Args:
    benchmark: one of `benchmarks.NAMES` but GeoRouter.
    predictions: the file.
    data: where the question file is, see `benchmarks.load`; or "".

  Raises:
    ValueError: where a row is broken, or predictions and questions do not
      match one to one.
    FileNotFoundError: where a file is not there.
  """
  if benchmark == "georouter" or benchmark not in benchmarks.NAMES:
    raise ValueError(
      f"--benchmark={benchmark} is not one to be scored from a file; choose "
      f"from {', '.join(benchmarks.NAMES[1:])}.  GeoRouter's predictions "
      "have their scores with them."
    )
  if not predictions:
    raise ValueError("--score_only wants --predictions=FILE.jsonl.")
  told = benchmark_schema.read(
    predictions,
    lambda row, number: _row(benchmark, row, number)._replace(
      answer=_answer(row)
    ),
  )
  benchmark_schema.check_ids(
    predictions, ((row.question.id, where) for where, row in told)
  )
  if data:
    path = benchmarks.file(benchmark, data)
    asked = benchmark_schema.read(
      path, lambda row, number: _row(benchmark, row, number)
    )
    benchmark_schema.check_count(benchmark, path, len(asked))
    _check_match(predictions, told, path, asked)
  else:
    benchmark_schema.check_count(benchmark, predictions, len(told))
  return _scores(benchmark, [row for _, row in told])


def _row(name: str, row: Mapping[str, Any], number: int) -> Row:
  question = benchmark_schema.question(name, row, number)
  if benchmark_schema.has_id(name, row):
    return Row(question, question.id)
  return Row(question, (question.text, *_golds(question)))


def _golds(question: Question) -> tuple[tuple[str, ...], tuple[float, ...]]:
  return question.answers, question.interval


def _answer(row: Mapping[str, Any]) -> str:
  """What was answered."""
  if "llm_answer" not in row:
    raise Fault('has no "llm_answer"', _CURE)
  value = row["llm_answer"]
  if isinstance(value, dict):
    if not isinstance(value.get("answer"), str):
      raise Fault(
        f'"llm_answer" has the "answer" {value.get("answer")!a:.60}, '
        "wanted a text",
        _CURE,
      )
    return value["answer"]
  if not isinstance(value, str):
    raise Fault(
      f'"llm_answer" is {value!a:.60}, wanted a text or an object', _CURE
    )
  return value


Rows = list[tuple[str, Row]]  # With "file:line".


def _check_match(predictions: str, told: Rows, path: str, asked: Rows) -> None:
  """That each question has one prediction, and its golds there.

  Rows without ids are matched by question and golds, in order where several
  are alike.
  """
  known, given = _numbered(asked), _numbered(told)
  texts = {row.question.text for _, row in asked}
  faults = [
    f"{where}: has other golds than the question file, or another question."
    for key, (where, row) in given.items()
    if key in known and not _same(row, known[key][1])
  ]
  faults += [
    f"{where}: answers no question of the question file"
    + (
      ", where that text has other golds or comes less often."
      if row.question.text in texts
      else "."
    )
    for key, (where, row) in given.items()
    if key not in known
  ]
  missing = [
    f"{where}: has no prediction."
    for key, (where, _) in known.items()
    if key not in given
  ]
  if faults or missing:
    raise ValueError(
      f"{predictions}: of {len(told):,} predictions {len(faults):,} are of "
      f"no question of {path}, and {len(missing):,} of its {len(asked):,} "
      f"questions have none.  {benchmark_schema.some([*faults, *missing])}  "
      "Answer just these questions, with the rows as they were published."
    )


def _numbered(found: Rows) -> dict[tuple[Hashable, int], tuple[str, Row]]:
  """Rows by their key and by how many of that key came before."""
  before, numbered = collections.Counter(), {}
  for where, row in found:
    numbered[row.key, before[row.key]] = where, row
    before[row.key] += 1
  return numbered


def _same(told: Row, asked: Row) -> bool:
  return told.question.text == asked.question.text and _golds(
    told.question
  ) == _golds(asked.question)


def _scores(benchmark: str, found: list[Row]) -> dict[str, Any]:
  by = lambda rules: [rules(row.answer, *_golds(row.question)) for row in found]
  reference, default = by(answers.score), by(answers.score_default)
  return dict(
    benchmark=benchmark,
    n=len(found),
    f1_recall=_percent(scores.recall for scores in reference),
    f1=_percent(scores.f1 for scores in default),
    em=_percent(scores.exact for scores in default),
    recall=_percent(scores.max_recall for scores in default),
    empty=sum(not row.answer.strip() for row in found),
  )


def _percent(values: Iterable[float]) -> float:
  values = list(values)
  return round(100 * sum(values) / len(values), 2)
