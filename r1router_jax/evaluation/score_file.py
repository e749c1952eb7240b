r"""Scores of answers that another program has written.

  python -m r1router_jax.eval --score_only --benchmark=infoseek \
      --predictions=infoseek_r1-router3.jsonl --data=datasets

A line of predictions has R1-Router's form: the question's row and "llm_answer",
a text or {"thought", "answer"}.  Accepted answers are read from the rows
themselves.  With --data, or --tfds_dir for a prepared benchmark, they must be
those of the benchmark, and each of its questions must have one prediction;
without these only ids are checked.

One JSON line is printed.  F1-Recall follows the reference's rules; F1, exact
match and best recall follow the default rules (`metrics.answers`); "official"
has the scores that the benchmark's authors report (`metrics.official`).
"""

import collections
import itertools
import math
import statistics
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Question
from r1router_jax.common.row_files import RowError
from r1router_jax.data import benchmark_formats, benchmarks
from r1router_jax.data import benchmark_schema as schema
from r1router_jax.metrics import answers, official

_CURE = 'Write {"thought": "...", "answer": "..."} or a text there'


class PredictionRow(NamedTuple):
  """A question with its answer."""

  question: Question
  has_id: bool  # Whether the row itself says the question's id.
  answer: str


def score_predictions(
  benchmark: str, predictions: str, data: str = "", tfds_dir: str = ""
) -> dict[str, Any]:
  """Return the scores x 100 of a file of predictions, with their number.

  The benchmark is one of `benchmarks.NAMES` except GeoRouter; `data` and
  `tfds_dir` are those of `benchmarks.load_benchmark`, or "".

  Raises:
    UserError: if a row is broken, or predictions and questions do not match
      one to one.
    FileNotFoundError: if a file does not exist.
  """
  if benchmark == "georouter" or benchmark not in benchmarks.NAMES:
    raise UserError(
      f"--benchmark={benchmark} is not one to be scored from a file; choose "
      f"from {', '.join(benchmarks.NAMES[1:])}.  GeoRouter's predictions "
      "have their scores with them."
    )
  if not predictions:
    raise UserError("--score_only wants --predictions=FILE.jsonl.")

  def parse_prediction(row: schema.Row, number: int) -> PredictionRow:
    own = benchmark_formats.to_own(benchmark, row)
    question = schema.parse_question(benchmark, own, number)
    has_id = schema.has_id(benchmark, own)
    return PredictionRow(question, has_id, _parse_answer(row))

  predicted = schema.parse_rows(predictions, parse_prediction)
  ids = [(row.question.id, where) for where, row in predicted]
  schema.check_ids(predictions, ids)
  # With the questions at hand, both must match one to one.
  if data or tfds_dir:
    questions = benchmarks.load_benchmark(benchmark, data, tfds_dir=tfds_dir)
    _check_match(predictions, predicted, questions)
  else:
    schema.check_count(benchmark, predictions, len(predicted))
  means = _mean_scores([row for _, row in predicted])
  return dict(benchmark=benchmark, n=len(predicted), **means)


def _content(question: Question, has_id: bool) -> Hashable:
  """Return what a prediction shares with its question."""
  name = question.id if has_id else ""
  return name, question.text, question.answers, question.interval


def _parse_answer(row: schema.Row) -> str:
  """Return the answer in a row of predictions."""
  if "llm_answer" not in row:
    raise RowError('has no "llm_answer"', _CURE)
  value = row["llm_answer"]
  fault = f'"llm_answer" is {value!a:.60}, wanted a text or an object'
  # An object has the answer beside the thoughts that led to it.
  if isinstance(value, dict):
    value = value.get("answer")
    fault = f'"llm_answer" has the "answer" {value!a:.60}, wanted a text'
  if not isinstance(value, str):
    raise RowError(fault, _CURE)
  return value


def _check_match(
  path: str,
  predicted: Sequence[tuple[str, PredictionRow]],
  questions: Sequence[Question],
) -> None:
  """Check that each question has one prediction, with its accepted answers.

  A UserError names the first few rows that do not match.
  """
  # The ids of questions whose rows have none are only their numbers.
  ids = {row.question.id for _, row in predicted if row.has_id}
  unanswered = collections.defaultdict(list)
  for question in questions:
    unanswered[_content(question, question.id in ids)].append(question.id)
  faults = []
  for where, row in predicted:
    if same := unanswered[_content(row.question, row.has_id)]:
      same.pop(0)
    else:
      faults.append(
        f"{where}: answers no question of the benchmark, or comes twice, or "
        "has other golds."
      )
  left = itertools.chain.from_iterable(unanswered.values())
  missing = [f"{name} has no prediction." for name in left]
  if faults or missing:
    named = schema.first_few([*faults, *missing])
    raise UserError(
      f"{path}: of {len(predicted):,} predictions {len(faults):,} are of no "
      f"question of the benchmark, and {len(missing):,} of its "
      f"{len(questions):,} questions have none.  {named}  "
      "Answer just these questions, with the rows as they were published."
    )


def _mean_scores(found: list[PredictionRow]) -> dict[str, Any]:
  sums = collections.defaultdict(float)
  for row in found:
    given = row.answer, row.question.answers, row.question.interval
    # F1-Recall follows the reference's rules, all others the default ones.
    scores = answers.score_default(*given)
    sums["f1_recall"] += answers.score_answer(*given).recall
    sums["f1"] += scores.f1
    sums["em"] += scores.exact
    sums["recall"] += scores.max_recall
  means = {name: round(100 * x / len(found), 2) for name, x in sums.items()}
  by_authors = _official_scores(found)
  means |= dict(official=by_authors) if by_authors else {}
  return dict(means, empty=sum(not row.answer.strip() for row in found))


def _official_scores(found: list[PredictionRow]) -> dict[str, float]:
  """Return the means x 100 of official scores, none if there are none."""
  questions = [row.question for row in found]
  scores = [official.score_official(row.answer, row.question) for row in found]
  exact, f1 = zip(*scores, strict=True)
  means = dict(exact=statistics.fmean(exact), f1=statistics.fmean(f1))
  if infoseek := official.infoseek_score(questions, exact):
    means |= infoseek._asdict()
  return {k: round(100 * x, 2) for k, x in means.items() if not math.isnan(x)}
