"""The vectors of a ready FAISS index, in place of embedding passages again.

Flat and IVF-Flat indexes hold the vectors themselves, with ids 0 to N-1 in the
order of the passages, or others that IDMap turns into these.  That they are an
embedder's, and of these passages in this order, is probed: a few passages are
embedded anew, and each must be nearest to its own vector.

Axes:  n rows of a part   N rows   E width   P passages of the probe
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Passage

_NUM_PROBES = 16
_ROWS_PER_READ = 1 << 14

# Differences of squared lengths from 1, which may come from half precision, and
# of squared distances that are equal but for rounding.
_UNIT_TOLERANCE, _TIE_TOLERANCE = 1e-2, 1e-5

_WRONG_IDS = "has other ids than the numbers of rows, from 0, each once"


@runtime_checkable
class Passages(Protocol):
  """The passages of a source, each read when asked for."""

  def __len__(self) -> int: ...

  def __getitem__(self, row: int) -> Passage: ...


# A function that embeds passages.
Embed = Callable[[Sequence[Passage]], Float32[np.ndarray, "n E"]]

# Bytes of a file that its digest covers, in as many places.
_DIGEST_BYTES, _DIGEST_PLACES = 4096, 256


def digest_index(path: str) -> str:
  """Return a digest of the size and of some of the bytes of an index."""
  size = os.path.getsize(path)
  digest = hashlib.sha256(str(size).encode())
  with open(path, "rb") as file:
    for place in range(_DIGEST_PLACES):
      file.seek(max(0, size - _DIGEST_BYTES) * place // (_DIGEST_PLACES - 1))
      digest.update(file.read(_DIGEST_BYTES))
  return digest.hexdigest()[:16]


class FaissVectors:
  """The vectors of the FAISS index in a file, which stay there.

  Raises a UserError if the file is no such index, or FAISS is not installed.
  """

  def __init__(self, path: str):
    # An optional dependency.
    try:
      import faiss
    except ImportError as error:
      raise UserError(
        "--faiss_index needs FAISS: pip install 'r1router_jax[faiss]'."
      ) from error
    self._path = path
    try:
      # Mapped, so that only what is read takes memory.
      self._whole = index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
      ids = None
      if isinstance(index, faiss.IndexIDMap):
        ids = faiss.vector_to_array(index.id_map)
        index = faiss.downcast_index(index.index)
      # FAISS ends the process if others are asked for their vectors.
      if not isinstance(index, faiss.IndexFlat | faiss.IndexIVFFlat):
        fault = f"is of type {type(index).__name__}, wanted Flat or IVF-Flat"
        raise self._error(f"{fault}, which keep vectors")
      if isinstance(index, faiss.IndexIVFFlat):
        # A damaged number of rows would take memory for as many.
        if index.invlists.compute_ntotal() != index.ntotal:
          raise self._error("says another number of vectors than it has")
        index.make_direct_map()
        places = faiss.vector_to_array(index.direct_map.array)
        if (places < 0).any():
          raise self._error(_WRONG_IDS)
    except (RuntimeError, MemoryError) as error:
      reason = " ".join(str(error).split())[-200:]
      fault = f"cannot be read, or has other ids than rows ({reason})"
      raise self._error(fault) from None
    metrics = faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2
    if index.metric_type not in metrics:
      raise self._error("has a metric that is neither inner product nor L2")
    self.rows, self.width = index.ntotal, index.d
    self._index, self._is_l2 = index, index.metric_type == faiss.METRIC_L2
    # The place of each row.
    self._places = np.arange(self.rows)
    if ids is not None:
      self._places = np.argsort(ids, kind="stable")
      if not np.array_equal(ids[self._places], np.arange(self.rows)):
        raise self._error(_WRONG_IDS)

  def read(self, rows: range) -> Float32[np.ndarray, "n E"]:
    """Return the vectors of some rows."""
    return self._index.reconstruct_batch(self._places[rows.start : rows.stop])

  def check(self, passages: Passages, embed: Embed) -> None:
    """Raise a UserError unless these are the vectors of passages by `embed`.

    Their number, width and length must be right, and a few passages that are
    embedded anew must each be nearest to their own vector.
    """
    # 1. What is known without reading.
    if self.rows != len(passages):
      fault = f"has {self.rows:,} vectors, and the source {len(passages):,} "
      raise self._error(f"{fault}passages; skipped.txt names rows left out")
    spread = np.linspace(0, self.rows - 1, _NUM_PROBES).round().astype(int)
    probes = np.unique(spread)
    anew = embed([passages[row] for row in probes.tolist()])
    if self.width != anew.shape[1]:
      fault = f"has width {self.width}, and the embedder {anew.shape[1]}"
      raise self._error(fault)
    # 2. Lengths of all vectors.
    nearest, own, squares = self._measure_distances(anew, probes)
    if not np.isfinite(squares).all():
      raise self._error("has vectors that are not finite")
    is_unit, wants_unit = _are_unit(squares), _are_unit(np.square(anew).sum(1))
    if is_unit != wants_unit:
      lengths = np.sqrt([squares.min(), squares.max()])
      fault = f"has vectors of length {lengths[0]:.3g} to {lengths[1]:.3g}, "
      fault += "and the embedder " + ("of 1" if wants_unit else "of others")
      raise self._error(fault)
    if self._is_l2 and not is_unit:
      raise self._error("is searched by L2, this package by inner product")
    # 3. Each passage is nearest to its own vector, or to one that is equal.
    slack = _TIE_TOLERANCE * np.square(anew).sum(1)
    for row in probes[own > nearest + slack].tolist()[:1]:
      fault = "is not of these passages, in this order, by this embedder: "
      fault += f"{passages[row].id!a} is nearer to another's vector"
      raise self._error(fault)

  def _measure_distances(
    self, anew: Float32[np.ndarray, "P E"], probes: Int[np.ndarray, " P"]
  ) -> tuple[
    Float32[np.ndarray, " P"],
    Float32[np.ndarray, " P"],
    Float32[np.ndarray, " N"],
  ]:
    """Return squared distances of the probe to the nearest and its own vectors.

    The third result are the squared lengths of all vectors.
    """
    nearest = np.full(len(probes), np.inf, np.float32)
    own, squares = nearest.copy(), np.empty(self.rows, np.float32)
    for start in range(0, self.rows, _ROWS_PER_READ):
      rows = range(start, min(start + _ROWS_PER_READ, self.rows))
      vectors = self.read(rows)
      square = squares[rows.start : rows.stop] = np.square(vectors).sum(1)
      distances = square - 2 * anew @ vectors.T
      nearest = np.minimum(nearest, distances.min(axis=1))
      for number, row in enumerate(probes.tolist()):
        if row in rows:
          own[number] = distances[number, row - start]
    # The length of the probe adds the same to all of its distances.
    return nearest, own, squares

  def _error(self, fault: str) -> UserError:
    cure = "Give the index of this source, or leave it out to embed anew."
    return UserError(f"--faiss_index={self._path} {fault}.  {cure}")


def _are_unit(squares: Float32[np.ndarray, " n"]) -> bool:
  """Return whether all vectors with these squares have length 1."""
  return bool((np.abs(squares - 1) < _UNIT_TOLERANCE).all())
