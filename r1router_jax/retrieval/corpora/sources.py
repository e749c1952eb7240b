"""The sources of a knowledge base: files of a corpus, read row by row.

A corpus is crawled, so a reader expects anything.  It yields a `Passage` for
each good row, and for each bad one a `RejectedRow`, which says where, why, and
the cure; the caller decides how many are too many.

A source is named on the command line:

  georouter             the GeoRouter world, which comes with the package
  rows.jsonl            your own, see user_files.py; also .csv, or a folder
  wikipedia:FOLDER      see wikipedia.py
  mbeir:POOL            see mbeir.py
  open_wikitable:FILE   see open_wikitable.py

Instead of a file there may be a pattern, 'dir/passages-*.jsonl'; its files are
read in the order of their names.  A reader is two functions: `read_rows` cuts a
file into raw rows, which costs little, so that reading may begin anywhere, and
`to_passages` is a pure function of a raw row.  beam_pipeline.py runs the same
two.
"""

import dataclasses
import glob
import importlib.resources
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from r1router_jax.common import images, row_files
from r1router_jax.common.records import KBS, Passage
from r1router_jax.common.row_files import RejectedRow, RowError
from r1router_jax.retrieval.corpora import (
  id_dedup,
  mbeir,
  open_wikitable,
  user_files,
  wikipedia,
)

# The source that comes with the package.
GEOROUTER = "georouter"

# Limits of the rows that are read at once, and of the bytes of their texts.
BLOCK_ROWS, BLOCK_BYTES = 16_384, 64 << 20

# The id of a row with its passages, or the reason why it is left out.
ParsedRow = tuple[str, list[Passage]] | RejectedRow


@dataclasses.dataclass(frozen=True)
class Corpus:
  """The reader of a kind of corpus.

  Attributes:
    read_rows: (path, function that opens it) -> (where, raw row) of each row.
    to_passages: (kind of knowledge base, raw row, image folder) -> the id of
      the row and its passages; raises `RowError` or `images.BadImage`.
    kbs: kinds of knowledge base that the corpus is for.
    file_pattern: regular expression of the names of its files.
  """

  read_rows: Callable[[str, row_files.OpenFile], row_files.Rows]
  to_passages: Callable[[str, Any, str], tuple[str, list[Passage]]]
  kbs: tuple[str, ...]
  file_pattern: str


CORPORA = {
  "own": Corpus(
    user_files.read_rows,
    user_files.to_passages,
    KBS,
    r".*\.(jsonl|csv)(\.gz|\.bz2)?",
  ),
  "wikipedia": Corpus(
    wikipedia.read_rows,
    wikipedia.to_passages,
    ("text",),
    r"wiki_\d+(\.bz2)?|.*\.jsonl(\.gz|\.bz2)?",
  ),
  "mbeir": Corpus(
    mbeir.read_rows,
    mbeir.to_passages,
    ("image",),
    r"mbeir_.*cand_pool\.jsonl(\.gz|\.bz2)?",
  ),
  "open_wikitable": Corpus(
    open_wikitable.read_rows,
    open_wikitable.to_passages,
    ("table",),
    r"splitted_tables\.json(\.gz|\.bz2)?",
  ),
}


class RejectedImage(RejectedRow):
  """A row that cannot be used because of its image."""


@dataclasses.dataclass(frozen=True)
class Source:
  """The files that a knowledge base is built from.

  Attributes:
    kb: the kind of knowledge base.
    corpus: one of `CORPORA`.
    paths: paths of the files, in the order in which they are read.
    image_folder: the folder that the paths of images are relative to.
  """

  kb: str
  corpus: str
  paths: tuple[str, ...]
  image_folder: str


# --- Names of sources ---------------------------------------------------------


def georouter_folder() -> str:
  """Return the folder of the GeoRouter world."""
  return str(importlib.resources.files("r1router_jax") / "data/files/georouter")


def resolve_image_folder(source: str, image_folder: str = "") -> str:
  """Return the folder that the image paths of a source are relative to.

  Args:
    source: the source, as on the command line.
    image_folder: the folder if one was given; by default the source's own.
  """
  if image_folder or source == GEOROUTER:
    return image_folder or georouter_folder()
  _, path = _split_source(source)
  return path if os.path.isdir(path) else os.path.dirname(path) or "."


def supported_kbs(source: str) -> tuple[str, ...]:
  """Return the kinds of knowledge base that a source can be for."""
  return CORPORA[_split_source(source)[0]].kbs


def absolute_source(source: str) -> str:
  """Return the source's name with an absolute path."""
  if source == GEOROUTER:
    return source
  corpus, path = _split_source(source)
  path = os.path.abspath(path)
  return path if corpus == "own" else f"{corpus}:{path}"


def _split_source(source: str) -> tuple[str, str]:
  """Return the corpus and the path that a source names."""
  corpus, _, path = source.partition(":")
  # A colon may also be part of a user's path.
  return (corpus, path) if path and corpus in CORPORA else ("own", source)


# --- Files of sources ---------------------------------------------------------


def open_source(kb: str, source: str, image_folder: str = "") -> Source:
  """Find the files that a source names.

  Args:
    kb: "text", "image" or "table".
    source: the source, as described at the top of this module.
    image_folder: the folder that image paths are relative to, "" for the
      source's own.

  Raises:
    ValueError: there are no such files, or none that can be read.
  """
  corpus, path = resolve_corpus(kb, source, image_folder)
  if source == GEOROUTER:
    path = os.path.join(georouter_folder(), f"kb_{kb}.jsonl")
  # A name that exists is taken literally, even if it looks like a pattern.
  paths = [path]
  if not os.path.exists(path):
    paths = sorted(glob.glob(path, recursive=True))
  if corpus != "own":
    # A folder stands for the corpus's own files below it.
    paths = [file for path in paths for file in _corpus_files(corpus, path)]
  paths = validate_paths(kb, corpus, source, paths)
  return Source(kb, corpus, paths, resolve_image_folder(source, image_folder))


def resolve_corpus(kb: str, source: str, image_folder: str) -> tuple[str, str]:
  """Return the corpus and the path that a source names.

  Raises:
    ValueError: the corpus is not for this kind of knowledge base, or needs an
      image folder.
  """
  name, path = _split_source(source)
  kbs = CORPORA[name].kbs
  if kb not in kbs:
    raise ValueError(
      f"--source={source} is for --kind={' or '.join(kbs)}, not {kb}."
    )
  # Pools name images relative to a folder that lies elsewhere.
  if name == "mbeir" and not image_folder:
    raise ValueError(
      f"--source={source} needs --images, the folder that holds mbeir_images."
    )
  return name, path


def _corpus_files(corpus: str, path: str) -> list[str]:
  """Return `path`, or the files of a corpus below it, in order of names."""
  if not os.path.isdir(path):
    return [path]
  # Sorted by whole paths, so that AA/wiki_01 comes before AB/wiki_00.
  return sorted(
    os.path.join(base, file)
    for base, _, found in os.walk(path)
    for file in found
    if re.fullmatch(CORPORA[corpus].file_pattern, file)
  )


def validate_paths(
  kb: str, corpus: str, source: str, paths: Sequence[str]
) -> tuple[str, ...]:
  """Return the paths of a source if there are some and all can be read.

  Raises:
    ValueError: there are none, or one is of a kind that is not read.
  """
  if not paths:
    raise ValueError(
      f"The source {source} does not exist, or holds no such file.  Give "
      f"{GEOROUTER}, a .jsonl or .csv file, a folder of images, or one of "
      + ", ".join(f"{name}:PATH" for name in CORPORA if name != "own")
      + "."
    )
  for path in paths:
    if re.search(r"\.xml(\.\w+)?$", path):
      raise ValueError(
        f"The source {path} is a dump.  Extract it: pip install "
        "wikiextractor; wikiextractor DUMP -o FOLDER; then "
        "--source=wikipedia:FOLDER."
      )
    if corpus == "own" and not _is_user_file(kb, path):
      raise ValueError(
        f"The source {path} is none that the {kb} knowledge base reads.  "
        "Give a .jsonl or .csv file, plain or .gz or .bz2"
        + (", or a folder of images." if kb == "image" else ".")
      )
  return tuple(paths)


def _is_user_file(kb: str, path: str) -> bool:
  """Return whether `user_files` reads this path for this knowledge base."""
  if os.path.isdir(path):
    return kb == "image"
  # Paths in a bucket were listed there, so they are files.
  is_file = os.path.isfile(path) or "://" in path
  return bool(is_file and re.fullmatch(CORPORA["own"].file_pattern, path))


# --- Rows of sources ----------------------------------------------------------


def read_raw_rows(
  source: Source,
  start: int = 0,
  stop: int | None = None,
  open_file: row_files.OpenFile = row_files.open_local,
) -> row_files.Rows:
  """Yield (where, raw row) of the rows `start` to before `stop` of a source."""
  read_rows = CORPORA[source.corpus].read_rows
  all_rows = itertools.chain.from_iterable(
    read_rows(path, open_file) for path in source.paths
  )
  return itertools.islice(all_rows, start, stop)


def parse_row(source: Source, where: str, row: Any) -> ParsedRow:
  """Return the id of a raw row and its passages, or why it is rejected."""
  try:
    # The file's reader may have found a fault already.
    if isinstance(row, RowError):
      raise row
    to_passages = CORPORA[source.corpus].to_passages
    return to_passages(source.kb, row, source.image_folder)
  except images.BadImage as error:
    return RejectedImage(where, str(error).rstrip("."), "Or leave the row out")
  except RowError as error:
    return RejectedRow(where, *error.args)


def duplicate_id(where: str, row_id: str) -> RejectedRow:
  """Return the rejection of a row whose id came before."""
  return RejectedRow(
    where, f"the id {row_id!a} came before", "Give each row its own"
  )


def read_blocks(
  source: Source, start: int = 0, known_ids: id_dedup.IdSet | None = None
) -> Iterator[tuple[int, list[Passage | RejectedRow], np.ndarray]]:
  """Yield the passages and rejected rows of a source, block by block.

  Args:
    source: the files to read.
    start: number of rows to pass over.
    known_ids: the ids of these rows; the ids of the others are added.

  Yields:
    The number of rows of the block, their passages and rejections in order, and
    the hashes of their ids.
  """
  known_ids = id_dedup.IdSet() if known_ids is None else known_ids
  block, size = [], 0
  for where, row in read_raw_rows(source, start):
    parsed = parse_row(source, where, row)
    block.append((where, parsed))
    if not isinstance(parsed, RejectedRow):
      size += sum(len(passage.text) for passage in parsed[1])
    # Rows bound the work between two saves, and bytes the memory.
    if len(block) == BLOCK_ROWS or size > BLOCK_BYTES:
      yield _drop_duplicates(block, known_ids)
      block, size = [], 0
  if block:
    yield _drop_duplicates(block, known_ids)


def _drop_duplicates(
  block: list[tuple[str, ParsedRow]], known_ids: id_dedup.IdSet
) -> tuple[int, list[Passage | RejectedRow], np.ndarray]:
  """Reject the rows of a block whose ids came before; see `read_blocks`."""
  # Ids of rejected rows do not count: a later good row may have the same.
  hashes = id_dedup.hash_ids(
    [parsed[0] for _, parsed in block if not isinstance(parsed, RejectedRow)]
  )
  # One value for each row that was not rejected before.
  is_new = known_ids.add(hashes)
  verdicts, found = iter(is_new.tolist()), []
  for where, parsed in block:
    if isinstance(parsed, RejectedRow):
      found.append(parsed)
    elif next(verdicts):
      found.extend(parsed[1])
    else:
      found.append(duplicate_id(where, parsed[0]))
  return len(block), found, hashes[is_new]


def read_passages(
  kb: str, source: str, image_folder: str = ""
) -> Iterator[Passage | RejectedRow]:
  """Yield the passages and rejected rows of a source, with relative images.

  Args:
    kb: "text", "image" or "table".
    source: the source, as described at the top of this module.
    image_folder: the folder that image paths are relative to, "" for the
      source's own.

  Raises:
    ValueError: the source as a whole cannot be read.
  """
  files = open_source(kb, source, image_folder)
  return itertools.chain.from_iterable(
    found for _, found, _ in read_blocks(files)
  )
