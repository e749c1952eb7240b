r"""Gold sub-questions of R1-Router's rows against the passages it retrieved.

  python benchmarks/held_out.py --reference=grpo_dataset_valid_new.jsonl

Each kind's pool is all passages of that kind in the rows.  Its gold
sub-questions are searched there by --embedder, and with words, too (hybrid).
One JSON line a kind and way of searching:

  found        of the passages that R1-Router read with the sub-question, share
               among the k best, k being their number
  first        share of sub-questions whose best passage is among those read
  chance       what `found` would be by chance
"""

import argparse
import json

import numpy as np

from r1router_jax.common.records import Query
from r1router_jax.data import r1_router_rows
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.encoders import registry
from r1router_jax.retrieval.index import bm25, exact


def read(reference: str, kb: str) -> tuple[list, list[tuple[str, set[str]]]]:
  """The pool, and (sub-question, texts that were read with it) pairs."""
  pool, asked = {}, {}
  for row in r1_router_rows.load_rows(reference, ""):
    for step in row.steps:
      some = [p for p in step.passages if p.kb == kb]
      if some:
        pool.update((p.text, p) for p in some)
        asked.setdefault(step.sub_question, set()).update(p.text for p in some)
  return list(pool.values()), list(asked.items())


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--reference", required=True)
  parser.add_argument("--embedder", default="minilm")
  parser.add_argument("--weights", default="")
  args = parser.parse_args()
  embed = registry.get_embedder(args.embedder, args.weights)
  for kb in ("text", "image", "table"):
    pool, asked = read(args.reference, kb)
    if not pool:
      continue
    content = local_kb.SearchStack(pool, embed, exact.ExactIndex(embed(pool)))
    words = bm25.Bm25Index.from_texts(p.text for p in pool)
    for name, way in (
      ("dense", content),
      ("hybrid", content._replace(bm25_index=words)),
    ):
      found, first, chance = [], [], []
      for question, texts in asked:
        _, rows = way.search([Query(question)], len(texts))
        best = [pool[row].text for row in rows[0] if row >= 0]
        found.append(len(texts.intersection(best)) / len(texts))
        first.append(best[0] in texts)
        chance.append(len(texts) / len(pool))
      print(
        json.dumps(
          dict(
            kb=kb,
            way=name,
            pool=len(pool),
            sub_questions=len(asked),
            found=round(float(np.mean(found)), 3),
            first=round(float(np.mean(first)), 3),
            chance=round(float(np.mean(chance)), 3),
          )
        ),
        flush=True,
      )


if __name__ == "__main__":
  main()
