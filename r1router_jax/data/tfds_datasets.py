"""Datasets that TensorFlow Datasets keeps, read without TensorFlow.

A dataset is prepared when it is first read with its `Source`, and again when
that has changed.  From then on it lies in <tfds_dir>/<name>/<config>/<version>,
images included, and is read without its source, by `tfds.data_source`, too:

  rows = tfds.data_source("benchmarks/infoseek", split="test", data_dir=FOLDER)

Rows keep the order of their source.  Slices of a split, such as "train[:90%]"
and "train[90%:]", are taken of a permutation that the seed gives, so that they
are random, disjoint, and the same in every run; their rows are in order, too.

A prepared folder may come from elsewhere: its features are not looked up there,
since TFDS imports whatever classes are named, and readers check every row.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from absl import logging
from etils import epy

from r1router_jax.common import files, images
from r1router_jax.common.errors import UserError

# Imported when used: most of a command's checks come before.
with epy.lazy_imports():
  import tensorflow_datasets as tfds

_VERSION = "2.0.0"  # Of the form of rows; 1.0.0 held one feature a field.

# Images of all datasets, unpacked, under names made of their content.
IMAGE_FOLDER = os.path.join(files.CACHE_FOLDER, "images")


class Example(NamedTuple):
  """A row of a dataset."""

  id: str  # Unique within its split.
  record: str  # JSON; TFDS needs TensorFlow to write lists within lists.
  image: str = ""  # Name of the image's file, "" without an image.
  picture: bytes = b""  # The bytes of that file, empty if it is not stored.


# For each split, a function that yields its rows in order.
Splits = Mapping[str, Callable[[], Iterable[Example]]]


@dataclasses.dataclass(frozen=True)
class Source:
  """The rows of a dataset, and a digest by which changes are noticed."""

  digest: str  # Changes whenever the rows do.
  splits: Splits


def read_split(
  dataset: str,
  split: str,
  seed: int = 0,
  tfds_dir: str = "",
  source: Source | None = None,
) -> Iterator[tuple[str, Example]]:
  """Yield (place, row) of a split; the place says where the row was found.

  Args:
    dataset: "name" or "name/config".
    split: a split, slices of it, or a sum of these, as TFDS spells them.
    seed: seed of the permutation that slices are taken of.
    tfds_dir: folder of all datasets; "" is the default of TFDS.
    source: what the dataset is prepared from; None reads it as it is.

  Raises:
    UserError: if the dataset is not prepared and cannot be, or is damaged, or
      has no such split.
  """
  tfds_dir = os.path.expanduser(tfds_dir or tfds.core.constants.DATA_DIR)
  if source:
    prepare(dataset, tfds_dir, source)
  builder = _open_builder(dataset, tfds_dir)
  if not builder.data_path.exists():
    raise UserError(
      f"{dataset} is not prepared in {tfds_dir}.  Name its files once, by "
      "--data or config.data.train_files, or the folder in which it is "
      "prepared, by --tfds_dir or config.data.tfds_dir."
    )
  digest = _read_digest(builder)
  for name, numbers in choose_rows(builder.info.splits, dataset, split, seed):
    with _damage_named(builder.data_dir):
      rows = builder.as_data_source(name)
    for number in map(int, numbers):
      with _damage_named(builder.data_dir):
        row = rows[number]
        texts = (row[key].decode() for key in ("id", "record", "image"))
        example = Example(*texts, row["picture"])
      yield f"{builder.data_dir}:{name}[{number}]", example
  # A process with another source may have replaced what was being read.
  if _read_digest(_open_builder(dataset, tfds_dir)) != digest:
    raise UserError(f"{dataset} was prepared anew meanwhile.  Start again.")


def prepare(dataset: str, tfds_dir: str, source: Source) -> None:
  """Prepare a dataset from its source, unless that is done already.

  Processes that prepare the same dataset wait for each other.  One that is
  killed leaves nothing that would be taken for a dataset.
  """
  if _read_digest(_open_builder(dataset, tfds_dir)) == source.digest:
    return
  with _lock(dataset, tfds_dir):
    # Another process may have prepared it by now.
    builder = _open_builder(dataset, tfds_dir, source.splits)
    if _read_digest(builder) == source.digest:
      return
    # Remove what was made of another state of the source, or half made.
    for left in builder.data_path.parent.glob("incomplete.*"):
      shutil.rmtree(left)
    if builder.data_path.exists():
      shutil.rmtree(builder.data_dir)
      builder = _open_builder(dataset, tfds_dir, source.splits)
    builder.info.metadata["digest"] = source.digest
    tfds.disable_progress_bar()
    logging.info("Preparing %s in %s.", dataset, builder.data_dir)
    # TFDS prints what it does, but standard output is for results.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()


def store_image(data: bytes, name: str) -> str:
  """Write an image to `IMAGE_FOLDER`, unless it is there; return its path.

  Only the ending of `name` is used, and none that is suspicious: that is a
  `BadImage`.
  """
  stored = hashlib.sha256(data).hexdigest() + os.path.splitext(name)[1].lower()
  path = images.resolve_path(stored, IMAGE_FOLDER)
  if not os.path.isfile(path):
    os.makedirs(IMAGE_FOLDER, exist_ok=True)
    # Processes may write the same image at the same time.
    own = pathlib.Path(f"{path}.{os.getpid()}")
    own.write_bytes(data)
    own.replace(path)
  return path


def _open_builder(
  dataset: str, tfds_dir: str, splits: Splits | None = None
) -> "tfds.core.DatasetBuilder":
  """Return the builder of a dataset, which need not be prepared."""
  dataset_name, _, config = dataset.partition("/")

  # The class is made here since TFDS warns of configs that it does not name.
  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = dataset_name
    VERSION = tfds.core.Version(_VERSION)
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

    def _info(self):
      # Bytes are such a text, too.
      texts = dict.fromkeys(Example._fields, tfds.features.Text())
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(texts),
        homepage="https://arxiv.org/abs/2505.22095",
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(),
      )

    def _split_generators(self, dl_manager):
      del dl_manager  # The files are here.
      return {name: self._generate_examples(splits[name]()) for name in splits}

    def _generate_examples(self, rows):
      for number, row in enumerate(rows):
        yield number, row._asdict()

  with _damage_named(os.path.join(tfds_dir, dataset, _VERSION)):
    builder = Builder(data_dir=tfds_dir, file_format="array_record")
    if builder.data_path.exists() and not builder.info.splits:
      raise UserError("it has no splits")
  return builder


def _read_digest(builder: "tfds.core.DatasetBuilder") -> str:
  """Return the digest of the source that was prepared, "" if none was."""
  # TFDS renames a folder to this once it is complete.
  if not builder.data_path.exists():
    return ""
  with _damage_named(builder.data_dir):
    digest = builder.info.metadata.get("digest")
  if digest:
    return digest
  raise UserError(
    f"{builder.data_dir} is not a dataset of r1router_jax.  Delete it, or name "
    "another folder by --tfds_dir or config.data.tfds_dir."
  )


def _lock(dataset: str, tfds_dir: str) -> contextlib.AbstractContextManager:
  """Keep other processes from preparing datasets of the same name."""
  try:
    name = f".{dataset.partition('/')[0]}.lock"
    return files.lock_folder(tfds_dir, name, wait=True)
  except OSError as error:
    raise UserError(
      f"{dataset} cannot be prepared in {tfds_dir} ({error}).  Name a folder "
      "that can be written, by --tfds_dir, config.data.tfds_dir or "
      "TFDS_DATA_DIR."
    ) from error


def choose_rows(
  splits: Mapping[str, "tfds.core.SplitInfo"],
  dataset: str,
  split: str,
  seed: int,
) -> list[tuple[str, np.ndarray]]:
  """Return (split, numbers of its rows) of each part of `split`.

  The numbers of a slice are taken of a permutation that the seed gives, and
  sorted.  If there is no such split, or it has no rows, the error is a
  UserError that names the dataset.
  """
  try:
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
  except (ValueError, NotImplementedError) as error:
    raise UserError(
      f"{dataset} has no split {split!r}: {str(error).splitlines()[-1]}  Take "
      f"{', '.join(splits)}, or slices such as {min(splits)}[:90%]."
    ) from error
  chosen = []
  for part in parts:
    numbers = np.arange(splits[part.splitname].num_examples)
    if (part.from_, part.to) != (None, None):
      shuffled = np.random.default_rng(seed).permutation(numbers)
      numbers = np.sort(shuffled[part.from_ : part.to])
    chosen.append((part.splitname, numbers))
  if not sum(len(numbers) for _, numbers in chosen):
    raise UserError(f"{dataset}: its split {split!r} has no rows.  Take more.")
  return chosen


@contextlib.contextmanager
def _damage_named(folder: str) -> Iterator[None]:
  """Turn the errors of a damaged dataset into one that names its folder."""
  try:
    yield
  # TFDS, ArrayRecord and protobuf raise many kinds; all mean one thing.
  except Exception as error:
    raise UserError(
      f"{folder}: is damaged ({type(error).__name__}: {str(error)[:200]}).  "
      "Delete this folder, and it will be prepared again from its files."
    ) from error
