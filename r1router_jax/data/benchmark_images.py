"""Images of a benchmark's questions, found by name in a folder or a .zip.

Question files name an image by its stem, such as "oven_04990048" or 1; the file
is "oven_04990048.jpg" or "1.png", in the folder or below it, or a member of the
archive.  Of several files with the same stem the first path is taken.  Archives
are untrusted: only members that a question names are unpacked, each of a
bounded size, and under a file name made from the stem.
"""

import os
import zipfile
import zlib
from collections.abc import Collection, Iterable

from r1router_jax.common import images
from r1router_jax.common.errors import UserError
from r1router_jax.common.files import atomic_write

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


def find_images(
  place: str, stems: Collection[str], unpack_to: str = ""
) -> dict[str, str]:
  """Return the paths of the images that exist, by stem.

  `place` is a folder, or a .zip, whose members are unpacked to `unpack_to`.

  Raises:
    FileNotFoundError: if there is no such place.
    UserError: if the archive is damaged, or `unpack_to` is missing.
  """
  # A folder is searched to any depth.
  if os.path.isdir(place):
    folders = (
      (base, file) for base, _, files in os.walk(place) for file in files
    )
    return _first_by_stem((os.path.join(*pair) for pair in folders), stems)
  if not os.path.isfile(place):
    raise FileNotFoundError(
      f"{place}: there are no images.  Name their folder, or a .zip of them."
    )
  # An archive is unpacked, but only the members that questions name.
  if not unpack_to:
    raise UserError(
      f"{place}: an archive of images has to be unpacked.  Name a folder "
      "for that, too, or unpack it and name its folder."
    )
  try:
    with zipfile.ZipFile(place) as archive:
      members = _first_by_stem(archive.namelist(), stems)
      os.makedirs(unpack_to, exist_ok=True)
      return {
        stem: _unpack_member(archive, member, stem, unpack_to)
        for stem, member in members.items()
      }
  # zipfile raises all of these for damaged or encrypted archives, and of
  # RuntimeError also NotImplementedError.
  except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
    raise UserError(
      f"{place}: cannot be unpacked ({error}).  Name a folder, or a .zip "
      "that is whole and has no password."
    ) from error


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


def _unpack_member(
  archive: zipfile.ZipFile, member: str, stem: str, folder: str
) -> str:
  """Write a member to `folder`, unless it is there already; return its path."""
  size = archive.getinfo(member).file_size
  # The size that the archive declares is checked before anything is inflated,
  # and no more bytes than that are read.
  if size > images.MAX_BYTES:
    raise UserError(
      f"{archive.filename}: {member!a} has {size:,} bytes, wanted at most "
      f"{images.MAX_BYTES:,}.  Save it again, smaller."
    )
  # The member's own path is not used, so that it cannot leave the folder.
  path = images.resolve_path(stem + os.path.splitext(member)[1].lower(), folder)
  # A file of the right size is from an earlier run.
  if not os.path.isfile(path) or os.path.getsize(path) != size:
    with archive.open(member) as file, atomic_write(path) as output:
      output.write(file.read(size))
  return path
