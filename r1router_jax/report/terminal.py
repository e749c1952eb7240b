"""Shows a trajectory in a terminal, at once or while it is made."""

from collections.abc import Iterator

from r1router_jax.common.records import (
  Answer,
  Malformed,
  Plan,
  Question,
  RoundPart,
  Trajectory,
)
from r1router_jax.common.text import sanitize_text
from r1router_jax.protocol import format


def format_trajectory(trajectory: Trajectory) -> str:
  """Return a trajectory as lines: each round, the faults and the final answer.

  Text of models and knowledge bases is not trusted: control characters are
  dropped.
  """
  lines = [*_question_lines(trajectory.question)]
  for number, done in enumerate(trajectory.rounds, 1):
    for part in (done.plan, done.passages, done.answer):
      lines += _part_lines(number, part)
  return "\n".join([*lines, *_final_lines(trajectory)])


class TrajectoryPrinter:
  """Prints the lines of one trajectory while it is made."""

  def __init__(self, question: Question):
    """Print the question."""
    self._number = 0  # Of the round, from 1.
    self._print_lines(_question_lines(question))

  def print_part(self, _: Question, part: RoundPart) -> None:
    """Print the next part of a round, as `router.OnPart` reports it."""
    self._number += isinstance(part, Plan)
    self._print_lines(_part_lines(self._number, part))

  def print_final(self, trajectory: Trajectory) -> None:
    """Print what follows the rounds."""
    self._print_lines(_final_lines(trajectory))

  def _print_lines(self, lines: Iterator[str]) -> None:
    for line in lines:
      # A pipe, too, gets each line when it is known.
      print(line, flush=True)


def _question_lines(question: Question) -> Iterator[str]:
  """Yield the lines of a question."""
  yield f"Question   {sanitize_text(question.text)}"
  if question.image:
    yield f"Image      {sanitize_text(question.image)}"


def _part_lines(number: int, part: RoundPart) -> Iterator[str]:
  """Yield the lines of a part of the round of this number."""
  if isinstance(part, Plan):
    yield ""
    yield f"Round {number}    {format.route_names(part)}"
    if part.thought:
      yield f"  thinks   {sanitize_text(part.thought)}"
    yield f"  asks     {sanitize_text(part.sub_question)}"
  elif isinstance(part, tuple):
    # Passages may be pages long; their start tells which they are.
    for passage in part:
      text = sanitize_text(passage.text, 300)
      yield f"  finds    [{passage.score:.2f}] {text}"
      yield f"           {sanitize_text(passage.id)}"
  else:
    yield f"  answers  {_answer_line(part)}"


def _final_lines(trajectory: Trajectory) -> Iterator[str]:
  """Yield the lines of the faults and of the final answer."""
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
