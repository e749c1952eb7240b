import dataclasses
import json

import numpy as np

from r1router_jax.common import schema, trajectory_io
from r1router_jax.common.records import (
  Answer,
  Malformed,
  Passage,
  Plan,
  Question,
  Round,
  Trajectory,
)

QUESTION = Question("q", "Where?", ("Chad",), family="f")
ROUND = Round(
  Plan("t", "What?", ("text",)),
  (Passage("text/0", "text", "words", score=0.5),),
  Answer("t", "a"),
)


def test_trajectory_round_trips_through_a_row():
  several = Plan("t", "What?", ("text", "table", "image"))
  wanted = Trajectory(
    QUESTION,
    (ROUND, Round(several, ROUND.passages, Malformed("?", "no tags"))),
    Malformed("", "empty"),
    ("answer: no tags",),
    tokens=7,
    truncated_tokens=3,
  )
  row = trajectory_io.to_row(wanted)
  assert trajectory_io.from_row(row, QUESTION, ()) == wanted
  # As a file holds it, it has the schema.
  saved = json.loads(json.dumps(row | dict(seconds=0.5)))
  schema.convert(saved, trajectory_io.TrajectoryRow)


def test_images_of_a_row_are_those_of_known_folders(tmp_path):
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "link.png").symlink_to(tmp_path / "private.png")
  names = ("in/a.png", "private.png", "in/link.png", "in/../private.png")
  passages = [
    Passage(name, "image", "words", str(tmp_path / name)) for name in names
  ]
  done = dataclasses.replace(ROUND, passages=tuple(passages))
  row = trajectory_io.to_row(Trajectory(QUESTION, (done,), Answer("", "a")))
  folders = [str(tmp_path / "none"), str(tmp_path / "in")]
  found = trajectory_io.from_row(row, QUESTION, folders).rounds[0].passages
  assert [p.image for p in found] == [passages[0].image, "", "", ""]


def test_row_of_an_older_version_is_read():
  """Its plans name one route each, and it does not know truncated tokens."""
  passage = dict(id="text/0", kb="text", text="words", image="", score=0.5)
  step = dict(thought="t", sub_question="What?", route="text")
  answer = dict(thought="t", text="a")
  row = dict(
    id="q",
    rounds=[step | dict(passages=[passage], answer=answer)],
    final=dict(thought="", text="Chad"),
    faults=[],
    tokens=7,
  )
  wanted = Trajectory(QUESTION, (ROUND,), Answer("", "Chad"), (), 7)
  assert trajectory_io.from_row(row, QUESTION, ()) == wanted
  row |= dict(question="Who?", seconds=0.5)
  schema.convert(row, trajectory_io.TrajectoryRow)


def test_selected_examples_mix_families_and_verdicts():
  rng = np.random.default_rng(0)
  many = [
    Trajectory(
      dataclasses.replace(QUESTION, id=f"q/{n}", family=f"f{n % 4}"),
      (),
      Answer("", "Chad"),
    )
    for n in range(80)
  ]
  right = (rng.random(80) < 0.5).tolist()
  verdicts = {t.question.id: r for t, r in zip(many, right, strict=True)}
  selected = trajectory_io.select_examples(many, right, 12)
  assert len({t.question.id for t in selected}) == 12
  for n in range(4):
    ids = [t.question.id for t in selected if t.question.family == f"f{n}"]
    assert len(ids) == 3 and len({verdicts[id] for id in ids}) == 2
  assert len(trajectory_io.select_examples(many[:5], right[:5], 12)) == 5
  assert trajectory_io.select_examples([], [], 12) == []
