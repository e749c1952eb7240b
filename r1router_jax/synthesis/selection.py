"""Decides which of a teacher's trajectories become training rows.

A question may be tried several times; the first trajectory that passes is kept.
Every try has one outcome:

  kept
  input                 an image that cannot be read, or a prompt too long
  malformed             no valid plan in all tries, or an invalid answer
  wrong answer          by `SelectionRules.metric`
  repeated              the same sub-question twice, as teachers do that do not
                        know when to stop
  not a row             steps that a reader of the row would read differently,
                        or not at all; also a plan that was valid only after its
                        prompt was repaired

A kept trajectory is written as R1-Router publishes its training data (see
data/r1_router_rows.py): the teacher's plans and intermediate answers are the
gold ones, and the final step has the question's gold answers.  The row also
says who the teacher was, and each of its steps what the teacher wrote and which
passages it had read.

All rows of one question, which is one text with one image, go to the same side
of the split.  The side depends on a digest of the question alone, so neither
other rows nor their order matter.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from r1router_jax.common import images, records, trajectory_io
from r1router_jax.common.files import atomic_write
from r1router_jax.common.records import Answer, Question, Step
from r1router_jax.common.row_files import MAX_ROW_BYTES, RowError, parse_json
from r1router_jax.common.schema import Count
from r1router_jax.data import benchmarks, r1_router_rows
from r1router_jax.metrics.trajectories import score_trajectory

KEPT = "kept"
INPUT = "input"
MALFORMED = "malformed"
WRONG = "wrong answer"
REPEATED = "repeated"
NO_ROW = "not a row"
DUPLICATE = "duplicate question"  # Such a question is not asked again.
OUTCOMES = (KEPT, INPUT, MALFORMED, WRONG, REPEATED, NO_ROW, DUPLICATE)

METRICS = ("exact", "recall")  # R1-Router selects by recall, at the best F1.
SIDES = ("train", "valid")


@dataclasses.dataclass(frozen=True)
class TeacherCall:
  """One response of the teacher, to a step of the routing loop."""

  step: str  # Its id in the loop, "<question id>/<round>".
  kind: str
  text: str
  tokens: Count


class TeacherRow(trajectory_io.TrajectoryRow, kw_only=True):
  """The schema of what `TeacherRun.to_row` returns."""

  calls: list[TeacherCall]


@dataclasses.dataclass(frozen=True)
class TeacherRun:
  """One try of the teacher at a question."""

  trajectory: records.Trajectory
  calls: tuple[TeacherCall, ...]  # With the responses that were discarded.

  def to_row(self) -> dict[str, Any]:
    """Return this run as a row of JSON, which `from_row` reads."""
    calls = list(map(vars, self.calls))
    return dict(trajectory_io.to_row(self.trajectory), calls=calls)

  @classmethod
  def from_row(cls, row: Mapping[str, Any], *about: Any) -> "TeacherRun":
    """Return the run of a row; `about` is for `trajectory_io.from_row`."""
    calls = tuple(TeacherCall(**call) for call in row["calls"])
    return cls(trajectory_io.from_row(row, *about), calls)


@dataclasses.dataclass(frozen=True)
class QuestionOutcome:
  """The result of all tries at one question."""

  outcomes: tuple[str, ...]  # In the order of tries; one alone for a duplicate.
  row: dict[str, Any] | None = None  # Of the last try, if that was kept.
  tokens: int = 0  # Written in all tries together.


@dataclasses.dataclass(frozen=True)
class SelectionRules:
  """The rules by which a try is kept."""

  metric: str = "exact"  # One of `METRICS`; the final answer must score 1.
  keep_repeated: bool = False  # Whether a sub-question may come twice.
  max_steps: int = records.MAX_HOPS  # Rounds that the routing loop allowed.

  def classify(self, run: TeacherRun) -> str:
    """Return one of `OUTCOMES`, other than the last two."""
    trajectory = run.trajectory
    faults = trajectory.fault_kinds
    # The teacher never read such a question, so nothing else is its fault.
    if "input" in faults:
      return INPUT
    # Every answer of the trajectory becomes a training target.
    answers = [done.answer for done in trajectory.rounds] + [trajectory.final]
    if "stuck" in faults or not all(isinstance(a, Answer) for a in answers):
      return MALFORMED
    if score_trajectory(trajectory, max_steps=self.max_steps)[self.metric] != 1:
      return WRONG
    # Other case or white space does not make another sub-question.
    asked = [fold_text(done.plan.sub_question) for done in trajectory.rounds]
    repeats = "repeated" in faults or len(set(asked)) < len(asked)
    return REPEATED if repeats and not self.keep_repeated else KEPT

  def make_steps(self, run: TeacherRun) -> list[Step]:
    """Return the training steps of a kept try, with the teacher's responses.

    A last plan that stops the search is only there if the teacher wrote one: it
    did not if all rounds were used up, or if the routing loop ended them.
    """
    trajectory, question = run.trajectory, run.trajectory.question
    history, steps = (), []
    # Of several responses to one prompt the last one was taken.
    written = {(call.step, call.kind): call.text for call in run.calls}

    def add_step(kind, number, *fields):
      response = written[f"{question.id}/{number}", kind]
      step_id = f"{question.id}/{len(steps)}"
      step = Step(step_id, kind, question, history, *fields)
      steps.append(dataclasses.replace(step, response=response))

    # Each round is a plan and an answer; later steps see both in the history.
    for number, done in enumerate(trajectory.rounds):
      asked, said = done.plan.sub_question, done.answer.text
      add_step("plan", number, asked, done.plan.routes)
      add_step("answer", number, asked, (), (said,), done.passages)
      history += ((asked, said),)
    count = len(trajectory.rounds)
    if count < self.max_steps and "repeated" not in trajectory.fault_kinds:
      add_step("plan", count, "None", ("none",))

    # Rewards know no intervals, so a number within the question's interval
    # becomes a gold answer of its row.
    said = (trajectory.final.text,) if question.interval else ()
    accepted = tuple(dict.fromkeys(question.answers + said))
    add_step("final", count, "", (), accepted)
    return steps


def fold_text(text: str) -> str:
  """Return text without differences of case and of white space."""
  return " ".join(text.casefold().split())


def make_row(
  steps: Sequence[Step], about: Mapping[str, Any], image_folder: str
) -> dict[str, Any]:
  """Return the steps as a row that `r1_router_rows` reads.

  The question's image is copied to `image_folder`, under a name made of its
  content.  `about` holds further fields of the row.

  Raises:
    RowError, BadImage: if the row would not be read as the same steps, or its
      image cannot be read.
  """
  row = dict(about, **r1_router_rows.to_published_row(steps))
  row["images"] = [_copy_image(path, image_folder) for path in row["images"]]
  for step, fields in zip(steps, row["steps"], strict=True):
    if step.kind == "answer":
      fields["passages"] = list(map(_passage_to_row, step.passages))

  # Read the row back as a trainer will.
  line, name = json.dumps(row).encode(), steps[0].question.id
  if len(line) >= MAX_ROW_BYTES:
    fault = f"its row would have {len(line):,} bytes"
    raise RowError(fault, "Read fewer passages")
  reread = r1_router_rows.parse_row(parse_json(line), name, image_folder)
  if list(map(_written_fields, reread)) != list(map(_written_fields, steps)):
    raise RowError("its steps would be read as others", "Leave it out")
  return row


def _passage_to_row(passage: records.Passage) -> dict[str, Any]:
  # JSON has no NaN.
  score = passage.score if math.isfinite(passage.score) else None
  return dict(id=passage.id, kb=passage.kb, score=score)


def _written_fields(step: Step) -> tuple:
  """Return the fields of a step that its row holds."""
  names = ("kind", "sub_question", "routes", "answers", "history", "response")
  fields = (getattr(step, name) for name in names)
  return (*fields, [passage.text for passage in step.passages])


def _copy_image(path: str, folder: str) -> str:
  """Copy an image into `folder` and return its new name, a digest."""
  # Equal images have one copy, however many questions show them.
  data = images.read_image_bytes(path)
  name = _sha256(data)[:24] + os.path.splitext(path)[1].lower()
  copy = os.path.join(folder, name)
  if not os.path.exists(copy):
    os.makedirs(folder, exist_ok=True)
    with atomic_write(copy) as file:
      file.write(data)
  return name


def load_questions(*source: str | int) -> list[Question]:
  """Return the questions of a benchmark, each text on one line, as in rows.

  The arguments are those of `benchmarks.load_benchmark`.
  """
  found = benchmarks.load_benchmark(*source)
  return [dataclasses.replace(q, text=" ".join(q.text.split())) for q in found]


def question_group(question: Question) -> str:
  """Return a digest of the folded text and the image's bytes."""
  image = question.image
  if image:
    # Of a bad image the outcome will be `INPUT`.
    with contextlib.suppress(images.BadImage):
      image = _sha256(images.read_image_bytes(image))
  # JSON keeps text and image apart, whatever the text holds.
  return _sha256(json.dumps([fold_text(question.text), image]).encode())


def split_side(group: str, seed: int, valid: float) -> str:
  """Return the side of a group of questions; `valid` is the share held out."""
  # A number that looks random in [0, 1), the same for equal questions.
  uniform = int(_sha256(f"{seed} {group}".encode())[:16], 16) / 2**64
  return "valid" if uniform < valid else "train"


def _sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
