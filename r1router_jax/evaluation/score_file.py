r"""Scores of answers that another program has written.

  python -m r1router_jax.eval --score_only --benchmark=infoseek \
      --predictions=infoseek_r1-router3.jsonl --data=datasets

A line of predictions has R1-Router's form: the question's row and "llm_answer",
a text or {"thought", "answer"}.  Accepted answers are read from the rows
themselves.  With --data they must be those of the benchmark's question file,
and each of its questions must have one prediction; without --data only ids are
checked.

One JSON line is printed.  F1-Recall follows the reference's rules; F1, exact
match and best recall follow the default rules (`metrics.answers`).
"""

import collections
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

from r1router_jax.common.records import Question
from r1router_jax.common.row_files import RowError
from r1router_jax.data import benchmark_schema, benchmarks
from r1router_jax.metrics import answers

_CURE = 'Write {"thought": "...", "answer": "..."} or a text there'


class PredictionRow(NamedTuple):
  """A question with its answer.

  Attributes:
    question: the question with its accepted answers.
    key: equal in a prediction and in the row of the question file it answers.
    answer: the predicted answer; "" in a row of the question file.
  """

  question: Question
  key: Hashable
  answer: str = ""


def score_predictions(
  benchmark: str, predictions: str, data: str = ""
) -> dict[str, Any]:
  """Score a file of predictions.

  Args:
    benchmark: one of `benchmarks.NAMES` except GeoRouter.
    predictions: the file of predictions.
    data: place of the question file, see `benchmarks.load_benchmark`, or "".

  Returns:
    Scores x 100, with the benchmark and the number of predictions.

  Raises:
    ValueError: if a row is broken, or predictions and questions do not match
      one to one.
    FileNotFoundError: if a file does not exist.
  """
  if benchmark == "georouter" or benchmark not in benchmarks.NAMES:
    raise ValueError(
      f"--benchmark={benchmark} is not one to be scored from a file; choose "
      f"from {', '.join(benchmarks.NAMES[1:])}.  GeoRouter's predictions "
      "have their scores with them."
    )
  if not predictions:
    raise ValueError("--score_only wants --predictions=FILE.jsonl.")
  predicted = benchmark_schema.parse_rows(
    predictions,
    lambda row, number: _parse_row(benchmark, row, number)._replace(
      answer=_parse_answer(row)
    ),
  )
  benchmark_schema.check_ids(
    predictions, ((row.question.id, where) for where, row in predicted)
  )
  # With the question file at hand, both must match one to one.
  if data:
    path = benchmarks.find_question_file(benchmark, data)
    references = benchmark_schema.parse_rows(
      path, lambda row, number: _parse_row(benchmark, row, number)
    )
    benchmark_schema.check_count(benchmark, path, len(references))
    _check_match(predictions, predicted, path, references)
  else:
    benchmark_schema.check_count(benchmark, predictions, len(predicted))
  return _mean_scores(benchmark, [row for _, row in predicted])


def _parse_row(name: str, row: Mapping[str, Any], number: int) -> PredictionRow:
  question = benchmark_schema.parse_question(name, row, number)
  if benchmark_schema.has_id(name, row):
    return PredictionRow(question, question.id)
  return PredictionRow(question, (question.text, *_accepted(question)))


def _accepted(question: Question) -> tuple[tuple[str, ...], tuple[float, ...]]:
  return question.answers, question.interval


def _parse_answer(row: Mapping[str, Any]) -> str:
  """Return the answer in a row of predictions."""
  if "llm_answer" not in row:
    raise RowError('has no "llm_answer"', _CURE)
  value = row["llm_answer"]
  if isinstance(value, dict):
    if not isinstance(value.get("answer"), str):
      raise RowError(
        f'"llm_answer" has the "answer" {value.get("answer")!a:.60}, '
        "wanted a text",
        _CURE,
      )
    return value["answer"]
  if not isinstance(value, str):
    raise RowError(
      f'"llm_answer" is {value!a:.60}, wanted a text or an object', _CURE
    )
  return value


LocatedRows = list[tuple[str, PredictionRow]]  # ("file:line", row) pairs.


def _check_match(
  predictions: str, predicted: LocatedRows, path: str, references: LocatedRows
) -> None:
  """Check that each question has one prediction, with its accepted answers.

  Rows without ids are matched by question and accepted answers, and in order if
  several are alike.

  Raises:
    ValueError: if they do not match; the message names the first few rows.
  """
  # Rows of equal key are told apart by their order.
  known, given = _index_rows(references), _index_rows(predicted)
  texts = {row.question.text for _, row in references}
  faults = [
    f"{where}: has other golds than the question file, or another question."
    for key, (where, row) in given.items()
    if key in known and not _is_same_question(row, known[key][1])
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
    named = benchmark_schema.first_few([*faults, *missing])
    raise ValueError(
      f"{predictions}: of {len(predicted):,} predictions {len(faults):,} are "
      f"of no question of {path}, and {len(missing):,} of its "
      f"{len(references):,} questions have none.  {named}  "
      "Answer just these questions, with the rows as they were published."
    )


def _index_rows(
  found: LocatedRows,
) -> dict[tuple[Hashable, int], tuple[str, PredictionRow]]:
  """Index rows by their key and by the number of earlier rows with that key."""
  before, numbered = collections.Counter(), {}
  for where, row in found:
    numbered[row.key, before[row.key]] = where, row
    before[row.key] += 1
  return numbered


def _is_same_question(told: PredictionRow, asked: PredictionRow) -> bool:
  return told.question.text == asked.question.text and _accepted(
    told.question
  ) == _accepted(asked.question)


def _mean_scores(benchmark: str, found: list[PredictionRow]) -> dict[str, Any]:
  given = [(row.answer, *_accepted(row.question)) for row in found]
  reference = [answers.score_answer(*each) for each in given]
  default = [answers.score_default(*each) for each in given]
  return dict(
    benchmark=benchmark,
    n=len(found),
    f1_recall=_mean_percent(scores.recall for scores in reference),
    f1=_mean_percent(scores.f1 for scores in default),
    em=_mean_percent(scores.exact for scores in default),
    recall=_mean_percent(scores.max_recall for scores in default),
    empty=sum(not row.answer.strip() for row in found),
  )


def _mean_percent(values: Iterable[float]) -> float:
  values = list(values)
  return round(100 * sum(values) / len(values), 2)
