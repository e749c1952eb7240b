r"""Draws the trajectory of one question of GeoRouter as an SVG, for README.md.

  python -m tools.trajectory_picture --kb_dir=runs/kb \
      --out=docs/trajectory.svg

The policy answers the question as `ask` would; everything drawn is what it
wrote and what it found.
"""

import pathlib
import textwrap
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags

import r1router_jax
from r1router_jax.common import cli, shared_flags
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Trajectory
from r1router_jax.report.html import ENVIRONMENT, is_exactly_right

_POLICY = shared_flags.define_flag("policy")
_KB_DIR = shared_flags.define_flag("kb_dir")
_NUMBER = flags.DEFINE_integer(
  "number", 129, "The question, by its row among GeoRouter's test questions."
)
_OUT = flags.DEFINE_string("out", "docs/trajectory.svg", "File to write.")

TEMPLATE = pathlib.Path(__file__).with_suffix(".svg.j2")

# Characters that fit on a line of the picture, which is 760 units wide.
PASSAGE_WIDTH, QUESTION_WIDTH = 96, 60
# A table may be long; its start tells which it is.
MAX_PASSAGE_LINES = 3


def draw_trajectory(trajectory: Trajectory) -> str:
  """Return a trajectory as an SVG that reads well on light and dark pages."""
  question = textwrap.wrap(trajectory.question.text, QUESTION_WIDTH)
  template = ENVIRONMENT.from_string(TEMPLATE.read_text())
  return template.render(
    question=question,
    image=trajectory.question.image,
    rounds=list(_round_blocks(trajectory)),
    final=trajectory.final.text,
    is_right=is_exactly_right(trajectory),
  )


def _round_blocks(trajectory: Trajectory) -> Iterator[dict[str, Any]]:
  """Yield what the template draws of each round."""
  for done in trajectory.rounds:
    lines = []
    for passage in done.passages:
      lines += textwrap.wrap(
        passage.text,
        PASSAGE_WIDTH,
        max_lines=MAX_PASSAGE_LINES,
        placeholder=" …",
      )
    yield dict(
      thought=done.plan.thought,
      sub_question=done.plan.sub_question,
      routes=done.plan.routes,
      passage_lines=lines,
      answer=done.answer.text,
    )


def main(_) -> None:
  """Answer the question and write the picture."""
  questions = r1router_jax.load_benchmark("georouter")
  if not 0 <= _NUMBER.value < len(questions):
    raise UserError(f"--number is {_NUMBER.value}, of {len(questions)} rows.")
  policy = r1router_jax.open_policy(_POLICY.value)
  kbs = r1router_jax.open_kbs(_KB_DIR.value)
  asked = questions[_NUMBER.value : _NUMBER.value + 1]
  (trajectory,) = r1router_jax.run_routing(
    policy, kbs, asked, jax.random.key(0)
  )
  pathlib.Path(_OUT.value).write_text(draw_trajectory(trajectory) + "\n")
  print(f"The picture is {_OUT.value}.")


if __name__ == "__main__":
  cli.run(main)
