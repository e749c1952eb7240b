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

Tensors are read one at a time, and each device is given its part of them: a
host holds the largest tensor and the parts of its own devices, and no more.

Only safetensors are read: other formats run code when they are opened.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import einops
import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

Row = tuple[str, str, str]
Table = Sequence[Row]

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 2 << 30
FLOATS = ("F32", "BF16", "F16")


class BadWeights(ValueError):
  """Weights that do not fit; the message names file, tensor and cure."""


def linear(name: str, path: str, kernel: str, bias: str) -> tuple[Row, ...]:
  """The lines of a product with a bias."""
  return ((name + ".weight", path + "/kernel", kernel),
          (name + ".bias", path + "/bias", bias))


def norm(name: str, path: str, pattern: str) -> tuple[Row, ...]:
  """The lines of a layer norm."""
  return ((name + ".weight", path + "/scale", pattern),
          (name + ".bias", path + "/bias", pattern))


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
    tensors = _open(path, rename, stack)
    _check(path, tensors, table, axes)
    params = {
        leaf: _leaf([tensors[n] for n in _names(name, pattern, axes)],
                    "{}" in name, pattern, axes, dtype, layout(leaf))
        for name, leaf, pattern in table if leaf}
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
        f"{sorted(ours ^ set(leaves))}.  Pass the table of this model.")
  metadata = {"format": "pt"} | dict(metadata or {})  # HF insists on "format".
  exported = _export(leaves, table, axes)
  if path.endswith(".safetensors"):
    _write(path, dict(exported), metadata)
  else:
    _write_folder(path, exported, shard_bytes, metadata)


def copy(
    source: str, target: str, table: Table, axes: Mapping[str, int], *,
    dtype: Any, rename: Sequence[tuple[str, str | None]] = (),
    shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes the checkpoint at `source` anew, into the folder `target`.

  Every tensor is checked and cast on the way, and no more than a shard is held;
  see `load` for the arguments.
  """
  with contextlib.ExitStack() as stack:
    tensors = _open(source, rename, stack)
    _check(source, tensors, table, axes)
    names = [n for name, leaf, pattern in table if leaf
             for n in _names(name, pattern, axes)]
    _write_folder(target, ((n, _cast(tensors[n], dtype)) for n in names),
                  shard_bytes, {"format": "pt"})


def _cast(tensor: "_Tensor", dtype: Any) -> np.ndarray:
  with np.errstate(over="ignore"):
    array = tensor().astype(dtype)
  if not np.isfinite(array).all():
    raise BadWeights(f"{tensor.file}: tensor {tensor.name} has numbers beyond "
                     f"{np.dtype(dtype)}.  Take bfloat16.")
  return array


def shape(pattern: str, axes: Mapping[str, int]) -> tuple[int, ...]:
  """The shape of the left side of an einops pattern."""
  groups = re.findall(r"\([^)]*\)|\S+", pattern.split("->")[0])
  return tuple(
      math.prod(1 if n == "1" else axes[n] for n in re.findall(r"\w+", group))
      for group in groups)


def _leaf(
    tensors: Sequence["_Tensor"], stacked: bool, pattern: str,
    axes: Mapping[str, int], dtype: Any, sharding: jax.sharding.Sharding | None,
) -> np.ndarray | jax.Array:
  """One leaf, of one tensor or of a tensor per layer."""
  left, right = pattern.split("->")
  size = shape(right, axes)
  if stacked:
    left, right = (side.split(maxsplit=1)[1] for side in (left, right))
  parts = {None: (slice(None),) * len(size)} if sharding is None else (
      sharding.addressable_devices_indices_map(size))
  bounds = {device: tuple(s.indices(n)[:2] for s, n in zip(
      part, size, strict=True)) for device, part in parts.items()}
  buffers = {}  # Devices that have the same part share its memory.
  for layer, tensor in enumerate(tensors):
    array = einops.rearrange(
        tensor(), f"{left}->{right}", **_sizes(left + right, axes))
    for bound in set(bounds.values()):
      if bound not in buffers:
        buffers[bound] = np.empty(
            [stop - start for start, stop in bound], dtype or array.dtype)
      inner = tuple(slice(*b) for b in bound[stacked:])
      if not stacked:
        buffers[bound][...] = array[inner]
      elif bound[0][0] <= layer < bound[0][1]:
        buffers[bound][layer - bound[0][0]] = array[inner]
  if sharding is None:
    return buffers[bounds[None]]
  return jax.make_array_from_single_device_arrays(
      size, sharding, [jax.device_put(buffers[bound], device)
                       for device, bound in bounds.items()])


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
) -> dict[str, "_Tensor"]:
  """The tensors of a checkpoint by name; none of them is read yet."""
  tensors = {}
  for file in files(path):
    try:
      handle = stack.enter_context(safe_open(file, framework="numpy"))
    except (OSError, SafetensorError) as error:
      raise BadWeights(
          f"{file}: not an intact safetensors file ({error}).  Fetch or "
          "convert it again.") from error
    for stored in handle.keys():  # noqa: SIM118 (a handle is not a dict)
      old, new = next(
          (pair for pair in rename if stored.startswith(pair[0])), ("", ""))
      if new is None:
        continue
      name = new + stored.removeprefix(old)
      if name in tensors:
        raise BadWeights(
            f"{file}: tensor {name} occurs twice.  Keep one of them.")
      tensors[name] = _Tensor(file, handle, stored)
  return tensors


class _Tensor:
  """A tensor in an open file, read when called."""

  def __init__(self, file: str, handle: Any, name: str):
    self.file, self.handle, self.name = file, handle, name
    header = handle.get_slice(name)
    self.shape, self.dtype = tuple(header.get_shape()), header.get_dtype()

  def __call__(self) -> np.ndarray:
    if self.dtype not in FLOATS:
      raise BadWeights(
          f"{self.file}: tensor {self.name} holds {self.dtype}, wanted one of "
          f"{', '.join(FLOATS)}.  Give weights that are not quantised.")
    array = self.handle.get_tensor(self.name)
    if not np.isfinite(array).all():
      raise BadWeights(
          f"{self.file}: tensor {self.name} holds NaN or infinity.  Fetch or "
          "convert it again.")
    return array


def files(path: str) -> list[str]:
  """The safetensors files of a checkpoint; names in an index stay inside.

  Raises:
    BadWeights: where there are none, or the index is broken.
  """
  if os.path.isfile(path):
    if not path.endswith(".safetensors"):
      raise BadWeights(
          f"{path}: only .safetensors is read, because other formats can run "
          "code.  Convert it first.")
    return [path]
  index = os.path.join(path, INDEX)
  if not os.path.exists(index):
    if not os.path.isfile(os.path.join(path, FILE)):
      raise BadWeights(
          f"{path}: holds neither {FILE} nor {INDEX}.  Give a folder that "
          "does, or a .safetensors file.")
    return [os.path.join(path, FILE)]
  try:
    with open(index, encoding="utf-8") as file:
      names = sorted(set(json.load(file)["weight_map"].values()))
    if any(os.path.basename(n) != n or not n.endswith(".safetensors")
           for n in names):
      raise ValueError("it names a file outside its folder")
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise BadWeights(
        f"{index}: not a usable index ({error}).  Fetch it again.") from error
  return [os.path.join(path, name) for name in names]


def _check(
    path: str,
    tensors: Mapping[str, "_Tensor"],
    table: Table,
    axes: Mapping[str, int],
) -> None:
  """Raises where a tensor is missing, unknown or of another shape."""
  wanted, unused = {}, []
  for name, leaf, pattern in table:
    if leaf:
      size = shape(pattern, axes)[1 if "{}" in name else 0:]
      wanted |= dict.fromkeys(_names(name, pattern, axes), size)
    else:
      unused.append(re.escape(name).replace(r"\{\}", r"\d+"))
  unused = re.compile("|".join(unused) or r"(?!)")
  missing = sorted(set(wanted) - set(tensors))
  unknown = sorted(
      n for n in set(tensors) - set(wanted) if not unused.fullmatch(n))
  if missing or unknown:
    raise BadWeights(
        f"{path}: {len(missing)} tensors missing {missing[:4]}, "
        f"{len(unknown)} unknown {unknown[:4]}.  Check that the config is the "
        "one of these weights.")
  for name, size in wanted.items():
    if tensors[name].shape != size:
      raise BadWeights(
          f"{tensors[name].file}: tensor {name} has shape "
          f"{tensors[name].shape}, wanted {size}.  Check that the config is "
          "the one of these weights.")


def _export(
    leaves: Mapping[str, Any], table: Table, axes: Mapping[str, int],
) -> Iterator[tuple[str, np.ndarray]]:
  """Names and tensors in the order of the table, one at a time."""
  for name, leaf, pattern in table:
    if leaf:
      left, right = pattern.split("->")
      parts = [leaves[leaf]]
      if "{}" in name:
        left, right = (side.split(maxsplit=1)[1] for side in (left, right))
        parts = leaves[leaf]
      for tensor_name, part in zip(
          _names(name, pattern, axes), parts, strict=True):
        yield tensor_name, np.ascontiguousarray(einops.rearrange(
            np.asarray(part), f"{right} -> {left}",
            **_sizes(left + right, axes)))


def _write_folder(
    path: str, exported: Iterator[tuple[str, np.ndarray]], shard_bytes: int,
    metadata: Mapping[str, str],
) -> None:
  """Writes tensors as one file, or as several with an index."""
  os.makedirs(path, exist_ok=True)
  shards, where = [], {}
  for tensors in _shards(exported, shard_bytes):
    shards.append(os.path.join(path, f"part-{len(shards):05d}.safetensors"))
    where |= dict.fromkeys(tensors, len(shards) - 1)
    _write(shards[-1], tensors, metadata)
  names = [FILE] if len(shards) == 1 else [
      f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
      for i in range(len(shards))]
  for shard, name in zip(shards, names, strict=True):
    os.replace(shard, os.path.join(path, name))
  if len(shards) > 1:
    with open(os.path.join(path, INDEX), "w", encoding="utf-8") as file:
      json.dump({"metadata": {},
                 "weight_map": {n: names[i] for n, i in where.items()}}, file)


def _shards(
    exported: Iterator[tuple[str, np.ndarray]], shard_bytes: int,
) -> Iterator[dict[str, np.ndarray]]:
  shard, size = {}, 0
  for name, tensor in exported:
    if shard and size + tensor.nbytes > shard_bytes:
      yield shard
      shard, size = {}, 0
    shard[name] = tensor
    size += tensor.nbytes
  yield shard


def _write(path: str, tensors: dict, metadata: Mapping[str, str]) -> None:
  """Writes a file that is either whole or absent."""
  partial = path + ".partial"
  with open(partial, "wb"):
    mode = os.stat(partial).st_mode  # By the umask; safetensors makes it 600.
  save_file(tensors, partial, dict(metadata))
  os.chmod(partial, mode)
  os.replace(partial, path)
