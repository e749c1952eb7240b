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
  """Return the steps of each question's gold trajectory.

  Args:
    questions: questions with gold hops.
    retrieve: search function, called once with all sub-questions in order.
  """
  # One call for all sub-questions: searching in batches is what costs least.
  found = iter(
    retrieve(
      [
        (hop.routes[0], hop.sub_question, question.image)
        for question in questions
        for hop in question.hops
      ]
    )
  )
  return [
    _question_steps(question, [next(found) for _ in question.hops])
    for question in questions
  ]


def _question_steps(
  question: Question, found: Sequence[tuple[Passage, ...]]
) -> list[Step]:
  steps, history = [], ()

  def add(kind, **of):
    steps.append(
      Step(f"{question.id}/{len(steps)}", kind, question, history, **of)
    )

  for hop, passages in zip(question.hops, found, strict=True):
    add("plan", sub_question=hop.sub_question, routes=hop.routes)
    add(
      "answer",
      sub_question=hop.sub_question,
      answers=hop.answers,
      passages=tuple(passages),
    )
    history += ((hop.sub_question, hop.answers[0]),)
  # After the last round there is no plan left that could stop.
  if len(question.hops) < MAX_HOPS:
    add("plan", sub_question=format.NONE, routes=("none",))
  add("final", answers=question.answers)
  return steps
