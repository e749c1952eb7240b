"""Readers of raw corpora: files to passages, one bad row at a time.

A corpus is crawled, so a reader expects anything.  It yields a `Passage` for
each good row and a `BadRow` for each bad one, which says where, why, and the
cure; whoever reads decides how many are too many.

A source is named on the command line:

  georouter             the embedded world
  rows.jsonl            your own, see own_rows.py; also .csv, or a folder
  wikipedia:FOLDER      see wikipedia.py
  mbeir:POOL            see mbeir.py
  open_wikitable:FILE   see open_wikitable.py

Instead of a file there may be a pattern, 'dir/passages-*.jsonl'; its files are
read in the order of their names.  A reader is two functions.  `rows` cuts a
file into raw rows, which costs little, so that a reader may begin anywhere;
`passages` is a pure function of a raw row.  beam.py runs the same two.
"""

import dataclasses
import glob
import importlib.resources
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from r1router_jax.common import images, row_files
from r1router_jax.common.records import KBS, Passage
from r1router_jax.common.row_files import BadRow, Fault
from r1router_jax.retrieval.corpora import (
  id_dedup,
  mbeir,
  open_wikitable,
  user_files,
  wikipedia,
)

WORLD = "georouter"  # The source that comes with the package.

BLOCK, BLOCK_BYTES = 16_384, 64 << 20  # Rows read at once, or texts of so many.


@dataclasses.dataclass(frozen=True)
class Corpus:
  """How a corpus is read.

  Attributes:
    rows: (path, how to open it) -> (where, raw row) for each row of a file.
    passages: (kind of knowledge base, raw row, folder of pictures) -> the id
      of the row and its passages; raises `Fault` or `images.BadImage`.
    kbs: kinds of knowledge base that it is for.
    names: of its files, a regular expression.
  """

  rows: Callable[[str, row_files.Open], row_files.Rows]
  passages: Callable[[str, Any, str], tuple[str, list[Passage]]]
  kbs: tuple[str, ...]
  names: str


CORPORA = {
  "own": Corpus(
    user_files.rows, user_files.passages, KBS, r".*\.(jsonl|csv)(\.gz|\.bz2)?"
  ),
  "wikipedia": Corpus(
    wikipedia.rows,
    wikipedia.passages,
    ("text",),
    r"wiki_\d+(\.bz2)?|.*\.jsonl(\.gz|\.bz2)?",
  ),
  "mbeir": Corpus(
    mbeir.rows,
    mbeir.passages,
    ("image",),
    r"mbeir_.*cand_pool\.jsonl(\.gz|\.bz2)?",
  ),
  "open_wikitable": Corpus(
    open_wikitable.rows,
    open_wikitable.passages,
    ("table",),
    r"splitted_tables\.json(\.gz|\.bz2)?",
  ),
}


class BadPicture(BadRow):
  """A row that cannot be used because of its picture."""


@dataclasses.dataclass(frozen=True)
class Source:
  """What is read for a knowledge base.

  Attributes:
    kb: its kind.
    corpus: one of `CORPORA`.
    paths: of the files, in their order.
    pictures: the folder that pictures are named below.
  """

  kb: str
  corpus: str
  paths: tuple[str, ...]
  pictures: str


def world_folder() -> str:
  """Where the embedded world lies."""
  return str(importlib.resources.files("r1router_jax") / "data/files/georouter")


def picture_folder(source: str, pictures: str = "") -> str:
  """The folder that a source's pictures are named below.

  Args:
    source: as on the command line.
    pictures: the folder, where it was given.
  """
  if pictures or source == WORLD:
    return pictures or world_folder()
  _, path = _split(source)
  return path if os.path.isdir(path) else os.path.dirname(path) or "."


def feeds(source: str) -> tuple[str, ...]:
  """Kinds of knowledge base that `source` can be for."""
  return CORPORA[_split(source)[0]].kbs


def absolute(source: str) -> str:
  """`source`, whatever the working directory."""
  if source == WORLD:
    return source
  corpus, path = _split(source)
  path = os.path.abspath(path)
  return path if corpus == "own" else f"{corpus}:{path}"


def _split(source: str) -> tuple[str, str]:
  """Corpus and path of a source."""
  corpus, _, path = source.partition(":")
  return (corpus, path) if path and corpus in CORPORA else ("own", source)


def find(kb: str, source: str, pictures: str = "") -> Source:
  """What `source` names.

  Args:
    kb: "text", "image" or "table".
    source: see the head of this module.
    pictures: the folder that its pictures are named below, "" for the source's
      own.

  Raises:
    ValueError: where nothing is there, or nothing that can be read.
  """
  corpus, path = asked(kb, source, pictures)
  if source == WORLD:
    path = os.path.join(world_folder(), f"kb_{kb}.jsonl")
  paths = (
    [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
  )
  if corpus != "own":
    paths = [file for path in paths for file in _files(corpus, path)]
  return Source(
    kb,
    corpus,
    checked(kb, corpus, source, paths),
    picture_folder(source, pictures),
  )


def asked(kb: str, source: str, pictures: str) -> tuple[str, str]:
  """Corpus and path of `source`; see `find`."""
  name, path = _split(source)
  kbs = CORPORA[name].kbs
  if kb not in kbs:
    raise ValueError(
      f"--source={source} is for --kb={' or '.join(kbs)}, not {kb}."
    )
  if name == "mbeir" and not pictures:
    raise ValueError(
      f"--source={source} needs --images, the folder that holds mbeir_images."
    )
  return name, path


def _files(corpus: str, path: str) -> list[str]:
  """`path`, or the files of a corpus below it, in the order of their names."""
  if not os.path.isdir(path):
    return [path]
  return sorted(
    os.path.join(base, file)
    for base, _, found in os.walk(path)
    for file in found
    if re.fullmatch(CORPORA[corpus].names, file)
  )


def checked(
  kb: str, corpus: str, source: str, paths: Sequence[str]
) -> tuple[str, ...]:
  """`paths` of `source`, where there are some and all can be read."""
  if not paths:
    raise ValueError(
      f"The source {source} does not exist, or holds no such file.  Give "
      f"{WORLD}, a .jsonl or .csv file, a folder of pictures, or one of "
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
    file = os.path.isfile(path) or "://" in path
    if corpus == "own" and not (
      file
      and re.fullmatch(CORPORA["own"].names, path)
      or kb == "image"
      and os.path.isdir(path)
    ):
      raise ValueError(
        f"The source {path} is none that the {kb} knowledge base reads.  "
        "Give a .jsonl or .csv file, plain or .gz or .bz2"
        + (", or a folder of pictures." if kb == "image" else ".")
      )
  return tuple(paths)


def rows(
  source: Source,
  start: int = 0,
  stop: int | None = None,
  open_file: row_files.Open = row_files.stored,
) -> row_files.Rows:
  """(where, raw row) of the rows of a source, from `start` to before `stop`."""
  read = CORPORA[source.corpus].rows
  every = itertools.chain.from_iterable(
    read(path, open_file) for path in source.paths
  )
  return itertools.islice(every, start, stop)


def cut(
  source: Source, where: str, row: Any
) -> tuple[str, list[Passage]] | BadRow:
  """The id of a raw row and its passages, or what is wrong with it."""
  try:
    if isinstance(row, Fault):
      raise row
    return CORPORA[source.corpus].passages(source.kb, row, source.pictures)
  except images.BadImage as error:
    return BadPicture(where, str(error).rstrip("."), "Or leave the row out")
  except Fault as fault:
    return BadRow(where, *fault.args)


def repeated(where: str, name: str) -> BadRow:
  """What is wrong with a row whose id came before."""
  return BadRow(where, f"the id {name!a} came before", "Give each row its own")


def blocks(
  source: Source, start: int = 0, before: id_dedup.Seen | None = None
) -> Iterator[tuple[int, list[Passage | BadRow], Any]]:
  """Passages and bad rows of a source, some thousand rows at a time.

  Args:
    source: what is read.
    start: rows to pass over.
    before: ids of their rows.

  Yields:
    How many rows were read, what they are, and the hashes of their ids.
  """
  before = id_dedup.Seen() if before is None else before
  batch, size = [], 0
  for where, row in rows(source, start):
    found = cut(source, where, row)
    batch.append((where, found))
    if not isinstance(found, BadRow):
      size += sum(len(passage.text) for passage in found[1])
    if len(batch) == BLOCK or size > BLOCK_BYTES:
      yield _block(batch, before)
      batch, size = [], 0
  if batch:
    yield _block(batch, before)


def _block(batch: list, before: id_dedup.Seen):
  """One block, less the rows whose ids came before."""
  hashes = id_dedup.hashes(
    [found[0] for _, found in batch if not isinstance(found, BadRow)]
  )
  new = before.add(hashes)
  verdicts, block = iter(new.tolist()), []
  for where, found in batch:
    if isinstance(found, BadRow):
      block.append(found)
    elif next(verdicts):
      block.extend(found[1])
    else:
      block.append(repeated(where, found[0]))
  return len(batch), block, hashes[new]


def read(
  kb: str, source: str, pictures: str = ""
) -> Iterator[Passage | BadRow]:
  """Passages of knowledge base `kb`, with the paths of pictures relative.

  Args:
    kb: "text", "image" or "table".
    source: see the head of this module.
    pictures: the folder that its pictures are named below, "" for the source's
      own.

  Raises:
    ValueError: where the source as a whole cannot be read.
  """
  found = find(kb, source, pictures)
  return itertools.chain.from_iterable(block for _, block, _ in blocks(found))
