"""Crash-safe writing of the passages of a source to a knowledge base's folder.

Rows are written to a draft folder inside the knowledge base, block after block.
After each block a journal records how much of the draft's files is good; a run
that was killed cuts them off there and goes on.  When all is written the draft
replaces what was there, and a note keeps a fingerprint of the source, so that
an unchanged source is not read again:

  passages.jsonl, offsets.npy   see local_kb.py
  skipped.txt                   a line for each row that could not be used
  source.json                   the note; written last

The fingerprint covers the files' names, sizes, times and some of their bytes.
It does not cover images: if some were missing or broken, the source is read
again even if the knowledge base is finished.
"""

import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from absl import logging

from r1router_jax.common import progress
from r1router_jax.common.errors import UserError
from r1router_jax.common.files import write_json
from r1router_jax.common.records import Passage
from r1router_jax.common.row_files import MAX_WARNINGS, RejectedRow
from r1router_jax.common.text import sanitize_text
from r1router_jax.retrieval import kb_meta
from r1router_jax.retrieval.corpora import id_dedup, sources
from r1router_jax.retrieval.corpora.sources import Source

# Raise it when the readers make other passages of the same files.
READER_VERSION = 1

NOTE_FILE = "source.json"

_JOURNAL_FILE = "journal.json"

# Files of a draft.  "offsets" holds the end of each passage, "ids" hashes.
_FILES = ("passages.jsonl", "offsets", "skipped.txt", "ids")

# Kinds of fault that are counted apart; further ones are counted together.
_MAX_REASONS = 100


@dataclasses.dataclass(frozen=True)
class WriteJournal:
  """The state of a draft; its fields are the keys of journal.json."""

  read: int = 0  # Rows read from the source.
  rows: int = 0  # Passages written.
  sizes: tuple[int, ...] = (0,) * len(_FILES)  # Good bytes of each file.
  digest: str = hashlib.sha256().hexdigest()  # Of those of passages.jsonl.
  # Rows left out by reason, and because of their image.
  reasons: dict[str, int] = dataclasses.field(default_factory=dict)
  pictures: int = 0
  whole: bool = False  # Whether the source was read to its end.


def ensure_passages(folder: str, source: Source, finished: bool) -> dict:
  """Make `folder` hold the passages of `source`, and return the note.

  One process writes, and others wait for it.  Images that were missing are
  looked for again if the knowledge base is `finished`.  Raises a UserError if
  the source has no usable row.
  """
  with _exclusive_lock(folder):
    # The note holds if the source and the size of the passages are unchanged.
    fingerprint = _fingerprint_source(source)
    note = kb_meta.read_json(os.path.join(folder, NOTE_FILE)) or {}
    path = os.path.join(folder, "passages.jsonl")
    size = os.path.getsize(path) if os.path.exists(path) else 0
    if (note.get("fingerprint"), note.get("size")) == (fingerprint, size):
      if not (finished and note["pictures"]):
        return note
      text = "%s: reading again, since %d images were missing."
      logging.info(text, folder, note["pictures"])
    # A draft of another source, or of changed files, has another name.
    draft = os.path.join(folder, f"draft-{fingerprint}")
    journal = _write_draft(draft, source)
    digest, size = journal.digest[:16], journal.sizes[0]
    note = dict(fingerprint=fingerprint, rows=journal.rows, digest=digest)
    note |= dict(size=size, pictures=journal.pictures)
    _commit_draft(draft, folder, note)
    return note


@contextlib.contextmanager
def _exclusive_lock(folder: str) -> Iterator[None]:
  """Wait until no other process writes to `folder`, and keep others out."""
  with open(os.path.join(folder, ".lock"), "a") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logging.info("%s: another process reads the corpus; waiting.", folder)
      # This waits; the kernel frees the lock even if the other is killed.
      fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
      message = f"{folder} is where no file can be locked ({error})."
      raise UserError(f"{message}  Give a folder on a disk.") from error
    yield


def _fingerprint_source(source: Source) -> str:
  """Return a digest of the names, sizes, times and some bytes of all files."""
  image_folder = os.path.abspath(source.image_folder)
  about = [READER_VERSION, source.kb, source.corpus, image_folder]
  digest = hashlib.sha256(json.dumps(about).encode())
  for path in source.paths:
    for file in _files_below(path):
      status = os.stat(file)
      about = [os.path.abspath(file), status.st_size, status.st_mtime_ns]
      digest.update(json.dumps(about).encode())
      # Bytes of files of rows, not of the images and captions of a folder.
      if file == path:
        with open(path, "rb") as data:
          for part in range(3):
            data.seek(status.st_size * part // 3)
            digest.update(data.read(4096))
  return digest.hexdigest()[:16]


def _files_below(path: str) -> Iterator[str]:
  """Yield `path`, or all files below it if it is a folder."""
  if not os.path.isdir(path):
    yield path
  for base, folders, files in os.walk(path):
    folders.sort()
    yield from (os.path.join(base, file) for file in sorted(files))


def _write_draft(draft: str, source: Source) -> WriteJournal:
  """Write what a draft lacks, from where an earlier run was killed.

  Raises a UserError if its passages were changed, or the source has none.
  """
  os.makedirs(draft, exist_ok=True)
  journal = _load_journal(draft)
  if journal.whole:
    return journal
  with contextlib.ExitStack() as stack:
    paths = [os.path.join(draft, name) for name in _FILES]
    files = [stack.enter_context(open(path, "ab")) for path in paths]
    # Drop what was written after the journal, and check what remains.
    for file, size in zip(files, journal.sizes, strict=True):
      file.truncate(size)
    with open(files[0].name, "rb") as passages:
      digest = hashlib.file_digest(passages, "sha256")
    if digest.hexdigest() != journal.digest:
      message = "passages.jsonl is not what was written.  Delete the folder."
      raise UserError(f"{draft}/{message}")

    # Read the rest of the source.
    known_ids = id_dedup.IdSet(np.fromfile(os.path.join(draft, "ids"), "<u8"))
    blocks = sources.read_blocks(source, journal.read, known_ids)
    for block in progress.show_progress(blocks, f"read {source.kb}, blocks"):
      journal = _append_block(files, source.kb, journal, digest, *block)
      _save_journal(draft, files, journal)
    # Everything is read: check that some rows are good, and finish the files.
    journal = dataclasses.replace(journal, whole=True)
    _log_skipped(draft, source.kb, journal)
    _write_offsets(draft, journal.rows)
    _save_journal(draft, files, journal)
  return journal


def _load_journal(draft: str) -> WriteJournal:
  """Read the journal of a draft, or return a new one."""
  fields = kb_meta.read_json(os.path.join(draft, _JOURNAL_FILE))
  if not fields:
    return WriteJournal()
  journal = WriteJournal(**fields | dict(sizes=tuple(fields["sizes"])))
  text = "%s: going on after %s rows of the corpus."
  logging.info(text, os.path.dirname(draft), f"{journal.read:,}")
  return journal


def _append_block(
  files: list[BinaryIO],
  kb: str,
  journal: WriteJournal,
  digest: Any,
  read: int,
  block: list[Passage | RejectedRow],
  ids: np.ndarray,
) -> WriteJournal:
  """Append a block, see `sources.read_blocks`, to the open `_FILES` of a draft.

  Updates the running `digest` of the passages, and returns the new journal.
  """
  lines, skipped, bad_images = [], [], 0
  reasons = collections.Counter(journal.reasons)
  for row in block:
    if isinstance(row, Passage):
      lines.append(passage_line(row))
      continue
    skipped.append(f"{row}\n".encode(errors="backslashreplace"))
    bad_images += isinstance(row, sources.RejectedImage)
    if reasons.total() < MAX_WARNINGS:
      logging.warning("%s: skipped %s", kb, sanitize_text(str(row), 300))
    known = row.kind in reasons or len(reasons) < _MAX_REASONS
    reasons[row.kind if known else "other reasons"] += 1

  # Offsets are int64 and run through the whole file.
  ends = np.cumsum([journal.sizes[0], *map(len, lines)], dtype="<i8")[1:]
  written = [b"".join(lines), ends.tobytes(), b"".join(skipped), ids.tobytes()]
  digest.update(written[0])
  sizes = []
  for file, size, data in zip(files, journal.sizes, written, strict=True):
    file.write(data)
    sizes.append(size + len(data))
  return WriteJournal(
    read=journal.read + read,
    rows=journal.rows + len(lines),
    sizes=tuple(sizes),
    digest=digest.hexdigest(),
    reasons=dict(reasons),
    pictures=journal.pictures + bad_images,
  )


def passage_line(passage: Passage, **more: Any) -> bytes:
  """Return a passage as a line of passages.jsonl, with further keys."""
  row = dict(id=passage.id, text=passage.text, image=passage.image, **more)
  return json.dumps(row).encode() + b"\n"


def _save_journal(draft: str, files: list, journal: WriteJournal) -> None:
  """Write the journal, once the files that it describes are on the disk."""
  for file in files:
    file.flush()
    os.fsync(file.fileno())
  write_json(os.path.join(draft, _JOURNAL_FILE), dataclasses.asdict(journal))


def _log_skipped(draft: str, kb: str, journal: WriteJournal) -> None:
  """Log how many rows were left out, and the ten most frequent reasons.

  If no row was usable, the draft is deleted and a UserError raised.
  """
  reasons = collections.Counter(journal.reasons)
  bad, most = reasons.total(), reasons.most_common(10)
  why = ", ".join(f"{count:,} ({reason})" for reason, count in most)
  if not journal.rows:
    # Else the next run would find a finished draft without passages.
    shutil.rmtree(draft)
    raise UserError(
      f"The corpus has no usable row: {bad} are bad: {why}.  Mend it."
      if bad
      else "The corpus is empty.  Give one with rows."
    )
  if bad:
    text = "%s: skipped %s rows: %s; skipped.txt names them all."
    logging.warning(text, kb, f"{bad:,} of {journal.read:,}", why)


def _write_offsets(draft: str, rows: int) -> None:
  """Write offsets.npy: where each passage starts, and the end of the last."""
  path = os.path.join(draft, "offsets.npy")
  offsets = np.lib.format.open_memmap(path, "w+", np.int64, (rows + 1,))
  # The first passage starts at 0, each other one where the last one ends.
  offsets[1:] = np.memmap(os.path.join(draft, "offsets"), "<i8", "r")
  offsets.flush()


def _commit_draft(draft: str, folder: str, note: dict) -> None:
  """Replace the files of an earlier build by those of a draft.

  A run may be killed between any two steps, and this is then called again.
  """
  # Without meta.json the knowledge base counts as unfinished, so it goes first,
  # unless it was made of these very passages.
  outdated = [NOTE_FILE]
  if (kb_meta.read_meta(folder) or {}).get("passages") != note["digest"]:
    outdated.append("meta.json")
  for name in outdated:
    with contextlib.suppress(FileNotFoundError):
      os.remove(os.path.join(folder, name))
  for name in ("offsets.npy", "skipped.txt", "passages.jsonl"):
    # A killed run may have moved some of them already.
    with contextlib.suppress(FileNotFoundError):
      os.replace(os.path.join(draft, name), os.path.join(folder, name))
  write_json(os.path.join(folder, NOTE_FILE), note)
  shutil.rmtree(draft)
