"""Question files of benchmarks as records.

  questions = benchmarks.load_benchmark(
      "infoseek", "datasets", images="oven_images")

Six benchmarks are read as R1-Router published their question files, a JSON
object in each line; `BENCHMARK_SPECS` lists their keys.  "georouter" comes with
the package.  "jsonl" is a user's own file, whose lines are

  {"question": "...", "answer": "..." or [...], "id": "...",
   "image": "a.jpg", "interval": [low, high]}

where only the first two are required.  A number is an answer like its text.
With an interval any number in it is right, and answers are for display only.

A row that cannot be read is an error, since leaving a question out would change
every mean.  For the same reason a question whose image is missing stays: its
path leads nowhere, and its answer scores 0.

Source: github.com/OpenBMB/R1-Router (datasets/, src/evaluate.py).
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from r1router_jax.common import images as images_lib
from r1router_jax.common import row_files
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Question
from r1router_jax.common.row_files import RowError
from r1router_jax.data import benchmark_images, benchmark_schema, georouter
from r1router_jax.data.benchmark_schema import BENCHMARK_SPECS

NAMES = ("georouter", *BENCHMARK_SPECS, "jsonl")


def load_benchmark(
  name: str,
  folder: str = "",
  images: str = "",
  split: str = "test",
  unpack_to: str = "",
) -> list[Question]:
  """Return the questions of a benchmark, in the order of its file.

  Args:
    name: one of `NAMES`.
    folder: folder that holds the question file under its published name or as
      "<name>.jsonl"; for "jsonl", the file itself.
    images: folder or .zip of the images (`benchmark_images`); for "jsonl", the
      folder that paths are relative to, if it is not that of the file.
    split: split of "georouter".
    unpack_to: folder that a .zip of images is unpacked into.

  Raises:
    UserError: if a row cannot be used; the message names the first few.
    FileNotFoundError: if there is no such file.
  """
  if name not in NAMES:
    raise UserError(f"No benchmark {name!r}; known: {', '.join(NAMES)}.")
  if name == "georouter":
    return georouter.load_questions(split)
  path = find_question_file(name, folder)
  # Paths in a user's file are relative to `images` or to the file.
  root = images or os.path.dirname(os.path.abspath(path))
  found = benchmark_schema.parse_rows(
    path,
    lambda row, number: (
      benchmark_schema.parse_question(name, row, number),
      _image_name(name, row, root),
    ),
  )
  benchmark_schema.check_count(name, path, len(found))
  benchmark_schema.check_ids(path, ((q.id, where) for where, (q, _) in found))
  # Look for all images at once; a question whose image is missing stays.
  asked, paths = [named for _, (_, named) in found if named], {}
  # A user's images have paths; those of benchmarks are looked up by stem.
  if name == "jsonl":
    paths = {named: named for named in asked if os.path.isfile(named)}
  elif images and asked:
    paths = benchmark_images.find_images(images, set(asked), unpack_to)
  _warn_of_missing_images(name, images, [n for n in asked if n not in paths])
  # A missing image keeps a path that does not exist, so that the question is
  # counted and fails on its own.
  nowhere = images or "no folder of images"
  paths = {n: os.path.join(nowhere, n) for n in asked} | paths | {"": ""}
  return [dataclasses.replace(q, image=paths[n]) for _, (q, n) in found]


def find_question_file(name: str, folder: str) -> str:
  """Return the path of a benchmark's question file; see `load_benchmark`."""
  if name == "jsonl":
    names, cure = [folder], "Name your file of questions."
  else:
    files = (BENCHMARK_SPECS[name].file, f"{name}.jsonl")
    names = [os.path.join(folder, file) for file in files]
    cure = "Name the folder that holds it; R1-Router publishes it in datasets/."
  for path in names:
    if os.path.isfile(path):
      return path
  wanted = " or ".join(map(repr, names))
  raise FileNotFoundError(
    f"benchmark {name}: there is no file {wanted}.  {cure}"
  )


def _image_name(name: str, row: Mapping[str, Any], root: str) -> str:
  """Return the stem or the path by which a row names its image, or ""."""
  own = name == "jsonl"
  if not own and not BENCHMARK_SPECS[name].has_images:
    return ""
  # In a user's file an image is optional, in a benchmark with images it is not.
  key, kinds = ("image", str) if own else ("image_id", str | int)
  named, cure = row.get(key, "" if own else None), benchmark_schema.AS_PUBLISHED
  if own and named == "":
    return ""
  if isinstance(named, bool) or not isinstance(named, kinds) or named == "":
    raise RowError(
      f'"{key}" is {named!a:.60}, wanted the name of an image',
      "Name it as text, or leave it out" if own else cure,
    )
  try:
    path = images_lib.resolve_path(str(named), root)
  except images_lib.BadImage as error:
    fault = f'"{key}" is {str(error).rstrip(".")}'
    raise RowError(fault, "Or leave the image out") from error
  # A benchmark's image is found by its stem, which must not name a folder.
  if own:
    return path
  if "/" in str(named):
    fault = f'"image_id" is {named!a:.60}, wanted a name without folders'
    raise RowError(fault, cure)
  return str(named)


def _warn_of_missing_images(
  name: str, images: str, missing: Sequence[str]
) -> None:
  if not missing:
    return
  shown = ", ".join(map(ascii, missing[: row_files.MAX_WARNINGS]))
  if len(missing) > row_files.MAX_WARNINGS:
    shown += ", ..."
  cure = "--images names their folder or .zip."
  if images:
    cure = f"Add them to {images}."
  logging.warning(
    "%s: %d questions miss their image (%s): these cannot be answered and "
    "score 0.  %s",
    name,
    len(missing),
    shown,
    cure,
  )
