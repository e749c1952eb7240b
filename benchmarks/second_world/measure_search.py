r"""Measures how often a knowledge base finds what gold sub-questions ask for.

  python benchmarks/second_world/measure_search.py --kb_dir=runs/second/kb

Each hop of both halves is searched by its sub-question, and by the question's
picture if it has one, as a policy of perfect plans would.  There is one JSON
line for each knowledge base:

  hops          look-ups in it
  recall@k      share of them with evidence among the k best
"""

import argparse
import json
import pathlib

import numpy as np

from r1router_jax.common.records import Query
from r1router_jax.data import question_files
from r1router_jax.retrieval import kb_meta, local_kb

DEPTHS = (1, 2, 3)


def read_look_ups(kb: str) -> list[tuple[Query, set[str]]]:
  """Return the look-ups in a knowledge base: queries, and their evidence."""
  look_ups = []
  for half in ("train", "test"):
    path = pathlib.Path(__file__).with_name(f"{half}.jsonl")
    for question in question_files.load_questions(str(path)):
      for hop in question.hops:
        if hop.evidence and hop.routes[0] == kb:
          query = Query(hop.sub_question, question.image)
          look_ups.append((query, {*hop.evidence}))
  return look_ups


def measure_recall(folder: str, kb: str) -> dict[str, float]:
  """Return the share of look-ups with evidence among the k best, by k."""
  queries, evidence = zip(*read_look_ups(kb), strict=True)
  found = local_kb.open_kb(folder).search(queries, max(DEPTHS))
  is_evidence = [
    [passage.id in wanted for passage in passages]
    for passages, wanted in zip(found, evidence, strict=True)
  ]
  recall = {k: np.mean([any(row[:k]) for row in is_evidence]) for k in DEPTHS}
  shares = {f"recall@{k}": round(float(x), 3) for k, x in recall.items()}
  return dict(hops=len(queries)) | shares


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--kb_dir", required=True)
  places = kb_meta.kb_places(parser.parse_args().kb_dir)
  for kb, folder in places.items():
    print(json.dumps(dict(kb=kb) | measure_recall(folder, kb)), flush=True)


if __name__ == "__main__":
  main()
