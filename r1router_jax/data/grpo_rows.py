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

from r1router_jax import protocol
from r1router_jax.data import trajectories
from r1router_jax.inputs import images, rows
from r1router_jax.inputs.rows import BadRow, Fault
from r1router_jax.records import Step

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
    skipped, kept = rows.Skipped(path), 0
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
          "between them.")
    found += paths
  found = list(dict.fromkeys(found))
  stems = [_stem(path) for path in found]
  if twice := [path for path in found if stems.count(_stem(path)) > 1]:
    raise ValueError(
        f"config.data.rows: {', '.join(twice)} have one name, so that their "
        "steps would have the same ids.  Rename them.")
  return found


def read(path: str, pictures: str) -> Iterator[Row | BadRow]:
  """Every row of a file; see `load`."""
  for where, row in rows.json_lines(path):
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
      raise Fault(f"its picture {path!a} has no folder",
                  "Name that of the pictures, config.data.images, or leave the "
                  "row out")
    images.load(os.path.basename(path), pictures)
  try:
    steps = trajectories.from_reference(row, name, pictures)
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
    raise Fault("it holds half a surrogate pair", "Write whole characters"
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
    raise Fault("its last step has no gold answers",
                "Write the accepted answers as a list there")


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
  good = isinstance(answer, dict) and isinstance(answer.get("query"), str) and (
      answer["query"].strip() and _texts(answer.get("retriever")) and
      answer["retriever"])
  return "" if good else 'asks with no "query" or no "retriever"'


def _texts(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(x, str) for x in value)


def _check_order(steps: Sequence[Step]) -> None:
  """That steps come in the order above."""
  order = ""
  for step in steps:
    stops = "none" in step.routes
    if stops and step.routes != ("none",) or (
        step.kind == "plan" and stops != (step.sub_question == protocol.NONE)):
      raise Fault(
          f"step {step.id} asks {step.sub_question!r:.60} of {step.routes}",
          "Both are none, or neither")
    order += "stop " if stops else step.kind + " "
  if not _ORDER.fullmatch(order):
    raise Fault(f"its steps are {order.strip()}, and not (plan answer)* stop? "
                "final", _AS_PUBLISHED)


def _stem(path: str) -> str:
  return os.path.splitext(os.path.basename(path))[0]
