import csv

import pytest

from r1router_jax import build_kb
from r1router_jax.common.records import Query
from r1router_jax.data import answer_coverage, question_files
from r1router_jax.retrieval import local_kb
from tools import shop_world

SOURCES = dict(text="text.csv", image="logos", table="tables.jsonl")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
  folder = tmp_path_factory.mktemp("shop")
  shop_world.write_world(str(folder))
  return folder


@pytest.fixture(scope="module")
def kbs(shop):
  for kind, source in SOURCES.items():
    folder = str(shop / "kb" / kind)
    build_kb.build(build_kb.KbSpec(folder, kind, str(shop / source)))
  return {kind: local_kb.open_kb(str(shop / "kb" / kind)) for kind in SOURCES}


def load_both(shop):
  paths = (str(shop / name) for name in ("questions.csv", "test.csv"))
  return tuple(map(question_files.load_questions, paths))


def test_every_row_is_a_question_with_answers_alone(shop):
  train, test = load_both(shop)
  assert (len(train), len(test)) == (200, 300)
  assert all(q.hops is None and q.answers for q in train + test)
  # Three of the five kinds of question show a picture.
  assert [sum(bool(q.image) for q in qs) for qs in (train, test)] == [120, 180]


def test_each_answer_is_in_a_corpus_none_of_whose_rows_is_left_out(shop, kbs):
  questions = sum(load_both(shop), [])
  assert [len(kb) for kb in kbs.values()] == [240, 120, 240]
  texts = (p.text for kb in kbs.values() for p in kb.stack.passages)
  found = answer_coverage.find_answered(questions, texts)
  assert found == {question.id for question in questions}


def test_no_product_is_asked_for_in_both_files(shop):
  names = [path.stem.replace("-", " ") for path in shop.glob("photos/*.png")]
  train, test = (
    {
      name
      for q in questions
      for name in names
      if name in f"{q.text} {q.image.replace('-', ' ')}".lower()
    }
    for questions in load_both(shop)
  )
  assert len(names) == 120
  assert 50 <= len(train) <= 60 and 50 <= len(test) <= 60
  assert not train & test


def test_photos_differ_from_logos_and_find_them(shop, kbs):
  photos = sorted(shop.glob("photos/*.png"))
  logos = [shop / "logos" / path.name for path in photos]
  found = kbs["image"].search([Query("Which?", str(x)) for x in photos], 1)
  hits = 0
  for photo, logo, (first,) in zip(photos, logos, found, strict=True):
    assert photo.read_bytes() != logo.read_bytes()
    hits += first.id == logo.name
  assert hits >= 115


def test_the_same_files_are_written_each_time(shop, tmp_path):
  shop_world.write_world(str(tmp_path))
  for path in filter(lambda path: path.is_file(), tmp_path.rglob("*")):
    assert path.read_bytes() == (shop / path.relative_to(tmp_path)).read_bytes()
  with (tmp_path / "questions.csv").open() as file:
    assert list(next(csv.reader(file))) == ["question", "answer", "image"]
