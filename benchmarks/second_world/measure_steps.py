r"""Measures how well-formed the steps of an evaluation are, and its names.

  python benchmarks/second_world/measure_steps.py \
      --predictions=runs/second/eval/predictions.jsonl

There is one JSON line for each policy that answered by r1_router:

  steps         plans, answers and final answers
  well_formed   1 - faults / steps; a fault is a response that is not of the
                protocol, and counts once in a trajectory if it is repeated
  names         words of sub-questions that look like a name or a number: they
                begin with a capital letter or a digit, and no sub-question
                begins with them
  copied        share of sub-questions all of whose names stand, letter for
                letter, in the question or in what was answered before
"""

import argparse
import collections
import json
import re
from collections.abc import Mapping
from typing import Any

from r1router_jax.common.records import FORMAT_FAULTS, MAX_HOPS


def count_steps(row: Mapping[str, Any]) -> collections.Counter[str]:
  """Count the steps and the sub-questions of one trajectory."""
  rounds, faults = row["rounds"], row["faults"]
  counts = collections.Counter(
    # The plan that stops is no round; after MAX_HOPS of them none is asked for.
    steps=2 * len(rounds) + 1 + (len(rounds) < MAX_HOPS),
    malformed=sum(f.split(":")[0] in FORMAT_FAULTS for f in faults),
    sub_questions=len(rounds),
  )
  known = row["question"]
  for each in rounds:
    words = re.findall(r"[^\W_]+", each["sub_question"])
    names = [
      word for word in words[1:] if word[0].isupper() or word[0].isdigit()
    ]
    told = set(re.findall(r"[^\W_]+", known))
    counts["names"] += len(names)
    counts["copied"] += told.issuperset(names)
    known += " " + each["answer"].get("text", "")
  return counts


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--predictions", required=True)
  totals = collections.defaultdict(collections.Counter)
  with open(parser.parse_args().predictions, encoding="utf-8") as lines:
    for row in map(json.loads, lines):
      if row["method"] == "r1_router":
        totals[row["policy"]] += count_steps(row)
  for policy, total in totals.items():
    shares = dict(
      well_formed=round(1 - total["malformed"] / total["steps"], 4),
      names=total["names"],
      copied=round(total["copied"] / max(total["sub_questions"], 1), 4),
    )
    print(json.dumps(dict(policy=policy, steps=total["steps"]) | shares))


if __name__ == "__main__":
  main()
