"""What building a knowledge base takes: disk, memory, time.

Memory is what a process holds as its own.  Pages of files that it maps,
passages and vectors, come on top where there is room, and are given back when
others want it.

Axes:  N rows   E width of a vector
"""

import ctypes
import dataclasses
import os
import resource
import sys
import threading
import time
from collections.abc import Sequence

from r1router_jax.common.records import Passage
from r1router_jax.retrieval.encoders import batched_encoder
from r1router_jax.retrieval.index import scann_index

_SAMPLE = 100_000  # Rows that ScaNN learns from.

TRIAL = (32, 128)  # Rows embedded to see what more of them would take.


@dataclasses.dataclass(frozen=True)
class Trial:
  """What embedding took.

  Attributes:
    seconds: a row.
    held: bytes of the process before.
    peak: bytes of the process at most, while a part is embedded.
  """

  seconds: float
  held: int
  peak: int


class Peak:
  """The most memory held inside of a `with`, seen every few milliseconds."""

  def __enter__(self) -> "Peak":
    self.bytes, self._done = held(), threading.Event()
    self._watch = threading.Thread(target=self._look, daemon=True)
    self._watch.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._done.set()
    self._watch.join()

  def _look(self) -> None:
    while not self._done.wait(0.002):
      self.bytes = max(self.bytes, held())


def held() -> int:
  """Bytes that this process holds as its own; elsewhere than on Linux, and
  with what it maps, the most it ever held.
  """
  if sys.platform == "linux":
    with open("/proc/self/statm") as file:
      _, resident, shared, *_ = map(int, file.read().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def try_out(
  embed: batched_encoder.Embedder, passages: Sequence[Passage], part: int
) -> Trial:
  """Embeds `TRIAL` rows, to know what `part` rows would take.

  Args:
    embed: the embedder.
    passages: as many as `TRIAL` has at most, from everywhere.
    part: rows embedded between two saves.
  """
  peaks = []
  for count in TRIAL:
    embed(passages[:count])  # Compiles.
  _give_back()
  before = held()
  for count in TRIAL:
    _give_back()
    start = time.perf_counter()
    with Peak() as peak:
      embed(passages[:count])
    peaks.append(peak.bytes)
  slope = max(0, peaks[1] - peaks[0]) / (TRIAL[1] - TRIAL[0])
  return Trial(
    (time.perf_counter() - start) / TRIAL[1],
    before,
    int(peaks[1] + slope * max(0, part - TRIAL[1])),
  )


def _give_back() -> None:
  """Hands memory that was freed, and is held for later, to the system."""
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if trim is not None:
    trim(0)


def disk(rows: int, width: int, kind: str) -> tuple[int, int]:
  """Bytes of vectors and index: in the end, and at most on the way."""
  vectors = rows * width * 4
  if _kind(rows, kind) == "exact":
    return vectors, 2 * vectors  # The parts, and the whole.
  both = 2 * vectors + _codes(rows, width)  # ScaNN writes a copy.
  return both, both


def indexing(rows: int, width: int, kind: str) -> int:
  """Bytes of memory that `indexes.build` needs, and the look at its recall."""
  # Exact search: scores, their negatives, and the order of both.
  scores = 16 * min(256 * rows, max(1 << 24, rows))
  if _kind(rows, kind) == "exact":
    return max(scores, rows * width)  # Which numbers are finite: a byte each.
  vectors = rows * width * 4
  # As measured: what it learns from, and the residuals of all.
  learns = 6 * min(rows, _SAMPLE) * width
  if rows >= scann_index.TREE_ROWS and width < scann_index.WIDE:
    learns += vectors
  return vectors + _codes(rows, width) + max(scores, learns)


def _codes(rows: int, width: int) -> int:
  """Bytes of ScaNN's codes, a byte each, in two leaves of a tree."""
  codes = rows * width // (4 if width >= scann_index.WIDE else 2)
  return codes * (2 if rows >= scann_index.TREE_ROWS else 1)


def _kind(rows: int, kind: str) -> str:
  """ "exact" or "scann", where `kind` may be "auto"."""
  scann = kind == "scann" or (
    rows >= scann_index.EXACT_ROWS and scann_index.available()
  )
  return "scann" if kind != "exact" and scann else "exact"
