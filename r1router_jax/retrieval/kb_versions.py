"""Versions of a knowledge base, side by side in its folder.

A build never changes a file that may be open.  It makes a new version, which
shares equal files with others by hard links, replaces the file `current`, which
names the version that is read ("version-2"), and removes the former one.  So a
build that is killed at any moment leaves the one or the other, and who has
opened a version keeps its files, which the disk frees with the last reader.

files.json lists the size and the digest of every other file.  A folder without
`current` is of an older layout: its files lie in the folder itself, unlisted.
"""

import functools
import hashlib
import os
import pathlib
import re
import shutil

from r1router_jax.common import files, schema
from r1router_jax.common.errors import UserError

CURRENT_FILE, FILE_LIST, META_FILE = "current", "files.json", "meta.json"
# What the versions of the same passages share, and those of the same vectors.
_PASSAGES = ("passages.jsonl", "offsets.npy")
_VECTORS = ("vectors.npy", "index.json", "probe.npz", "scann", "shards")
_OLD_LAYOUT = (META_FILE, *_PASSAGES, *_VECTORS, "bm25")

# All files are read when a version is opened, so larger ones have no digest.
MAX_DIGEST_BYTES = 1 << 30
_MAX_LIST_BYTES = 1 << 24
_CURE = "Build it again: delete the folder and run build_kb."


def version_folder(folder: str) -> str:
  """Return the folder of the current version, which may not be there."""
  path = os.path.join(folder, CURRENT_FILE)
  try:
    with open(path, "rb", opener=files.open_nonblocking) as file:
      name = file.read(100).decode(errors="replace")
  except FileNotFoundError:
    return folder
  # The folder may come from a stranger.
  if not re.fullmatch(r"version-[1-9][0-9]{0,8}\n", name):
    raise UserError(f"{path} names no version of its folder.  {_CURE}")
  return os.path.join(folder, name.strip())


def start_version(folder: str, passages: str, vectors: str) -> str:
  """Make the next version, with the files of two other folders; return it."""
  current = version_folder(folder)
  number = 0 if current == folder else int(current.rpartition("-")[2])
  version = os.path.join(folder, f"version-{number + 1}")
  if os.path.isdir(version):  # Of a build that was killed.
    shutil.rmtree(version)
  os.mkdir(version)
  for source, names in ((passages, _PASSAGES), (vectors, _VECTORS)):
    for name in filter(os.listdir(source).__contains__, names):
      old, new = os.path.join(source, name), os.path.join(version, name)
      if os.path.isdir(old):
        shutil.copytree(old, new, copy_function=_share_file)
      else:
        _share_file(old, new)
  return version


def _share_file(old: str, new: str) -> None:
  try:
    os.link(old, new)
  except OSError:  # Some disks have no hard links.
    shutil.copyfile(old, new)


def finish_version(folder: str, version: str) -> None:
  """Make a version, which is complete, the current one."""
  files.write_json(os.path.join(version, FILE_LIST), _list_files(version))
  with files.atomic_write(os.path.join(folder, CURRENT_FILE), "w") as file:
    file.write(f"{os.path.basename(version)}\n")


def remove_leftovers(folder: str) -> None:
  """Remove drafts, chunks, and all versions but the current one."""
  current = version_folder(folder)
  outdated = () if current == folder else _OLD_LAYOUT
  for entry in list(os.scandir(folder)):
    is_made = entry.name.startswith(("draft-", "parts-", "version-"))
    if entry.name in outdated or is_made and entry.path != current:
      is_folder = entry.is_dir(follow_symlinks=False)
      shutil.rmtree(entry) if is_folder else os.unlink(entry)


def _list_files(version: str) -> dict[str, tuple[int, str]]:
  """Return the size and the digest of each file of a version, by name."""
  listed = {}
  for path in sorted(pathlib.Path(version).rglob("*")):
    name = str(path.relative_to(version))
    if path.is_file() and name not in (META_FILE, FILE_LIST):
      size, digest = path.stat().st_size, ""
      if size <= MAX_DIGEST_BYTES:
        with path.open("rb") as file:
          digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
      listed[name] = size, digest
  return listed


def check_files(version: str) -> None:
  """Raise a UserError unless the files of a version are as they were built."""
  path = pathlib.Path(version, FILE_LIST)
  parse = functools.partial(schema.convert, kind=dict[str, tuple[int, str]])
  listed = schema.read_json(path, parse, _CURE, max_bytes=_MAX_LIST_BYTES)
  found = _list_files(version)
  for name, state in listed.items():
    if found.get(name) != state:
      fault = f"{name} should have (bytes, digest) {state}, and has"
      raise UserError(f"{version}: {fault} {found.get(name)}.  {_CURE}")
