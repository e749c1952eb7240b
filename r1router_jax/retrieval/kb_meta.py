"""The description of built knowledge bases, read without opening them.

A knowledge base is a folder; the meta.json of its current version says what it
was built from, so a folder without one is unfinished.  Nothing here imports
JAX, so that a command can check its flags before it loads anything.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from r1router_jax.common import schema
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS
from r1router_jax.retrieval import kb_versions

# Version of the files in the folder; raise it when they change.
FORMAT_VERSION = 2

# Keys of meta.json that concern searching only: they may be added or removed
# without embedding the passages again.
SEARCH_OPTIONS = ("hybrid", "words", "rerank", "rerank_fingerprint")

# Embedder of each kind of knowledge base, unless another is chosen.
DEFAULT_EMBEDDERS = dict(text="minilm", image="image_caption", table="minilm")

# Names in meta.json of embedders that were renamed since.  The file keeps them:
# its content tells a knowledge base from others in runs that are resumed.
_STORED_EMBEDDERS = {"image": "picture", "image_caption": "picture_caption"}
# Folders that say openai or tei hold vectors as the server sent them.
_STORED_EMBEDDERS |= {"openai": "openai_unit", "openai_raw": "openai"}
_STORED_EMBEDDERS |= {"tei": "tei_unit", "tei_raw": "tei"}


class _Meta(msgspec.Struct, forbid_unknown_fields=True):
  """The schema of meta.json."""

  format: int
  kb: schema.one_of(*KBS)
  rows: schema.PositiveInt
  width: schema.int_range(1, 1 << 20)
  embedder: str
  weights: str
  fingerprint: str
  index: str
  source: str
  passages: str  # Digest of passages.jsonl.
  # These are there only if they are set.
  shards: schema.PositiveInt = 1
  pictures: str = ""
  hybrid: bool = False
  words: schema.PositiveInt = 1  # `bm25.WORDS_VERSION` of a hybrid one.
  rerank: str = ""
  rerank_fingerprint: str = ""
  probe_queries: str = ""  # Digest of the questions that ScaNN was tuned for.
  imported: str = ""  # Digest of the FAISS index that the vectors are from.
  tokenizer: str = ""  # Digest of the tokenizer.json beside the weights.


def read_meta(folder: str) -> dict[str, Any] | None:
  """Return the content of the current meta.json, or None; see `read_json`."""
  version = kb_versions.version_folder(folder)
  meta = read_json(os.path.join(version, kb_versions.META_FILE), _Meta)
  # A build may have removed the version since it was looked up.
  if meta is None and kb_versions.version_folder(folder) != version:
    return read_meta(folder)
  return meta


def read_finished_meta(folder: str) -> dict:
  """Return the content of meta.json; raise a UserError if there is none."""
  meta = read_meta(folder)
  if meta is None:
    raise _no_kb_error(folder, os.path.dirname(folder) or ".")
  return meta


def _no_kb_error(folder: str, kb_dir: str) -> UserError:
  message = f"{folder} holds no finished knowledge base.  Build it with:"
  command = "python -m r1router_jax.build_kb --kb_dir"
  return UserError(f"{message} {command}={kb_dir}")


def to_stored_embedder(name: str) -> str:
  """Return the name of an embedder in meta.json."""
  return _STORED_EMBEDDERS.get(name, name)


def from_stored_embedder(stored: str) -> str:
  """Return the name of the embedder that meta.json names."""
  names = {old: new for new, old in _STORED_EMBEDDERS.items()}
  return names.get(stored, stored)


def kb_places(kb_dir: str, kinds: Sequence[str] = KBS) -> dict[str, str]:
  """Return the folder or address of each knowledge base that there is.

  `kb_dir` is the folder that holds them, or names the place of each, as in
  "text=http://127.0.0.1:8000,image=DIR/image".  Raises a UserError if it holds
  none of these kinds, or names another one, or one twice.
  """
  # A folder may have "=" in its name, so only a known kind makes a list.
  if not re.match(rf"({'|'.join(KBS)})=", kb_dir):
    places = {kind: os.path.join(kb_dir, kind) for kind in kinds}
    places = {k: place for k, place in places.items() if _was_begun(place)}
    if not places:
      raise _no_kb_error(kb_dir, kb_dir)
    return places
  pairs = [part.split("=", 1) for part in kb_dir.split(",")]
  places = {pair[0].strip(): pair[-1].strip() for pair in pairs}
  # A kind that is named twice leaves fewer places than pairs.
  is_right = len(places) == len(pairs) and set(places) <= set(kinds)
  if is_right and all(len(pair) == 2 and pair[1] for pair in pairs):
    return places
  example = ",".join(f"{kind}=PLACE" for kind in kinds)
  cure = f"name some of {', '.join(kinds)}, each once, as in {example}."
  raise UserError(f"{kb_dir}: {cure}")


def _was_begun(folder: str) -> bool:
  """Return whether a folder holds more than locks of builds that failed."""
  names = os.listdir(folder) if os.path.isdir(folder) else ()
  return any(not name.startswith(".lock") for name in names)


def check_kb_dir(kb_dir: str) -> None:
  """Raise a UserError unless a knowledge base is there, and all are finished.

  A command calls this before it imports what searches; servers are not asked.
  """
  for place in kb_places(kb_dir).values():
    # Only the server knows whether its knowledge base is finished.
    if "://" not in place:
      read_finished_meta(place)


def read_json(path: str, kind: type) -> dict[str, Any] | None:
  """Return the content of a file of the schema `kind`, or None if it is absent.

  A damaged one raises a UserError.
  """

  def parse(tree: dict[str, Any]) -> dict[str, Any]:
    schema.convert(tree, kind)
    return tree

  cure = "Build it again: delete the folder and run build_kb."
  # Opened rather than looked for first: another process may write it now.
  try:
    return schema.read_json(path, parse, cure)
  except UserError as error:
    if isinstance(error.__cause__, FileNotFoundError):
      return None
    raise
