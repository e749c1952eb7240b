"""R1-Router's published Step-GRPO rows: trajectories as rendered prompts.

A line of such a file, `grpo_dataset_*.jsonl`, is a trajectory:

  {"images": [path], "steps": [
    {"step_type": "ret", "system": .., "problem": "Origin question: ..<image>",
     "answer": {"query": "who ..?", "retriever": ["text retriever"]}},
    {"step_type": "ans", "system": .., "problem": .., "answer": "text"}, ..,
    {"step_type": "ans", "system": .., "problem": .., "answer": ["gold", ..]}]}

with steps in this order:

  (plan answer)* stop? final

`load_rows` reads such files, `load_dataset` reads them by the name under which
they were prepared, and `to_published_row` writes a row.  Rows that this project
writes may keep a teacher's whole response, with its thoughts, as "response" of
a step.  A row that breaks the form, or whose image is missing, is
left out: it is counted, and named by file and line with a cure, and its
neighbours stay.  Published plan prompts come in two spellings that differ by a
newline at the end of the system turn; the prompts made here have the more
common one, whichever the row has.

Source: github.com/OpenBMB/R1-Router.
"""

import dataclasses
import functools
import glob
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from r1router_jax.common import images, row_files
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS, Malformed, Passage, Question, Step
from r1router_jax.common.row_files import RejectedRow, RowError
from r1router_jax.data import tfds_datasets
from r1router_jax.data.benchmark_schema import AS_PUBLISHED
from r1router_jax.data.tfds_datasets import Example, Source
from r1router_jax.protocol import format, messages, prompts, templates

_STYLE = "full"  # The prompt style of the published rows.
_FULL = templates.STYLES[_STYLE]
_IMAGE = "<image>"  # Stands at the end of a prompt with an image.
_ROUTES = {name.lower(): route for route, name in format.ROUTE_NAMES.items()}
_KBS = {tag: kb for kb, tag in _FULL.tags.items()}

# A passage begins with its tag, at the start of a line.
_PASSAGE_TAG = re.compile(r"(?m)^(t[eia]r)-\d+: ")


class _Query(msgspec.Struct):
  query: str
  retriever: Annotated[list[str], msgspec.Meta(min_length=1)]


class _PlanStep(msgspec.Struct, tag_field="step_type", tag="ret"):
  problem: str
  answer: _Query
  response: str = ""


class _AnswerStep(msgspec.Struct, tag_field="step_type", tag="ans"):
  problem: str
  answer: str | list[str]
  response: str = ""


class _Row(msgspec.Struct):
  images: Annotated[list[str], msgspec.Meta(max_length=1)]
  steps: Annotated[list[_PlanStep | _AnswerStep], msgspec.Meta(min_length=1)]


def to_published_row(steps: Sequence[Step]) -> dict[str, Any]:
  """Return one trajectory in the published form.

  An answer step keeps only its first accepted answer.  Ids and scores of
  passages are lost, and so are thoughts, except in a teacher's response.
  """
  image, rows = steps[0].question.image, []
  for step in steps:
    prompt = prompts.step_conversation(step, style=_STYLE)
    kind = "ret" if step.kind == "plan" else "ans"
    row = dict(step_type=kind, problem=_problem_text(prompt))
    row |= dict(system=prompt.system, answer=_published_answer(step))
    rows.append(row | (dict(response=step.response) if step.response else {}))
  return dict(images=[image] if image else [], steps=rows)


def parse_trajectory(
  row: dict[str, Any], name: str, image_folder: str | None = None
) -> list[Step]:
  """Return the steps of one published trajectory, whose question is `name`.

  The image is looked for in `image_folder`, since rows hold paths of their
  authors' machine; None keeps the path.

  Raises:
    RowError: if a step does not follow from the steps before it, or does not
      fit its teacher's response.
  """
  image = (row["images"] or [""])[0]
  if image and image_folder is not None:
    image = os.path.join(image_folder, os.path.basename(image))
  # The first prompt holds the question alone, after a fixed opening.
  text = row["steps"][0]["problem"].removesuffix(_IMAGE)
  text = text.removeprefix(_FULL.question.split("{}")[0]).partition("\n")[0]
  question = Question(name, text, tuple(row["steps"][-1]["answer"]), image)
  steps, history = [], ()
  for at, of in enumerate(row["steps"]):
    last = steps[-1] if steps else None
    step = _parse_step(of, f"{name}/{at}", question, history, last)
    if response := of.get("response", ""):
      step = _with_response(step, response)
    _check_prompt(step, of["problem"])
    if step.kind == "answer":
      history += ((step.sub_question, step.answers[0]),)
    steps.append(step)
  return steps


def _problem_text(prompt: messages.Conversation) -> str:
  parts = (_IMAGE if s.source == "image" else s.text for s in prompt.user)
  return "".join(parts)


def _published_answer(step: Step) -> Any:
  if step.kind == "plan":
    names = [format.ROUTE_NAMES[route].lower() for route in step.routes]
    return dict(query=step.sub_question.lower(), retriever=names)
  return step.answers[0] if step.kind == "answer" else list(step.answers)


def _parse_step(of, step_id, question, history, last: Step | None) -> Step:
  answer = of["answer"]
  about = dict(id=step_id, question=question, history=history)
  if of["step_type"] == "ret":
    # A name that nobody knows is a fault of the row, not a route to guess.
    if unknown := set(answer["retriever"]) - set(_ROUTES):
      fault = f"step {step_id} names the retrievers {unknown}"
      raise RowError(fault, f"Known are {', '.join(_ROUTES)}")
    routes = tuple(_ROUTES[name] for name in answer["retriever"])
    asked = _restore_none(answer["query"])
    if not asked.strip():
      raise RowError(f"step {step_id} asks with no query", AS_PUBLISHED)
    return Step(kind="plan", sub_question=asked, routes=routes, **about)
  # Only the final step has a list of accepted answers.
  if isinstance(answer, list):
    return Step(kind="final", answers=tuple(answer), **about)
  if last is None or last.kind != "plan":
    fault = f'step {step_id} answers, but no "ret" step stands before it'
    raise RowError(fault, "Give the whole trajectory, in order")
  # Passages stand between the template's opening and the sub-question, each
  # behind a tag that names its knowledge base.
  found = of["problem"].removeprefix(_FULL.passages)
  found = found.rpartition(_FULL.asked.split("{}")[0])[0]
  # Text before the first tag is no passage, which `_check_prompt` notices.
  _, *parts = _PASSAGE_TAG.split(found)
  tagged = zip(parts[::2], parts[1::2], strict=True)
  passages = tuple(
    Passage(f"{step_id}/{n}", _KBS[tag], text.removesuffix("\n"))
    for n, (tag, text) in enumerate(tagged)
  )
  about |= dict(sub_question=last.sub_question, answers=(answer,))
  return Step(kind="answer", passages=passages, **about)


def _with_response(step: Step, response: str) -> Step:
  """Return the step with a teacher's response and its spelling of the query."""
  # The response is parsed by the policy's own parser, so that what is taught is
  # always of the protocol.
  said = format.parse_response(step.kind, response, max_routes=len(KBS))
  cure = 'Delete its "response", or take the row as it was made'
  subject = f"the response of step {step.id}"
  if isinstance(said, Malformed):
    raise RowError(f"{subject} is not of the protocol: {said.reason}", cure)
  if step.kind == "plan":
    # Published queries are in lower case; the teacher's spelling is kept.
    asked, routes = said.sub_question, said.routes or ("none",)
    same = _restore_none(asked.lower()) == step.sub_question
    same = same and routes == step.routes
    step = dataclasses.replace(step, sub_question=asked)
  else:
    same = step.kind == "final" or said.text == step.answers[0]
  if not same:
    raise RowError(f'{subject} says other than its "answer"', cure)
  return dataclasses.replace(step, response=response)


def _restore_none(query: str) -> str:
  return format.NONE if query == format.NONE.lower() else query


def _check_prompt(step: Step, problem: str):
  """Check that the step leads to the published prompt, word for word."""
  ours = _problem_text(prompts.step_conversation(step, style=_STYLE))
  if ours != problem:
    at = len(os.path.commonprefix([ours, problem]))
    found, due = problem[at : at + 40], ours[at : at + 40]
    raise RowError(
      f"step {step.id} does not follow from the steps before it: its prompt "
      f"has {found!r} at character {at}, where {due!r} was due",
      AS_PUBLISHED,
    )


@dataclasses.dataclass(frozen=True)
class PublishedTrajectory:
  """One trajectory of a file: the published object and its steps.

  Published rows have no id; here it is "<name of the file>/<line>".
  """

  id: str
  published: dict[str, Any]
  steps: list[Step]


ReadRow = PublishedTrajectory | RejectedRow


def load_rows(
  patterns: str, image_folder: str
) -> Iterator[PublishedTrajectory]:
  """Yield the good rows of files, in order.

  The patterns are paths or globs, with commas between them.  Images are found
  in their folder by the last part of their published paths; without a folder,
  "", rows with images are left out.

  Raises:
    UserError: if a file has no good row.
    FileNotFoundError: if a pattern matches no file.
  """
  for path in find_files(patterns):
    yield from _keep_good(path, read_rows(path, image_folder))


def load_dataset(
  dataset: str,
  split: str,
  seed: int = 0,
  tfds_dir: str = "",
  source: Source | None = None,
) -> Iterator[PublishedTrajectory]:
  """Yield the good rows of "r1_router_rows/NAME", in order.

  The arguments are those of `tfds_datasets.read_split`; for the source see
  `make_source`.

  Raises:
    UserError: if the dataset cannot be read, or has no good row.
  """
  rows = tfds_datasets.read_split(dataset, split, seed, tfds_dir, source)
  # A prepared dataset may come from elsewhere, so its rows are checked again.
  read = (_read_prepared(where, row) for where, row in rows)
  yield from _keep_good(f"{dataset}, {split}", read)


def make_source(patterns: Mapping[str, str], image_folder: str) -> Source:
  """Return the good rows of files, by split, as the source of a dataset.

  Images are stored with the rows.  See `load_rows` for the arguments.
  """
  digest, splits = hashlib.sha256(), {}
  for split, of_split in patterns.items():
    splits[split] = functools.partial(_make_examples, of_split, image_folder)
    for path in map(pathlib.Path, find_files(of_split)):
      content = hashlib.sha256(path.read_bytes()).hexdigest()
      digest.update(repr((split, path.stem, content)).encode())
  # Rows name files of this folder, and none below it.
  there = sorted(pathlib.Path(image_folder).glob("*")) if image_folder else []
  for file in filter(pathlib.Path.is_file, there):
    state = file.name, file.stat().st_size, file.stat().st_mtime_ns
    digest.update(repr(state).encode())
  return Source(digest.hexdigest(), splits)


def _make_examples(patterns: str, image_folder: str) -> Iterator[Example]:
  """Yield the rows of files as a dataset holds them."""
  for row in load_rows(patterns, image_folder):
    image = os.path.basename(row.steps[0].question.image)
    path = image and images.resolve_path(image, image_folder)
    picture = images.read_image_bytes(path) if image else b""
    yield Example(row.id, json.dumps(row.published), image, picture)


def _read_prepared(where: str, row: Example) -> ReadRow:
  """Return the trajectory of a dataset's row, whose image is unpacked."""
  try:
    published = row_files.parse_json(row.record.encode())
    if row.image and isinstance(published, dict):
      stored = tfds_datasets.store_image(row.picture, row.image)
      published["images"] = [stored]
  except (RowError, images.BadImage) as fault:
    published = fault
  return _read_row(where, published, row.id, tfds_datasets.IMAGE_FOLDER)


def _keep_good(
  source: str, rows: Iterable[ReadRow]
) -> Iterator[PublishedTrajectory]:
  """Yield the good rows; log the others, and raise UserError if all are bad."""
  skipped, kept = row_files.SkipLog(source), 0
  for row in rows:
    if isinstance(row, RejectedRow):
      skipped(row)
    else:
      kept += 1
      yield row
  skipped.finish(kept)


def find_files(patterns: str) -> list[str]:
  """Return the files that `patterns` name; see `load_rows`."""
  found = []
  for pattern in filter(None, map(str.strip, patterns.split(","))):
    paths = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
    if not paths:
      raise FileNotFoundError(
        f"config.data.train_files: no file is named {pattern}.  R1-Router "
        "publishes grpo_dataset_*.jsonl; give their paths or globs, with "
        "commas between them."
      )
    found += paths
  # Ids are made from file names, which therefore have to differ.
  found = list(dict.fromkeys(found))
  stems = [pathlib.Path(path).stem for path in found]
  named = zip(found, stems, strict=True)
  if twice := [path for path, stem in named if stems.count(stem) > 1]:
    raise UserError(
      f"config.data.train_files: {', '.join(twice)} have one name, so that "
      "their steps would have the same ids.  Rename them."
    )
  return found


def read_rows(path: str, image_folder: str) -> Iterator[ReadRow]:
  """Yield every row of a file, a bad one with its fault; see `load_rows`."""
  for where, row in row_files.read_json_lines(path):
    name = f"{pathlib.Path(path).stem}/{where.rpartition(':')[2]}"
    yield _read_row(where, row, name, image_folder)


def _read_row(where: str, row: Any, name: str, image_folder: str) -> ReadRow:
  """Return the trajectory of a row, or its fault; `row` may be one itself."""
  try:
    if isinstance(row, UserError):
      raise row
    return PublishedTrajectory(name, row, parse_row(row, name, image_folder))
  except images.BadImage as error:
    return RejectedRow(where, str(error).rstrip("."), "Or leave the row out")
  except RowError as fault:
    return RejectedRow(where, *fault.args)


def parse_row(row: Any, name: str, image_folder: str) -> list[Step]:
  """Check a published row, called `name`, and return its steps.

  Raises:
    RowError: if the row breaks the published form.
    images.BadImage: if its image cannot be read.
  """
  try:
    golds = msgspec.convert(row, _Row).steps[-1].answer
  except msgspec.ValidationError as error:
    raise RowError(f"it has a wrong form: {error}", AS_PUBLISHED) from error
  if not isinstance(golds, list) or not any(map(str.strip, golds)):
    cure = "Write the accepted answers as a list there"
    raise RowError("its last step has no gold answers", cure)
  # The image is decoded now, so that a bad one costs its own row only.
  for path in row["images"]:
    if not image_folder:
      cure = "Name that of the images, config.data.images, or leave the row out"
      raise RowError(f"its image {path!a} has no folder", cure)
    images.load_image(os.path.basename(path), image_folder)
  steps = parse_trajectory(row, name, image_folder)
  _check_order(steps)
  return steps


def _check_order(steps: Sequence[Step]) -> None:
  """Check that steps come in the published order."""
  # The kinds of all steps as one text, to be matched as a whole.
  order = ""
  for step in steps:
    stops, asked = "none" in step.routes, step.sub_question
    mixed = stops and step.routes != ("none",)
    differs = step.kind == "plan" and stops != (asked == format.NONE)
    if mixed or differs:
      fault = f"step {step.id} asks {asked!r:.60} of {step.routes}"
      raise RowError(fault, "Both are none, or neither")
    order += "stop " if stops else step.kind + " "
  if not re.fullmatch(r"(plan answer )*(stop )?final ", order):
    fault = f"its steps are {order.strip()}, and not (plan answer)* stop? final"
    raise RowError(fault, AS_PUBLISHED)
