"""The second world holds together: documents, pictures and questions."""

import collections
import functools
import pathlib

import numpy as np
import PIL.Image
import pytest

from benchmarks.second_world import (
  draw_pictures,
  measure_search,
  measure_steps,
)
from r1router_jax import build_kb
from r1router_jax.common.records import KBS, Hop, Passage, Question
from r1router_jax.common.row_files import RejectedRow
from r1router_jax.data import answer_coverage, question_files
from r1router_jax.metrics import answers
from r1router_jax.retrieval.corpora import sources

WORLD = pathlib.Path(__file__).parents[1] / "benchmarks/second_world"
HALVES = ("train", "test")

# Families whose answers follow from what was looked up, and are not part of it.
INFERRED = {"comparison", "comparison_3hops", "yes_no", "no_search"}


@functools.cache
def read_half(half: str) -> tuple[Question, ...]:
  path = str(WORLD / f"{half}.jsonl")
  rows = question_files.check_images(question_files.read_questions(path))
  questions = tuple(question for _, question in rows)
  assert all(isinstance(question, Question) for question in questions)
  return questions


@functools.cache
def read_passages() -> dict[str, Passage]:
  passages = {}
  for kb in KBS:
    source = sources.open_source(kb, str(WORLD / "documents"))
    for where, row in sources.read_raw_rows(source):
      parsed = sources.parse_row(source, where, row)
      assert not isinstance(parsed, RejectedRow), parsed
      for passage in parsed[1]:
        assert passage.id not in passages
        passages[passage.id] = passage
  return passages


def is_said(hop: Hop, passage: Passage) -> bool:
  question = Question("id", hop.sub_question, hop.answers)
  return bool(answer_coverage.find_answered([question], [passage.text]))


def test_card_counts_the_passages():
  counts = collections.Counter(p.kb for p in read_passages().values())
  card = (WORLD / "README.md").read_text()
  for kb, noun in dict(text="texts", table="tables", image="pictures").items():
    assert f"{counts[kb]} {noun}" in card


def test_halves_are_alike_and_share_no_question():
  families, texts, last = [], [], []
  for half in map(read_half, HALVES):
    families.append(collections.Counter(q.family for q in half))
    texts.append({q.text for q in half})
    # What is asked of a picture depends on the picture.
    hops = [
      (q.hops[-1], q.image if len(q.hops) == 1 else "") for q in half if q.hops
    ]
    last.append({(hop.sub_question, image) for hop, image in hops})
  assert families[0] == families[1]
  assert families[0].total() == len(texts[0]) == len(texts[1]) == 100
  assert not texts[0] & texts[1]
  # Nor do two questions end in the same look-up.
  assert not last[0] & last[1]


@pytest.mark.parametrize("half", HALVES)
def test_each_hop_is_answered_by_its_evidence(half):
  for question in read_half(half):
    for hop in question.hops:
      found = [read_passages()[name] for name in hop.evidence]
      if question.family == "unknown":
        assert not found
        continue
      # Each route leads to evidence, and each evidence is on a route.
      assert {passage.kb for passage in found} == {*hop.routes}, hop
      assert all(is_said(hop, passage) for passage in found), hop


@pytest.mark.parametrize("half", HALVES)
def test_answers_are_what_the_last_hop_finds(half):
  for question in read_half(half):
    if question.family not in INFERRED:
      golds = {*map(answers.default_tokens, question.answers)}
      found = {*map(answers.default_tokens, question.hops[-1].answers)}
      assert golds & found, question
    assert bool(question.hops) == (question.family != "no_search")


def test_pictures_are_drawn_by_two_hands():
  drawings = draw_pictures.read_drawings(WORLD / "drawings.txt")
  hands = {
    "documents/pictures": draw_pictures.FIRST,
    "question_pictures": draw_pictures.SECOND,
  }
  for folder, hand in hands.items():
    paths = {path.stem: path for path in (WORLD / folder).glob("*.png")}
    assert paths.keys() == drawings.keys()
    # One of each frame; all of them would take seconds.
    for name in ("crest-of-the-dyers", "kite-skarv", "sign-of-the-green-boot"):
      with PIL.Image.open(paths[name]) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32)
      drawn = draw_pictures.draw_picture(drawings[name], hand)
      assert drawn.size == (hand.pixels, hand.pixels)
      # Versions of Pillow may round differently.
      assert np.abs(pixels - np.asarray(drawn)).mean() < 1


def test_unknown_frame_of_a_drawing_is_named(tmp_path):
  path = tmp_path / "drawings.txt"
  path.write_text("# Kites.\npicture kite-a rhombus red\n")
  fault = "drawings.txt:2: kite-a has the frame rhombus; take one of board"
  with pytest.raises(ValueError, match=fault):
    draw_pictures.read_drawings(path)


ROUNDS = [
  dict(
    sub_question="Who cast the bell of Skeld?", answer=dict(text="Ada Crake.")
  ),
  # One word of it was not told before.
  dict(
    sub_question="When did Ada Crake come to Stoul?",
    answer=dict(text="", reason="no answer"),
  ),
  dict(sub_question="What does the bell weigh?", answer=dict(text="9 lb")),
]


@pytest.mark.parametrize(
  "rounds, faults, expected",
  [
    ([], ["stuck: no plan"], dict(steps=2, malformed=0, sub_questions=0)),
    (
      ROUNDS[:2],
      ["route: no image", "answer: no tags", "final: no tags"],
      dict(steps=6, malformed=2, sub_questions=2, names=4, copied=1),
    ),
    # No plan is asked for after the last round.
    (
      ROUNDS,
      [],
      dict(steps=7, malformed=0, sub_questions=3, names=4, copied=2),
    ),
  ],
)
def test_steps_of_a_trajectory_are_counted(rounds, faults, expected):
  question = "How old was whoever cast the bell of Skeld?"
  row = dict(question=question, rounds=rounds, faults=faults)
  assert measure_steps.count_steps(row) == collections.Counter(expected)


@pytest.mark.slow
def test_pictures_are_found_by_the_other_hand(tmp_path):
  folder = str(tmp_path / "image")
  build_kb.build(build_kb.KbSpec(folder, "image", str(WORLD / "documents")))
  recall = measure_search.measure_recall(folder, "image")
  asked = [q for half in HALVES for q in read_half(half) if q.image]
  assert recall["hops"] == len(asked)
  assert recall["recall@1"] > 0.9
