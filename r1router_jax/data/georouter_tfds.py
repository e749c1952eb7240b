"""GeoRouter as a TensorFlow Dataset, in ArrayRecord, without TensorFlow.

  builder = georouter_tfds.Georouter(config="questions", data_dir=FOLDER)
  builder.download_and_prepare()  # Copies what came with the package.
  rows = builder.as_data_source("train")
  question = georouter_tfds.to_question(rows[0])

The config "questions" has the splits train, val and test; "text", "image" and
"table" have one split each, "passages".  ArrayRecord shuffles rows, so each
carries its id.  The feature "png" has the bytes of an image, empty if there is
none; a hop is a JSON object, since lists within lists need TensorFlow to be
written.  `data_source` reads all of this; `tfds.load` would need TensorFlow.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from r1router_jax.common.records import KBS, Passage, Question
from r1router_jax.data import georouter

_TEXT = tfds.features.Text()
# Passages of all three knowledge bases have the same features.
_PASSAGE = dict.fromkeys(("id", "text", "image", "png"), _TEXT)
_QUESTION = (
  _PASSAGE
  | dict.fromkeys(("family", "benchmark"), _TEXT)
  | dict.fromkeys(
    ("answers", "subjects", "hops"), tfds.features.Sequence(_TEXT)
  )
)


class Georouter(tfds.core.GeneratorBasedBuilder):
  """Questions about countries, and the knowledge bases that answer them."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "World Factbook of 2015, 230 countries."}
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name=name, description=text)
    for name, text in (
      ("questions", "With gold hops."),
      *((kb, f"Passages: {kb}.") for kb in KBS),
    )
  ]

  def __init__(self, **kwargs):
    super().__init__(**{"file_format": "array_record"} | kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    features = _QUESTION if self._holds_questions() else _PASSAGE
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(features),
      description="A world of countries for learning to route.",
      homepage="https://arxiv.org/abs/2505.22095",
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    del dl_manager  # Everything comes with the package.
    asks = self._holds_questions()
    splits = georouter.SPLITS if asks else ("passages",)
    return {split: self._generate_examples(split) for split in splits}

  def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
    # Rows are stored as in the shipped files, but for images and hops.
    asks = self._holds_questions()
    file = f"questions_{split}" if asks else f"kb_{self.builder_config.name}"
    for row in georouter.read_rows(file):
      image = row.setdefault("image", "")
      row["png"] = (georouter.FOLDER / image).read_bytes() if image else b""
      if asks:
        row["hops"] = [json.dumps(hop) for hop in row["hops"]]
      yield row["id"], row

  def _holds_questions(self) -> bool:
    return self.builder_config.name == "questions"


def to_question(row: Mapping[str, Any]) -> Question:
  """Convert a row of "questions"; its image is the file in the package."""
  texts = ("id", "text", "image", "family", "benchmark")
  fields = {key: row[key].decode() for key in texts}
  for key in ("answers", "subjects"):
    fields[key] = [value.decode() for value in row[key]]
  hops = [json.loads(hop) for hop in row["hops"]]
  return georouter.to_question(fields | dict(hops=hops))


def to_passage(row: Mapping[str, Any], kb: str) -> Passage:
  """Convert a row of knowledge base `kb`."""
  fields = {key: row[key].decode() for key in ("id", "text", "image")}
  return georouter.to_passage(fields, kb)
