"""Pictures of a benchmark's questions, found by name in a folder or a .zip.

Question files name a picture by its stem, "oven_04990048" or 1; the file is
"oven_04990048.jpg" or "1.png", in the folder or below it, or a member of the
archive.  Of several files of one stem the first by path is taken.  Archives
are untrusted: only members that a question names are unpacked, under names
that are made here, each of a sane size.
"""

import os
import zipfile
import zlib
from collections.abc import Collection, Iterable

from r1router_jax.common import images

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def find(
  place: str, stems: Collection[str], pictures_to: str = ""
) -> dict[str, str]:
  """The paths of the pictures that are there, by stem.

  Args:
    place: a folder or a .zip.
    stems: that are wanted.
    pictures_to: the folder that members of a .zip are unpacked into.

  Raises:
    FileNotFoundError: where there is no such place.
    ValueError: where the archive is damaged, or `pictures_to` is wanted.
  """
  if os.path.isdir(place):
    paths = (
      os.path.join(base, file)
      for base, _, files in os.walk(place)
      for file in files
    )
    return _chosen(paths, stems)
  if not os.path.isfile(place):
    raise FileNotFoundError(
      f"{place}: there are no pictures.  Name their folder, or a .zip of them."
    )
  if not pictures_to:
    raise ValueError(
      f"{place}: an archive of pictures has to be unpacked.  Name a folder "
      "for that, too, or unpack it and name its folder."
    )
  try:
    with zipfile.ZipFile(place) as archive:
      members = _chosen(archive.namelist(), stems)
      os.makedirs(pictures_to, exist_ok=True)
      return {
        stem: _unpack(archive, member, stem, pictures_to)
        for stem, member in members.items()
      }
  except (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    NotImplementedError,
  ) as error:
    raise ValueError(
      f"{place}: cannot be unpacked ({error}).  Name a folder, or a .zip "
      "that is whole and has no password."
    ) from error


def _chosen(paths: Iterable[str], stems: Collection[str]) -> dict[str, str]:
  """Of each stem the first path that ends as pictures do."""
  found = {}
  for path in paths:
    stem, ending = os.path.splitext(os.path.basename(path))
    if ending.lower() in ENDINGS and stem in stems:
      found[stem] = min(path, found.get(stem, path))
  return found


def _unpack(
  archive: zipfile.ZipFile, member: str, stem: str, folder: str
) -> str:
  """Writes a member, unless it is there; the path."""
  size = archive.getinfo(member).file_size
  if size > images.MAX_BYTES:
    raise ValueError(
      f"{archive.filename}: {member!a} has {size:,} bytes, wanted at most "
      f"{images.MAX_BYTES:,}.  Save it again, smaller."
    )
  path = images.resolve(stem + os.path.splitext(member)[1].lower(), folder)
  if not os.path.isfile(path) or os.path.getsize(path) != size:
    with archive.open(member) as file, open(path + ".partial", "wb") as draft:
      draft.write(file.read(size))
    os.replace(path + ".partial", path)
  return path
