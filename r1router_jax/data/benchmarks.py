"""Question files of benchmarks as records.

  questions = benchmarks.load("infoseek", "datasets", images="oven_images")

Six benchmarks are read as R1-Router published their question files, a JSON
object in each line: `PUBLISHED` says which keys count.  "georouter" comes with
the package.  "jsonl" is a user's own file, whose lines are

  {"question": "...", "answer": "..." or [...], "id": "...",
   "image": "a.jpg", "interval": [low, high]}

where only the first two must be there.  A number is an answer like its text.
With an interval any number in it is right, and answers are for display.

A row that cannot be read is an error, since a question that is left out would
change every mean.  So would one whose picture is not there: it stays, with a
path that leads nowhere, and is answered without success.

Source: github.com/OpenBMB/R1-Router (datasets/, src/evaluate.py).
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from r1router_jax.common import images as images_lib
from r1router_jax.common import row_files
from r1router_jax.common.records import Question
from r1router_jax.common.row_files import Fault
from r1router_jax.data import benchmark_images, benchmark_schema, georouter
from r1router_jax.data.benchmark_schema import PUBLISHED

NAMES = ("georouter", *PUBLISHED, "jsonl")


def load(
  name: str,
  folder: str = "",
  images: str = "",
  split: str = "test",
  pictures_to: str = "",
) -> list[Question]:
  """The questions of a benchmark, in the order of its file.

  Args:
    name: one of `NAMES`.
    folder: holds the question file under its published name or as
      "<name>.jsonl"; of "jsonl", the file itself.
    images: where the pictures are, see benchmark_pictures.py; of "jsonl", the
      folder that paths are relative to, if it is not the file's own.
    split: of "georouter".
    pictures_to: the folder that a .zip of pictures is unpacked into.

  Raises:
    ValueError: where a row cannot be used; names the first few.
    FileNotFoundError: where there is no file.
  """
  if name not in NAMES:
    raise ValueError(f"No benchmark {name!r}; known: {', '.join(NAMES)}.")
  if name == "georouter":
    return georouter.questions(split)
  path = file(name, folder)
  root = images or os.path.dirname(os.path.abspath(path))  # Of a user's paths.
  found = benchmark_schema.read(
    path,
    lambda row, number: (
      benchmark_schema.question(name, row, number),
      _picture(name, row, root),
    ),
  )
  benchmark_schema.check_count(name, path, len(found))
  benchmark_schema.check_ids(path, ((q.id, where) for where, (q, _) in found))
  asked = [named for _, (_, named) in found if named]
  if name == "jsonl":
    paths = {named: named for named in asked if os.path.isfile(named)}
  else:
    paths = (
      benchmark_images.find(images, set(asked), pictures_to)
      if images and asked
      else {}
    )
  _warn_of_missing(name, images, [n for n in asked if n not in paths])
  nowhere = os.path.join(images or "no folder of pictures", "")
  return [
    dataclasses.replace(
      q, image=paths.get(named, os.path.join(nowhere, named)) if named else ""
    )
    for _, (q, named) in found
  ]


def file(name: str, folder: str) -> str:
  """The path of a benchmark's question file; see `load`."""
  names = (
    [folder]
    if name == "jsonl"
    else [
      os.path.join(folder, each)
      for each in (PUBLISHED[name].file, f"{name}.jsonl")
    ]
  )
  for path in names:
    if os.path.isfile(path):
      return path
  raise FileNotFoundError(
    f"benchmark {name}: there is no file {' or '.join(map(repr, names))}.  "
    + (
      "Name your file of questions."
      if name == "jsonl"
      else "Name the folder that holds it; R1-Router publishes it in datasets/."
    )
  )


def _picture(name: str, row: Mapping[str, Any], root: str) -> str:
  """What a row's picture is found by: its stem, or a user's path; or ""."""
  own = name == "jsonl"
  if not own and not PUBLISHED[name].pictures:
    return ""
  key = "image" if own else "image_id"
  named = row.get(key, "" if own else None)
  if own and named == "":
    return ""
  if (
    isinstance(named, bool)
    or not isinstance(named, str if own else str | int)
    or named == ""
  ):
    raise Fault(
      f'"{key}" is {named!a:.60}, wanted the name of a picture',
      "Name it as text, or leave it out"
      if own
      else "Take the row as it was published",
    )
  try:
    path = images_lib.resolve(str(named), root)
  except images_lib.BadImage as error:
    raise Fault(
      f'"{key}" is {str(error).rstrip(".")}', "Or leave the picture out"
    ) from error
  if own:
    return path
  if "/" in str(named):
    raise Fault(
      f'"image_id" is {named!a:.60}, wanted a name without folders',
      "Take the row as it was published",
    )
  return str(named)


def _warn_of_missing(name: str, images: str, missing: Sequence[str]) -> None:
  if missing:
    logging.warning(
      "%s: %d questions miss their picture (%s%s): these cannot be answered "
      "and score 0.  %s",
      name,
      len(missing),
      ", ".join(ascii(each) for each in missing[: row_files.NAMED]),
      ", ..." if len(missing) > row_files.NAMED else "",
      f"Add them to {images}."
      if images
      else "--images names their folder or .zip.",
    )
