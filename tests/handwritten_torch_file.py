"""Write PyTorch checkpoints without torch, pickle instruction by instruction.

The push_... functions return the instructions that push a value.
"""

import struct
import zipfile

import numpy as np

STORAGE_TYPES = {
  "float32": "FloatStorage",
  "float16": "HalfStorage",
  "bfloat16": "BFloat16Storage",
  "int64": "LongStorage",
}

NONE, FALSE, MARK = b"N", b"\x89", b"("


def push_text(words):
  data = words.encode("utf-8", "surrogatepass")
  return b"X" + struct.pack("<I", len(data)) + data


def push_number(n):
  data = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
  return b"\x8a" + bytes([len(data)]) + data


def push_tuple(*items):
  return MARK + b"".join(items) + b"t"


def push_global(module, name):
  return f"c{module}\n{name}\n".encode()


def push_call(function, *arguments):
  return function + push_tuple(*arguments) + b"R"


def push_dict(**items):
  return (
    b"}"
    + MARK
    + b"".join(push_text(key) + value for key, value in items.items())
    + b"u"
  )


def push_storage(key, count, storage_type="FloatStorage"):
  return (
    push_tuple(
      push_text("storage"),
      push_global("torch", storage_type),
      push_text(key),
      push_text("cpu"),
      push_number(count),
    )
    + b"Q"
  )


def push_tensor(storage, shape, strides, offset=0):
  return push_call(
    push_global("torch._utils", "_rebuild_tensor_v2"),
    storage,
    push_number(offset),
    push_tuple(*map(push_number, shape)),
    push_tuple(*map(push_number, strides)),
    FALSE,
    push_call(push_global("collections", "OrderedDict")),
  )


def write_program(
  path,
  program,
  storages=(),
  order=b"little",
  root="archive",
  compress=zipfile.ZIP_STORED,
):
  """Write a checkpoint with a pickle program, and storages as bytes by key."""
  with zipfile.ZipFile(path, "w", compress) as file:
    file.writestr(f"{root}/data.pkl", b"\x80\x02" + program + b".")
    file.writestr(f"{root}/version", "3\n")
    if order:
      file.writestr(f"{root}/byteorder", order)
    for key, data in dict(storages).items():
      file.writestr(f"{root}/data/{key}", data)
  return str(path)


def save_arrays(path, arrays, key="", **options):
  """Write a checkpoint of arrays by name, inside the entry `key` if given."""
  tensors, storages = {}, {}
  for i, (name, x) in enumerate(arrays.items()):
    x = np.array(x, order="C")
    strides = [n // x.itemsize for n in x.strides]
    storage = push_storage(str(i), x.size, STORAGE_TYPES[x.dtype.name])
    tensors[name] = push_tensor(storage, x.shape, strides)
    storages[i] = x.tobytes()
  program = push_dict(**tensors)
  return write_program(
    path,
    push_dict(**{key: program}, epoch=push_number(3)) if key else program,
    storages,
    **options,
  )
