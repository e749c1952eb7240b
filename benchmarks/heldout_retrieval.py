r"""Measures how often our search finds the passages that R1-Router retrieved.

  python benchmarks/heldout_retrieval.py \
      --reference=grpo_dataset_valid_new.jsonl

The corpus of each kind is made of all passages of that kind in R1-Router's
rows.  Gold sub-questions of the rows are searched there with --embedder, alone
(dense) and together with words (hybrid).  There is one JSON line for each kind
and way of searching:

  found        share of the k passages that R1-Router read with a sub-question
               that are among the k best
  first        share of sub-questions whose best passage is among those read
  chance       expected `found` of a random choice
"""

import argparse

import common
import numpy as np

from r1router_jax.common import http_client
from r1router_jax.common.records import Passage, Query
from r1router_jax.data import r1_router_rows
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.encoders import registry
from r1router_jax.retrieval.index import bm25, exact


def load_corpus(
  reference: str, kind: str
) -> tuple[list[Passage], dict[str, set[str]]]:
  """Return the passages of a kind, and the texts read by sub-question."""
  corpus, read_texts = {}, {}
  for row in r1_router_rows.load_rows(reference, ""):
    for step in row.steps:
      # A step may have searched several kinds.
      passages = [p for p in step.passages if p.kb == kind]
      if passages:
        texts = [p.text for p in passages]
        corpus.update(zip(texts, passages, strict=True))
        read_texts.setdefault(step.sub_question, set()).update(texts)
  return list(corpus.values()), read_texts


def measure_search(
  stack: local_kb.SearchStack, read_texts: dict[str, set[str]]
) -> dict[str, float]:
  """Search each sub-question, and return the means over all of them."""
  found, first, chance = [], [], []
  for sub_question, texts in read_texts.items():
    # As many as R1-Router read, so that finding all of them is possible.
    _, rows = stack.search([Query(sub_question)], len(texts))
    best = [stack.passages[row].text for row in rows[0] if row >= 0]
    found.append(len(texts.intersection(best)) / len(texts))
    # Whatever the rank that R1-Router gave it.
    first.append(best[0] in texts)
    chance.append(len(texts) / len(stack.passages))
  values = dict(found=found, first=first, chance=chance)
  return {name: round(float(np.mean(v)), 3) for name, v in values.items()}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--reference", required=True)
  parser.add_argument("--embedder", default="minilm")
  parser.add_argument("--weights", default="")
  args = parser.parse_args()
  http_client.allow_addresses([args.weights])
  embed = registry.get_embedder(args.embedder, args.weights)
  for kind in ("text", "image", "table"):
    corpus, read_texts = load_corpus(args.reference, kind)
    if not corpus:
      continue
    dense = local_kb.SearchStack(corpus, embed, exact.ExactIndex(embed(corpus)))
    # Both searches share the vectors.
    words = bm25.Bm25Index.from_texts(p.text for p in corpus)
    hybrid = dense._replace(bm25_index=words)
    for way, stack in (("dense", dense), ("hybrid", hybrid)):
      common.print_row(
        kb=kind,
        way=way,
        pool=len(corpus),
        sub_questions=len(read_texts),
        **measure_search(stack, read_texts),
      )


if __name__ == "__main__":
  main()
