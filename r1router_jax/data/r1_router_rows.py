"""R1-Router's own Step-GRPO rows: files of published trajectories.

A line of such a file, `grpo_dataset_*.jsonl`, is a trajectory in the form that
`trajectories` describes, and has steps in this order:

  (plan answer)* stop? final

A row that is not so, or whose picture is not there, is left out: it is named by
file and line with a cure, and counted, and its neighbours stay.  Plan prompts
come in two spellings that differ in a newline at the end of the system turn;
ours has the commoner one, whatever the row has.

Source: github.com/OpenBMB/R1-Router.
"""

import dataclasses
import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from r1router_jax.common import images, row_files
from r1router_jax.common.records import KBS, Malformed, Passage, Question, Step
from r1router_jax.common.row_files import BadRow, Fault
from r1router_jax.protocol import format, messages, prompts, templates

_STYLE = "full"  # What the published rows are written in.

_FULL = templates.STYLES[_STYLE]

_IMAGE = "<image>"  # Ends a problem that has a picture.

_ROUTES = {name.lower(): route for route, name in format.ROUTE_NAMES.items()}

_KBS = {tag: kb for kb, tag in _FULL.tags.items()}

_PASSAGE = re.compile(
  r"(?s)(ter|tir|tar)-\d+: (.*?)\n(?=(?:ter|tir|tar)-\d+: |\Z)"
)


def to_reference(steps: Sequence[Step]) -> dict[str, Any]:
  """The published form of one trajectory.

  An answer step keeps one accepted answer, its first; ids and scores of
  passages have no place there, and thoughts only in a teacher's response.
  """
  image = steps[0].question.image
  rows = []
  for step in steps:
    prompt = prompts.step_conversation(step, style=_STYLE)
    rows.append(
      dict(
        step_type="ret" if step.kind == "plan" else "ans",
        problem=_problem(prompt),
        system=prompt.system,
        answer=_reference_answer(step),
      )
    )
    if step.response:
      rows[-1]["response"] = step.response
  return dict(images=[image] if image else [], steps=rows)


def from_reference(
  row: dict[str, Any], name: str, pictures: str | None = None
) -> list[Step]:
  """The steps of one published trajectory.

  Args:
    row: as published.
    name: the question's id, of which rows have none.
    pictures: the folder where its picture now lies, since rows hold the
      absolute paths of their authors' machine; None keeps the path.

  Raises:
    ValueError: where a step is not what the steps before it lead to.
    Fault: where the teacher's response is not of the protocol, or says other
      than the step's "answer".
  """
  image = (row["images"] or [""])[0]
  if image and pictures is not None:
    image = os.path.join(pictures, os.path.basename(image))
  text = row["steps"][0]["problem"].removesuffix(_IMAGE)
  text = text.removeprefix(_FULL.question.split("{}")[0]).partition("\n")[0]
  question = Question(name, text, tuple(row["steps"][-1]["answer"]), image)
  steps, history = [], ()
  for at, of in enumerate(row["steps"]):
    last = steps[-1] if steps else None
    step = _reference_step(of, f"{name}/{at}", question, history, last)
    if response := of.get("response", ""):
      step = _told(step, response)
    _check(step, of["problem"])
    if step.kind == "answer":
      history += ((step.sub_question, step.answers[0]),)
    steps.append(step)
  return steps


def _problem(prompt: messages.Conversation) -> str:
  return "".join(
    _IMAGE if segment.source == "picture" else segment.text
    for segment in prompt.user
  )


def _reference_answer(step: Step) -> Any:
  if step.kind == "plan":
    names = [format.ROUTE_NAMES[route].lower() for route in step.routes]
    return dict(query=step.sub_question.lower(), retriever=names)
  return step.answers[0] if step.kind == "answer" else list(step.answers)


def _reference_step(of, step_id, question, history, last: Step | None) -> Step:
  answer = of["answer"]
  if of["step_type"] == "ret":
    if unknown := set(answer["retriever"]) - set(_ROUTES):
      raise ValueError(
        f"Step {step_id} names the retrievers {unknown}; known: "
        f"{', '.join(_ROUTES)}."
      )
    return Step(
      step_id,
      "plan",
      question,
      history,
      sub_question=_stopping(answer["query"]),
      routes=tuple(_ROUTES[name] for name in answer["retriever"]),
    )
  if isinstance(answer, list):
    return Step(step_id, "final", question, history, answers=tuple(answer))
  if last is None or last.kind != "plan":
    raise ValueError(
      f'Step {step_id} answers a sub-question, but no "ret" step stands '
      "before it.  Give the whole trajectory, in order."
    )
  found = (
    of["problem"]
    .removeprefix(_FULL.passages)
    .rpartition(_FULL.asked.split("{}")[0])[0]
  )
  passages = tuple(
    Passage(f"{step_id}/{n}", _KBS[tag], text)
    for n, (tag, text) in enumerate(_PASSAGE.findall(found))
  )
  return Step(
    step_id,
    "answer",
    question,
    history,
    sub_question=last.sub_question,
    answers=(answer,),
    passages=passages,
  )


def _told(step: Step, response: str) -> Step:
  """The step with its teacher's response, in whose spelling it then asks."""
  said = format.parse(step.kind, response, routes=len(KBS))
  cure = 'Delete its "response", or take the row as it was made'
  if isinstance(said, Malformed):
    raise Fault(
      f"the response of step {step.id} is not of the protocol: {said.reason}",
      cure,
    )
  if step.kind == "plan":
    asked = said.sub_question
    same = (_stopping(asked.lower()), said.routes) == (
      step.sub_question,
      step.routes,
    )
    step = dataclasses.replace(step, sub_question=asked)
  else:
    same = step.kind == "final" or said.text == step.answers[0]
  if not same:
    raise Fault(
      f'the response of step {step.id} says other than its "answer"', cure
    )
  return dataclasses.replace(step, response=response)


def _stopping(query: str) -> str:
  return format.NONE if query == format.NONE.lower() else query


def _check(step: Step, problem: str):
  """That the step says what the published prompt says."""
  ours = _problem(prompts.step_conversation(step, style=_STYLE))
  if ours != problem:
    at = len(os.path.commonprefix([ours, problem]))
    raise ValueError(
      f"Step {step.id} does not follow from the steps before it: its prompt "
      f"has {problem[at : at + 40]!r} at character {at}, where "
      f"{ours[at : at + 40]!r} was due.  Take the row as it was published."
    )


_ORDER = re.compile(r"(plan answer )*(stop )?final ")

_AS_PUBLISHED = "Take the row as it was published"


@dataclasses.dataclass(frozen=True)
class Row:
  """One trajectory.

  Attributes:
    id: "<name of the file>/<line>"; published rows have none.
    published: the object that stands in the file.
    steps: what it says, with the picture where it now lies.
  """

  id: str
  published: dict[str, Any]
  steps: list[Step]


def load(patterns: str, pictures: str) -> Iterator[Row]:
  """The good rows of files, in order.

  Args:
    patterns: paths or globs, with commas between them.
    pictures: the folder that holds the pictures, found there by the last part
      of their published paths; "" where rows with pictures are to be left out.

  Raises:
    ValueError: where a file has no good row.
    FileNotFoundError: where a pattern fits no file.
  """
  for path in files(patterns):
    skipped, kept = row_files.Skipped(path), 0
    for row in read(path, pictures):
      if isinstance(row, BadRow):
        skipped(row)
      else:
        kept += 1
        yield row
    skipped.end(kept)


def files(patterns: str) -> list[str]:
  """The files that `patterns` name; see `load`."""
  found = []
  for pattern in filter(None, map(str.strip, patterns.split(","))):
    paths = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
    if not paths:
      raise FileNotFoundError(
        f"config.data.rows: no file is named {pattern}.  R1-Router publishes "
        "grpo_dataset_*.jsonl; give their paths or globs, with commas "
        "between them."
      )
    found += paths
  found = list(dict.fromkeys(found))
  stems = [_stem(path) for path in found]
  if twice := [path for path in found if stems.count(_stem(path)) > 1]:
    raise ValueError(
      f"config.data.rows: {', '.join(twice)} have one name, so that their "
      "steps would have the same ids.  Rename them."
    )
  return found


def read(path: str, pictures: str) -> Iterator[Row | BadRow]:
  """Every row of a file; see `load`."""
  for where, row in row_files.json_lines(path):
    try:
      if isinstance(row, Fault):
        raise row
      name = f"{_stem(path)}/{where.rpartition(':')[2]}"
      yield Row(name, row, parse(row, name, pictures))
    except images.BadImage as error:
      yield BadRow(where, str(error).rstrip("."), "Or leave the row out")
    except Fault as fault:
      yield BadRow(where, *fault.args)


def parse(row: Any, name: str, pictures: str) -> list[Step]:
  """The steps of a published trajectory.

  Args:
    row: as published.
    name: its id.
    pictures: see `load`.

  Raises:
    Fault: where it is not of the form above.
    images.BadImage: where its picture cannot be read.
  """
  _check_form(row)
  for path in row["images"]:
    if not pictures:
      raise Fault(
        f"its picture {path!a} has no folder",
        "Name that of the pictures, config.data.images, or leave the row out",
      )
    images.load(os.path.basename(path), pictures)
  try:
    steps = from_reference(row, name, pictures)
  except Fault:
    raise
  except ValueError as error:
    raise Fault(str(error).rstrip("."), "Or leave the row out") from error
  _check_order(steps)
  return steps


def _check_form(row: Any) -> None:
  """That every part of a row is there and of its kind."""
  if not isinstance(row, dict) or not {"images", "steps"} <= row.keys():
    raise Fault('it is no object with "images" and "steps"', _AS_PUBLISHED)
  try:
    json.dumps(row, ensure_ascii=False).encode()
  except UnicodeEncodeError:
    raise Fault(
      "it holds half a surrogate pair", "Write whole characters"
    ) from None
  if not _texts(row["images"]) or len(row["images"]) > 1:
    raise Fault('"images" is no list of one path or none', _AS_PUBLISHED)
  if not isinstance(row["steps"], list) or not row["steps"]:
    raise Fault('"steps" is no list, or empty', _AS_PUBLISHED)
  for number, step in enumerate(row["steps"]):
    if reason := _fault(step):
      raise Fault(f"step {number} {reason}", _AS_PUBLISHED)
  golds = row["steps"][-1]["answer"]
  if not isinstance(golds, list) or not any(map(str.strip, golds)):
    raise Fault(
      "its last step has no gold answers",
      "Write the accepted answers as a list there",
    )


def _fault(step: Any) -> str:
  """What is wrong with the form of a step, or ""."""
  wanted = {"step_type", "problem", "answer"}
  if not isinstance(step, dict):
    return f"is a {type(step).__name__}"
  if missing := sorted(wanted - step.keys()):
    return f"lacks {', '.join(missing)}"
  kind, answer = step["step_type"], step["answer"]
  if kind not in ("ret", "ans"):
    return f"is of the type {kind!a:.40}, known: ret, ans"
  if not isinstance(step["problem"], str):
    return "has a problem that is no text"
  if not isinstance(step.get("response", ""), str):
    return "has a response that is no text"
  if kind == "ans":
    good = isinstance(answer, str) or _texts(answer)
    return "" if good else "has an answer that is neither text nor texts"
  good = (
    isinstance(answer, dict)
    and isinstance(answer.get("query"), str)
    and (
      answer["query"].strip()
      and _texts(answer.get("retriever"))
      and answer["retriever"]
    )
  )
  return "" if good else 'asks with no "query" or no "retriever"'


def _texts(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(x, str) for x in value)


def _check_order(steps: Sequence[Step]) -> None:
  """That steps come in the order above."""
  order = ""
  for step in steps:
    stops = "none" in step.routes
    if (
      stops
      and step.routes != ("none",)
      or (step.kind == "plan" and stops != (step.sub_question == format.NONE))
    ):
      raise Fault(
        f"step {step.id} asks {step.sub_question!r:.60} of {step.routes}",
        "Both are none, or neither",
      )
    order += "stop " if stops else step.kind + " "
  if not _ORDER.fullmatch(order):
    raise Fault(
      f"its steps are {order.strip()}, and not (plan answer)* stop? final",
      _AS_PUBLISHED,
    )


def _stem(path: str) -> str:
  return os.path.splitext(os.path.basename(path))[0]
