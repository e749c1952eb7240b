"""Passage vectors in chunks on disk, so a killed build loses at most one.

Beside a chunk, 00001024.npy, is the list of its passages that the embedder cut,
00001024.cut.json, if there are any.  The lists stay until the build is done.
"""

import json
import os
import pathlib

import numpy as np

from r1router_jax.common import files

# Rows that are embedded between two saves.
CHUNK_ROWS = 1024


class EmbeddingChunks:
  """The vectors of `rows` passages in files of `CHUNK_ROWS` rows each.

  A chunk is named by its first row.  The i-th of n workers, (i, n), embeds
  every n-th chunk, which begin with the rows `own_starts`.  `joined_path`, in
  `folder`, is the file of all vectors, once the chunks are joined.
  """

  def __init__(self, folder: str, rows: int, worker: tuple[int, int]):
    os.makedirs(folder, exist_ok=True)
    self.folder, self._rows = folder, rows
    self.joined_path = os.path.join(folder, "vectors.npy")
    self._starts = range(0, rows, CHUNK_ROWS)
    self.own_starts = self._starts[worker[0] :: worker[1]]

  def chunk_path(self, start: int) -> str:
    """Return the file of the chunk that begins with row `start`."""
    return os.path.join(self.folder, f"{start:08d}.npy")

  def find_pending(self) -> list[int]:
    """Return the first rows of this worker's chunks that are missing."""
    return [start for start in self.find_missing() if start in self.own_starts]

  def find_missing(self) -> list[int]:
    """Return the first rows of the chunks that no worker has saved yet."""
    # Chunks are deleted when they are joined.
    if os.path.exists(self.joined_path):
      return []
    return [x for x in self._starts if not os.path.exists(self.chunk_path(x))]

  def chunk_rows(self, start: int) -> range:
    """Return the rows of the chunk that begins with row `start`."""
    return range(start, min(start + CHUNK_ROWS, self._rows))

  def save_chunk(
    self, start: int, vectors: np.ndarray, cut_ids: list[str]
  ) -> None:
    """Write the file of a chunk, which is either complete or absent."""
    # Workers of another division may have the same chunk.
    with files.lock_folder(self.folder, wait=True):
      if cut_ids:
        path = os.path.join(self.folder, f"{start:08d}.cut.json")
        files.write_json(path, cut_ids)
      with files.atomic_write(self.chunk_path(start)) as file:
        np.save(file, vectors)

  def read_cut_ids(self) -> list[str]:
    """Return the ids of all passages that the embedder cut, in order."""
    paths = sorted(pathlib.Path(self.folder).glob("*.cut.json"))
    return [x for path in paths for x in json.loads(path.read_text())]

  def join_chunks(self, width: int) -> np.ndarray:
    """Join all chunks into one file, delete them, and map [rows, width]."""
    if not os.path.exists(self.joined_path):
      # Renamed when it is complete: a build that is killed here joins again.
      partial_path = self.joined_path + ".partial"
      joined = np.lib.format.open_memmap(
        partial_path, "w+", np.float32, (self._rows, width)
      )
      for start in self._starts:
        joined[start : start + CHUNK_ROWS] = np.load(self.chunk_path(start))
      joined.flush()
      os.replace(partial_path, self.joined_path)
    for start in self._starts:
      pathlib.Path(self.chunk_path(start)).unlink(missing_ok=True)
    return np.load(self.joined_path, mmap_mode="r")
