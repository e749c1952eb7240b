"""Questions of benchmarks as records.

  questions = benchmarks.load_benchmark("infoseek", "datasets", "oven_images")
  questions = benchmarks.load_benchmark("infoseek")  # Once it is prepared.

Six benchmarks are read as R1-Router published their question files, a JSON
object in each line; `BENCHMARK_SPECS` lists their keys.  "georouter" comes with
the package.  "jsonl" is a user's own file, of JSON Lines, CSV or Parquet, whose
rows `question_files` describes; JSON Lines may have other keys.  With an
interval any number in it is right, and answers are for display only.

A row that cannot be read is an error, since leaving a question out would change
every mean.  For the same reason a question whose image is missing stays: its
path leads nowhere, and its answer scores 0.

Source: github.com/OpenBMB/R1-Router (datasets/, src/evaluate.py).
"""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Iterator

import msgspec
from absl import logging

from r1router_jax.common import images as images_lib
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS, Question
from r1router_jax.common.row_files import RejectedRow, RowError
from r1router_jax.data import (
  benchmark_images,
  georouter,
  question_files,
  tfds_datasets,
)
from r1router_jax.data import benchmark_schema as schema
from r1router_jax.data.benchmark_schema import BENCHMARK_SPECS
from r1router_jax.data.tfds_datasets import Example, Source

NAMES = ("georouter", *BENCHMARK_SPECS, "jsonl")


def load_benchmark(
  name: str,
  folder: str = "",
  images: str = "",
  split: str = "test",
  tfds_dir: str = "",
  seed: int = 0,
) -> list[Question]:
  """Return the questions of a benchmark, in the order of its file.

  Args:
    name: one of `NAMES`.
    folder: folder that holds the question file under its published name or as
      "<name>.jsonl"; for "jsonl", the file itself.  Without it the benchmark is
      read as it was prepared before.
    images: folder or .zip of the images (`benchmark_images`); for "jsonl", the
      folder that paths are relative to, if it is not that of the file.
    split: a split of "georouter", or slices, as TFDS spells them.  A question
      file is a single split, by any name.
    tfds_dir: folder of prepared datasets, see `tfds_datasets`.
    seed: seed of the permutation that slices are taken of.

  Raises:
    UserError: if a row cannot be used; the message names the first few.
    FileNotFoundError: if there is no such file.
  """
  if name not in NAMES:
    raise UserError(f"No benchmark {name!r}; known: {', '.join(NAMES)}.")
  if name == "georouter":
    dataset, source, folder = name, _georouter_source(), str(georouter.FOLDER)
  else:
    dataset, split = f"benchmarks/{name}", re.sub(r"^\w+", "test", split)
    source = _file_source(name, folder, images) if folder else None
    folder = os.path.join(tfds_datasets.IMAGE_FOLDER, "not found")
  if images and not source:
    raise UserError(
      f"The images {images} are of no questions: name the files of benchmark "
      f"{name}, too, --data.  A prepared benchmark has its images."
    )
  rows = tfds_datasets.read_split(dataset, split, seed, tfds_dir, source)
  return [_to_question(where, row, folder) for where, row in rows]


def _georouter_source() -> Source:
  """Return GeoRouter's questions; their images stay in the package."""
  digest = hashlib.sha256()
  for split in georouter.SPLITS:
    digest.update((georouter.FOLDER / f"questions_{split}.jsonl").read_bytes())

  def make_rows(split: str) -> Iterator[Example]:
    for question in georouter.load_questions(split):
      path = question.image
      image = path and os.path.relpath(path, georouter.FOLDER)
      yield _to_example(question, image, b"")

  splits = {s: functools.partial(make_rows, s) for s in georouter.SPLITS}
  return Source(digest.hexdigest(), splits)


def _file_source(name: str, folder: str, images: str) -> Source:
  """Return a question file, which is read and checked, and its images."""
  path = _find_question_file(name, folder)
  # 1. Read the rows.  A user's paths are relative to `images` or to the file.
  root = images or os.path.dirname(os.path.abspath(path))

  def parse(row: schema.Row, number: int) -> tuple[Question, str]:
    question = schema.parse_question(name, row, number)
    if name == "jsonl":
      hops = question_files.parse_hops(row)
      question = dataclasses.replace(question, hops=hops)
    return question, _image_name(name, row, root)

  rows = question_files.read_rows(path) if name == "jsonl" else None
  parsed = schema.parse_rows(path, parse, rows)
  schema.check_count(name, path, len(parsed))
  schema.check_ids(path, ((q.id, where) for where, (q, _) in parsed))
  # 2. Find the images.  A user's have paths; those of benchmarks are looked up
  # by stem, all at once.  A question whose image is missing stays.
  asked, found = [named for _, (_, named) in parsed if named], {}
  if name == "jsonl":
    there = filter(os.path.isfile, asked)
    found = {named: benchmark_images.find_file(named) for named in there}
  elif images and asked:
    found = benchmark_images.find_images(images, set(asked))
  missing = [ascii(named) for named in asked if named not in found]
  _warn_of_missing_images(name, images, missing)

  # 3. The rows of the dataset, and what they depend on.
  def make_rows() -> Iterator[Example]:
    for where, (question, named) in parsed:
      image, picture = os.path.basename(named), b""
      if named in found:
        image = found[named].name
        # A bad image counts as missing.
        try:
          picture = found[named].read()
        except images_lib.BadImage as error:
          logging.warning("%s: %s  Its question scores 0.", where, error)
      yield _to_example(question, image, picture)

  states = [(*of, of[1] in found and found[of[1]].state) for _, of in parsed]
  digest = hashlib.sha256(repr(states).encode()).hexdigest()
  return Source(digest, {"test": make_rows})


def _to_example(question: Question, image: str, picture: bytes) -> Example:
  """Return the row of a question, whose image is the file `image`."""
  record = msgspec.json.encode(dataclasses.replace(question, image=""))
  return Example(question.id, record.decode(), image, picture)


def _to_question(where: str, row: Example, image_folder: str) -> Question:
  """Return the question of a row, and unpack its image.

  An image without bytes is a file of `image_folder`, which may not exist.
  """
  image = row.image
  try:
    question = msgspec.json.decode(row.record, type=Question)
    if row.picture:
      image = tfds_datasets.store_image(row.picture, image)
    elif image:
      image = images_lib.resolve_path(image, image_folder)
    hops = question.hops or ()
    if not question.text.strip() or not question.answers:
      raise UserError("it lacks a text or an answer")
    if any(not hop.answers or not {*hop.routes} <= {*KBS} for hop in hops):
      raise UserError("a hop has no answer or an unknown route")
    if len(question.interval) not in (0, 2):
      raise UserError("its interval is no pair of numbers")
  except (msgspec.MsgspecError, UserError) as error:
    cure = "Delete that folder, and prepare the benchmark again"
    row = RejectedRow(where, str(error).rstrip("."), cure)
    raise UserError(str(row)) from error
  return dataclasses.replace(question, image=image)


def _find_question_file(name: str, folder: str) -> str:
  """Return the path of a benchmark's question file; see `load_benchmark`."""
  names, cure = [folder], "Name your file of questions."
  if name != "jsonl":
    files = BENCHMARK_SPECS[name].file, f"{name}.jsonl"
    names = [os.path.join(folder, file) for file in files]
    cure = "Name the folder that holds it; R1-Router publishes it in datasets/."
  if found := list(filter(os.path.isfile, names)):
    return found[0]
  wanted = " or ".join(map(repr, names))
  raise FileNotFoundError(f"benchmark {name} has no file {wanted}.  {cure}")


def _image_name(name: str, row: schema.Row, root: str) -> str:
  """Return the stem or the path by which a row names its image, or ""."""
  own, has_image = name == "jsonl", schema.find_spec(name).has_images
  key, kind, cure = "image_id", str | int, schema.AS_PUBLISHED
  # In a user's file an image is optional, in a benchmark with images it is not.
  if own:
    has_image = row.get("image", "") != ""
    key, kind, cure = "image", str, "Name it as text, or leave it out"
  if not has_image:
    return ""
  wanted = "the name of an image"
  named = str(schema.read_field(row, key, kind, wanted, cure))
  try:
    path = images_lib.resolve_path(named, root)
  except images_lib.BadImage as error:
    fault = f'"{key}" is {str(error).rstrip(".")}'
    raise RowError(fault, "Or leave the image out") from error
  # A benchmark's image is found by its stem, which must not name a folder.
  if "/" in named and not own:
    fault = f'"{key}" is {named!a:.60}, wanted a name without folders'
    raise RowError(fault, cure)
  return path if own else named


def _warn_of_missing_images(name: str, images: str, missing: list[str]) -> None:
  if missing:
    cure = f"Add them to {images}." if images else "--images names their place."
    logging.warning(
      f"{name}: {len(missing)} questions miss their image "
      f"({schema.first_few(missing)}): these cannot be answered and score 0.  "
      f"{cure}"
    )
