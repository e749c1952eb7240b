"""R1-Router's Step-GRPO rows as a TensorFlow Dataset, without TensorFlow.

  files = grpo_rows_tfds.Files(
      name="r1_router", pictures="oven_images",
      files={"train": "grpo_dataset_train*.jsonl",
             "valid": "grpo_dataset_valid*.jsonl"})
  builder = grpo_rows_tfds.GrpoRows(config=files, data_dir=FOLDER)
  builder.download_and_prepare()
  rows = tfds.data_source("grpo_rows/r1_router", split="valid", data_dir=FOLDER)
  steps = grpo_rows_tfds.steps(rows[0], pictures="oven_images")

An example is a trajectory as published: a step is a JSON object, since lists
within lists need TensorFlow to be written, and paths of pictures are those of
the authors' machine, found again by their last parts.  ArrayRecord shuffles
rows, so each carries its id.  Broken rows are left out, as by `grpo_rows`.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from r1router_jax.common.records import Step
from r1router_jax.data import r1_router_rows


@dataclasses.dataclass(eq=False)
class Files(tfds.core.BuilderConfig):
  """What a dataset is made of; its name tells it from other datasets.

  Attributes:
    files: of each split, paths or globs with commas between them.
    pictures: the folder of the pictures; see `grpo_rows.load`.
  """

  files: Mapping[str, str] = dataclasses.field(default_factory=dict)
  pictures: str = ""


class GrpoRows(tfds.core.GeneratorBasedBuilder):
  """Trajectories of a teacher, cut into steps."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "As published."}

  def __init__(self, **kwargs):
    super().__init__(**{"file_format": "array_record"} | kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    text, texts = (
      tfds.features.Text(),
      tfds.features.Sequence(tfds.features.Text()),
    )
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        dict(id=text, images=texts, steps=texts)
      ),
      description="Step-GRPO rows of R1-Router.",
      homepage="https://arxiv.org/abs/2505.22095",
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    del dl_manager  # The files are here.
    return {
      split: self._generate_examples(patterns)
      for split, patterns in self.builder_config.files.items()
    }

  def _generate_examples(self, patterns: str) -> Iterator[tuple[str, dict]]:
    for row in r1_router_rows.load(patterns, self.builder_config.pictures):
      yield (
        row.id,
        dict(
          id=row.id,
          images=row.published["images"],
          steps=[json.dumps(step) for step in row.published["steps"]],
        ),
      )


def published(row: Mapping[str, Any]) -> dict[str, Any]:
  """The row as it was published."""
  return dict(
    images=[path.decode() for path in row["images"]],
    steps=[json.loads(step) for step in row["steps"]],
  )


def steps(row: Mapping[str, Any], pictures: str) -> list[Step]:
  """The steps of a row, with its picture in the folder `pictures`."""
  return r1_router_rows.parse(published(row), row["id"].decode(), pictures)
