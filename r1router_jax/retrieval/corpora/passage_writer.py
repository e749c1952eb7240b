"""Crash-safe writing of the passages of a source to a knowledge base's folder.

Rows are written to a draft, a folder inside of that folder with a SQLite
database, many in each transaction; a run that was killed goes on after the last
one.  When all is written, these files are made of them; the note keeps a
fingerprint of the source, so that an unchanged source is not read again:

  draft-.../passages.jsonl, draft-.../offsets.npy   see local_kb.py
  skipped.txt   a line for each row that could not be used
  source.json   the note; written last

Files of earlier builds stay as they are; a build moves the draft's into a new
version, see kb_versions.py.

The fingerprint covers the files' names, sizes, times and some of their bytes.
It does not cover images: if some were missing or broken, the source is read
again even if the knowledge base is finished.
"""

import array
import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from absl import logging

from r1router_jax.common import progress, schema
from r1router_jax.common.errors import UserError
from r1router_jax.common.files import atomic_write, write_json
from r1router_jax.common.records import Passage
from r1router_jax.common.row_files import RejectedRow, SkipLog
from r1router_jax.common.text import sanitize_text
from r1router_jax.retrieval import kb_meta, kb_versions
from r1router_jax.retrieval.corpora import folders, sources
from r1router_jax.retrieval.corpora.sources import Source

# Raise it when the readers make other passages of the same files.
READER_VERSION = 3

NOTE_FILE = "source.json"

# Rows that are read between two saves.
COMMIT_ROWS = 16_384

# Each row of the source, with its id and its lines of passages.jsonl.  A row
# that is left out has no id, but its line of skipped.txt, the kind of reason,
# and whether that is its image.
_CREATE = """CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY,
  id TEXT UNIQUE, lines BLOB, reason TEXT, is_image INTEGER)"""
# A row whose id came before is ignored.
_INSERT = "INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?)"
_NEXT = "SELECT ifnull(max(number) + 1, 0) FROM rows"
_COUNT = "SELECT count(*), count(id), ifnull(sum(is_image), 0) FROM rows"
_REASONS = """SELECT reason, count(*) FROM rows WHERE id IS NULL
  GROUP BY reason ORDER BY count(*) DESC, min(number) LIMIT 10"""


class _Note(msgspec.Struct):
  fingerprint: str
  rows: schema.PositiveInt
  digest: str
  size: schema.PositiveInt
  pictures: schema.Count  # Images that were missing or broken.


def ensure_passages(
  folder: str, source: Source, named: set[str] | None = None
) -> tuple[dict, str]:
  """Make `folder` hold the passages of `source`.

  Returns the note, and the folder of their files: the current version, or else
  a draft.  The caller keeps other processes out of the folder.  If images were
  missing from a finished version, they are looked for again.  For `named` see
  `SkipLog`.  Raises a UserError if the source has no usable row, or the draft
  of a killed run is damaged.
  """
  # The note holds if the source and the size of the passages are unchanged.
  fingerprint = _fingerprint_source(source)
  draft = os.path.join(folder, f"draft-{fingerprint}")
  note = kb_meta.read_json(os.path.join(folder, NOTE_FILE), _Note)
  place = note and _find_passages(folder, note, draft)
  if place and note["fingerprint"] == fingerprint:
    if place == draft or not note["pictures"]:
      return note, place
    text = "%s: reading again, since %d images were missing."
    logging.info(text, folder, note["pictures"])

  # A draft of another source, or of changed files, has another name.
  os.makedirs(draft, exist_ok=True)
  path = os.path.join(draft, "rows.sqlite")
  try:
    with contextlib.closing(sqlite3.connect(path)) as rows:
      _read_source(rows, source, named)
      read, good, bad_images = rows.execute(_COUNT).fetchone()
      reasons = rows.execute(_REASONS).fetchall()
      if good:
        note = _write_files(rows, folder, fingerprint, bad_images)
  except sqlite3.DatabaseError as error:
    message = f"{path} cannot be used ({error})."
    raise UserError(f"{message}  Free the disk, or delete it.") from error
  # The files that were made of it stay.
  os.unlink(path)

  why = ", ".join(f"{count:,} ({reason})" for reason, count in reasons)
  if not good:
    shutil.rmtree(draft)
  if not read:
    message = f"The corpus is empty: it has nothing for --kind={source.kb}."
    raise UserError(f"{message}  Give one with rows.")
  if not good:
    message = f"The corpus has no usable row: {read} are bad: {why}."
    raise UserError(f"{message}  Mend it.")
  if reasons:
    text = "%s: skipped %s of %s rows: %s; skipped.txt names them all."
    logging.warning(text, source.kb, f"{read - good:,}", f"{read:,}", why)
  return note, _find_passages(folder, note, draft)


def _find_passages(folder: str, note: dict, draft: str) -> str:
  """Return the current version or draft that has a note's passages, or ""."""
  meta, places = kb_meta.read_meta(folder) or {}, [draft]
  if meta.get("passages") == note["digest"]:
    places.insert(0, kb_versions.version_folder(folder))
  for place in places:
    path = os.path.join(place, "passages.jsonl")
    if os.path.exists(path) and os.path.getsize(path) == note["size"]:
      return place
  return ""


def _fingerprint_source(source: Source) -> str:
  """Return a digest of the names, sizes, times and some bytes of all files."""
  image_folder = os.path.abspath(source.image_folder)
  about = [READER_VERSION, source.kb, source.corpus, image_folder, source.whole]
  digest = hashlib.sha256(json.dumps(about).encode())
  for path in source.paths:
    for file in _files_below(path):
      # A link in a folder may lead nowhere.
      status = os.stat(file) if os.path.exists(file) else os.lstat(file)
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
  yield from folders.list_files(path)


def _read_source(
  rows: sqlite3.Connection, source: Source, named: set[str] | None
) -> None:
  """Add the rows of a source that a draft lacks."""
  rows.execute(_CREATE)
  (start,) = rows.execute(_NEXT).fetchone()
  if start:
    text = "%s: going on after %s rows of the corpus."
    logging.info(text, source.kb, f"{start:,}")
  skip = SkipLog(source.kb, named)
  unread = enumerate(sources.read_raw_rows(source, start), start)
  unread = progress.show_progress(unread, f"read {source.kb}")
  for number, (where, row) in unread:
    parsed = sources.parse_row(source, where, row)
    if rejected := _add_row(rows, number, where, parsed):
      skip(rejected)
    if number % COMMIT_ROWS == 0:
      rows.commit()
  rows.commit()


def _add_row(
  rows: sqlite3.Connection, number: int, where: str, parsed: sources.ParsedRow
) -> RejectedRow | None:
  """Add a row to a draft; return why it is left out, if it is."""
  if not isinstance(parsed, RejectedRow):
    row_id, passages = parsed
    lines = b"".join(map(passage_line, passages))
    fields = number, row_id, lines, None, None
    is_new = not _is_taken(rows, row_id, passages)
    if is_new and rows.execute(_INSERT, fields).rowcount:
      return None
    parsed = sources.duplicate_id(where, row_id)
  line = f"{parsed}\n".encode(errors="backslashreplace")
  is_image = isinstance(parsed, sources.RejectedImage)
  reason = sanitize_text(parsed.kind, 300)
  rows.execute(_INSERT, (number, None, line, reason, is_image))
  return parsed


def _is_taken(
  rows: sqlite3.Connection, row_id: str, passages: Sequence[Passage]
) -> bool:
  """Return whether a row before is, or has, a passage of the same id."""
  ids = [passage.id for passage in passages]
  # The windows of "a" are "a#0", "a#1" and so on.
  windowed = (
    row_id.rpartition("#")[0],
    b'"id": %b,' % json.dumps(row_id).encode(),
  )
  query = f"SELECT 1 FROM rows WHERE id IN ({'?, ' * len(ids)}NULL) OR "
  query += "id = ? AND instr(lines, ?)"
  return bool(rows.execute(query, (*ids, *windowed)).fetchone())


def passage_line(passage: Passage, **more: Any) -> bytes:
  """Return a passage as a line of passages.jsonl, with further keys."""
  row = dict(id=passage.id, text=passage.text, image=passage.image, **more)
  return json.dumps(row).encode() + b"\n"


def _write_files(
  rows: sqlite3.Connection, folder: str, fingerprint: str, bad_images: int
) -> dict:
  """Write the files that are made of a draft; return the note.

  A run may be killed between any two steps, and this is then called again.
  """
  select = "SELECT lines FROM rows WHERE id IS {} NULL ORDER BY number"
  draft = os.path.join(folder, f"draft-{fingerprint}")
  # Where each passage starts, and the end of the last one.
  digest, offsets = hashlib.sha256(), array.array("q", [0])
  with atomic_write(os.path.join(draft, "passages.jsonl")) as file:
    for (lines,) in rows.execute(select.format("NOT")):
      file.write(lines)
      digest.update(lines)
      for line in lines.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
  with atomic_write(os.path.join(draft, "offsets.npy")) as file:
    np.save(file, np.frombuffer(offsets, np.int64))
  with atomic_write(os.path.join(folder, "skipped.txt")) as file:
    file.writelines(line for (line,) in rows.execute(select.format("")))
  digest = digest.hexdigest()[:16]
  note = dict(fingerprint=fingerprint, rows=len(offsets) - 1, digest=digest)
  note |= dict(size=offsets[-1], pictures=bad_images)
  write_json(os.path.join(folder, NOTE_FILE), note)
  return note
