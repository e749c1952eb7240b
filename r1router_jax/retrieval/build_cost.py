"""Estimates what building a knowledge base takes: disk, memory, time.

Memory is what a process holds as its own.  Pages of files that it maps, such as
passages and vectors, come on top if there is room, and the system takes them
back when others need memory.

Axes:  N rows   E width of a vector
"""

import contextlib
import ctypes
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import psutil

from r1router_jax.common.records import Passage
from r1router_jax.retrieval.encoders import batched_encoder
from r1router_jax.retrieval.index import factory, scann_index

# Rows that ScaNN trains its codebooks on.
_SCANN_SAMPLE_ROWS = 100_000
# Bytes of an index of words for each byte of the passages, and of memory while
# it is built, as measured on passages of 100 words: the documents of
# benchmarks/second_world over and over, 2 to 34 MB, take 0.9 and 5; invented
# words with frequencies by Zipf's law 1.5 and 10 at 3 MB, 1.2 and 8 at 11 MB,
# 0.9 and 6 at 44 MB.  Words that occur only once take 4 and 40.
_WORDS_DISK, _WORDS_MEMORY = 1, 6
# Seconds between two samples of the memory.
_SAMPLE_SECONDS = 0.002

# Rows that are embedded to estimate the cost of more of them.
TRIAL_ROWS = (32, 128)


class EmbeddingTrial(NamedTuple):
  """The measured cost of embedding."""

  seconds_per_row: float
  resident_bytes: int  # Of the process before embedding.
  peak_bytes: int  # Of the process while a chunk is embedded.


@contextlib.contextmanager
def watch_memory() -> Iterator[list[int]]:
  """Yield a list of one number, the most bytes that the process has held."""
  peak, done = [resident_bytes()], threading.Event()

  def sample_memory():
    while not done.wait(_SAMPLE_SECONDS):
      peak[0] = max(peak[0], resident_bytes())

  # A daemon, so that an interrupted build can end.
  thread = threading.Thread(target=sample_memory, daemon=True)
  thread.start()
  try:
    yield peak
  finally:
    done.set()
    thread.join()


def resident_bytes() -> int:
  """Return the bytes that this process holds as its own."""
  memory = psutil.Process().memory_info()
  # Only Linux counts the pages of mapped files apart.
  return memory.rss - getattr(memory, "shared", 0)


def measure_embedding(
  embed: batched_encoder.Embedder, passages: Sequence[Passage], chunk_rows: int
) -> EmbeddingTrial:
  """Embed `TRIAL_ROWS` of a sample, and extrapolate to a chunk's rows."""
  for count in TRIAL_ROWS:
    embed(passages[:count])  # Compiles for this size.
  peaks = []
  # Only glibc can return memory that is free, but kept by the allocator.
  trim_heap = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)
  trim_heap(0)
  before = resident_bytes()
  for count in TRIAL_ROWS:
    trim_heap(0)
    start = time.perf_counter()
    with watch_memory() as peak:
      embed(passages[:count])
    peaks += peak
  seconds = time.perf_counter() - start  # Of the larger trial.
  # Memory grows linearly with the rows.
  small, large = TRIAL_ROWS
  bytes_per_row = max(0, peaks[1] - peaks[0]) / (large - small)
  chunk_bytes = int(peaks[1] + bytes_per_row * max(0, chunk_rows - large))
  return EmbeddingTrial(seconds / large, before, chunk_bytes)


def estimate_disk_bytes(
  rows: int, width: int, index_kind: str, word_bytes: int = 0
) -> tuple[int, int]:
  """Estimate the bytes of vectors and indexes, at the end and at most.

  `word_bytes` are those of the passages whose words are indexed, too.
  """
  vectors, words = rows * width * 4, _WORDS_DISK * word_bytes
  if factory.resolve_kind(rows, index_kind) == "exact":
    # Chunks and the joined file; the chunks make room for words.
    return vectors + words, vectors + max(vectors, words)
  # ScaNN writes a copy.
  total = 2 * vectors + _scann_code_bytes(rows, width) + words
  return total, total


def estimate_index_memory(
  rows: int, width: int, index_kind: str, word_bytes: int = 0
) -> int:
  """Estimate the bytes of memory to build indexes and measure the recall.

  `word_bytes` are those of the passages whose words are indexed, too.
  """
  # Exact search holds scores, their negatives, and the order of both; they are
  # not there while words are indexed.
  scores = 16 * min(256 * rows, max(1 << 24, rows))
  scores = max(scores, _WORDS_MEMORY * word_bytes)
  if factory.resolve_kind(rows, index_kind) == "exact":
    # The check for NaN takes one byte per number.
    return max(scores, rows * width)
  vectors = rows * width * 4
  # As measured: ScaNN's training sample, and the residuals of all rows.
  training = 6 * min(rows, _SCANN_SAMPLE_ROWS) * width
  if rows >= scann_index.MIN_TREE_ROWS and width < scann_index.WIDE_WIDTH:
    training += vectors
  return vectors + _scann_code_bytes(rows, width) + max(scores, training)


def _scann_code_bytes(rows: int, width: int) -> int:
  """Return the bytes of ScaNN's codes, one byte each."""
  codes = rows * width // (4 if width >= scann_index.WIDE_WIDTH else 2)
  # A tree keeps the codes of a row in two of its leaves.
  return codes * (2 if rows >= scann_index.MIN_TREE_ROWS else 1)
