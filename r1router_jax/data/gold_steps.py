"""Gold trajectories, cut into the steps that training is made of.

A question of n hops becomes n plan and n answer steps, a plan that stops, and
the final step.  With `MAX_HOPS` hops the rounds are used up, and no plan is
asked to stop (as in R1-Router's own rows, arxiv.org/abs/2505.22095).

R1-Router publishes trajectories as rows of rendered prompts,

  {"images": [path], "steps": [
    {"step_type": "ret", "system": .., "problem": "Origin question: ..<image>",
     "answer": {"query": "who ..?", "retriever": ["text retriever"]}},
    {"step_type": "ans", "system": .., "problem": .., "answer": "text"}, ..,
    {"step_type": "ans", "system": .., "problem": .., "answer": ["gold", ..]}]}

which `from_reference` reads back into steps, and `to_reference` writes.  Ours
may keep what the teacher wrote, thoughts and all, as "response" of a step.
"""

from collections.abc import Callable, Sequence

from r1router_jax.common.records import MAX_HOPS, Passage, Question, Step
from r1router_jax.protocol import format

# [(knowledge base, sub-question, picture), ...] -> the passages of each.
Retrieve = Callable[
  [Sequence[tuple[str, str, str]]], Sequence[tuple[Passage, ...]]
]


def gold_steps(
  questions: Sequence[Question], retrieve: Retrieve
) -> list[list[Step]]:
  """The steps of each question's gold trajectory.

  Args:
    questions: with their gold hops.
    retrieve: called once, with all sub-questions in order.
  """
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
    _steps(question, [next(found) for _ in question.hops])
    for question in questions
  ]


def _steps(
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
  if len(question.hops) < MAX_HOPS:
    add("plan", sub_question=format.NONE, routes=("none",))
  add("final", answers=question.answers)
  return steps
