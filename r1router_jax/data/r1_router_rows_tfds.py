"""R1-Router's Step-GRPO rows as a TensorFlow Dataset, without TensorFlow.

  files = r1_router_rows_tfds.RowFiles(
      name="r1_router", image_folder="oven_images",
      files={"train": "grpo_dataset_train*.jsonl",
             "valid": "grpo_dataset_valid*.jsonl"})
  builder = r1_router_rows_tfds.GrpoRows(config=files, data_dir=FOLDER)
  builder.download_and_prepare()
  rows = tfds.data_source("grpo_rows/r1_router", split="valid", data_dir=FOLDER)
  steps = r1_router_rows_tfds.to_steps(rows[0], image_folder="oven_images")

An example is a trajectory as published: a step is a JSON object, since lists
within lists need TensorFlow to be written, and paths of images are those of the
authors' machine, found again by their last parts.  ArrayRecord shuffles rows,
so each carries its id.  Broken rows are left out, as `r1_router_rows` does.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from r1router_jax.common.records import Step
from r1router_jax.data import r1_router_rows


@dataclasses.dataclass(eq=False)
class RowFiles(tfds.core.BuilderConfig):
  """The files of a dataset; its name tells it from other datasets.

  Attributes:
    files: for each split, paths or globs with commas between them.
    image_folder: folder of the images; see `r1_router_rows.load_rows`.
  """

  files: Mapping[str, str] = dataclasses.field(default_factory=dict)
  image_folder: str = ""


class GrpoRows(tfds.core.GeneratorBasedBuilder):
  """Trajectories of R1-Router's teacher, cut into steps."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "As published."}

  def __init__(self, **kwargs):
    super().__init__(**{"file_format": "array_record"} | kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    # A step is stored as JSON: nested sequences would need TensorFlow.
    text = tfds.features.Text()
    texts = tfds.features.Sequence(text)
    features = dict(id=text, images=texts, steps=texts)
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(features),
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
    folder = self.builder_config.image_folder
    for row in r1_router_rows.load_rows(patterns, folder):
      images = row.published["images"]
      steps = [json.dumps(step) for step in row.published["steps"]]
      yield row.id, dict(id=row.id, images=images, steps=steps)


def to_published_row(row: Mapping[str, Any]) -> dict[str, Any]:
  """Return the row in its published form."""
  return dict(
    images=[path.decode() for path in row["images"]],
    steps=[json.loads(step) for step in row["steps"]],
  )


def to_steps(row: Mapping[str, Any], image_folder: str) -> list[Step]:
  """Return the steps of a row, whose image lies in `image_folder`."""
  published, name = to_published_row(row), row["id"].decode()
  return r1_router_rows.parse_row(published, name, image_folder)
