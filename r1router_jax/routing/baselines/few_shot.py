"""R1-Router with a policy that was never trained for it, by few-shot examples.

Before each prompt stand steps of its kind, as turns of a dialogue, each in the
words of R1-Router's own prompts, with a reply of its protocol.  The examples
are not the original's, which are of questions from its benchmarks, eight of
each.
"""

import dataclasses
import functools
from collections.abc import Iterator

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import (
  Answer,
  Passage,
  Plan,
  Question,
  Round,
  Step,
  Trajectory,
)
from r1router_jax.policy.config import PromptOptions
from r1router_jax.protocol import format, prompts
from r1router_jax.protocol.messages import Conversation
from r1router_jax.routing.answering_methods import R1Router

STYLE = "full"  # Policies of other styles were trained for what they do.


def _make_round(
  kb: str, thought: str, sub_question: str, found: str, read: str, answer: str
) -> Round:
  """Return a round of one search, which finds one passage."""
  plan, passage = Plan(thought, sub_question, (kb,)), Passage("", kb, found)
  return Round(plan, (passage,), Answer(read, answer))


EXAMPLES = (
  # Two searches of texts, and a comparison.
  Trajectory(
    Question("", "Was the Eiffel Tower finished before the Brooklyn Bridge?"),
    (
      _make_round(
        "text",
        "Both years are needed, one after the other. Texts tell them.",
        "When was the Eiffel Tower finished?",
        "The Eiffel Tower in Paris was finished in March 1889, for the world's "
        "fair.",
        "The passage says March 1889.",
        "1889",
      ),
      _make_round(
        "text",
        "The tower is of 1889. The year of the bridge is missing.",
        "When was the Brooklyn Bridge finished?",
        "The Brooklyn Bridge was opened on May 24, 1883, after thirteen years "
        "of building.",
        "It was opened in 1883.",
        "1883",
      ),
    ),
    Answer("1889 is later than 1883.", "no"),
  ),
  # An image search, then a text search that depends on its answer.
  Trajectory(
    Question(
      "", "Which river runs through the capital of the country on this stamp?"
    ),
    (
      _make_round(
        "image",
        "The stamp's country must be found before its capital. The picture "
        "shows it.",
        "Which country issued this stamp?",
        "A stamp of Hungary, 1932: Madonna and child",
        "The caption says that it is a stamp of Hungary.",
        "Hungary",
      ),
      _make_round(
        "text",
        "The country is Hungary. Next comes the river at its capital, a fact "
        "that texts tell.",
        "Which river runs through the capital of Hungary?",
        "Budapest is the capital and largest city of Hungary. It lies on both "
        "banks of the Danube.",
        "Budapest, the capital, lies on the Danube.",
        "the Danube",
      ),
    ),
    Answer(
      "The stamp is Hungarian, and the Danube runs through its capital.",
      "the Danube",
    ),
  ),
  # One search of tables.
  Trajectory(
    Question(
      "",
      "In the 1987 season, how many games did the winner of the "
      "northern league lose?",
    ),
    (
      _make_round(
        "table",
        "Games lost in a season stand in a table of results.",
        "How many games did the winner of the 1987 northern league lose?",
        "[Title]1987 northern league[Header]Place[sep]Team[sep]Won[sep]Lost"
        "[Rows][Row]1[sep]Ashford[sep]21[sep]4[Row]2[sep]Melton[sep]19[sep]6",
        "The first place is Ashford's, which lost 4.",
        "4",
      ),
    ),
    Answer("The winner lost 4 games.", "4"),
  ),
  # No search at all.
  Trajectory(
    Question("", "How many sides does a triangle have?"),
    (),
    Answer("A triangle has three sides, as anybody knows.", "3"),
  ),
)


@dataclasses.dataclass(frozen=True)
class FewShotRouter(R1Router):
  """R1-Router with examples before each prompt."""

  def check_config(self, config: PromptOptions) -> None:
    """Refuse policies of styles that have no examples."""
    if config.style != STYLE:
      raise UserError(
        f"few_shot: there are no examples in the style {config.style!r}, whose "
        "policies know what to do or do not; leave it out."
      )

  def build_prompt(self, config: PromptOptions, step: Step) -> Conversation:
    """Return the prompt of a step, after the examples of its kind."""
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
