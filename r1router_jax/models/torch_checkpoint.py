"""PyTorch's checkpoints (.bin, .pth) as data: nothing that they hold is run.

A checkpoint is a zip file of

  */data.pkl    a pickle, which says how tensors lie in storages
  */data/N      the numbers of storage N
  */byteorder   "little" or "big"

A pickle is a program, and its usual readers call what it names.  Here
`pickletools` lists its instructions, and those that build named tensors are
followed: dicts, tuples, texts, numbers, and three functions of PyTorch.  What
any other makes, such as an optimiser's state or the config of another library,
is `_INERT`: it holds nothing, and matters only where a tensor should be.  Lists
are inert, too, and so is what a dict holds under anything but a text: it has no
name.

The numbers stay in the file until they are asked for.

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

# More of any of these is refused.
_DIRECTORY_BYTES = 8 << 20  # Of the zip file.

_PROGRAM_BYTES = 32 << 20

_INSTRUCTIONS = 1 << 19

_INFLATED_BYTES = 1 << 30  # Of a compressed storage.

_NAMES = 1 << 17

_NAME_LENGTH = 1000

_AXES = 32  # Of a tensor.


_OLD = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # Files before 1.6.

_AGAIN = (
  "Save it again, with torch.save(torch.load(OLD, map_location='cpu', "
  "weights_only=True), NEW)"
)

_DAMAGED = "Fetch it again"

_STORAGES = {
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
class _Inert:
  """What is not followed; `name` where the program named it."""

  name: str = ""


_INERT = _Inert()

_MARK = _Inert()  # Told apart by identity.


@dataclasses.dataclass(frozen=True)
class _Storage:
  key: str
  dtype: str
  count: int


@dataclasses.dataclass(frozen=True)
class _View:
  """A tensor; all but the shape are counted in numbers, not bytes."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def tensors(path: str, key: str = "") -> dict[str, safetensors_io.Tensor]:
  """The tensors of a checkpoint by name, none of them read yet.

  Args:
    path: of the file.
    key: where the weights are one entry of many, its name, such as "model".

  Returns:
    Tensors; the names of nested dicts are joined by dots.

  Raises:
    hf.BadWeights: where the file is damaged, of another kind, or holds a tensor
      that is not within its storage.
  """
  archive = _Archive(path)
  if archive.size("data.pkl") > _PROGRAM_BYTES:
    raise _bad(
      path,
      f"its data.pkl has {archive.size('data.pkl')} bytes, more "
      f"than {_PROGRAM_BYTES}",
      _AGAIN,
    )
  tree = _run(path, archive.read("data.pkl").tobytes())
  if key:
    known = tree if isinstance(tree, dict) else {}
    if key not in known:
      raise _bad(
        path,
        f"it has no entry {key!r}, but {[name[:40] for name in known][:4]}",
        "Give the file as its authors publish it",
      )
    tree = known[key]
  found = {}
  for name, view in _named(path, tree):
    if name in found:
      raise _bad(path, f"the name {name!r} occurs twice", _DAMAGED)
    found[name] = _tensor(archive, name, view)
  if not found:
    raise _bad(
      path,
      "it holds no named tensors",
      "Give a file that torch.save wrote of a model's state_dict",
    )
  return found


def _bad(path: str, what: str, cure: str) -> safetensors_io.BadWeights:
  return safetensors_io.BadWeights(f"{path}: {what}.  {cure}.")


class _Directory(io.FileIO):
  """A file of which `zipfile` reads no huge directory."""

  def read(self, size: int | None = -1) -> bytes:
    if size is not None and size > _DIRECTORY_BYTES:
      raise ValueError(f"a directory of {size} bytes")
    return super().read(-1 if size is None else size)


class _Archive:
  """The entries of a checkpoint; `zipfile` reads its directory alone."""

  def __init__(self, path: str):
    self.path = path
    self._root, self._entries = _entries(path)
    self._bytes = np.memmap(path, np.uint8, "r")
    order = b"little"  # Files before 2.1 do not say.
    if self.size("byteorder") is not None:
      order = self.read("byteorder")[:8].tobytes()
    if order not in (b"little", b"big"):
      raise _bad(path, f"its byte order is {order!r}", _DAMAGED)
    self.order = "<" if order == b"little" else ">"
    self.storage = functools.lru_cache(maxsize=1)(self.read)

  def size(self, name: str) -> int | None:
    """Bytes of an entry, None where there is none."""
    info = self._entries.get(self._root + name)
    return None if info is None else info.file_size

  def read(self, name: str) -> np.ndarray:
    """The bytes of an entry; they are copied where they are compressed."""
    info = self._entries[self._root + name]
    data = self._stored(info)
    if info.compress_type != zipfile.ZIP_STORED:
      data = self._inflated(info, data)
    # Writers may leave the checksum out.
    if len(data) != info.file_size or info.CRC not in (0, zlib.crc32(data)):
      raise _bad(self.path, f"{info.filename!r} is damaged", _DAMAGED)
    return data

  def _stored(self, info: zipfile.ZipInfo) -> np.ndarray:
    start = info.header_offset
    head = self._bytes[max(start, 0) :][:30].tobytes()
    if (
      start < 0
      or len(head) < 30
      or head[:4] != b"PK\3\4"
      or (info.flag_bits & 1)
    ):
      raise _bad(
        self.path, f"{info.filename!r} is damaged or encrypted", _DAMAGED
      )
    start += 30 + sum(struct.unpack("<HH", head[26:]))
    return self._bytes[start : start + info.compress_size]

  def _inflated(self, info: zipfile.ZipInfo, data: np.ndarray) -> np.ndarray:
    if info.compress_type != zipfile.ZIP_DEFLATED or (
      info.file_size > _INFLATED_BYTES
    ):
      raise _bad(
        self.path,
        f"{info.filename!r} is compressed, to more than "
        f"{_INFLATED_BYTES} bytes or in a way that is not known",
        _AGAIN,
      )
    try:
      inflated = zlib.decompressobj(-15).decompress(data, info.file_size + 1)
    except zlib.error as error:
      raise _bad(
        self.path, f"{info.filename!r} is damaged ({error})", _DAMAGED
      ) from error
    return np.frombuffer(inflated, np.uint8)


def _entries(path: str) -> tuple[str, dict[str, zipfile.ZipInfo]]:
  """The folder that all entries of a checkpoint have, and these by name."""
  if not os.path.isfile(path):
    raise _bad(path, "there is no such file", "Give the path of a .bin or .pth")
  try:
    with _Directory(path) as file:
      if file.read(len(_OLD)) == _OLD:
        raise _bad(path, "it has the form of PyTorch before 1.6", _AGAIN)
      with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
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
    raise _bad(
      path, f"it is no intact zip file, as PyTorch writes ({error})", _DAMAGED
    ) from error
  found = {info.filename: info for info in infos}
  roots = [name for name in found if re.fullmatch(r"[^/]+/data\.pkl", name)]
  if len(roots) != 1 or len(found) != len(infos):
    raise _bad(
      path,
      "it is a zip file, but not as PyTorch writes it",
      "Give a file that torch.save wrote",
    )
  return roots[0].removesuffix("data.pkl"), found


def _run(path: str, program: bytes) -> Any:
  """What a pickle builds of what is known, see the head of this module."""
  stack, memo = [], {}
  try:
    for count, (op, arg, _) in enumerate(pickletools.genops(program)):
      if count == _INSTRUCTIONS:
        raise ValueError(f"more than {_INSTRUCTIONS} instructions")
      if op.name in _VALUES:
        stack.append(_VALUES[op.name](arg))
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
      else:
        operands = _operands(stack, op.stack_before)
        made = _MADE.get(op.name, lambda *operands: _INERT)
        stack += [made(*operands)] * len(op.stack_after)
  except (ValueError, IndexError, KeyError, TypeError) as error:
    raise _bad(
      path,
      f"its data.pkl is damaged ({type(error).__name__}: {error})",
      _DAMAGED,
    ) from error


def _operands(stack: list, before: list[pickletools.StackObject]) -> list:
  """What an instruction takes from the stack, the last on top."""
  taken, rest = [], len(before)
  if pickletools.markobject in before:  # All above the mark, some below.
    while (item := stack.pop()) is not _MARK:
      taken.append(item)
    rest = before.index(pickletools.markobject)
  for _ in range(rest):
    taken.append(stack.pop())
  return taken[::-1]


def _global(module: Any, name: Any) -> _Inert:
  for part in (module, name):
    if not isinstance(part, str) or len(part) > _NAME_LENGTH:
      return _INERT
  return _Inert(f"{module}.{name}")


def _update(found: Any, *items: Any) -> Any:
  """A dict with more entries, key after value; only texts are names."""
  if isinstance(found, dict):
    for key, value in zip(items[::2], items[1::2], strict=True):
      if isinstance(key, str):
        found[key] = value
  return found


def _storage(known: Any) -> _Storage | _Inert:
  """A storage by its persistent id, ("storage", type, key, device, count)."""
  match known:
    case ("storage", _Inert(name), str(key), _, int(count)) if (
      name in _STORAGES and re.fullmatch("[0-9]{1,20}", key)
    ):
      return _Storage(key, _STORAGES[name], count)
  return _INERT


def _call(function: Any, arguments: Any) -> Any:
  """The result of one of three functions; no other is known."""
  match function, arguments:
    case _Inert("collections.OrderedDict"), ():
      return {}
    case (
      _Inert("torch._utils._rebuild_tensor_v2"),
      (_Storage() as storage, int(offset), tuple(shape), tuple(strides), *_),
    ) if len(shape) == len(strides) <= _AXES and all(
      type(n) is int for n in (*shape, *strides)
    ):
      return _View(storage, offset, shape, strides)
    case _Inert("torch._utils._rebuild_parameter"), (_View() as view, *_):
      return view
  return _INERT


# What an instruction pushes, from its argument,
_VALUES = {
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
  "GLOBAL": lambda arg: _global(*arg.split(" ", 1)),
}

# or from what it takes from the stack.  All others push what is inert.
_MADE = {
  "DICT": lambda *items: _update({}, *items),
  "SETITEM": _update,
  "SETITEMS": _update,
  **dict.fromkeys(
    ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), lambda *items: items
  ),
  "STACK_GLOBAL": _global,
  "BINPERSID": _storage,
  "REDUCE": _call,
  "BUILD": lambda made, state: made,
}


def _named(path: str, tree: Any) -> Iterator[tuple[str, _View]]:
  """The tensors of nested dicts; dicts may hold each other, or themselves."""
  todo, count = [("", tree)], 0
  while todo:
    name, value = todo.pop()
    count += len(value) if isinstance(value, dict) else 0
    if count > _NAMES or len(name) > _NAME_LENGTH:
      raise _bad(
        path,
        f"it has more than {_NAMES} names, or one of more than "
        f"{_NAME_LENGTH} letters",
        _DAMAGED,
      )
    if isinstance(value, _View):
      yield name, value
    elif isinstance(value, dict):
      prefix = "" if value is tree else name + "."
      todo += [(prefix + key, inner) for key, inner in value.items()]


def _tensor(archive: _Archive, name: str, view: _View) -> safetensors_io.Tensor:
  """A tensor, checked to be within its storage."""
  storage, shape = view.storage, view.shape
  numbers = (storage.count, view.offset, *shape, *view.strides)
  count = archive.size(f"data/{storage.key}")
  width = safetensors_io.DTYPES[storage.dtype].itemsize
  if not all(0 <= n < 1 << 62 for n in numbers):
    raise _bad(
      archive.path, f"the shape of tensor {name!r} cannot be", _DAMAGED
    )
  if count != storage.count * width:
    raise _bad(
      archive.path,
      f"the storage {storage.key} of tensor {name!r} "
      f"has {count or 0} bytes, wanted {storage.count * width}",
      _DAMAGED,
    )
  last = view.offset + sum(
    (n - 1) * stride for n, stride in zip(shape, view.strides, strict=True)
  )
  # An empty tensor takes nothing, but its shape must be one.
  empty = 0 in shape
  size = math.prod(max(n, 1) for n in shape)
  if size > (1 << 31 if empty else storage.count) or (
    not empty and last >= storage.count
  ):
    raise _bad(
      archive.path,
      f"tensor {name!r} of shape {shape}, strides "
      f"{view.strides} and offset {view.offset} is not within its storage of "
      f"{storage.count} numbers",
      _DAMAGED,
    )
  return safetensors_io.Tensor(
    archive.path,
    name,
    shape,
    storage.dtype,
    functools.partial(_read, archive, view),
  )


def _read(archive: _Archive, view: _View) -> np.ndarray:
  dtype = safetensors_io.DTYPES[view.storage.dtype]
  if 0 in view.shape:
    return np.zeros(view.shape, dtype)
  word = np.dtype(f"u{dtype.itemsize}").newbyteorder(archive.order)
  there = np.ndarray(
    view.shape,
    word,
    archive.storage(f"data/{view.storage.key}"),
    view.offset * dtype.itemsize,
    [n * dtype.itemsize for n in view.strides],
  )
  return there.astype(word.newbyteorder("="), order="C").view(dtype)
