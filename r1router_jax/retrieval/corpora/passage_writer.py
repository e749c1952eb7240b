"""Passages to files, so that being killed costs little.

Rows are written to a draft beside the knowledge base, block after block.  After
each block a journal says how far the files are good; a killed run cuts them off
there and goes on.  When all is written the draft takes the place of what was
there, and a note keeps a fingerprint of the source, so that an unchanged one is
not read again:

  passages.jsonl, offsets.npy   see local.py
  skipped.txt                   a line for each row that could not be used
  source.json                   the note; written last

The fingerprint is that of the files' names, sizes, times and some of their
bytes.  It knows nothing of pictures: where some were missing or broken, a
finished knowledge base is read again.
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

from r1router_jax.common import progress, text
from r1router_jax.common.jsonl import write_json
from r1router_jax.common.records import Passage
from r1router_jax.common.row_files import NAMED
from r1router_jax.retrieval import kb_meta
from r1router_jax.retrieval.corpora import id_dedup, sources

READERS = 1  # Raise it when readers give other passages for the same files.

NOTE = "source.json"

_FILES = ("passages.jsonl", "offsets", "skipped.txt", "ids")

_REASONS = 100  # Kinds of fault that are counted apart.


@dataclasses.dataclass(frozen=True)
class Journal:
  """How far a draft is good.

  Attributes:
    read: rows of the source.
    rows: passages written.
    sizes: of the files, in bytes.
    digest: of the passages.
    reasons: why rows were left out, and how many.
    pictures: rows left out because of their picture.
    whole: whether the source is at its end.
  """

  read: int = 0
  rows: int = 0
  sizes: tuple[int, ...] = (0,) * len(_FILES)
  digest: str = hashlib.sha256().hexdigest()
  reasons: dict[str, int] = dataclasses.field(default_factory=dict)
  pictures: int = 0
  whole: bool = False


def prepare(folder: str, source: sources.Source, finished: bool) -> dict:
  """Sees to it that `folder` holds the passages of `source`.

  One process writes, others wait for it.

  Args:
    folder: of the knowledge base.
    source: what is read.
    finished: whether the knowledge base is.

  Returns:
    The note: "rows", "digest", and more.

  Raises:
    ValueError: where the source has no usable row.
  """
  with _alone(folder):
    fingerprint = _fingerprint(source)
    note = kb_meta.read_json(os.path.join(folder, NOTE)) or {}
    size = (
      os.path.getsize(path)
      if os.path.exists(path := os.path.join(folder, "passages.jsonl"))
      else 0
    )
    if (note.get("fingerprint"), note.get("size")) == (fingerprint, size):
      if not (finished and note["pictures"]):
        return note
      logging.info(
        "%s: reading again, since %d pictures were missing.",
        folder,
        note["pictures"],
      )
    draft = os.path.join(folder, f"draft-{fingerprint}")
    journal = _write(draft, source)
    note = dict(
      fingerprint=fingerprint,
      rows=journal.rows,
      digest=journal.digest[:16],
      size=journal.sizes[0],
      pictures=journal.pictures,
    )
    _take(draft, folder, note)
    return note


@contextlib.contextmanager
def _alone(folder: str) -> Iterator[None]:
  """Waits until no other process prepares `folder`."""
  with open(os.path.join(folder, ".lock"), "a") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logging.info("%s: another process reads the corpus; waiting.", folder)
      fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
      raise ValueError(
        f"{folder} is where no file can be locked ({error}).  Give a folder "
        "on a disk."
      ) from error
    yield


def _fingerprint(source: sources.Source) -> str:
  digest = hashlib.sha256(
    json.dumps(
      [READERS, source.kb, source.corpus, os.path.abspath(source.pictures)]
    ).encode()
  )
  for path in source.paths:
    for file in _below(path):
      status = os.stat(file)
      digest.update(
        json.dumps(
          [os.path.abspath(file), status.st_size, status.st_mtime_ns]
        ).encode()
      )
      if file == path:
        with open(path, "rb") as data:
          for part in range(3):
            data.seek(status.st_size * part // 3)
            digest.update(data.read(4096))
  return digest.hexdigest()[:16]


def _below(path: str) -> Iterator[str]:
  """`path`, or all files below that folder."""
  if not os.path.isdir(path):
    yield path
  for base, folders, files in os.walk(path):
    folders.sort()
    yield from (os.path.join(base, file) for file in sorted(files))


def _write(draft: str, source: sources.Source) -> Journal:
  """Writes what is missing in a draft."""
  os.makedirs(draft, exist_ok=True)
  journal = _resume(draft)
  if journal.whole:
    return journal
  with contextlib.ExitStack() as stack:
    files = [
      stack.enter_context(open(os.path.join(draft, name), "ab"))
      for name in _FILES
    ]
    for file, size in zip(files, journal.sizes, strict=True):
      file.truncate(size)
    digest = hashlib.sha256()
    with open(files[0].name, "rb") as passages:
      while part := passages.read(1 << 20):
        digest.update(part)
    if digest.hexdigest() != journal.digest:
      raise ValueError(
        f"{draft}/passages.jsonl is not what was written.  Delete the folder."
      )
    ids = np.fromfile(os.path.join(draft, "ids"), "<u8")
    for block in progress.progress(
      sources.blocks(source, journal.read, id_dedup.Seen(ids)),
      f"read {source.kb}, blocks",
    ):
      journal = _append(files, source.kb, journal, digest, *block)
      _save(draft, files, journal)
    journal = dataclasses.replace(journal, whole=True)
    _summarise(draft, source.kb, journal)
    _finish(draft, journal.rows)
    _save(draft, files, journal)
  return journal


def _resume(draft: str) -> Journal:
  """The journal of a draft; new where there is none."""
  fields = kb_meta.read_json(os.path.join(draft, "journal.json"))
  if not fields:
    return Journal()
  journal = Journal(**fields | dict(sizes=tuple(fields["sizes"])))
  logging.info(
    "%s: going on after %s rows of the corpus.",
    os.path.dirname(draft),
    f"{journal.read:,}",
  )
  return journal


def _append(
  files: list[BinaryIO],
  kb: str,
  journal: Journal,
  digest: Any,
  read: int,
  block: list,
  ids: np.ndarray,
) -> Journal:
  """Writes a block behind what the journal knows; the next journal."""
  lines, skipped, pictures = [], [], 0
  reasons = collections.Counter(journal.reasons)
  for row in block:
    if isinstance(row, Passage):
      lines.append(line(row))
      continue
    skipped.append(f"{row}\n".encode(errors="backslashreplace"))
    pictures += isinstance(row, sources.BadPicture)
    if reasons.total() < NAMED:
      logging.warning("%s: skipped %s", kb, text.clean(str(row), 300))
    known = row.kind in reasons or len(reasons) < _REASONS
    reasons[row.kind if known else "other reasons"] += 1
  ends = np.cumsum([journal.sizes[0], *map(len, lines)], dtype="<i8")[1:]
  written = [b"".join(lines), ends.tobytes(), b"".join(skipped), ids.tobytes()]
  digest.update(written[0])
  for file, data in zip(files, written, strict=True):
    file.write(data)
  return Journal(
    read=journal.read + read,
    rows=journal.rows + len(lines),
    sizes=tuple(
      size + len(data)
      for size, data in zip(journal.sizes, written, strict=True)
    ),
    digest=digest.hexdigest(),
    reasons=dict(reasons),
    pictures=journal.pictures + pictures,
  )


def line(passage: Passage, **more: Any) -> bytes:
  """A passage as a line of passages.jsonl."""
  return (
    json.dumps(
      dict(id=passage.id, text=passage.text, image=passage.image, **more)
    ).encode()
    + b"\n"
  )


def _save(draft: str, files: list[BinaryIO], journal: Journal) -> None:
  """Writes the journal, when what it speaks of is on the disk."""
  for file in files:
    file.flush()
    os.fsync(file.fileno())
  write_json(os.path.join(draft, "journal.json"), dataclasses.asdict(journal))


def _summarise(draft: str, kb: str, journal: Journal) -> None:
  """Says what was left out.

  Raises:
    ValueError: where that is all.
  """
  bad = sum(journal.reasons.values())
  why = ", ".join(
    f"{count:,} ({reason})"
    for reason, count in sorted(
      journal.reasons.items(), key=lambda item: -item[1]
    )[:10]
  )
  if not journal.rows:
    shutil.rmtree(draft)
    raise ValueError(
      f"The corpus has no usable row: {bad} are bad: {why}.  Mend it."
      if bad
      else "The corpus is empty.  Give one with rows."
    )
  if bad:
    logging.warning(
      "%s: skipped %s of %s rows: %s; skipped.txt names them all.",
      kb,
      f"{bad:,}",
      f"{journal.read:,}",
      why,
    )


def _finish(draft: str, rows: int) -> None:
  """Where rows end becomes where they start, the first at 0."""
  offsets = np.lib.format.open_memmap(
    os.path.join(draft, "offsets.npy"), "w+", np.int64, (rows + 1,)
  )
  offsets[1:] = np.memmap(os.path.join(draft, "offsets"), "<i8", "r")
  offsets.flush()


def _take(draft: str, folder: str, note: dict) -> None:
  """Puts a draft's files in the place of those of an earlier build."""
  old = (kb_meta.read_meta(folder) or {}).get("passages") != note["digest"]
  # Without meta.json it is unfinished.
  for name in (NOTE, *["meta.json"] * old):
    with contextlib.suppress(FileNotFoundError):
      os.remove(os.path.join(folder, name))
  for name in ("offsets.npy", "skipped.txt", "passages.jsonl"):
    # A killed run may have moved some.
    with contextlib.suppress(FileNotFoundError):
      os.replace(os.path.join(draft, name), os.path.join(folder, name))
  write_json(os.path.join(folder, NOTE), note)
  shutil.rmtree(draft)
