import pathlib
from xml.etree import ElementTree

from r1router_jax.common.records import (
  Answer,
  Passage,
  Plan,
  Question,
  Round,
  Trajectory,
)
from tools import trajectory_picture

ROOT = pathlib.Path(__file__).parents[2]


def test_text_is_escaped_wrapped_and_cut():
  plan = Plan("hm", "Who <b>&", ("text", "table"))
  found = Passage("id", "text", "word " * 200 + "\x1b[31m")
  trajectory = Trajectory(
    Question("q", "Where? " * 20, answers=("Chad",)),
    (Round(plan, (found,), Answer("", "N'Djamena")),),
    Answer("", "Chad"),
  )
  root = ElementTree.fromstring(trajectory_picture.draw_trajectory(trajectory))
  lines = [e.text for e in root.iter() if e.tag.endswith("text")]
  assert "Who <b>&" in lines and "Final answer: Chad" in lines
  assert "→ table base" in lines and "✓ right" in lines
  assert sum(line.startswith("word ") for line in lines) == 3
  assert max(map(len, lines)) <= trajectory_picture.PASSAGE_WIDTH


def test_the_committed_picture_is_small_and_needs_no_network():
  path = ROOT / "docs/trajectory.svg"
  root = ElementTree.parse(path).getroot()
  images = [e for e in root.iter() if e.tag.endswith("image")]
  assert images and all(i.get("href").startswith("data:") for i in images)
  assert path.stat().st_size < 60_000
