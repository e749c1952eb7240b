"""Weights from and to Hugging Face's safetensors, through a table.

Each model keeps a table beside it, one line per kind of tensor:

  (tensor name,                    our path,           einops pattern)
  ("layers.{}.attn.o_proj.weight", "layers/o/kernel",  "L D (N H) -> L N H D")

A line is read from left to right to import and from right to left to export.
`{}` is the number of a layer: the tensors of all layers are stacked on a
leading axis, which both sides of the pattern name first.  `axes` gives the size
of every letter, so the shape of each tensor is known before it is read, and a
line with an empty path names a tensor that a file may hold and that we do not
use.  A tensor that is missing, unknown, of another shape or not finite stops
the import with its name.

Tensors are read and written one at a time, and each device is given its part of
them: a host holds the largest tensor and the parts of its own devices, and no
more.

Only safetensors are loaded: the usual readers of other formats run code that
they hold.  `torch_files` brings PyTorch's here, and runs none.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open

Row = tuple[str, str, str]

Table = Sequence[Row]


FILE = "model.safetensors"

INDEX = "model.safetensors.index.json"

SHARD_BYTES = 2 << 30

FLOATS = ("F32", "BF16", "F16")

# By the names of safetensors.
DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(jnp.bfloat16),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "I16": np.dtype(np.int16),
  "I8": np.dtype(np.int8),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}

_NAME_OF = {dtype: name for name, dtype in DTYPES.items()}


class BadWeights(ValueError):
  """Weights that do not fit; the message names file, tensor and cure."""


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor in a file; calling it reads and checks it.

  Attributes:
    file: that holds it.
    name: in that file.
    shape: of it.
    dtype: one of `DTYPES`, or another that safetensors knows.
    read: gives it as it stands in the file.
  """

  file: str
  name: str
  shape: tuple[int, ...]
  dtype: str
  read: Callable[[], np.ndarray]

  def __call__(self) -> np.ndarray:
    """The tensor, of finite floats.

    Raises:
      BadWeights: where it holds something else.
    """
    if self.dtype not in FLOATS:
      raise BadWeights(
        f"{self.file}: tensor {self.name} holds {self.dtype}, wanted one of "
        f"{', '.join(FLOATS)}.  Give weights that are not quantised."
      )
    array = self.read()
    if not np.isfinite(array).all():
      raise BadWeights(
        f"{self.file}: tensor {self.name} holds NaN or infinity.  Fetch or "
        "convert it again."
      )
    return array

  @property
  def bytes(self) -> int:
    return math.prod(self.shape) * DTYPES[self.dtype].itemsize

  def cast(self, dtype: Any) -> "Tensor":
    """The same, checked, in another precision."""

    def read():
      with np.errstate(over="ignore"):
        array = self().astype(dtype)
      if not np.isfinite(array).all():
        raise BadWeights(
          f"{self.file}: tensor {self.name} has numbers beyond "
          f"{np.dtype(dtype)}.  Take bfloat16."
        )
      return array

    return dataclasses.replace(self, dtype=_NAME_OF[np.dtype(dtype)], read=read)


def linear(name: str, path: str, kernel: str, bias: str) -> tuple[Row, ...]:
  """The lines of a product with a bias."""
  return (
    (name + ".weight", path + "/kernel", kernel),
    (name + ".bias", path + "/bias", bias),
  )


def norm(name: str, path: str, pattern: str) -> tuple[Row, ...]:
  """The lines of a layer norm."""
  return (
    (name + ".weight", path + "/scale", pattern),
    (name + ".bias", path + "/bias", pattern),
  )


def load(
  path: str,
  table: Table,
  axes: Mapping[str, int],
  *,
  dtype: Any = None,
  rename: Sequence[tuple[str, str | None]] = (),
  layout: Callable[[str], jax.sharding.Sharding | None] = lambda path: None,
) -> dict:
  """Parameters, as nested dicts, of the checkpoint at `path`.

  Args:
    path: a .safetensors file, or a folder with one or with an index of many.
    table: the model's table.
    axes: the size of each letter in the table.
    dtype: what to cast to; None keeps the file's.
    rename: (prefix, new prefix) pairs, the first that fits a name is applied;
      the new prefix None means that the tensor is of another model.
    layout: how the leaf of a path lies on the devices, or None to have it as a
      NumPy array.
  """
  with contextlib.ExitStack() as stack:
    tensors = chosen(path, _open(path, rename, stack), table, axes)
    params = {
      leaf: _leaf(
        [tensors[n] for n in _names(name, pattern, axes)],
        "{}" in name,
        pattern,
        axes,
        dtype,
        layout(leaf),
      )
      for name, leaf, pattern in table
      if leaf
    }
  return traverse_util.unflatten_dict(params, sep="/")


def save(
  path: str,
  params: Mapping,
  table: Table,
  axes: Mapping[str, int],
  *,
  shard_bytes: int = SHARD_BYTES,
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes `params` under Hugging Face's names: the inverse of `load`.

  Args:
    path: a .safetensors file, or a folder, where what exceeds `shard_bytes`
      becomes several files with an index.
    params: nested dicts, as `load` returns.
    table: the model's table.
    axes: the size of each letter in the table.
    shard_bytes: size at which a folder gets another file.
    metadata: strings for the header of the file.
  """
  leaves = traverse_util.flatten_dict(params, sep="/")
  ours = {leaf for _, leaf, _ in table if leaf}
  if ours != set(leaves):
    raise BadWeights(
      f"{path}: table and parameters differ in "
      f"{sorted(ours ^ set(leaves))}.  Pass the table of this model."
    )
  exported = dict(_export(path, leaves, table, axes))
  if path.endswith(".safetensors"):
    _write(path, exported, metadata)
  else:
    write(path, exported, shard_bytes=shard_bytes, metadata=metadata)


def copy(
  source: str,
  target: str,
  table: Table,
  axes: Mapping[str, int],
  *,
  dtype: Any,
  rename: Sequence[tuple[str, str | None]] = (),
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes the checkpoint at `source` anew, into the folder `target`.

  Every tensor is checked and cast on the way; see `load` for the arguments.
  """
  with contextlib.ExitStack() as stack:
    tensors = chosen(source, _open(source, rename, stack), table, axes)
    write(
      target,
      {name: x.cast(dtype) for name, x in tensors.items()},
      shard_bytes=shard_bytes,
    )


def shape(pattern: str, axes: Mapping[str, int]) -> tuple[int, ...]:
  """The shape of the left side of an einops pattern."""
  groups = re.findall(r"\([^)]*\)|\S+", pattern.split("->")[0])
  return tuple(
    math.prod(1 if n == "1" else axes[n] for n in re.findall(r"\w+", group))
    for group in groups
  )


def _leaf(
  tensors: Sequence[Tensor],
  stacked: bool,
  pattern: str,
  axes: Mapping[str, int],
  dtype: Any,
  sharding: jax.sharding.Sharding | None,
) -> np.ndarray | jax.Array:
  """One leaf, of one tensor or of a tensor per layer."""
  left, right = pattern.split("->")
  size = shape(right, axes)
  if stacked:
    left, right = (side.split(maxsplit=1)[1] for side in (left, right))
  parts = (
    {None: (slice(None),) * len(size)}
    if sharding is None
    else (sharding.addressable_devices_indices_map(size))
  )
  bounds = {
    device: tuple(s.indices(n)[:2] for s, n in zip(part, size, strict=True))
    for device, part in parts.items()
  }
  buffers = {}  # Devices that have the same part share its memory.
  for layer, tensor in enumerate(tensors):
    array = einops.rearrange(
      tensor(), f"{left}->{right}", **_sizes(left + right, axes)
    )
    for bound in set(bounds.values()):
      if bound not in buffers:
        buffers[bound] = np.empty(
          [stop - start for start, stop in bound], dtype or array.dtype
        )
      inner = tuple(slice(*b) for b in bound[stacked:])
      if not stacked:
        buffers[bound][...] = array[inner]
      elif bound[0][0] <= layer < bound[0][1]:
        buffers[bound][layer - bound[0][0]] = array[inner]
  if sharding is None:
    return buffers[bounds[None]]
  return jax.make_array_from_single_device_arrays(
    size,
    sharding,
    [
      jax.device_put(buffers[bound], device) for device, bound in bounds.items()
    ],
  )


def _sizes(pattern: str, axes: Mapping[str, int]) -> dict[str, int]:
  """The axes that occur in `pattern`; einops refuses others."""
  letters = set(re.findall(r"[A-Za-z]\w*", pattern))
  return {letter: axes[letter] for letter in letters}


def _names(name: str, pattern: str, axes: Mapping[str, int]) -> list[str]:
  """The names of a line's tensors, one for each layer."""
  if "{}" not in name:
    return [name]
  return [name.format(i) for i in range(shape(pattern, axes)[0])]


def _open(
  path: str,
  rename: Sequence[tuple[str, str | None]],
  stack: contextlib.ExitStack,
) -> dict[str, Tensor]:
  """The tensors of a checkpoint by name; none of them is read yet."""
  tensors = []
  for file in files(path):
    try:
      handle = stack.enter_context(safe_open(file, framework="numpy"))
    except (OSError, SafetensorError) as error:
      raise BadWeights(
        f"{file}: not an intact safetensors file ({error}).  Fetch or "
        "convert it again."
      ) from error
    for name in handle.keys():  # noqa: SIM118 (a handle is not a dict)
      header = handle.get_slice(name)
      tensors.append(
        Tensor(
          file,
          name,
          tuple(header.get_shape()),
          header.get_dtype(),
          functools.partial(handle.get_tensor, name),
        )
      )
  return named(tensors, rename)


def named(
  tensors: Iterable[Tensor], rename: Sequence[tuple[str, str | None]]
) -> dict[str, Tensor]:
  """Tensors by their names without prefixes; see `load`."""
  found = {}
  for tensor in tensors:
    old, new = next(
      (pair for pair in rename if tensor.name.startswith(pair[0])), ("", "")
    )
    if new is None:
      continue
    name = new + tensor.name.removeprefix(old)
    if name in found:
      raise BadWeights(
        f"{tensor.file}: tensor {name} occurs twice.  Keep one of them."
      )
    found[name] = tensor
  return found


def files(path: str) -> list[str]:
  """The safetensors files of a checkpoint; names in an index stay inside.

  Raises:
    BadWeights: where there are none, or the index is broken.
  """
  if os.path.isfile(path):
    if not path.endswith(".safetensors"):
      raise BadWeights(
        f"{path}: only .safetensors is read, because other formats can run "
        "code.  Convert it first."
      )
    return [path]
  index = os.path.join(path, INDEX)
  if not os.path.exists(index):
    if not os.path.isfile(os.path.join(path, FILE)):
      raise BadWeights(
        f"{path}: holds neither {FILE} nor {INDEX}.  Give a folder that "
        "does, or a .safetensors file."
      )
    return [os.path.join(path, FILE)]
  try:
    with open(index, encoding="utf-8") as file:
      names = sorted(set(json.load(file)["weight_map"].values()))
    if any(
      os.path.basename(n) != n or not n.endswith(".safetensors") for n in names
    ):
      raise ValueError("it names a file outside its folder")
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise BadWeights(
      f"{index}: not a usable index ({error}).  Fetch it again."
    ) from error
  return [os.path.join(path, name) for name in names]


def chosen(
  path: str,
  tensors: Mapping[str, Tensor],
  table: Table,
  axes: Mapping[str, int],
) -> dict[str, Tensor]:
  """The tensors of a table, in its order.

  Raises:
    BadWeights: where one is missing, unknown or of another shape.
  """
  wanted, unused = {}, []
  for name, leaf, pattern in table:
    if leaf:
      size = shape(pattern, axes)[1 if "{}" in name else 0 :]
      wanted |= dict.fromkeys(_names(name, pattern, axes), size)
    else:
      unused.append(re.escape(name).replace(r"\{\}", r"\d+"))
  unused = re.compile("|".join(unused) or r"(?!)")
  missing = sorted(set(wanted) - set(tensors))
  unknown = sorted(
    n for n in set(tensors) - set(wanted) if not unused.fullmatch(n)
  )
  if missing or unknown:
    raise BadWeights(
      f"{path}: {len(missing)} tensors missing {missing[:4]}, "
      f"{len(unknown)} unknown {unknown[:4]}.  Check that the config is the "
      "one of these weights."
    )
  for name, size in wanted.items():
    if tensors[name].shape != size:
      raise BadWeights(
        f"{tensors[name].file}: tensor {name} has shape "
        f"{tensors[name].shape}, wanted {size}.  Check that the config is "
        "the one of these weights."
      )
  return {name: tensors[name] for name in wanted}


def _export(
  path: str,
  leaves: Mapping[str, Any],
  table: Table,
  axes: Mapping[str, int],
) -> Iterator[tuple[str, Tensor]]:
  """Names and tensors in the order of the table."""
  for name, leaf, pattern in table:
    if not leaf:
      continue
    stacked, whole = "{}" in name, leaves[leaf]
    left, right = pattern.split("->")
    if whole.shape != shape(right, axes):
      raise BadWeights(
        f"{path}: parameter {leaf} has shape {whole.shape}, wanted "
        f"{shape(right, axes)}.  Pass the axes of this model."
      )
    if stacked:
      left, right = (side.split(maxsplit=1)[1] for side in (left, right))

    def read(layer, left=left, right=right, stacked=stacked, whole=whole):
      part = whole[layer] if stacked else whole
      return einops.rearrange(
        np.asarray(part), f"{right} -> {left}", **_sizes(left + right, axes)
      )

    for layer, tensor_name in enumerate(_names(name, pattern, axes)):
      yield (
        tensor_name,
        Tensor(
          path,
          tensor_name,
          shape(left, axes),
          _NAME_OF[np.dtype(whole.dtype)],
          functools.partial(read, layer),
        ),
      )


def write(
  folder: str,
  tensors: Mapping[str, Tensor],
  *,
  shard_bytes: int = SHARD_BYTES,
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes tensors, read one at a time, as a checkpoint; see `save`."""
  os.makedirs(folder, exist_ok=True)
  shards = _shards(tensors, shard_bytes)
  parts = [
    os.path.join(folder, f"part-{i:05d}.safetensors")
    for i in range(len(shards))
  ]
  names = (
    [FILE]
    if len(shards) == 1
    else [
      f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
      for i in range(len(shards))
    ]
  )
  for part, shard in zip(parts, shards, strict=True):
    _write(part, shard, metadata)
  for part, name in zip(parts, names, strict=True):
    os.replace(part, os.path.join(folder, name))
  if len(shards) > 1:
    where = {
      tensor: name
      for name, shard in zip(names, shards, strict=True)
      for tensor in shard
    }
    with open(os.path.join(folder, INDEX), "w", encoding="utf-8") as file:
      json.dump({"metadata": {}, "weight_map": where}, file)


def _shards(
  tensors: Mapping[str, Tensor], shard_bytes: int
) -> list[dict[str, Tensor]]:
  shards, size = [{}], 0
  for name, tensor in tensors.items():
    if shards[-1] and size + tensor.bytes > shard_bytes:
      shards.append({})
      size = 0
    shards[-1][name] = tensor
    size += tensor.bytes
  return shards


def _write(
  path: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> None:
  """Writes a file that is either whole or absent.

  Source: github.com/huggingface/safetensors (the format).
  """
  # Wide numbers first, so that all lie at multiples of their width.
  order = sorted(tensors, key=lambda n: -DTYPES[tensors[n].dtype].itemsize)
  # Hugging Face insists on "format".
  header, end = {"__metadata__": {"format": "pt", **(metadata or {})}}, 0
  for name in order:
    start, end = end, end + tensors[name].bytes
    header[name] = dict(
      dtype=tensors[name].dtype,
      shape=tensors[name].shape,
      data_offsets=[start, end],
    )
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  partial = path + ".partial"
  try:
    with open(partial, "wb") as file:
      file.write(struct.pack("<Q", len(text)) + text)
      for name in order:
        array = np.ascontiguousarray(tensors[name].read())
        file.write(array.reshape(-1).view(np.uint8))
    os.replace(partial, path)
  except BaseException:
    os.remove(partial)
    raise


def fingerprint(path: str) -> str:
  """A digest of a weight file's size and of blocks spread over it."""
  if os.path.isdir(path):
    path = os.path.join(path, "model.safetensors")
  size = os.path.getsize(path)
  digest = hashlib.sha256(str(size).encode())
  with open(path, "rb") as file:
    for i in range(64):
      file.seek(size * i // 64)
      digest.update(file.read(4096))
  return digest.hexdigest()[:16]
