"""Benchmarks' questions as TensorFlow Datasets, without TensorFlow.

  files = benchmarks_tfds.Files(
      name="infoseek", folder="datasets", images="oven_images")
  builder = benchmarks_tfds.Benchmarks(config=files, data_dir=FOLDER)
  builder.download_and_prepare()
  rows = tfds.data_source("benchmarks/infoseek", split="test", data_dir=FOLDER)
  question = benchmarks_tfds.question(rows[0], pictures_to="pictures")

The name is one of `benchmarks.NAMES`.  There is one split, "test", but for
GeoRouter, which has train, val and test.  ArrayRecord shuffles rows, so each
carries its id.  The bytes of a picture come with its question, and are empty
where it was not found; a hop is a JSON object, since lists within lists need
TensorFlow to be written, and an interval a JSON list, since numbers would lose
half of their digits.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from r1router_jax.common import images as images_lib
from r1router_jax.common.records import Hop, Question
from r1router_jax.data import benchmarks, georouter

_TEXT = tfds.features.Text()

_TEXTS = tfds.features.Sequence(tfds.features.Text())

_FEATURES = dict(
  id=_TEXT,
  text=_TEXT,
  answers=_TEXTS,
  image=_TEXT,
  picture=_TEXT,
  family=_TEXT,
  benchmark=_TEXT,
  subjects=_TEXTS,
  hops=_TEXTS,
  interval=_TEXT,
)


@dataclasses.dataclass(eq=False)
class Files(tfds.core.BuilderConfig):
  """Which benchmark, and where its files are; see `benchmarks.load`."""

  folder: str = ""
  images: str = ""


class Benchmarks(tfds.core.GeneratorBasedBuilder):
  """Questions with their accepted answers."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "As published."}

  def __init__(self, **kwargs):
    super().__init__(**{"file_format": "array_record"} | kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(_FEATURES),
      description="Question files of benchmarks.",
      homepage="https://arxiv.org/abs/2505.22095",
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    del dl_manager  # The files are here.
    splits = (
      georouter.SPLITS if self.builder_config.name == "georouter" else ("test",)
    )
    return {split: self._generate_examples(split) for split in splits}

  def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
    config = self.builder_config
    with tempfile.TemporaryDirectory() as unpacked:
      for question in benchmarks.load(
        config.name, config.folder, config.images, split, unpacked
      ):
        there = os.path.isfile(question.image)
        data = images_lib.read(question.image) if there else b""
        yield (
          question.id,
          dict(
            vars(question),
            image=_name(question.image, data),
            picture=data,
            hops=["null"]
            if question.hops is None
            else [json.dumps(vars(hop)) for hop in question.hops],
            interval=json.dumps(question.interval),
          ),
        )


def question(row: Mapping[str, Any], pictures_to: str) -> Question:
  """The record of a row, with its picture written to a folder.

  A picture that was not found has a path there that leads nowhere.
  """
  plain = {
    key: row[key].decode() for key in ("id", "text", "family", "benchmark")
  }
  texts = {
    key: tuple(value.decode() for value in row[key])
    for key in ("answers", "subjects")
  }
  hops = [json.loads(hop.decode()) for hop in row["hops"]]
  return Question(
    **plain,
    **texts,
    image=_written(row, pictures_to),
    hops=None
    if hops == [None]
    else tuple(
      Hop(
        **{
          key: value if isinstance(value, str) else tuple(value)
          for key, value in hop.items()
        }
      )
      for hop in hops
    ),
    interval=tuple(json.loads(row["interval"])),
  )


def _name(path: str, data: bytes) -> str:
  """A name of a picture by what it shows; "" where there is none."""
  if not path:
    return ""
  ending = os.path.splitext(path)[1].lower()
  return (
    hashlib.sha256(data).hexdigest()[:32] + ending
    if data
    else f"not found {hashlib.sha256(path.encode()).hexdigest()[:8]}"
  )


def _written(row: Mapping[str, Any], folder: str) -> str:
  name = row["image"].decode()
  if not name:
    return ""
  path = images_lib.resolve(name, folder)
  if row["picture"] and not os.path.isfile(path):
    os.makedirs(folder, exist_ok=True)
    with open(path + ".partial", "wb") as draft:
      draft.write(row["picture"])
    os.replace(path + ".partial", path)
  return path
