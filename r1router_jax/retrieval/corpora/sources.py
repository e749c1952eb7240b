"""The sources of a knowledge base: files of a corpus, read row by row.

A corpus is crawled, so a reader expects anything.  It yields a `Passage` for
each good row, and for each bad one a `RejectedRow`, which says where, why, and
the cure; the caller decides how many are too many.

A source is named on the command line:

  georouter             the GeoRouter world, which comes with the package
  PATH                  your own folder or file, see user_files.py
  wikipedia:FOLDER      see wikipedia.py
  mbeir:POOL            see mbeir.py
  open_wikitable:FILE   see open_wikitable.py
  multimodalqa:FOLDER   see multimodalqa.py

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
from collections.abc import Sequence
from typing import Any

from absl import flags

from r1router_jax.common import images, row_files
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS, Passage
from r1router_jax.common.row_files import RejectedRow, RowError
from r1router_jax.retrieval.corpora import (
  documents,
  mbeir,
  multimodalqa,
  open_wikitable,
  user_files,
  wikipedia,
)

# `--help` lists the flags below as the command's own.
flags.disclaim_key_flags()

# The source that comes with the package.
GEOROUTER = "georouter"

# The id of a row with its passages, or the reason why it is left out.
ParsedRow = tuple[str, list[Passage]] | RejectedRow


# The module that reads each kind of corpus.  It has
#   read_rows: (kind of knowledge base, path, function that opens it) -> (where,
#     raw row) of each row
#   to_passages: (kind of knowledge base, raw row, image folder) -> the id of
#     the row and its passages; raises `RowError` or `images.BadImage`
#   SUPPORTED_KBS: the kinds of knowledge base that the corpus is for
#   FILE_PATTERN: a regular expression of the names of its files, in which {kb}
#     stands for the kind of knowledge base
CORPORA = {
  "own": user_files,
  "wikipedia": wikipedia,
  "mbeir": mbeir,
  "open_wikitable": open_wikitable,
  "multimodalqa": multimodalqa,
}


class RejectedImage(RejectedRow):
  """A row that cannot be used because of its image."""


@dataclasses.dataclass(frozen=True)
class Source:
  """The files that a knowledge base is built from."""

  kb: str  # The kind of knowledge base.
  corpus: str  # One of `CORPORA`.
  paths: tuple[str, ...]  # In the order in which they are read.
  image_folder: str  # Paths of images are relative to it.
  whole: bool = False  # Whether each row is one passage, however long.


# --- Names of sources ---------------------------------------------------------


def georouter_folder() -> str:
  """Return the folder of the GeoRouter world."""
  return str(importlib.resources.files("r1router_jax") / "data/files/georouter")


def resolve_image_folder(source: str, image_folder: str = "") -> str:
  """Return the folder of the images of a source, given or else its own."""
  if image_folder or source == GEOROUTER:
    return image_folder or georouter_folder()
  _, path = _split_source(source)
  return path if os.path.isdir(path) else os.path.dirname(path) or "."


def define_source_flags() -> tuple[flags.FlagHolder, ...]:
  """Define --kind, --source and --images of a command that reads a corpus."""
  kind_help = (
    f"Kinds of knowledge base to build, of {', '.join(KBS)}; by default all "
    "that the source has something for."
  )
  source_help = (
    "The corpus: georouter, which comes with the package; a folder of your own "
    "documents, tables and images, or one that datasets.save_to_disk wrote; "
    "your own .md, .html, .pdf, .txt, .csv, .tsv, .jsonl, .parquet or .arrow "
    "files; or wikipedia:PATH, mbeir:PATH, open_wikitable:PATH, "
    "multimodalqa:PATH.  A path may be a pattern."
  )
  images_help = (
    "Folder that the images of the corpus are relative to, if it is not the "
    "folder of the corpus."
  )
  # Several commands may be imported into one process.
  options = dict(allow_override=True)
  return (
    flags.DEFINE_list("kind", [], kind_help, **options),
    flags.DEFINE_string("source", GEOROUTER, source_help, **options),
    flags.DEFINE_string("images", "", images_help, **options),
  )


def choose_kbs(
  source: str,
  wanted: Sequence[str] = (),
  image_folder: str = "",
  named: set[str] | None = None,
) -> tuple[str, ...]:
  """Return the kinds of knowledge base to build: those `wanted`, or else all.

  GeoRouter feeds all kinds, your own documents those that they have something
  for, a folder of a published corpus those that it has files for, and other
  sources one.  Raises a UserError if it is unclear which, or if
  documents have nothing for any.  For `named` see `row_files.SkipLog`.
  """
  corpus, path = _split_source(source)
  kbs = tuple(wanted) or CORPORA[corpus].SUPPORTED_KBS
  if source == GEOROUTER:
    return kbs
  if corpus == "own" and (possible := user_files.document_kbs(path)):
    return tuple(wanted) or _find_kbs(source, possible, image_folder, named)
  if corpus != "own" and os.path.isdir(path):
    found = (kb for kb in kbs if _corpus_files(kb, corpus, path))
    return tuple(wanted) or tuple(found) or kbs
  require_single_kb(source, kbs)
  return kbs


def _find_kbs(
  source: str, kbs: Sequence[str], image_folder: str, named: set[str] | None
) -> tuple[str, ...]:
  """Return those `kbs` that documents have a usable row for."""
  found, rejected = [], {}
  for kb in kbs:
    opened, of_kb = open_source(kb, source, image_folder), {}
    for where, row in read_raw_rows(opened):
      parsed = parse_row(opened, where, row)
      if not isinstance(parsed, RejectedRow):
        found.append(kb)
        break
      of_kb[str(parsed)] = parsed
    else:
      rejected |= of_kb
  # No build will name what is wrong with a kind that has nothing else.
  log = row_files.SkipLog(source, named)
  for row in rejected.values():
    log(row)
  if not found:
    log.finish(kept=0)
  return tuple(found)


def require_single_kb(source: str, kbs: Sequence[str]) -> None:
  """Raise a UserError unless a source is read for one knowledge base."""
  if len(kbs) != 1:
    message = "can feed one knowledge base.  Say which, as in --kind=text."
    raise UserError(f"--source={source} {message}")


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


def is_own(source: str) -> bool:
  """Return whether a source is a user's own files, and no published corpus."""
  return source != GEOROUTER and _split_source(source)[0] == "own"


# --- Files of sources ---------------------------------------------------------


def open_source(
  kb: str, source: str, image_folder: str = "", whole: bool = False
) -> Source:
  """Find the files that a source names for a kind of knowledge base.

  Rows of a user's own files may each be one `whole` passage.  Raises a
  UserError if there are no files, or none that can be read.
  """
  corpus, path = resolve_corpus(kb, source, image_folder)
  if source == GEOROUTER:
    path = os.path.join(georouter_folder(), f"kb_{kb}.jsonl")
  # A name that exists is taken literally, even if it looks like a pattern.
  exists = os.path.exists(path)
  paths = [path] if exists else sorted(glob.glob(path, recursive=True))
  if corpus != "own":
    # A folder stands for the corpus's own files below it.
    paths = [file for path in paths for file in _corpus_files(kb, corpus, path)]
  paths = validate_paths(kb, corpus, source, paths)
  folder = resolve_image_folder(source, image_folder)
  return Source(kb, corpus, paths, folder, whole)


def resolve_corpus(kb: str, source: str, image_folder: str) -> tuple[str, str]:
  """Return the corpus and the path that a source names.

  Raises a UserError if the corpus is not for this kind of knowledge base, or
  needs an image folder.
  """
  name, path = _split_source(source)
  kbs = CORPORA[name].SUPPORTED_KBS
  if kb not in kbs:
    message = f"is for --kind={' or '.join(kbs)}, not {kb}."
    raise UserError(f"--source={source} {message}")
  # Pools name images relative to a folder that lies elsewhere.
  if name == "mbeir" and not image_folder:
    message = "needs --images, the folder that holds mbeir_images."
    raise UserError(f"--source={source} {message}")
  return name, path


def file_pattern(kb: str, corpus: str) -> str:
  """Return the pattern of the names of a corpus's files for a kind."""
  return CORPORA[corpus].FILE_PATTERN.replace("{kb}", kb)


def _corpus_files(kb: str, corpus: str, path: str) -> list[str]:
  """Return `path`, or the files of a corpus below it, in order of names."""
  if not os.path.isdir(path):
    return [path]
  pattern = file_pattern(kb, corpus)
  # Sorted by whole paths, so that AA/wiki_01 comes before AB/wiki_00.
  return sorted(
    os.path.join(base, file)
    for base, _, found in os.walk(path)
    for file in found
    if re.fullmatch(pattern, file)
  )


def validate_paths(
  kb: str, corpus: str, source: str, paths: Sequence[str]
) -> tuple[str, ...]:
  """Return the paths of a source, or raise a UserError.

  There should be some, and all should be of a kind that is read.
  """
  if not paths:
    places = ", ".join(f"{name}:PATH" for name in CORPORA if name != "own")
    raise UserError(
      f"The source {source} does not exist, or holds no such file.  Give "
      f"{GEOROUTER}, a folder of documents, a .md, .html, .pdf, .txt, .jsonl, "
      f".csv, .parquet or .arrow file, or one of {places}."
    )
  # A dump would be read as pages of markup, so it is refused with its cure.
  for path in paths:
    if re.search(r"\.xml(\.\w+)?$", path):
      raise UserError(
        f"The source {path} is a dump.  Extract it: pip install "
        "wikiextractor; wikiextractor DUMP -o FOLDER; then "
        "--source=wikipedia:FOLDER."
      )
    if corpus == "own" and not _is_user_file(kb, path):
      is_for_documents = kb in documents.ROW_READERS
      or_document = ".md, .html, .pdf, .txt, " if is_for_documents else ""
      raise UserError(
        f"The source {path} is none that the {kb} knowledge base reads.  "
        f"Give a folder, or a {or_document}.parquet, .arrow, .jsonl, .csv or "
        ".tsv file; the last three may be .gz or .bz2."
      )
  return tuple(paths)


def _is_user_file(kb: str, path: str) -> bool:
  """Return whether `user_files` reads this path for this knowledge base."""
  if os.path.isdir(path):
    return True
  patterns = [user_files.FILE_PATTERN]
  if kb in documents.ROW_READERS:
    patterns.append(documents.DOCUMENT_PATTERN)
  # Paths in a bucket were listed there, so they are files.
  is_file = os.path.isfile(path) or "://" in path
  return is_file and any(re.fullmatch(each, path) for each in patterns)


# --- Rows of sources ----------------------------------------------------------


def read_raw_rows(
  source: Source,
  start: int = 0,
  stop: int | None = None,
  open_file: row_files.OpenFile = row_files.open_local,
) -> row_files.Rows:
  """Yield (where, raw row) of the rows `start` to before `stop` of a source."""
  read_rows = CORPORA[source.corpus].read_rows
  files = (read_rows(source.kb, path, open_file) for path in source.paths)
  return itertools.islice(itertools.chain.from_iterable(files), start, stop)


def parse_row(source: Source, where: str, row: Any) -> ParsedRow:
  """Return the id of a raw row and its passages, or why it is rejected."""
  try:
    # The file's reader may have found a fault already.
    if isinstance(row, RowError):
      raise row
    reader = CORPORA[source.corpus]
    # Published corpora are cut into passages as their authors did.
    options = {"whole": True} if source.whole else {}
    return reader.to_passages(source.kb, row, source.image_folder, **options)
  except images.BadImage as error:
    return RejectedImage(where, str(error).rstrip("."), "Or leave the row out")
  except RowError as error:
    return RejectedRow(where, *error.args)


def duplicate_id(where: str, row_id: str) -> RejectedRow:
  """Return the rejection of a row whose id came before."""
  reason = f"the id {row_id!a} came before"
  return RejectedRow(where, reason, "Give each row its own")
