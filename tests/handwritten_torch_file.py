"""PyTorch's checkpoints written by hand, instruction by instruction."""

import struct
import zipfile

import numpy as np

KINDS = {
  "float32": "FloatStorage",
  "float16": "HalfStorage",
  "bfloat16": "BFloat16Storage",
  "int64": "LongStorage",
}

NONE, FALSE, MARK = b"N", b"\x89", b"("


def text(words):
  data = words.encode("utf-8", "surrogatepass")
  return b"X" + struct.pack("<I", len(data)) + data


def number(n):
  data = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
  return b"\x8a" + bytes([len(data)]) + data


def several(*items):
  return MARK + b"".join(items) + b"t"


def named(module, name):
  return f"c{module}\n{name}\n".encode()


def call(function, *arguments):
  return function + several(*arguments) + b"R"


def entries(**items):
  return (
    b"}"
    + MARK
    + b"".join(text(key) + value for key, value in items.items())
    + b"u"
  )


def storage(key, count, kind="FloatStorage"):
  return (
    several(
      text("storage"),
      named("torch", kind),
      text(key),
      text("cpu"),
      number(count),
    )
    + b"Q"
  )


def tensor(where, shape, strides, offset=0):
  return call(
    named("torch._utils", "_rebuild_tensor_v2"),
    where,
    number(offset),
    several(*map(number, shape)),
    several(*map(number, strides)),
    FALSE,
    call(named("collections", "OrderedDict")),
  )


def write(
  path,
  program,
  storages=(),
  order=b"little",
  root="archive",
  compress=zipfile.ZIP_STORED,
):
  """A checkpoint of `program`; storages are bytes by key."""
  with zipfile.ZipFile(path, "w", compress) as file:
    file.writestr(f"{root}/data.pkl", b"\x80\x02" + program + b".")
    file.writestr(f"{root}/version", "3\n")
    if order:
      file.writestr(f"{root}/byteorder", order)
    for key, data in dict(storages).items():
      file.writestr(f"{root}/data/{key}", data)
  return str(path)


def save(path, arrays, key="", **options):
  """A checkpoint of arrays by name, in the entry `key` where one is named."""
  tensors, storages = {}, {}
  for i, (name, x) in enumerate(arrays.items()):
    x = np.array(x, order="C")
    strides = [n // x.itemsize for n in x.strides]
    where = storage(str(i), x.size, KINDS[x.dtype.name])
    tensors[name] = tensor(where, x.shape, strides)
    storages[i] = x.tobytes()
  program = entries(**tensors)
  return write(
    path,
    entries(**{key: program}, epoch=number(3)) if key else program,
    storages,
    **options,
  )
