"""Vectors in parts, so that being killed while embedding costs one of them."""

import contextlib
import os

import numpy as np

PART = 1024  # Rows embedded between two saves.


class Parts:
  """Vectors of `PART` rows each, in files of a folder.

  Args:
    folder: of the files.
    rows: of all parts.
    worker: (i, n), where every n-th part is ours, from part i.

  Attributes:
    ours: first rows of our parts.
    todo: those of them that are missing.
    whole: path of the vectors of all parts, once they are joined.
  """

  def __init__(self, folder: str, rows: int, worker: tuple[int, int]):
    os.makedirs(folder, exist_ok=True)
    self._folder, self._rows = folder, rows
    self.whole = os.path.join(folder, "vectors.npy")
    self._starts = range(0, rows, PART)
    self.ours = self._starts[worker[0] :: worker[1]]
    missing = set(self.missing())
    self.todo = [start for start in self.ours if start in missing]

  def path(self, start: int) -> str:
    """Of the part that begins with row `start`."""
    return os.path.join(self._folder, f"{start:08d}.npy")

  def missing(self) -> list[int]:
    """First rows of the parts that are not there."""
    if os.path.exists(self.whole):
      return []
    return [
      start for start in self._starts if not os.path.exists(self.path(start))
    ]

  def rows(self, start: int) -> range:
    """The rows of a part."""
    return range(start, min(start + PART, self._rows))

  def save(self, start: int, vectors: np.ndarray) -> None:
    """Writes a part's file, which is either whole or absent."""
    with open(self.path(start) + ".partial", "wb") as file:
      np.save(file, vectors)
    os.replace(self.path(start) + ".partial", self.path(start))

  def join(self, width: int) -> np.ndarray:
    """All parts in one file, opened without being read; they are deleted."""
    if not os.path.exists(self.whole):
      whole = np.lib.format.open_memmap(
        self.whole + ".partial", "w+", np.float32, (self._rows, width)
      )
      for start in self._starts:
        whole[start : start + PART] = np.load(self.path(start))
      whole.flush()
      os.replace(self.whole + ".partial", self.whole)
    for start in self._starts:
      with contextlib.suppress(FileNotFoundError):
        os.remove(self.path(start))
    return np.load(self.whole, mmap_mode="r")
