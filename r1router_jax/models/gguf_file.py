"""Open GGUF files: metadata by key, and quantised tensors, unread, by name.

A GGUF file is a header of keys, values and tensor descriptions, followed by the
tensors' blocks.  The header is read here, because it comes from outside: what
it claims is compared with the size of the file before anything is reserved for
it.  The `gguf` package knows the formats of the blocks, and dequantises them.

Source: github.com/ggml-org/ggml, docs/gguf.md (the format).
"""

import dataclasses
import functools
import itertools
import math
import os
import struct
from types import ModuleType
from typing import Any

import numpy as np

from r1router_jax.common.errors import UserError
from r1router_jax.common.files import file_state
from r1router_jax.models.safetensors_io import BadWeights, StoredTensor

EMBEDDING = "token_embd.weight"  # The tensor with a row for each token.

# Vocabularies make up most of a header; those of 260,000 tokens take 10 MiB.
MAX_HEADER_BYTES = 32 << 20

# Rows are dequantised in parts of about this many numbers, so that what that
# needs beside the tensor stays small.
_PART_NUMBERS = 1 << 22

_MAGIC, _VERSIONS, _MAX_AXES = b"GGUF", (2, 3), 4

# Kinds of values, by their numbers in a file; those of numbers as in `struct`.
_NUMBERS = dict(enumerate("BbHhIif?")) | dict(enumerate("Qqd", start=10))
_STRING, _ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class GgufFile:
  """A GGUF file whose header has been read.

  Attributes:
    path: where it is.
    metadata: values by key: numbers, strings, lists of strings and arrays.
    tensors: by the names that the file has; reading one dequantises it.
  """

  path: str
  metadata: dict[str, Any]
  tensors: dict[str, StoredTensor]


def open_gguf(path: str | os.PathLike) -> GgufFile:
  """Read the header of a GGUF file; that of the last file is kept.

  Raises:
    BadWeights: the file is missing, damaged or of another kind.
    UserError: the `gguf` package is missing.
  """
  path = os.fspath(path)
  _import_gguf()  # A missing package is told before the file is read.
  return _open_state(path, file_state(path))


# Config, tensors and tokenizer are each read from the header of one file, which
# holds 100,000 strings or more.
@functools.lru_cache(maxsize=1)
def _open_state(path: str, state: tuple[int, int] | None) -> GgufFile:
  del state  # A key of the cache.
  try:
    # The header's own claims are checked against what there is.
    with open(path, "rb") as file:
      cursor = _Cursor(file.read(MAX_HEADER_BYTES))
    metadata, described = _read_header(cursor)
    start = _find_data(metadata, cursor.offset)
    tensors, size = {}, os.path.getsize(path)
    for name, tensor in described.items():
      tensors[name] = _locate_tensor(path, name, start, size, *tensor)
  except (OSError, ValueError) as error:
    raise BadWeights(
      f"{path}: no intact GGUF file ({error}).  Fetch it again."
    ) from error
  return GgufFile(path, metadata, tensors)


def _import_gguf() -> ModuleType:
  try:
    import gguf  # An extra of its own, which few policies need.
  except ModuleNotFoundError as error:
    raise UserError(
      "GGUF files are read with the package gguf, which is not installed.  "
      "Run: pip install 'r1router_jax[smollm2]'"
    ) from error
  return gguf


class _Cursor:
  """A place in the first bytes of a file, from which values are taken."""

  def __init__(self, data: bytes):
    self._data, self.offset = data, 0

  def take(self, count: int) -> bytes:
    """Return the next `count` bytes; if there are fewer, raise ValueError."""
    if count > len(self._data) - self.offset:
      limit = MAX_HEADER_BYTES >> 20
      raise ValueError(f"its header is cut off, or larger than {limit} MiB")
    self.offset += count
    return self._data[self.offset - count : self.offset]

  def number(self, form: str) -> Any:
    """Return the next number, of a format of `struct`."""
    (value,) = struct.unpack("<" + form, self.take(struct.calcsize(form)))
    return value

  def text(self) -> str:
    """Return the next string; one that is not UTF-8 raises ValueError."""
    return self.take(self.number("Q")).decode()

  def value(self, kind: int) -> Any:
    """Return the next value; an unknown kind raises ValueError."""
    if kind == _STRING:
      return self.text()
    if kind == _ARRAY:
      return self._array(*struct.unpack("<IQ", self.take(12)))
    if kind not in _NUMBERS:
      raise ValueError(f"it holds a value of the unknown kind {kind}")
    return self.number(_NUMBERS[kind])

  def _array(self, kind: int, count: int) -> list[str] | np.ndarray:
    if kind == _STRING:
      # Each string has a length, so that more than there is ends this early.
      return [self.text() for _ in range(count)]
    if kind not in _NUMBERS:  # Arrays in arrays included.
      raise ValueError(f"it holds an array of the unknown kind {kind}")
    dtype = np.dtype("<" + _NUMBERS[kind])
    return np.frombuffer(self.take(count * dtype.itemsize), dtype)


def _read_header(
  cursor: _Cursor,
) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], int, int]]]:
  """Return the metadata, and (axes, kind, offset) of each tensor by name."""
  # 1. What kind of file it is.
  if (magic := cursor.take(4)) != _MAGIC:
    raise ValueError(f"it begins with {magic}")
  if (version := cursor.number("I")) not in _VERSIONS:
    raise ValueError(f"its version is {version}, known: {_VERSIONS}")
  tensor_count, key_count = cursor.number("Q"), cursor.number("Q")

  # 2. Metadata.
  metadata, described = {}, {}
  for _ in range(key_count):
    key = cursor.text()
    if key in metadata:
      raise ValueError(f"the key {key} occurs twice")
    metadata[key] = cursor.value(cursor.number("I"))

  # 3. Tensors; the axis that varies fastest comes first.
  for _ in range(tensor_count):
    name, axes = cursor.text(), cursor.number("I")
    if name in described:
      raise ValueError(f"tensor {name} occurs twice")
    if not 1 <= axes <= _MAX_AXES:
      raise ValueError(f"tensor {name} has {axes} axes")
    shape = tuple(cursor.number("Q") for _ in range(axes))[::-1]
    # Beside an axis of 0 the others would be as long as they like.
    if 0 in shape:
      raise ValueError(f"tensor {name} has the shape {shape}, and no numbers")
    described[name] = shape, cursor.number("I"), cursor.number("Q")
  return metadata, described


def _find_data(metadata: dict[str, Any], offset: int) -> int:
  """Return the place behind a header where the tensors' blocks begin."""
  alignment = metadata.get("general.alignment", 32)
  if not isinstance(alignment, int) or alignment < 1:
    raise ValueError(f"general.alignment is {alignment}")
  return -(-offset // alignment) * alignment


def _locate_tensor(
  path: str,
  name: str,
  start: int,
  size: int,
  shape: tuple[int, ...],
  kind: int,
  offset: int,
) -> StoredTensor:
  """Return a tensor of a file of `size` bytes, in which data begin at `start`.

  One that lies outside the file, or is of an unknown kind, raises ValueError.
  """
  gguf = _import_gguf()
  kind = gguf.GGMLQuantizationType(kind)
  numbers, block_bytes = gguf.GGML_QUANT_SIZES[kind]
  # A block never spans two rows.
  if shape[-1] % numbers:
    raise ValueError(f"tensor {name} has {shape[-1]} columns as {kind.name}")
  row_bytes = shape[-1] // numbers * block_bytes
  if start + offset + math.prod(shape[:-1]) * row_bytes > size:
    raise ValueError(f"it ends before tensor {name} does")
  read = functools.partial(
    _read_tensor, path, name, start + offset, shape, kind, row_bytes
  )
  return StoredTensor(path, name, shape, "F32", read)


def _read_tensor(
  path: str,
  name: str,
  offset: int,
  shape: tuple[int, ...],
  kind: Any,
  row_bytes: int,
) -> np.ndarray:
  """Dequantise a tensor that begins at `offset`, a part of rows at a time."""
  gguf = _import_gguf()
  rows = math.prod(shape[:-1])
  array = np.empty((rows, shape[-1]), np.float32)
  part_rows = max(1, _PART_NUMBERS // max(1, shape[-1]))
  with open(path, "rb") as file:
    file.seek(offset)
    bounds = [*range(0, rows, part_rows), rows]
    for first, last in itertools.pairwise(bounds):
      part = np.frombuffer(file.read((last - first) * row_bytes), np.uint8)
      part = part.reshape(last - first, row_bytes)
      try:
        array[first:last] = gguf.quants.dequantize(part, kind)
      except NotImplementedError as error:
        raise BadWeights(
          f"{path}: tensor {name} is stored as {kind.name}, which the package "
          "gguf cannot dequantise.  Take a file of another quantisation, such "
          "as Q8_0."
        ) from error
  return array.reshape(shape)
