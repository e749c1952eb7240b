"""R1-Router with a policy that was never trained for it, by few-shot examples.

Before each prompt stand steps of its kind, as turns of a dialogue, each in the
words of R1-Router's own prompts, with a reply of its protocol.  The examples
are trajectories, in a file of the form of `trajectory_io`.  They are not the
original's, which are of questions from its benchmarks, eight of each.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator

from r1router_jax.common import trajectory_io
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Plan, Question, Step, Trajectory
from r1router_jax.policy.config import PromptOptions
from r1router_jax.protocol import format, prompts
from r1router_jax.protocol.messages import Conversation
from r1router_jax.routing.answering_methods import R1Router

STYLE = "full"  # Policies of other styles were trained for what they do.

_DATA = pathlib.Path(__file__).parents[2] / "data" / "files"
_ROWS = json.loads((_DATA / "few_shot_examples.json").read_text("utf-8"))

# Two searches of texts, one of images with one of texts after it, one of
# tables, and none.
EXAMPLES = tuple(
  trajectory_io.from_row(row, Question("", row["question"]), ())
  for row in _ROWS
)


@dataclasses.dataclass(frozen=True)
class FewShotRouter(R1Router):
  """R1-Router with examples before each prompt."""

  def build_prompt(self, config: PromptOptions, step: Step) -> Conversation:
    """Return the prompt of a step, after the examples of its kind.

    Raises:
      UserError: if there are no examples in the style of the policy.
    """
    if config.style != STYLE:
      raise UserError(
        f"few_shot: there are no examples in the style {config.style!r}, whose "
        "policies know what to do or do not; leave it out."
      )
    prompt, examples = config.build_prompt(step), render_examples(step.kind)
    return dataclasses.replace(prompt, examples=examples)


@functools.cache
def render_examples(kind: str) -> tuple[tuple[str, str], ...]:
  """Return the examples of one kind of step, pairs of user turn and reply."""
  examples = [
    ("".join(segment.text for segment in prompt.user), reply)
    for example in EXAMPLES
    for prompt, reply in _example_steps(example)
    if prompt.kind == kind
  ]
  # The first comes last: a small policy takes after what it saw last, and does
  # not search if that was a stop.
  return tuple(reversed(examples))


def _example_steps(example: Trajectory) -> Iterator[tuple[Conversation, str]]:
  """Yield the prompt and the reply of each step of an example."""
  history = []

  def build_prompt(kind, **fields):
    step = Step("", kind, example.question, tuple(history), **fields)
    return prompts.step_conversation(step, style=STYLE)

  # Each round is a plan step and an answer step that reads its passages.
  for done in example.rounds:
    yield build_prompt("plan"), format.render_plan(done.plan)
    prompt = build_prompt(
      "answer", sub_question=done.plan.sub_question, passages=done.passages
    )
    yield prompt, format.render_answer(done.answer)
    history.append((done.plan.sub_question, done.answer.text))
  # Then a plan that stops, and the final step.
  stop = Plan(example.final.thought, format.NONE, ())
  yield build_prompt("plan"), format.render_plan(stop)
  yield build_prompt("final"), format.render_answer(example.final)
