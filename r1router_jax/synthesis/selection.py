"""What a teacher did, as rows to train on: which, in what form, on which side.

A question may be tried several times; the first try that passes is kept.  Every
try has one `outcome`:

  kept
  input                 a picture that cannot be read, or a prompt too long
  malformed             no plan in all tries, or an answer not of the protocol
  wrong answer          by `Rules.metric`
  repeated              the same sub-question twice, as teachers do that do not
                        know when to stop
  not a row             what `grpo_rows` would not read, or not as it was; also
                        a plan that came only when its prompt was mended

A kept trajectory is written as R1-Router publishes them (see `trajectories`):
the teacher's plans and intermediate answers are golds, those of the final step
are the question's.  Beside that a row says who the teacher was, and each of its
steps what the teacher wrote and which passages it had read.

Rows of one question, which is one text with one picture, go to one side of the
split, by a digest of it alone: neither other rows nor their order matter.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from r1router_jax.common import images, records, row_files, trajectory_io
from r1router_jax.common.records import Answer, Question, Step, Trajectory
from r1router_jax.data import benchmarks, r1_router_rows
from r1router_jax.metrics import trajectories

KEPT, INPUT, MALFORMED = "kept", "input", "malformed"

WRONG, REPEATED, NO_ROW = "wrong answer", "repeated", "not a row"

DUPLICATE = "duplicate question"  # Is not asked again.

OUTCOMES = (KEPT, INPUT, MALFORMED, WRONG, REPEATED, NO_ROW, DUPLICATE)

METRICS = ("exact", "recall")  # The latter is R1-Router's, at the best F1.

SIDES = ("train", "valid")


@dataclasses.dataclass(frozen=True)
class Call:
  """One time that the teacher was asked.

  Attributes:
    step: the loop's name of the step, "<question id>/<round>".
    kind: of the step.
    text: what the teacher wrote.
    tokens: how many.
  """

  step: str
  kind: str
  text: str
  tokens: int


@dataclasses.dataclass(frozen=True)
class Try:
  """One walk of the teacher: what came of it, and all that was written."""

  trajectory: Trajectory
  calls: tuple[Call, ...]

  def to_row(self) -> dict[str, Any]:
    """What `from_row` reads."""
    return dict(
      trajectory_io.to_row(self.trajectory),
      calls=[vars(call) for call in self.calls],
    )

  @classmethod
  def from_row(cls, row: Mapping[str, Any], question: Question) -> "Try":
    """The try of a row; see `predictions.from_row`."""
    return cls(
      trajectory_io.from_row(row, question),
      tuple(Call(**call) for call in row["calls"]),
    )


@dataclasses.dataclass(frozen=True)
class Rules:
  """Which tries are kept.

  Attributes:
    metric: one of `METRICS`; the final answer's is to be 1.
    keep_repeated: whether trajectories may repeat a sub-question.
    max_steps: rounds that the loop allowed.
  """

  metric: str = "exact"
  keep_repeated: bool = False
  max_steps: int = records.MAX_HOPS

  def outcome(self, tried: Try) -> str:
    """One of `OUTCOMES`, but for the last two."""
    trajectory = tried.trajectory
    faults = {fault.partition(":")[0] for fault in trajectory.faults}
    if "input" in faults:
      return INPUT
    answers = [done.answer for done in trajectory.rounds] + [trajectory.final]
    if "stuck" in faults or not all(isinstance(a, Answer) for a in answers):
      return MALFORMED
    scores = trajectories.score([trajectory], max_steps=self.max_steps)
    if scores[self.metric][0] != 1:  # Also where it is no number.
      return WRONG
    asked = [fold(done.plan.sub_question) for done in trajectory.rounds]
    twice = "repeated" in faults or len({*asked}) < len(asked)
    return REPEATED if twice and not self.keep_repeated else KEPT

  def steps(self, tried: Try) -> list[Step]:
    """The steps of a good trajectory, each with what the teacher wrote.

    No plan stops where the rounds were used up, or where the loop ended them.
    """
    trajectory, history, steps = tried.trajectory, (), []
    question = trajectory.question
    # A plan that was drawn anew takes the place of the one before.
    written = {(call.step, call.kind): call.text for call in tried.calls}

    def add(kind, n, **of):
      steps.append(
        Step(
          f"{question.id}/{len(steps)}",
          kind,
          question,
          history,
          response=written[f"{question.id}/{n}", kind],
          **of,
        )
      )

    for n, done in enumerate(trajectory.rounds):
      asked = done.plan.sub_question
      add("plan", n, sub_question=asked, routes=done.plan.routes)
      add(
        "answer",
        n,
        sub_question=asked,
        answers=(done.answer.text,),
        passages=done.passages,
      )
      history += ((asked, done.answer.text),)
    cut = any(fault.startswith("repeated:") for fault in trajectory.faults)
    count = len(trajectory.rounds)
    if count < self.max_steps and not cut:
      add("plan", count, sub_question="None", routes=("none",))
    # Rewards know no intervals: a number of one that the teacher gave is right.
    said = (trajectory.final.text,) if question.interval else ()
    add("final", count, answers=tuple(dict.fromkeys(question.answers + said)))
    return steps


def fold(text: str) -> str:
  """The text as it is compared: without case and runs of white space."""
  return " ".join(text.casefold().split())


def row(
  steps: list[Step], about: Mapping[str, Any], pictures: str
) -> dict[str, Any]:
  """The steps as a row of a file for `grpo_rows`.

  Args:
    steps: of a kept try.
    about: what stands in the row beside them.
    pictures: the folder that a copy of the question's picture goes to, named by
      what it holds.

  Raises:
    rows.Fault: where it would not be read as it is.
    images.BadImage: where the picture cannot be read.
  """
  made = dict(about, **r1_router_rows.to_reference(steps))
  made["images"] = [_copy(path, pictures) for path in made["images"]]
  for step, to in zip(steps, made["steps"], strict=True):
    if step.kind == "answer":
      to["passages"] = [
        dict(
          id=p.id, kb=p.kb, score=p.score if math.isfinite(p.score) else None
        )
        for p in step.passages
      ]
  line = json.dumps(made).encode()
  if len(line) >= row_files.MAX_ROW:
    raise row_files.Fault(
      f"its row would have {len(line):,} bytes", "Read fewer passages"
    )
  read = r1_router_rows.parse(
    row_files.parse(line), steps[0].question.id, pictures
  )
  if list(map(_said, read)) != list(map(_said, steps)):
    raise row_files.Fault("its steps would be read as others", "Leave it out")
  return made


def _said(step: Step) -> tuple:
  """What a row says of a step."""
  return (
    step.kind,
    step.sub_question,
    step.routes,
    step.answers,
    step.history,
    step.response,
    [p.text for p in step.passages],
  )


def _copy(path: str, folder: str) -> str:
  """Copies a picture and gives its new name."""
  data = images.read(path)
  name = (
    hashlib.sha256(data).hexdigest()[:24] + os.path.splitext(path)[1].lower()
  )
  to = os.path.join(folder, name)
  if not os.path.exists(to):
    os.makedirs(folder, exist_ok=True)
    with open(f"{to}.partial", "wb") as file:
      file.write(data)
    os.replace(f"{to}.partial", to)
  return name


def questions_of(
  benchmark: str, data: str, pictures: str, split: str, unpack_to: str
) -> list[Question]:
  """The questions of a benchmark, each text on one line, as in rows."""
  found = benchmarks.load(
    benchmark, data, pictures, split=split, pictures_to=unpack_to
  )
  return [dataclasses.replace(q, text=" ".join(q.text.split())) for q in found]


def group(question: Question) -> str:
  """A digest of what is asked: the folded text, and the picture's bytes."""
  picture = ""
  if question.image:
    try:
      picture = hashlib.sha256(images.read(question.image)).hexdigest()
    except images.BadImage:  # Its outcome will be `INPUT`.
      picture = question.image
  return hashlib.sha256(
    json.dumps([fold(question.text), picture]).encode()
  ).hexdigest()


def side(group: str, seed: int, valid: float) -> str:
  """The side of the split; about a share `valid` of groups goes to "valid"."""
  digest = hashlib.sha256(f"{seed} {group}".encode()).digest()
  return SIDES[int.from_bytes(digest[:8], "big") / 2**64 < valid]
