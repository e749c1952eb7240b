r"""InfoSeek's intervals: R1-Router's grid of strings, enumerated and not.

  python benchmarks/scoring.py --reference=datasets

For each numeric question of infoseek_val.jsonl some numbers near its interval
are scored by the reference's rules.  "enumerated" writes down all accepted
strings and compares the prediction with each; "computed" is
`r1router_jax.metrics.score`.  Both must agree.  One JSON line is printed:

  enumerated_s, computed_s   for one prediction of every question
  faster                     their ratio
  cached_faster              the same where each question's strings are written
                             down and cut into tokens before the clock starts
"""

import argparse
import json
import time

import numpy as np

from r1router_jax.common.records import Question
from r1router_jax.data import benchmarks
from r1router_jax.metrics import answers


def strings(low: float, high: float) -> list[str]:
  """What the reference accepts."""
  step = next(
    (
      step
      for least, step in ((50, 1), (5, 0.1), (1, 0.01))
      if high - low >= least
    ),
    0.001,
  )
  points = [str(round(x, 3)) for x in np.arange(low, high + step, step)]
  return points + [str(n) for n in range(int(low), int(high + 1))]


def predictions(question: Question) -> list[str]:
  low, high = question.interval
  return [
    f"about {(low + high) / 2:.1f} kg",
    f"{low:g}",
    f"{high + 1:.2f}",
    "I do not know",
  ]


def seconds(score, tasks) -> tuple[float, list[float]]:
  """For all tasks once, and the recalls; nothing is remembered."""
  spent, recalls = 0.0, []
  for text, question in tasks:
    answers.tokens.cache_clear()
    start = time.perf_counter()
    recalls.append(score(text, question))
    spent += time.perf_counter() - start
  return spent, recalls


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--reference", required=True)
  parser.add_argument("--every", type=int, default=1, help="Of so many one.")
  args = parser.parse_args()
  numeric = [
    q for q in benchmarks.load("infoseek", args.reference) if q.interval
  ][:: args.every]
  tasks = [(predictions(q)[n % 4], q) for n, q in enumerate(numeric)]
  ready = {
    q.id: list(map(answers.tokens, strings(*q.interval))) for q in numeric
  }
  enumerated, wanted = seconds(
    lambda text, q: answers.score(text, strings(*q.interval)).recall, tasks
  )
  cached, same = seconds(
    lambda text, q: answers._scores(answers.tokens(text), ready[q.id]).recall,
    tasks,
  )
  computed, found = seconds(
    lambda text, q: answers.score(text, (), q.interval).recall, tasks
  )
  if not found == wanted == same:
    raise ValueError("the ways of scoring do not agree.")
  print(
    json.dumps(
      dict(
        questions=len(tasks),
        right=sum(found),
        strings=sum(map(len, ready.values())),
        enumerated_s=round(enumerated, 3),
        computed_s=round(computed, 5),
        faster=round(enumerated / computed),
        cached_faster=round(cached / computed, 1),
      )
    )
  )


if __name__ == "__main__":
  main()
