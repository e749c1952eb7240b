"""Gold trajectories, cut into the steps that a policy is trained on.

A question of n hops becomes n plan and n answer steps, a plan that stops, and
the final step.  After `MAX_HOPS` hops no round is left, so no plan has to stop
(as in R1-Router's own rows, arxiv.org/abs/2505.22095).
"""

from collections.abc import Callable, Sequence

from r1router_jax.common.records import MAX_HOPS, Passage, Question, Step
from r1router_jax.protocol import format

# From (knowledge base, sub-question, image) triples to the passages of each.
Retrieve = Callable[
  [Sequence[tuple[str, str, str]]], Sequence[tuple[Passage, ...]]
]


def make_gold_steps(
  questions: Sequence[Question], retrieve: Retrieve
) -> list[list[Step]]:
  """Return the steps of each question's gold trajectory."""
  # One call for all sub-questions: searching in batches is what costs least.
  asked = [
    (hop.routes[0], hop.sub_question, question.image)
    for question in questions
    for hop in question.hops
  ]
  found = iter(retrieve(asked))
  return [
    _question_steps(question, [next(found) for _ in question.hops])
    for question in questions
  ]


def _question_steps(
  question: Question, found: Sequence[tuple[Passage, ...]]
) -> list[Step]:
  steps, history = [], ()

  def add(kind, sub_question="", **of):
    step_id = f"{question.id}/{len(steps)}"
    steps.append(Step(step_id, kind, question, history, sub_question, **of))

  for hop, passages in zip(question.hops, found, strict=True):
    asked = hop.sub_question
    add("plan", asked, routes=hop.routes)
    add("answer", asked, answers=hop.answers, passages=tuple(passages))
    history += ((asked, hop.answers[0]),)
  # After the last round there is no plan left that could stop.
  if len(question.hops) < MAX_HOPS:
    add("plan", format.NONE, routes=("none",))
  add("final", answers=question.answers)
  return steps
