"""Formats a trajectory for a terminal."""

from collections.abc import Iterator

from r1router_jax.common.records import Answer, Malformed, Trajectory
from r1router_jax.common.text import sanitize_text
from r1router_jax.protocol import format


def format_trajectory(trajectory: Trajectory) -> str:
  """Return a trajectory as lines: each round, the faults and the final answer.

  Text of models and knowledge bases is not trusted: control characters are
  dropped.
  """
  return "\n".join(_lines(trajectory))


def _lines(trajectory: Trajectory) -> Iterator[str]:
  """Yield the lines of a trajectory."""
  question = trajectory.question
  yield f"Question   {sanitize_text(question.text)}"
  if question.image:
    yield f"Image      {sanitize_text(question.image)}"
  for number, done in enumerate(trajectory.rounds, 1):
    plan = done.plan
    yield ""
    yield f"Round {number}    {format.route_names(plan)}"
    if plan.thought:
      yield f"  thinks   {sanitize_text(plan.thought)}"
    yield f"  asks     {sanitize_text(plan.sub_question)}"
    # Passages may be pages long; their start tells which they are.
    for passage in done.passages:
      text = sanitize_text(passage.text, 300)
      yield f"  finds    [{passage.score:.2f}] {text}"
      yield f"           {sanitize_text(passage.id)}"
    yield f"  answers  {_answer_line(done.answer)}"
  yield ""
  # Faults explain answers that are missing or malformed.
  for fault in trajectory.faults:
    yield f"Fault      {sanitize_text(fault)}"
  yield f"Answer     {_answer_line(trajectory.final)}"


def _answer_line(answer: Answer | Malformed) -> str:
  """Return an answer on one line, with the reason if it is malformed."""
  text = answer.text
  if isinstance(answer, Malformed):
    text = f"{text}  (malformed: {answer.reason})".strip()
  return sanitize_text(text)
