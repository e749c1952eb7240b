"""Atomic writes, on local disks and in buckets; states of files; locks."""

import contextlib
import json
import os
import pathlib
import socket
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

import filelock
from absl import logging
from etils import epath

from r1router_jax.common.errors import UserError

# Folder of what can be made again: compiled programs, unpacked images.
CACHE_FOLDER = os.path.join(
  os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
  "r1router_jax",
)

T = TypeVar("T")
# (state of the files, what was loaded) by loader and path, see `load_once`.
LOADED: dict[tuple[Callable[[str], Any], str], tuple[list, Any]] = {}


@contextlib.contextmanager
def atomic_write(path: epath.PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
  """Open a file for writing that takes its place only once it is complete.

  The data goes to `<path>.partial`, which replaces `path` when the block ends.
  A process that is killed, or a block that raises, leaves `path` as it was.
  """
  path = epath.Path(path)
  partial = path.with_name(f"{path.name}.partial")
  try:
    with partial.open(mode) as file:
      yield file
    partial.replace(path)
  except BaseException:  # Ctrl-C, too, must not leave half a file.
    partial.unlink(missing_ok=True)
    raise


def file_state(path: str | os.PathLike) -> tuple[int, int] | None:
  """Return what changes whenever a file does; None if there is no file.

  It is part of the keys of caches, so that a replaced file is read anew.
  """
  try:
    state = os.stat(path)
  except (OSError, ValueError):  # Reading it says what is wrong.
    return None
  return state.st_mtime_ns, state.st_size


def is_below(path: str, folder: str) -> bool:
  """Return whether a path, its links followed, is inside a folder."""
  inside = os.path.join(os.path.realpath(folder), "")
  return os.path.realpath(path).startswith(inside)


def load_once(load: Callable[[str], T], place: str) -> T:
  """Return load(place), and the same object again until a file there changes.

  The place is a file, a folder with all below it, or "" for what never changes.
  Nothing tells when an address does, so what is loaded from there is not kept.
  """
  if "://" in place:
    return load(place)
  path = pathlib.Path(place)
  paths = sorted(path.rglob("*")) if place and path.is_dir() else [path]
  state = [(x.stat().st_ino, *file_state(x)) for x in paths if x.is_file()]
  found = LOADED.get((load, place))
  if not found or found[0] != state:
    found = LOADED[load, place] = state, load(place)
  return found[1]


def open_nonblocking(path: str, flags: int) -> int:
  """Open a file without waiting, as a named pipe would make us do for ever."""
  return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def write_json(path: epath.PathLike, value: Any) -> None:
  """Write a JSON file that is either complete or as it was before."""
  with atomic_write(path, "w") as file:
    json.dump(value, file, indent=2)


def lock_folder(
  folder: str | os.PathLike, name: str = ".lock", wait: bool = False
) -> filelock.AcquireReturnProxy:
  """Keep other processes out of a local folder, which is made if absent.

  The lock is the file `name` there, which says who holds it.  It ends with the
  `with` block of what is returned, or with the process, however that ends.
  Unless `wait` is set, a lock that another process holds is a UserError.
  """
  path = pathlib.Path(folder, name)
  path.parent.mkdir(parents=True, exist_ok=True)
  # A lock in place of one of the system's would outlive a killed process.
  lock = filelock.FileLock(path, thread_local=False, fallback_to_soft=False)
  try:
    held = lock.acquire(timeout=0)
  except filelock.Timeout:
    owner = path.read_text(errors="replace").strip() or "another process"
    if not wait:
      message = f"{folder} is in use by {owner}.  Wait for it, or choose"
      raise UserError(f"{message} another folder.") from None
    logging.info("%s is in use by %s; waiting.", folder, owner)
    held = lock.acquire()
  except OSError as error:
    message = f"{folder} is where no file can be locked ({error})."
    raise UserError(f"{message}  Give a folder on a disk.") from error
  path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
  return held
