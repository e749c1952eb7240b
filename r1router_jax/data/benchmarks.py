"""Questions of benchmarks as records.

  questions = benchmarks.load_benchmark("infoseek", "datasets", "oven_images")
  questions = benchmarks.load_benchmark("infoseek")  # Once it is prepared.

Six benchmarks are read as R1-Router published their question files, a JSON
object in each line; `BENCHMARK_SPECS` lists their keys.  Others are read as
their own authors published them, see `benchmark_formats`.  "georouter" comes
with the package.  "jsonl" is a user's own file, of JSON Lines, CSV or Parquet,
whose rows `question_files` describes; JSON Lines may have other keys.  With an
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
from collections.abc import Iterator, Sequence

import msgspec
from absl import logging

from r1router_jax.common import images as images_lib
from r1router_jax.common import row_files
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS, Question
from r1router_jax.common.row_files import RejectedRow, RowError
from r1router_jax.data import (
  benchmark_formats,
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
    folder: the question file, or the folder that holds it under its published
      name, or as "<name>.jsonl" if R1-Router published it.  Without it the
      benchmark is read as it was prepared before.
    images: folder or .zip of the images (`benchmark_images`); the folder that
      paths are relative to, if rows have paths and it is not the file's.
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


def choose_families(
  questions: Sequence[Question], families: Sequence[str], where: str
) -> list[Question]:
  """Return the questions of some families; without names, all.

  A family that is not there raises UserError, which begins with `where`.
  """
  if not families:
    return list(questions)
  there = dict.fromkeys(question.family for question in questions)
  if unknown := [name for name in families if name not in there]:
    raise UserError(
      f"{where} has no questions of {', '.join(unknown)}.  Take of "
      f"{', '.join(there)}."
    )
  return [question for question in questions if question.family in families]


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
  path, spec = _find_question_file(name, folder), schema.find_spec(name)
  # 1. Read the rows.  Paths of images are relative to `images` or to the file.
  root = images or os.path.dirname(os.path.abspath(path))

  def parse(row: schema.Row, number: int) -> tuple[Question, str]:
    row = benchmark_formats.to_own(name, row)
    question = schema.parse_question(name, row, number)
    if spec.is_own:
      hops = question_files.parse_hops(row)
      question = dataclasses.replace(question, hops=hops)
    return question, _image_name(name, row, root)

  parsed = schema.parse_rows(path, parse, _read_rows(name, path))
  schema.check_count(name, path, len(parsed))
  schema.check_ids(path, ((q.id, where) for where, (q, _) in parsed))
  # 2. Find the images.  A question whose image is missing stays.
  asked = [named for _, (_, named) in parsed if named]
  found = _find_images(name, images, asked)

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


def _find_images(
  name: str, images: str, asked: Sequence[str]
) -> dict[str, benchmark_images.FoundImage]:
  """Return the images that exist, and warn of others.

  Images are `asked` for by their paths, or by stem, all at once.
  """
  found = {}
  if schema.find_spec(name).images != "stem":
    there = filter(os.path.isfile, asked)
    found = {named: benchmark_images.find_file(named) for named in there}
  elif images and asked:
    found = benchmark_images.find_images(images, set(asked))
  missing = [ascii(named) for named in asked if named not in found]
  _warn_of_missing_images(name, images, missing)
  return found


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
    if len(question.members) not in (0, len(question.answers)):
      raise UserError("it has not the members of each answer")
  except (msgspec.MsgspecError, UserError) as error:
    cure = "Delete that folder, and prepare the benchmark again"
    row = RejectedRow(where, str(error).rstrip("."), cure)
    raise UserError(str(row)) from error
  return dataclasses.replace(question, image=image)


def _find_question_file(name: str, folder: str) -> str:
  """Return the path of a benchmark's question file; see `load_benchmark`."""
  names, cure = [folder], "Name your file of questions."
  if name != "jsonl" and not os.path.isfile(folder):
    spec = BENCHMARK_SPECS[name]
    # A compressed file may have been unpacked.
    files = [spec.file, spec.file.removesuffix(".gz"), f"{name}.jsonl"]
    files = dict.fromkeys(files[: 2 if spec.is_own else 3])
    names = [os.path.join(folder, file) for file in files]
    cure = f"Name it, or the folder that holds it; {spec.place}."
  if found := list(filter(os.path.isfile, names)):
    return found[0]
  wanted = " or ".join(map(repr, names))
  raise FileNotFoundError(f"benchmark {name} has no file {wanted}.  {cure}")


def _read_rows(name: str, path: str) -> row_files.Rows | None:
  """Return the rows of a question file, None if R1-Router published it."""
  if name == "jsonl":
    return question_files.read_rows(path)
  is_by_authors = schema.find_spec(name).is_own
  return benchmark_formats.read_rows(name, path) if is_by_authors else None


def _image_name(name: str, row: schema.Row, root: str) -> str:
  """Return the stem or the path by which a row names its image, or ""."""
  kind, own = schema.find_spec(name).images, name == "jsonl"
  # An image inside of a row becomes a file, under a name made of its content.
  if kind == "inside" and "picture" in row:
    return tfds_datasets.store_image(row["picture"], "")
  # In a user's file an image is optional, in a benchmark of files it is not.
  if kind in ("", "inside") or (own and row.get("image", "") == ""):
    return ""
  key, cure = "image_id", schema.AS_PUBLISHED
  if kind == "path":
    key = "image"
  if own:
    cure = "Name it as text, or leave it out"
  wanted, types = "the name of an image", str if kind == "path" else str | int
  named = str(schema.read_field(row, key, types, wanted, cure))
  try:
    path = images_lib.resolve_path(named, root)
  except images_lib.BadImage as error:
    fault = f'"{key}" is {str(error).rstrip(".")}'
    raise RowError(fault, "Or leave the image out") from error
  # An image that is found by its stem must not name a folder.
  if "/" in named and kind == "stem":
    fault = f'"{key}" is {named!a:.60}, wanted a name without folders'
    raise RowError(fault, cure)
  return path if kind == "path" else named


def _warn_of_missing_images(name: str, images: str, missing: list[str]) -> None:
  if missing:
    cure = f"Add them to {images}." if images else "--images names their place."
    logging.warning(
      f"{name}: {len(missing)} questions miss their image "
      f"({schema.first_few(missing)}): these cannot be answered and score 0.  "
      f"{cure}"
    )
