"""Images of a benchmark's questions, found by name in a folder or a .zip.

Question files name an image by its stem, such as "oven_04990048" or 1; the file
is "oven_04990048.jpg" or "1.png", in the folder or below it, or a member of the
archive.  Of several files with the same stem the first path is taken.  Archives
are untrusted: only members that a question names are read, each of a bounded
size.
"""

import functools
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from r1router_jax.common import images
from r1router_jax.common.errors import UserError
from r1router_jax.common.files import is_below

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")

# What zipfile raises for damaged or encrypted archives; a RuntimeError may be a
# NotImplementedError, and a decoder of bzip2 raises OSError.
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError)
_DAMAGE += (RuntimeError, ValueError)


class FoundImage(NamedTuple):
  """An image that exists."""

  name: str  # Of its file.
  state: tuple[int, int]  # Changes when the image does.
  read: Callable[[], bytes]  # Raises BadImage, or UserError for an archive.


def find_file(path: str) -> FoundImage:
  """Return the image at a path, which exists."""
  state = os.stat(path).st_size, os.stat(path).st_mtime_ns
  read = functools.partial(images.read_image_bytes, path)
  return FoundImage(os.path.basename(path), state, read)


def find_images(place: str, stems: Collection[str]) -> dict[str, FoundImage]:
  """Return the images that exist in a folder or a .zip, by stem.

  Raises:
    FileNotFoundError: if there is no such place.
    UserError: if the archive is damaged.
  """
  # A folder is searched to any depth.
  if os.path.isdir(place):
    walk = os.walk(place)
    paths = (os.path.join(base, file) for base, _, of in walk for file in of)
    found = _first_by_stem(paths, stems).items()
    # A link may lead nowhere, or out of the folder to what is not for others.
    good = [x for x in found if os.path.isfile(x[1]) and is_below(x[1], place)]
    return {stem: find_file(path) for stem, path in good}
  if not os.path.isfile(place):
    raise FileNotFoundError(
      f"{place}: there are no images.  Name their folder, or a .zip of them."
    )
  try:
    archive = zipfile.ZipFile(place)
  except _DAMAGE as error:
    raise _damaged(place, error) from error
  members = _first_by_stem(archive.namelist(), stems)
  return {stem: _find_member(archive, at) for stem, at in members.items()}


def _first_by_stem(
  paths: Iterable[str], stems: Collection[str]
) -> dict[str, str]:
  """Return, for each stem, the first path with an image's extension."""
  found = {}
  for path in paths:
    stem, ending = os.path.splitext(os.path.basename(path))
    if ending.lower() in EXTENSIONS and stem in stems:
      found[stem] = min(path, found.get(stem, path))
  return found


def _find_member(archive: zipfile.ZipFile, name: str) -> FoundImage:
  member = archive.getinfo(name)
  size = member.file_size

  def read() -> bytes:
    # The size that the archive declares is checked before anything is inflated,
    # and no more bytes than that are read.
    if size > images.MAX_BYTES:
      raise UserError(
        f"{archive.filename}: {name!a} has {size:,} bytes, wanted at most "
        f"{images.MAX_BYTES:,}.  Save it again, smaller."
      )
    try:
      with archive.open(member) as file:
        return file.read(size)
    except _DAMAGE as error:
      raise _damaged(f"{archive.filename}: {name!a}", error) from error

  return FoundImage(os.path.basename(name), (size, member.CRC), read)


def _damaged(place: str, error: Exception) -> UserError:
  return UserError(
    f"{place}: cannot be unpacked ({error}).  Name a folder, or a .zip that is "
    "whole and has no password."
  )
