r"""Compares two ways of scoring InfoSeek's intervals: enumerated and computed.

  python benchmarks/scoring.py --reference=datasets

R1-Router accepts a grid of strings for each numeric question of
infoseek_val.jsonl.  Numbers near the intervals are scored by its rules:
"enumerated" writes down all accepted strings and compares the prediction with
each; "computed" is `metrics.answers.score_answer`.  Both must agree.  One JSON
line is printed:

  enumerated_s, computed_s   seconds for one prediction of every question
  faster                     their ratio
  cached_faster              the same where each question's strings are written
                             down and cut into tokens before the clock starts
"""

import argparse
import time
from collections.abc import Callable, Sequence

import common
import numpy as np

from r1router_jax.common.records import Question
from r1router_jax.data import benchmarks
from r1router_jax.metrics import answers

# A prediction and the question that it answers.
Task = tuple[str, Question]


def accepted_strings(low: float, high: float) -> list[str]:
  """Return the strings that the reference accepts for an interval."""
  # The reference's grid: the wider the interval, the wider its steps.
  step = 0.001
  for min_width, wider in ((1, 0.01), (5, 0.1), (50, 1)):
    if high - low >= min_width:
      step = wider
  points = [str(round(x, 3)) for x in np.arange(low, high + step, step)]
  return points + [str(n) for n in range(int(low), int(high + 1))]


def make_predictions(question: Question) -> list[str]:
  """Return answers inside, at the edge and outside of the interval."""
  low, high = question.interval
  return [
    f"about {(low + high) / 2:.1f} kg",
    f"{low:g}",
    f"{high + 1:.2f}",
    "I do not know",
  ]


def time_scores(
  score: Callable[[str, Question], float], tasks: Sequence[Task]
) -> tuple[float, list[float]]:
  """Score all tasks once; return the seconds and the recalls."""
  seconds, recalls = 0.0, []
  for text, question in tasks:
    # Tokens of another task's strings would be cached.
    answers.reference_tokens.cache_clear()
    start = time.perf_counter()
    recalls.append(score(text, question))
    seconds += time.perf_counter() - start
  return seconds, recalls


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--reference", required=True)
  parser.add_argument("--every", type=int, default=1, help="Take every n-th.")
  args = parser.parse_args()
  questions = benchmarks.load_benchmark("infoseek", args.reference)
  numeric = [q for q in questions if q.interval][:: args.every]
  # Each question gets one of the four predictions, in turn.
  tasks = [(make_predictions(q)[n % 4], q) for n, q in enumerate(numeric)]
  gold_tokens = {
    q.id: list(map(answers.reference_tokens, accepted_strings(*q.interval)))
    for q in numeric
  }

  # Three ways to score one task.
  def score_enumerated(text, question):
    golds = accepted_strings(*question.interval)
    return answers.score_answer(text, golds).recall

  def score_cached(text, question):
    found = answers.reference_tokens(text)
    return answers._bag_scores(found, gold_tokens[question.id]).recall

  def score_computed(text, question):
    return answers.score_answer(text, (), question.interval).recall

  enumerated, expected = time_scores(score_enumerated, tasks)
  cached, cached_recalls = time_scores(score_cached, tasks)
  computed, recalls = time_scores(score_computed, tasks)
  # A faster way is of no use unless it gives the same numbers.
  if not recalls == expected == cached_recalls:
    raise ValueError("The ways of scoring do not agree.")
  common.print_row(
    questions=len(tasks),
    right=sum(recalls),
    strings=sum(map(len, gold_tokens.values())),
    enumerated_s=round(enumerated, 3),
    computed_s=round(computed, 5),
    faster=round(enumerated / computed),
    cached_faster=round(cached / computed, 1),
  )


if __name__ == "__main__":
  main()
