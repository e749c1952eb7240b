"""Read and write Hugging Face safetensors, renaming and reshaping by rules.

Each model keeps a weight map beside its code, with one rule per kind of tensor:

  (tensor name,                    parameter's path,   einops pattern)
  ("layers.{}.attn.o_proj.weight", "layers/o/kernel",  "L D (N H) -> L N H D")

A rule is read from left to right to load and from right to left to save.  `{}`
is the number of a layer: the tensors of all layers are stacked on a leading
axis, which both sides of the pattern name first.  `axes` gives the size of
every letter, so the shape of each tensor is known before it is read.  A rule
with an empty path names a tensor that a file may hold and that is skipped; it
has to equal the tensor that stands in the pattern's place, if any.  A tensor
that is missing, unknown, of another shape or not finite is an error that names
the tensor.

Tensors are read and written one at a time, and each device gets only its part:
a host holds no more than the largest tensor and the parts of its own devices.

Only safetensors are loaded, because the usual readers of other formats run code
that files hold.  `torch_checkpoint` has PyTorch read its files, apart from JAX.
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
from typing import IO, Annotated, Any

import einops
import huggingface_hub
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from etils import epath
from flax import traverse_util
from safetensors import SafetensorError, safe_open

from r1router_jax.common import schema
from r1router_jax.common.errors import UserError
from r1router_jax.common.files import atomic_write, write_json

# Tensor name, path of the parameter, pattern.
WeightRule = tuple[str, str, str]
WeightMap = tuple[WeightRule, ...]

# (prefix, new prefix) pairs; the new prefix None skips a tensor, as one of
# another model.
Prefixes = Sequence[tuple[str, str | None]]

# Opens a checkpoint as `open_tensors` does, from its path and prefixes.
Opener = Callable[
  [str, Prefixes],
  contextlib.AbstractContextManager[Mapping[str, "StoredTensor"]],
]

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

SHARD_BYTES = 2 << 30  # Size at which a checkpoint gets another file.
_MAX_INDEX_BYTES = 1 << 26  # That names each tensor of a model.

# The dtypes that weights may have, by the names of safetensors.
DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "BF16": np.dtype(jnp.bfloat16),
  "F16": np.dtype(np.float16),
}

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class BadWeights(UserError):
  """Weights that do not fit; the message names file, tensor and cure."""


class _Index(msgspec.Struct):
  """The schema of an index: the name of the file of each tensor."""

  weight_map: Annotated[dict[str, str], msgspec.Meta(min_length=1)]

  def __post_init__(self):
    # An index could name any file of this machine.
    for name in set(self.weight_map.values()):
      if not re.fullmatch(r"[^/\\\0]+\.safetensors", name):
        raise ValueError(f"it names {name!a:.80}, a file outside its folder")


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """A tensor in a file, not read yet.

  `name` is its name in that file, and `dtype` what safetensors calls its dtype.
  `read_raw` does not check what it reads.
  """

  file: str
  name: str
  shape: tuple[int, ...]
  dtype: str
  read_raw: Callable[[], np.ndarray]

  def read(self) -> np.ndarray:
    """Read the tensor; if it holds no finite floats, raise BadWeights."""
    if self.dtype not in DTYPES:
      raise BadWeights(
        f"{self.file}: tensor {self.name} holds {self.dtype}, wanted one of "
        f"{', '.join(DTYPES)}.  Give weights that are not quantised."
      )
    array = self.read_raw()
    if not np.isfinite(array).all():
      raise BadWeights(
        f"{self.file}: tensor {self.name} holds NaN or infinity.  Fetch, "
        "convert or train it again."
      )
    return array

  @property
  def num_bytes(self) -> int:
    """Size of the tensor in bytes."""
    return math.prod(self.shape) * DTYPES[self.dtype].itemsize

  def cast_to(self, dtype: Any) -> "StoredTensor":
    """Return this tensor in another precision; reading it checks it."""

    def read_cast() -> np.ndarray:
      # An overflow becomes infinity, which the check below finds.
      with np.errstate(over="ignore"):
        array = self.read().astype(dtype)
      if not np.isfinite(array).all():
        raise BadWeights(
          f"{self.file}: tensor {self.name} has numbers beyond "
          f"{np.dtype(dtype)}.  Take bfloat16."
        )
      return array

    name = _DTYPE_NAMES[np.dtype(dtype)]
    return dataclasses.replace(self, dtype=name, read_raw=read_cast)


def linear_rules(name: str, path: str, kernel: str, bias: str) -> WeightMap:
  """Return the rules of a linear layer with patterns `kernel` and `bias`."""
  return (
    (name + ".weight", path + "/kernel", kernel),
    (name + ".bias", path + "/bias", bias),
  )


def norm_rules(name: str, path: str, pattern: str) -> WeightMap:
  """Return the rules of a layer norm."""
  return (
    (name + ".weight", path + "/scale", pattern),
    (name + ".bias", path + "/bias", pattern),
  )


def load_params(
  path: str,
  weight_map: WeightMap,
  axes: Mapping[str, int],
  *,
  dtype: Any = None,
  prefixes: Prefixes = (),
  opener: Opener | None = None,
  shardings: Mapping[str, Any] | None = None,
) -> dict:
  """Load the parameters of a checkpoint, as nested dicts.

  Args:
    path: a .safetensors file, or a folder with one or with an index of many.
    weight_map: the model's rules.
    axes: size of each letter in the rules' patterns.
    dtype: precision to cast to; None keeps the file's.
    prefixes: the first that fits a name is applied.
    opener: opens a checkpoint of another form; by default `open_tensors`.
    shardings: nested dicts like the result; without it, parameters are NumPy
      arrays.

  Raises:
    BadWeights: a tensor is missing, unknown, of another shape or not finite.
  """
  with (opener or open_tensors)(path, prefixes) as stored:
    # Check all names and shapes before anything is read.
    tensors = select_tensors(path, stored, weight_map, axes)
    # Read the tensors of one parameter at a time.
    params, layout = {}, traverse_util.flatten_dict(shardings or {}, sep="/")
    for rule in _bind_rules(weight_map, axes):
      layers = [tensors[name] for name in rule.names]
      sharding = layout.get(rule.leaf)
      params[rule.leaf] = _load_leaf(rule, layers, dtype, sharding)
  return traverse_util.unflatten_dict(params, sep="/")


def save_params(
  folder: str,
  params: Mapping,
  weight_map: WeightMap,
  axes: Mapping[str, int],
  *,
  stem: str = "model",
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Write parameters under Hugging Face's names: the inverse of `load_params`.

  Raises:
    BadWeights: the parameters are not those of the rules.
  """
  leaves = traverse_util.flatten_dict(params, sep="/")
  # Neither side may have parameters that the other lacks.
  wanted = {leaf for _, leaf, _ in weight_map if leaf}
  if wanted != set(leaves):
    raise BadWeights(
      f"{folder}: table and parameters differ in "
      f"{sorted(wanted ^ set(leaves))}.  Pass the table of this model."
    )
  exported = dict(_export_tensors(folder, leaves, weight_map, axes))
  write_checkpoint(folder, exported, stem=stem, shard_bytes=shard_bytes)


def copy_checkpoint(
  source: str,
  target: str,
  weight_map: WeightMap,
  axes: Mapping[str, int],
  *,
  dtype: Any,
  prefixes: Prefixes = (),
  opener: Opener | None = None,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Check every tensor of a checkpoint and cast it into the folder `target`.

  The other arguments are those of `load_params` and of `save_params`.
  """
  with (opener or open_tensors)(source, prefixes) as stored:
    tensors = select_tensors(source, stored, weight_map, axes)
    # Nothing is read here: each tensor is read when it is written.
    cast = {name: tensor.cast_to(dtype) for name, tensor in tensors.items()}
    write_checkpoint(target, cast, shard_bytes=shard_bytes)


def tensor_shape(pattern: str, axes: Mapping[str, int]) -> tuple[int, ...]:
  """Return the shape of the left side of an einops pattern.

  >>> tensor_shape("L D (N H) -> L N H D", dict(L=2, D=12, N=3, H=4))
  (2, 12, 12)
  """
  # A group is one letter, "1", or several letters in brackets, whose sizes are
  # multiplied.
  groups = re.findall(r"\([^)]*\)|\S+", pattern.split("->")[0])
  sizes = {"1": 1, **axes}
  return tuple(
    math.prod(sizes[n] for n in re.findall(r"\w+", group)) for group in groups
  )


class _BoundRule:
  """A weight rule in which the sizes of axes are known.

  Attributes:
    leaf: path of the parameter.
    leaf_shape: its shape.
    is_stacked: whether its first axis is that of the layers.
    names: names of its tensors, one per layer.
    shape: the shape of each of them.
  """

  def __init__(self, rule: WeightRule, axes: Mapping[str, int]):
    name, self.leaf, pattern = rule
    left, right = pattern.split("->")
    self.leaf_shape = tensor_shape(right, axes)
    self.names, self.is_stacked = [name], "{}" in name
    if self.is_stacked:  # Both sides name the axis of the layers first.
      layers = tensor_shape(left, axes)[0]
      self.names = [name.format(i) for i in range(layers)]
      left, right = (side.split(maxsplit=1)[1] for side in (left, right))
    self.shape = tensor_shape(left, axes)
    # einops refuses the sizes of axes that do not occur.
    letters = set(re.findall(r"[A-Za-z]\w*", left + right))
    self._sizes = {letter: axes[letter] for letter in letters}
    self._left, self._right = left, right

  def to_param(self, tensor: np.ndarray) -> np.ndarray:
    """Return a tensor in the parameter's order of axes."""
    order = f"{self._left} -> {self._right}"
    return einops.rearrange(tensor, order, **self._sizes)

  def to_tensor(self, param: Any, layer: int) -> np.ndarray:
    """Return a parameter, or a layer of it, in the published order of axes."""
    part = np.asarray(param[layer] if self.is_stacked else param)
    order = f"{self._right} -> {self._left}"
    return einops.rearrange(part, order, **self._sizes)


def _bind_rules(
  weight_map: WeightMap, axes: Mapping[str, int]
) -> list[_BoundRule]:
  """Return the rules of the tensors that are not skipped."""
  return [_BoundRule(rule, axes) for rule in weight_map if rule[1]]


def _load_leaf(
  rule: _BoundRule,
  tensors: Sequence[StoredTensor],
  dtype: Any,
  sharding: jax.sharding.Sharding | None,
) -> np.ndarray | jax.Array:
  """Load one parameter from its tensor, or from a tensor per layer."""
  shape = rule.leaf_shape
  # Find the part, (start, stop) along each axis, that each device holds.  The
  # key None stands for the whole parameter, on the host.
  if sharding is None:
    slices = {None: (slice(None),) * len(shape)}
  else:
    slices = sharding.addressable_devices_indices_map(shape)
  bounds = {
    device: tuple(s.indices(n)[:2] for s, n in zip(part, shape, strict=True))
    for device, part in slices.items()
  }

  # Read one tensor at a time, and copy what each part needs of it.  Devices
  # that hold the same part share one buffer.
  buffers = {}
  for layer, tensor in enumerate(tensors):
    array = rule.to_param(tensor.read())
    for bound in set(bounds.values()):
      if bound not in buffers:
        lengths = [stop - start for start, stop in bound]
        buffers[bound] = np.empty(lengths, dtype or array.dtype)
      # `inner` is the part without the axis of the layers.
      inner = tuple(slice(*b) for b in (bound[rule.is_stacked :]))
      if not rule.is_stacked:
        buffers[bound][...] = array[inner]
      # This part holds only some of the layers.
      elif bound[0][0] <= layer < bound[0][1]:
        buffers[bound][layer - bound[0][0]] = array[inner]

  if sharding is None:
    return buffers[bounds[None]]
  parts = [jax.device_put(buffers[b], device) for device, b in bounds.items()]
  return jax.make_array_from_single_device_arrays(shape, sharding, parts)


@contextlib.contextmanager
def open_tensors(
  path: str, prefixes: Prefixes = ()
) -> Iterator[dict[str, StoredTensor]]:
  """Open the files of a checkpoint and yield its tensors by name, unread."""
  tensors = []
  with contextlib.ExitStack() as stack:
    for file in checkpoint_files(path):
      try:
        # Opening reads the header only.
        handle = stack.enter_context(safe_open(file, framework="numpy"))
      except (OSError, SafetensorError) as error:
        raise BadWeights(
          f"{file}: not an intact safetensors file ({error}).  Fetch or "
          "convert it again."
        ) from error
      for name in handle.keys():  # noqa: SIM118 (a handle is not a dict)
        header = handle.get_slice(name)
        shape, dtype = tuple(header.get_shape()), header.get_dtype()
        read_raw = functools.partial(handle.get_tensor, name)
        tensors.append(StoredTensor(file, name, shape, dtype, read_raw))
    yield rename_tensors(tensors, prefixes)


def rename_tensors(
  tensors: Iterable[StoredTensor], prefixes: Prefixes
) -> dict[str, StoredTensor]:
  """Return tensors by name, with prefixes replaced as in `load_params`.

  If two tensors get the same name, it raises BadWeights.
  """
  renamed = {}
  for tensor in tensors:
    # A name without any of the prefixes stays as it is.
    old, new = next(
      (pair for pair in prefixes if tensor.name.startswith(pair[0])), ("", "")
    )
    if new is None:
      continue
    name = new + tensor.name.removeprefix(old)
    if name in renamed:
      raise BadWeights(
        f"{tensor.file}: tensor {name} occurs twice.  Keep one of them."
      )
    renamed[name] = tensor
  return renamed


def checkpoint_files(path: str) -> list[str]:
  """List the safetensors files of a checkpoint.

  If there are none, or the index is broken or names a file outside its folder,
  it raises BadWeights.
  """
  if os.path.isfile(path):
    if not path.endswith(".safetensors"):
      raise BadWeights(
        f"{path}: only .safetensors is read, because other formats can run "
        "code.  Convert it first."
      )
    return [path]

  # A folder holds one file, which comes first as in transformers, or an index
  # that names several.
  index, single = (os.path.join(path, x) for x in (INDEX_FILE, WEIGHTS_FILE))
  if os.path.isfile(single):
    return [single]
  if not os.path.exists(index):
    raise BadWeights(
      f"{path}: holds neither {WEIGHTS_FILE} nor {INDEX_FILE}.  Give a folder "
      "that does, or a .safetensors file."
    )
  names = schema.read_json(
    index,
    lambda tree: schema.convert(tree, _Index).weight_map.values(),
    "Fetch it again.",
    max_bytes=_MAX_INDEX_BYTES,
    error=BadWeights,
  )
  return [os.path.join(path, name) for name in sorted(set(names))]


def select_tensors(
  path: str,
  tensors: Mapping[str, StoredTensor],
  weight_map: WeightMap,
  axes: Mapping[str, int],
) -> dict[str, StoredTensor]:
  """Return the tensors that the rules name, in the order of the rules.

  Raises:
    BadWeights: a tensor is missing, unknown or of another shape.
  """
  rules = _bind_rules(weight_map, axes)
  wanted = {name: rule.shape for rule in rules for name in rule.names}
  skipped = [re.escape(name) for name, leaf, _ in weight_map if not leaf]
  skipped = [name.replace(r"\{\}", r"\d+") for name in skipped]
  skipped = re.compile("|".join(skipped) or r"(?!)")  # (?!) matches nothing.

  # Compare them with the checkpoint's.
  missing = sorted(set(wanted) - set(tensors))
  others = sorted(set(tensors) - set(wanted))
  unknown = [name for name in others if not skipped.fullmatch(name)]
  cure = "Check that the config is the one of these weights."
  if missing or unknown:
    raise BadWeights(
      f"{path}: {len(missing)} tensors missing {missing[:4]}, "
      f"{len(unknown)} unknown {unknown[:4]}.  {cure}"
    )
  for name, shape in wanted.items():
    if (found := tensors[name].shape) != shape:
      fault = f"tensor {name} has shape {found}, wanted {shape}"
      raise BadWeights(f"{tensors[name].file}: {fault}.  {cure}")
  for name, leaf, same in weight_map:
    if not leaf and same and name in tensors:
      if not np.array_equal(tensors[name].read(), tensors[same].read()):
        fault = f"tensor {name} differs from {same}, and config.json ties them"
        cure = "Set its tie_word_embeddings to false, or take the tensor out."
        raise BadWeights(f"{tensors[name].file}: {fault}.  {cure}")
  return {name: tensors[name] for name in wanted}


def _export_tensors(
  folder: str,
  leaves: Mapping[str, Any],
  weight_map: WeightMap,
  axes: Mapping[str, int],
) -> Iterator[tuple[str, StoredTensor]]:
  """Yield published names and tensors, in the order of the rules."""
  for rule in _bind_rules(weight_map, axes):
    param = leaves[rule.leaf]
    if param.shape != rule.leaf_shape:
      fault = f"parameter {rule.leaf} has shape {param.shape}, wanted"
      cure = "Pass the axes of this model."
      raise BadWeights(f"{folder}: {fault} {rule.leaf_shape}.  {cure}")
    dtype = _DTYPE_NAMES[np.dtype(param.dtype)]
    for layer, name in enumerate(rule.names):
      # Order axes only when the tensor is written.
      read_raw = functools.partial(rule.to_tensor, param, layer)
      yield name, StoredTensor(folder, name, rule.shape, dtype, read_raw)


def write_checkpoint(
  folder: str,
  tensors: Mapping[str, StoredTensor],
  *,
  stem: str = "model",
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Write a checkpoint into a folder, as `<stem>.safetensors`.

  What exceeds `shard_bytes` becomes several files with an index.  The folder
  holds the weights of before, if any, until it holds all of the new ones.
  """
  os.makedirs(folder, exist_ok=True)
  # Shards get other names than those in the index of before.
  index, mark = epath.Path(folder) / INDEX_FILE, ""
  if sum(tensor.num_bytes for tensor in tensors.values()) > shard_bytes:
    if index.exists() and f'"{stem}-0' in index.read_text():
      mark = "_2"
  split = huggingface_hub.split_state_dict_into_shards_factory(
    tensors,
    get_storage_size=lambda tensor: tensor.num_bytes,
    filename_pattern=stem + mark + "{suffix}.safetensors",
    max_shard_size=shard_bytes,
  )
  names = [*split.filename_to_tensors]
  with contextlib.ExitStack() as stack:
    # Files get their names only when all of them are complete.
    for name, part in split.filename_to_tensors.items():
      file = stack.enter_context(atomic_write(os.path.join(folder, name)))
      _write_tensors(file, {tensor: tensors[tensor] for tensor in part})
  if split.is_sharded:
    names.append(INDEX_FILE)
    write_json(index, dict(metadata={}, weight_map=split.tensor_to_filename))
  if stem == "model":
    remove_other_weights(folder, names)


def remove_other_weights(folder: epath.PathLike, names: Sequence[str]) -> None:
  """Remove other weights from a folder of those that `names` are files of."""
  weights = r"model(_2)?(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
  for path in epath.Path(folder).iterdir():
    if re.fullmatch(weights, path.name) and path.name not in names:
      path.unlink()


def _write_tensors(
  file: IO[bytes], tensors: Mapping[str, StoredTensor]
) -> None:
  """Write a safetensors file; BadWeights if a tensor is not finite.

  The library's own writers want all tensors in memory at once.
  Source: github.com/huggingface/safetensors (the format).
  """
  # Wide numbers first, so that all lie at multiples of their width.
  order = sorted(tensors, key=lambda n: -DTYPES[tensors[n].dtype].itemsize)
  # Hugging Face insists on "format".
  header, end = {"__metadata__": {"format": "pt"}}, 0
  for name in order:
    start, end = end, end + tensors[name].num_bytes
    form = dict(dtype=tensors[name].dtype, shape=tensors[name].shape)
    header[name] = dict(form, data_offsets=[start, end])
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)  # Data start at a multiple of eight bytes.
  # The length of the header, the header, then the numbers.
  file.write(struct.pack("<Q", len(text)) + text)
  for name in order:
    array = np.ascontiguousarray(tensors[name].read())
    file.write(array.reshape(-1).view(np.uint8))


def fingerprint(path: str) -> str:
  """Return a digest of a weight file's size and of 64 blocks spread over it."""
  if os.path.isdir(path):
    path = os.path.join(path, WEIGHTS_FILE)
  size = os.path.getsize(path)
  digest = hashlib.sha256(str(size).encode())
  # Reading all of it would take as long as loading the weights.
  with open(path, "rb") as file:
    for i in range(64):
      file.seek(size * i // 64)
      digest.update(file.read(4096))
  return digest.hexdigest()[:16]
