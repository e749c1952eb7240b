"""Read PyTorch checkpoints (.bin, .pth) as data, without running their pickle.

A checkpoint is a zip file of

  */data.pkl    a pickle, which says how tensors lie in storages
  */data/N      the numbers of storage N
  */byteorder   "little" or "big"

A pickle is a program, and its usual readers call the functions that it names.
Here `pickletools` lists its instructions, and only those that build named
tensors are followed: dicts, tuples, strings, numbers, and three functions of
PyTorch.  The result of any other instruction, such as an optimiser's state or
the config of another library, is `_OPAQUE`, which holds nothing and matters
only where a tensor should be.  Lists are opaque, too, and so are dict entries
whose key is not a string, since they have no name.

A tensor's numbers stay in the file until the tensor is read.

Sources: docs.python.org/3/library/pickletools.html (instructions),
docs.pytorch.org/docs/stable/notes/serialization.html and torch/_utils.py (the
file, its functions), pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT (zip).
"""

import dataclasses
import functools
import io
import math
import os
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from r1router_jax.models import safetensors_io

# Limits on the work that a hostile file can cause.
_MAX_DIRECTORY_BYTES = 8 << 20  # Directory of the zip file.

_MAX_PROGRAM_BYTES = 32 << 20

_MAX_INSTRUCTIONS = 1 << 19

_MAX_INFLATED_BYTES = 1 << 30  # One compressed storage.

_MAX_NAMES = 1 << 17

_MAX_NAME_LENGTH = 1000

_MAX_AXES = 32


# First bytes of files that PyTorch before 1.6 wrote.
_OLD_FORMAT_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")

_SAVE_AGAIN = (
  "Save it again, with torch.save(torch.load(OLD, map_location='cpu', "
  "weights_only=True), NEW)"
)

_FETCH_AGAIN = "Fetch it again"

# Type of a storage: dtype by the name that safetensors gives it.
# Quantised and complex storages are missing: their tensors are opaque.
_STORAGE_DTYPES = {
  "torch.DoubleStorage": "F64",
  "torch.FloatStorage": "F32",
  "torch.HalfStorage": "F16",
  "torch.BFloat16Storage": "BF16",
  "torch.LongStorage": "I64",
  "torch.IntStorage": "I32",
  "torch.ShortStorage": "I16",
  "torch.CharStorage": "I8",
  "torch.ByteStorage": "U8",
  "torch.BoolStorage": "BOOL",
}


@dataclasses.dataclass(frozen=True)
class _Opaque:
  """A value that is not followed.

  Attributes:
    name: dotted name, if the pickle refers to a function or class.
  """

  name: str = ""


_OPAQUE = _Opaque()

_MARK = _Opaque()  # The pickle mark; compared by identity.


@dataclasses.dataclass(frozen=True)
class _Storage:
  """A storage: `count` numbers of `dtype` in the entry data/`key`."""

  key: str
  dtype: str
  count: int


@dataclasses.dataclass(frozen=True)
class _View:
  """A tensor in a storage; offset and strides count numbers, not bytes."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def list_tensors(
  path: str, key: str = ""
) -> dict[str, safetensors_io.StoredTensor]:
  """Return the tensors of a checkpoint by name, none of them read yet.

  Args:
    path: the checkpoint file.
    key: name of the entry that holds the weights, such as "model", in a file
      with several entries; "" if the file is the weights alone.

  Returns:
    Tensors by name; the names of nested dicts are joined by dots.

  Raises:
    BadWeights: the file is damaged, of another kind, or holds a tensor that is
      not within its storage.
  """
  # 1. Read the program, and build the tree of tensors that it describes.
  archive = _Archive(path)
  if archive.entry_size("data.pkl") > _MAX_PROGRAM_BYTES:
    raise _bad_file(
      path,
      f"its data.pkl has {archive.entry_size('data.pkl')} bytes, more "
      f"than {_MAX_PROGRAM_BYTES}",
      _SAVE_AGAIN,
    )
  tree = _run_pickle(path, archive.read_entry("data.pkl").tobytes())
  # 2. Choose the entry that holds the weights.
  if key:
    known = tree if isinstance(tree, dict) else {}
    if key not in known:
      raise _bad_file(
        path,
        f"it has no entry {key!r}, but {[name[:40] for name in known][:4]}",
        "Give the file as its authors publish it",
      )
    tree = known[key]
  # 3. Name the tensors, and check that each lies within its storage.
  found = {}
  for name, view in _named_views(path, tree):
    if name in found:
      raise _bad_file(path, f"the name {name!r} occurs twice", _FETCH_AGAIN)
    found[name] = _stored_tensor(archive, name, view)
  if not found:
    raise _bad_file(
      path,
      "it holds no named tensors",
      "Give a file that torch.save wrote of a model's state_dict",
    )
  return found


def _bad_file(path: str, what: str, cure: str) -> safetensors_io.BadWeights:
  """Return the error that says what is wrong with a file, and the cure."""
  return safetensors_io.BadWeights(f"{path}: {what}.  {cure}.")


class _Directory(io.FileIO):
  """A file from which `zipfile` cannot read a huge directory."""

  def read(self, size: int | None = -1) -> bytes:
    if size is not None and size > _MAX_DIRECTORY_BYTES:
      raise ValueError(f"a directory of {size} bytes")
    return super().read(-1 if size is None else size)


class _Archive:
  """The entries of a checkpoint.

  `zipfile` reads the directory only; entries are views of the mapped file, so
  that large storages are not copied.
  """

  def __init__(self, path: str):
    self.path = path
    self._root, self._entries = _read_directory(path)
    # Storages are read from the mapped file when a tensor is read.
    self._bytes = np.memmap(path, np.uint8, "r")
    order = b"little"  # Files of PyTorch before 2.1 do not say.
    if self.entry_size("byteorder") is not None:
      order = self.read_entry("byteorder")[:8].tobytes()
    if order not in (b"little", b"big"):
      raise _bad_file(path, f"its byte order is {order!r}", _FETCH_AGAIN)
    self.order = "<" if order == b"little" else ">"
    # Keep the last storage: tensors that share one are neighbours.
    self.storage = functools.lru_cache(maxsize=1)(self.read_entry)

  def entry_size(self, name: str) -> int | None:
    """Return the size of an entry in bytes, or None if there is no entry."""
    info = self._entries.get(self._root + name)
    return None if info is None else info.file_size

  def read_entry(self, name: str) -> np.ndarray:
    """Return the bytes of an entry; only compressed ones are copied."""
    info = self._entries[self._root + name]
    data = self._stored_bytes(info)
    # torch.save does not compress, but other writers may.
    if info.compress_type != zipfile.ZIP_STORED:
      data = self._inflate_bytes(info, data)
    # A checksum of 0 means that the writer left it out.
    if len(data) != info.file_size or info.CRC not in (0, zlib.crc32(data)):
      raise _bad_file(self.path, f"{info.filename!r} is damaged", _FETCH_AGAIN)
    return data

  def _stored_bytes(self, info: zipfile.ZipInfo) -> np.ndarray:
    """Return the bytes of an entry as they stand in the file."""
    # The local header has 30 bytes and two names of variable length.
    start = info.header_offset
    head = self._bytes[max(start, 0) :][:30].tobytes()
    if (
      start < 0
      or len(head) < 30
      or head[:4] != b"PK\3\4"
      or (info.flag_bits & 1)
    ):
      raise _bad_file(
        self.path, f"{info.filename!r} is damaged or encrypted", _FETCH_AGAIN
      )
    start += 30 + sum(struct.unpack("<HH", head[26:]))
    return self._bytes[start : start + info.compress_size]

  def _inflate_bytes(
    self, info: zipfile.ZipInfo, data: np.ndarray
  ) -> np.ndarray:
    if info.compress_type != zipfile.ZIP_DEFLATED or (
      info.file_size > _MAX_INFLATED_BYTES
    ):
      raise _bad_file(
        self.path,
        f"{info.filename!r} is compressed, to more than "
        f"{_MAX_INFLATED_BYTES} bytes or in a way that is not known",
        _SAVE_AGAIN,
      )
    try:
      # One byte more than promised shows that the entry is larger than it says.
      inflated = zlib.decompressobj(-15).decompress(data, info.file_size + 1)
    except zlib.error as error:
      raise _bad_file(
        self.path, f"{info.filename!r} is damaged ({error})", _FETCH_AGAIN
      ) from error
    return np.frombuffer(inflated, np.uint8)


def _read_directory(path: str) -> tuple[str, dict[str, zipfile.ZipInfo]]:
  """Return the folder that all entries of a checkpoint share, and these."""
  if not os.path.isfile(path):
    raise _bad_file(
      path, "there is no such file", "Give the path of a .bin or .pth"
    )
  try:
    with _Directory(path) as file:
      if file.read(len(_OLD_FORMAT_MAGIC)) == _OLD_FORMAT_MAGIC:
        raise _bad_file(
          path, "it has the form of PyTorch before 1.6", _SAVE_AGAIN
        )
      with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
  # An error of this module is complete; it is a ValueError, too.
  except safetensors_io.BadWeights:
    raise
  except (
    zipfile.BadZipFile,
    OSError,
    ValueError,
    NotImplementedError,
    OverflowError,
    struct.error,
  ) as error:
    raise _bad_file(
      path,
      f"it is no intact zip file, as PyTorch writes ({error})",
      _FETCH_AGAIN,
    ) from error
  found = {info.filename: info for info in infos}
  # Every entry is in one folder, the name of which the writer chose.
  roots = [name for name in found if re.fullmatch(r"[^/]+/data\.pkl", name)]
  if len(roots) != 1 or len(found) != len(infos):
    raise _bad_file(
      path,
      "it is a zip file, but not as PyTorch writes it",
      "Give a file that torch.save wrote",
    )
  return roots[0].removesuffix("data.pkl"), found


def _run_pickle(path: str, program: bytes) -> Any:
  """Return what a pickle builds; unknown values are `_OPAQUE`."""
  stack, memo = [], {}
  try:
    for count, (op, arg, _) in enumerate(pickletools.genops(program)):
      if count == _MAX_INSTRUCTIONS:
        raise ValueError(f"more than {_MAX_INSTRUCTIONS} instructions")
      # Constants, and references to them.
      if op.name in _PUSH_ARGUMENT:
        stack.append(_PUSH_ARGUMENT[op.name](arg))
      # The memo, by which a pickle refers to earlier values.
      elif op.name in ("PUT", "BINPUT", "LONG_BINPUT"):
        memo[arg] = stack[-1]
      elif op.name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
      elif op.name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[arg])
      elif op.name == "DUP":
        stack.append(stack[-1])
      elif op.name == "STOP":
        return stack.pop()
      # All that combines values, which is opaque unless it builds tensors.
      else:
        operands = _pop_operands(stack, op.stack_before)
        made = _COMBINE_OPERANDS.get(op.name, lambda *operands: _OPAQUE)
        stack += [made(*operands)] * len(op.stack_after)
  except (ValueError, IndexError, KeyError, TypeError) as error:
    raise _bad_file(
      path,
      f"its data.pkl is damaged ({type(error).__name__}: {error})",
      _FETCH_AGAIN,
    ) from error


def _pop_operands(stack: list, before: list[pickletools.StackObject]) -> list:
  """Pop the operands of an instruction; the last is the top of the stack."""
  taken, rest = [], len(before)
  # An instruction with a mark takes all above the mark, and some below.
  if pickletools.markobject in before:
    while (item := stack.pop()) is not _MARK:
      taken.append(item)
    rest = before.index(pickletools.markobject)
  for _ in range(rest):
    taken.append(stack.pop())
  return taken[::-1]


def _make_global(module: Any, name: Any) -> _Opaque:
  """Return a reference to a function or class, which is never resolved."""
  # Names are joined into new strings: long ones would fill the memory.
  for part in (module, name):
    if not isinstance(part, str) or len(part) > _MAX_NAME_LENGTH:
      return _OPAQUE
  return _Opaque(f"{module}.{name}")


def _set_items(found: Any, *items: Any) -> Any:
  """Add entries, key after value, to a dict; only strings are names."""
  if isinstance(found, dict):
    for key, value in zip(items[::2], items[1::2], strict=True):
      if isinstance(key, str):
        found[key] = value
  return found


def _parse_storage(known: Any) -> _Storage | _Opaque:
  """Parse a persistent id, ("storage", type, key, device, count)."""
  match known:
    case ("storage", _Opaque(name), str(key), _, int(count)) if (
      name in _STORAGE_DTYPES and re.fullmatch("[0-9]{1,20}", key)
    ):
      return _Storage(key, _STORAGE_DTYPES[name], count)
  return _OPAQUE


def _call_function(function: Any, arguments: Any) -> Any:
  """Return the result of one of three known functions."""
  match function, arguments:
    # A state_dict starts as an empty OrderedDict.
    case _Opaque("collections.OrderedDict"), ():
      return {}
    case (
      # A tensor: storage, offset, shape and strides; the rest is for autograd.
      _Opaque("torch._utils._rebuild_tensor_v2"),
      (_Storage() as storage, int(offset), tuple(shape), tuple(strides), *_),
    ) if len(shape) == len(strides) <= _MAX_AXES and all(
      type(n) is int for n in (*shape, *strides)
    ):
      return _View(storage, offset, shape, strides)
    # A parameter is a tensor with a flag.
    case _Opaque("torch._utils._rebuild_parameter"), (_View() as view, *_):
      return view
  return _OPAQUE


# Instructions that push a value made from their argument.
_PUSH_ARGUMENT = {
  **dict.fromkeys(
    (
      "INT",
      "BININT",
      "BININT1",
      "BININT2",
      "LONG",
      "LONG1",
      "LONG4",
      "UNICODE",
      "SHORT_BINUNICODE",
      "BINUNICODE",
      "BINUNICODE8",
      "STRING",
      "BINSTRING",
      "SHORT_BINSTRING",
    ),
    lambda arg: arg,
  ),
  "NONE": lambda _: None,
  "NEWTRUE": lambda _: True,
  "NEWFALSE": lambda _: False,
  "MARK": lambda _: _MARK,
  "EMPTY_DICT": lambda _: {},
  "EMPTY_TUPLE": lambda _: (),
  "GLOBAL": lambda arg: _make_global(*arg.split(" ", 1)),
}

# Instructions that push a value made from their operands on the stack.  All
# instructions in neither table push `_OPAQUE`.
_COMBINE_OPERANDS = {
  "DICT": lambda *items: _set_items({}, *items),
  "SETITEM": _set_items,
  "SETITEMS": _set_items,
  **dict.fromkeys(
    ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), lambda *items: items
  ),
  "STACK_GLOBAL": _make_global,
  "BINPERSID": _parse_storage,
  "REDUCE": _call_function,
  "BUILD": lambda made, state: made,
}


def _named_views(path: str, tree: Any) -> Iterator[tuple[str, _View]]:
  """Yield the tensors of nested dicts, with dotted names.

  A hostile pickle may build dicts that hold each other or themselves; the limit
  on names ends the walk.
  """
  # A list instead of recursion: nesting may be deeper than Python's stack.
  todo, count = [("", tree)], 0
  while todo:
    name, value = todo.pop()
    count += len(value) if isinstance(value, dict) else 0
    if count > _MAX_NAMES or len(name) > _MAX_NAME_LENGTH:
      raise _bad_file(
        path,
        f"it has more than {_MAX_NAMES} names, or one of more than "
        f"{_MAX_NAME_LENGTH} letters",
        _FETCH_AGAIN,
      )
    if isinstance(value, _View):
      yield name, value
    elif isinstance(value, dict):
      prefix = "" if value is tree else name + "."
      todo += [(prefix + key, inner) for key, inner in value.items()]


def _stored_tensor(
  archive: _Archive, name: str, view: _View
) -> safetensors_io.StoredTensor:
  """Return a tensor after a check that it lies within its storage."""
  storage, shape = view.storage, view.shape
  numbers = (storage.count, view.offset, *shape, *view.strides)
  count = archive.entry_size(f"data/{storage.key}")
  width = safetensors_io.DTYPES[storage.dtype].itemsize
  # Sizes must be non-negative and fit in 64 bits before they are added.
  if not all(0 <= n < 1 << 62 for n in numbers):
    raise _bad_file(
      archive.path, f"the shape of tensor {name!r} cannot be", _FETCH_AGAIN
    )
  if count != storage.count * width:
    raise _bad_file(
      archive.path,
      f"the storage {storage.key} of tensor {name!r} "
      f"has {count or 0} bytes, wanted {storage.count * width}",
      _FETCH_AGAIN,
    )
  # Position of the last number that the tensor reads.
  last = view.offset + sum(
    (n - 1) * stride for n, stride in zip(shape, view.strides, strict=True)
  )
  # An empty tensor needs no storage, but NumPy must be able to hold its shape.
  empty = 0 in shape
  size = math.prod(max(n, 1) for n in shape)
  if size > (1 << 31 if empty else storage.count) or (
    not empty and last >= storage.count
  ):
    raise _bad_file(
      archive.path,
      f"tensor {name!r} of shape {shape}, strides "
      f"{view.strides} and offset {view.offset} is not within its storage of "
      f"{storage.count} numbers",
      _FETCH_AGAIN,
    )
  return safetensors_io.StoredTensor(
    archive.path,
    name,
    shape,
    storage.dtype,
    functools.partial(_read_view, archive, view),
  )


def _read_view(archive: _Archive, view: _View) -> np.ndarray:
  """Read a tensor, contiguous and in native byte order."""
  dtype = safetensors_io.DTYPES[view.storage.dtype]
  if 0 in view.shape:
    return np.zeros(view.shape, dtype)
  # NumPy cannot swap the bytes of bfloat16, but those of integers.
  word = np.dtype(f"u{dtype.itemsize}").newbyteorder(archive.order)
  stored = np.ndarray(
    view.shape,
    word,
    archive.storage(f"data/{view.storage.key}"),
    view.offset * dtype.itemsize,
    [n * dtype.itemsize for n in view.strides],
  )
  return stored.astype(word.newbyteorder("="), order="C").view(dtype)
