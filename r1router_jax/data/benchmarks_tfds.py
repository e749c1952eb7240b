"""Benchmarks' questions as TensorFlow Datasets, without TensorFlow.

  files = benchmarks_tfds.BenchmarkFiles(
      name="infoseek", folder="datasets", images="oven_images")
  builder = benchmarks_tfds.Benchmarks(config=files, data_dir=FOLDER)
  builder.download_and_prepare()
  rows = tfds.data_source("benchmarks/infoseek", split="test", data_dir=FOLDER)
  question = benchmarks_tfds.to_question(rows[0], image_folder="images")

The name is one of `benchmarks.NAMES`.  There is one split, "test", except for
GeoRouter, which has train, val and test.  ArrayRecord shuffles rows, so each
carries its id.  The bytes of an image are stored with its question (feature
"picture"), and are empty if it was not found.  A hop is a JSON object, since
lists within lists need TensorFlow to be written, and an interval is a JSON
list, since a float32 feature would lose half of the digits.
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
from r1router_jax.common.files import atomic_write
from r1router_jax.common.records import Question
from r1router_jax.data import benchmarks, georouter

_TEXT = tfds.features.Text()
# The feature "picture" has the bytes of the image that "image" names.
_FEATURES = dict.fromkeys(
  "id text image picture family benchmark interval".split(), _TEXT
) | dict.fromkeys(
  ("answers", "subjects", "hops"), tfds.features.Sequence(_TEXT)
)


@dataclasses.dataclass(eq=False)
class BenchmarkFiles(tfds.core.BuilderConfig):
  """A benchmark and the place of its files.

  Attributes:
    folder: folder of the question file; see `benchmarks.load_benchmark`.
    images: folder or .zip of the images.
  """

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
    # Only GeoRouter has more than the test split.
    own = self.builder_config.name == "georouter"
    splits = georouter.SPLITS if own else ("test",)
    return {split: self._generate_examples(split) for split in splits}

  def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
    config = self.builder_config
    # Members of a .zip are needed only until their bytes are stored.
    with tempfile.TemporaryDirectory() as unpacked:
      for question in benchmarks.load_benchmark(
        config.name, config.folder, config.images, split, unpacked
      ):
        there = os.path.isfile(question.image)
        data = images_lib.read_image_bytes(question.image) if there else b""
        # Unknown hops are told from none by a null.
        hops = [None] if question.hops is None else map(vars, question.hops)
        yield (
          question.id,
          dict(
            vars(question),
            image=_image_file_name(question.image, data),
            picture=data,
            hops=[json.dumps(hop) for hop in hops],
            interval=json.dumps(question.interval),
          ),
        )


def to_question(row: Mapping[str, Any], image_folder: str) -> Question:
  """Return the question of a row, and write its image to `image_folder`.

  An image that was not found gets a path in that folder that leads nowhere.
  """
  # data_source yields texts as bytes and sequences as arrays of bytes.
  fields = {
    key: row[key].decode() for key in ("id", "text", "family", "benchmark")
  }
  for key in ("answers", "subjects"):
    fields[key] = tuple(value.decode() for value in row[key])
  hops = [json.loads(hop.decode()) for hop in row["hops"]]
  hops = None if hops == [None] else tuple(map(georouter.to_hop, hops))
  interval = tuple(json.loads(row["interval"]))
  image = _write_image(row, image_folder)
  return Question(**fields, image=image, hops=hops, interval=interval)


def _image_file_name(path: str, data: bytes) -> str:
  """Return a file name made from the image's bytes, or "" without an image."""
  if not path:
    return ""
  if not data:
    return f"not found {hashlib.sha256(path.encode()).hexdigest()[:8]}"
  ending = os.path.splitext(path)[1].lower()
  return hashlib.sha256(data).hexdigest()[:32] + ending


def _write_image(row: Mapping[str, Any], folder: str) -> str:
  name = row["image"].decode()
  if not name:
    return ""
  path = images_lib.resolve_path(name, folder)
  if row["picture"] and not os.path.isfile(path):
    os.makedirs(folder, exist_ok=True)
    with atomic_write(path) as file:
      file.write(row["picture"])
  return path
