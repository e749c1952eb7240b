"""Tests that PyTorch files are read as PyTorch reads them, or are refused."""

import collections
import io
import os
import pickle
import random
import struct
import zipfile

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest

from r1router_jax.models import safetensors_io, torch_checkpoint
from tests.handwritten_torch_file import (
  MARK,
  push_call,
  push_dict,
  push_global,
  push_number,
  push_storage,
  push_tensor,
  push_text,
  push_tuple,
  save_arrays,
  write_program,
)

# The numbers of most tensors below.
FOUR = np.arange(4, dtype=np.float32)


class Config:
  """An object of a foreign class, such as published files hold."""

  def __init__(self, **fields):
    self.__dict__.update(fields)


def to_bytes(array):
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


@pytest.fixture
def torch():
  return pytest.importorskip("torch")


def assert_tensors_equal(torch, path, wanted, key=""):
  """Assert that a file's tensors are those of `wanted`, bit by bit."""
  found = torch_checkpoint.list_tensors(str(path), key)
  assert found.keys() == wanted.keys()
  for name, x in wanted.items():
    x = x.detach()
    array = found[name].read_raw()
    assert found[name].shape == array.shape == tuple(x.shape)
    assert str(x.dtype) == f"torch.{array.dtype}"
    np.testing.assert_array_equal(
      to_bytes(array), x.contiguous().reshape(-1).view(torch.uint8).numpy()
    )


@pytest.mark.oracle
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_dtypes_and_layouts_agree_with_torch(torch, tmp_path, protocol):
  torch.manual_seed(0)
  # A tensor of each dtype, then views of all kinds.
  whole = torch.randn(6, 8)
  wanted = {
    str(kind): (torch.randn(3, 5) * 9).to(kind)
    for kind in (
      torch.float64,
      torch.float32,
      torch.float16,
      torch.bfloat16,
      torch.int64,
      torch.int32,
      torch.int16,
      torch.int8,
      torch.uint8,
      torch.bool,
    )
  }
  wanted |= {
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "turned": whole.t(),
    "part": whole[1:4, 2::3],
    "again": whole,
    "column": whole[:, 3],
    "axes": whole.reshape(2, 3, 2, 4).permute(3, 1, 0, 2),
    "ids": torch.arange(9).expand((1, -1)),
    "learned": torch.nn.Parameter(torch.randn(3, dtype=torch.bfloat16)),
    "é\u2028": torch.ones(1),
  }
  torch.save(wanted, tmp_path / "w.bin", pickle_protocol=protocol)
  assert_tensors_equal(torch, tmp_path / "w.bin", wanted)


@pytest.mark.oracle
def test_training_checkpoint_agrees_with_torch(torch, tmp_path):
  model = torch.nn.Sequential(
    torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 4)
  )
  # Two names for one storage, one of them transposed.
  model[2].weight = torch.nn.Parameter(model[0].weight.t())  # Shared.
  optimiser = torch.optim.AdamW(model.parameters())
  model(torch.randn(5, 4)).sum().backward()
  # The optimiser has a state after its first step.
  optimiser.step()
  # Objects of foreign classes, as published files hold.
  config = Config(lr=1e-3, inner=Config(deep=[1, {2, 3}]), raw=b"x")
  torch.save(
    {
      "model": model.state_dict(),
      "optimizer": optimiser.state_dict(),
      "config": config,
      "counts": collections.Counter("abca"),
      "epoch": 3,
      "by number": {0: torch.ones(2)},
      "listed": [torch.ones(2)],
      "small": torch.zeros(2, dtype=torch.float8_e4m3fn),
    },
    tmp_path / "w.pth",
  )
  assert_tensors_equal(torch, tmp_path / "w.pth", model.state_dict(), "model")
  # Values without a name are skipped; an unknown entry is an error.
  names = {f"model.{name}" for name in model.state_dict()}
  assert torch_checkpoint.list_tensors(str(tmp_path / "w.pth")).keys() == names
  with pytest.raises(
    safetensors_io.BadWeights, match="no entry 'state'.*'optimizer'"
  ):
    torch_checkpoint.list_tensors(str(tmp_path / "w.pth"), "state")
  with pytest.raises(safetensors_io.BadWeights, match="no named tensors"):
    torch_checkpoint.list_tensors(str(tmp_path / "w.pth"), "config")


@pytest.mark.oracle
def test_file_without_checksums_is_read(torch, tmp_path):
  torch.serialization.set_crc32_options(False)
  try:
    torch.save({"w": torch.arange(4.0)}, tmp_path / "w.bin")
  finally:
    torch.serialization.set_crc32_options(True)
  assert_tensors_equal(torch, tmp_path / "w.bin", {"w": torch.arange(4.0)})


@pytest.mark.oracle
def test_old_format_is_refused(torch, tmp_path):
  torch.save(
    {"w": torch.ones(2)},
    tmp_path / "w.bin",
    _use_new_zipfile_serialization=False,
  )
  with pytest.raises(
    safetensors_io.BadWeights, match="before 1.6.  Save it again"
  ):
    torch_checkpoint.list_tensors(str(tmp_path / "w.bin"))


@pytest.mark.oracle
def test_handwritten_file_is_read_by_torch(torch, tmp_path):
  arrays = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones(2, ml_dtypes.bfloat16),
    "c": np.array(5),
  }
  path = save_arrays(tmp_path / "w.bin", arrays, key="model")
  assert_tensors_equal(torch, path, torch.load(path)["model"], "model")


@pytest.mark.parametrize(
  "options", [{}, dict(order=b""), dict(compress=zipfile.ZIP_DEFLATED)]
)
def test_handwritten_file_round_trip(tmp_path, options):
  rng = np.random.default_rng(0)
  arrays = {
    "a": rng.normal(size=(2, 3)).astype(np.float32),
    "b": rng.normal(size=40).astype(ml_dtypes.bfloat16),
    "c": np.array(-5),
    "d.e": rng.normal(size=(1, 7, 1)).astype("f2"),
  }
  path = save_arrays(tmp_path / "w.bin", arrays, **options)
  found = torch_checkpoint.list_tensors(path)
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    read = found[name].read_raw()
    assert read.dtype == array.dtype and read.shape == array.shape
    np.testing.assert_array_equal(to_bytes(read), to_bytes(array))


def test_big_endian_file_is_read(tmp_path):
  path = write_program(
    tmp_path / "w.bin",
    push_dict(w=push_tensor(push_storage("0", 4), (2, 2), (1, 2))),
    {0: FOUR.astype(">f4").tobytes()},
    order=b"big",
  )
  np.testing.assert_array_equal(
    torch_checkpoint.list_tensors(path)["w"].read_raw(), [[0, 2], [1, 3]]
  )


def one_tensor(
  shape=(4,), strides=(1,), offset=0, count=4, key="0", kind="FloatStorage"
):
  return push_dict(
    w=push_tensor(push_storage(key, count, kind), shape, strides, offset)
  )


@pytest.mark.parametrize(
  ("program", "words"),
  [
    # Offset, strides and shape.
    (one_tensor(offset=1), "not within"),
    (one_tensor(offset=-1), "cannot be"),
    (one_tensor(strides=(2,)), "not within"),
    (one_tensor(strides=(-1,)), "cannot be"),
    (one_tensor(shape=(5,)), "not within"),
    (one_tensor(shape=(2, 3), strides=(2, 1)), "not within"),
    (one_tensor(shape=(-1,)), "cannot be"),
    # Shapes that NumPy cannot hold.
    (one_tensor(shape=(1 << 61,), strides=(0,)), "not within"),
    (one_tensor(shape=(1 << 900,)), "cannot be"),
    (one_tensor(shape=(1 << 61, 0), strides=(0, 1)), "not within"),
    # Other numbers of axes than of strides, or too many.
    (one_tensor(shape=(2,), strides=(1, 1)), "no named"),
    (one_tensor(shape=(1,) * 40, strides=(1,) * 40), "no named"),
    # Sizes and types of the storage.
    (one_tensor(count=5), "has 16 bytes, wanted 20"),
    (one_tensor(count=1 << 61), "has 16 bytes"),
    (one_tensor(count=-4), "cannot be"),
    (one_tensor(kind="DoubleStorage"), "has 16 bytes, wanted 32"),
    (one_tensor(kind="QInt8Storage"), "no named"),
    # Names of the storage; the last is a digit, but not one of ASCII.
    (one_tensor(key="1"), "has 0 bytes"),
    (one_tensor(key="../data/0"), "no named"),
    (one_tensor(key="٠"), "no named"),
    # No tensor at all.
    (push_dict(w=push_tuple(push_number(1))), "no named"),
    (push_number(1), "no named"),
    (b"", "data.pkl is damaged"),
  ],
)
def test_tensor_beyond_its_storage_is_refused(tmp_path, program, words):
  path = write_program(tmp_path / "w.bin", program, {0: FOUR.tobytes()})
  with pytest.raises(safetensors_io.BadWeights, match=words):
    torch_checkpoint.list_tensors(path)


def make_attacks(command):
  """Return pickle programs that would run a shell command if they were run."""
  system, words = push_global("os", "system"), push_text(command)
  ran = push_call(system, words)
  # The operands of a good tensor, of which an attack replaces one.
  storage, where = push_storage("0", 4), push_number(0)
  sizes = push_tuple(push_number(4)), push_tuple(push_number(1))
  rebuild = push_global("torch._utils", "_rebuild_tensor_v2")
  return {
    # Every instruction that calls a function or makes an object.
    "call": ran,
    "stack global": push_text("os")
    + push_text("system")
    + b"\x93"
    + push_tuple(words)
    + b"R",
    "inst": MARK + words + b"ios\nsystem\n",
    "obj": MARK + system + words + b"o",
    "newobj": system + push_tuple(words) + b"\x81",
    "newobj_ex": system + push_tuple(words) + b"}\x92",
    "build": ran + push_dict(__setstate__=system) + b"b",
    "eval": push_call(
      push_global("builtins", "eval"),
      push_text(f"__import__('os').system({command!r})"),
    ),
    # The result of a call where a part of a tensor should be.
    "as a storage": push_call(rebuild, ran, where, *sizes),
    "as an offset": push_call(rebuild, storage, ran, *sizes),
    "as a shape": push_call(rebuild, storage, where, ran, sizes[1]),
    "as a parameter": push_call(
      push_global("torch._utils", "_rebuild_parameter"), ran
    ),
    "as a storage's type": push_call(
      rebuild,
      push_tuple(
        push_text("storage"),
        ran,
        push_text("0"),
        push_text("cpu"),
        push_number(4),
      )
      + b"Q",
      where,
      *sizes,
    ),
    # Functions by other ways than their names.
    "extension": b"\x82\x01",
    "by a name": push_text("torch._utils._rebuild_tensor_v2")
    + push_tuple(storage, where, *sizes)
    + b"R",
  }


@pytest.mark.parametrize("kind", make_attacks(""))
def test_no_attack_runs(tmp_path, kind):
  command = f"touch {tmp_path / 'ran'}"
  attack = make_attacks(command)[kind]
  good = push_tensor(push_storage("0", 4), (4,), (1,))
  path = write_program(
    tmp_path / "w.bin",
    push_dict(w=attack, v=good),
    {0: FOUR.tobytes()},
  )
  # The attack is skipped, and the tensor beside it is read.
  assert torch_checkpoint.list_tensors(path).keys() == {"v"}
  path = write_program(tmp_path / "w.bin", attack)
  with pytest.raises(safetensors_io.BadWeights, match="no named tensors"):
    torch_checkpoint.list_tensors(path)
  assert os.listdir(tmp_path) == ["w.bin"]


def test_attack_works_on_pickle(tmp_path):
  attack = push_call(push_global("os", "mkdir"), push_text(str(tmp_path)))
  with pytest.raises(FileExistsError):
    pickle.loads(attack + b".")  # noqa: S301 (the test's own pickle)


def nested_dicts(depth):
  """Return a program of dicts that each hold the previous one twice."""
  program = push_tensor(push_storage("0", 4), (4,), (1,)) + b"q\x00"
  for level in range(depth):
    inner = b"h" + bytes([level])
    program += push_dict(a=inner, b=inner) + b"q" + bytes([level + 1])
  return program


SELF = b"}q\x00" + MARK + push_text("a") + b"h\x00u"


@pytest.mark.parametrize(
  ("program", "words"),
  [
    # Few instructions with endlessly many names.
    (nested_dicts(60), "more than 131072 names"),
    (SELF, "more than 131072 names"),
    (
      push_dict(**{"a" * 2000: b"}"}),
      "more than 1000 letters",
    ),
    # Values that are not in the memo or on the stack.
    (b"h\x07", "KeyError"),
    (b"q\x07", "IndexError"),
    (b"2", "IndexError"),
    (b"t", "IndexError"),
    (b"}u", "IndexError"),
    (b"R", "IndexError"),
    (
      b"}" + MARK + push_text("a") + b"u",
      "ValueError",
    ),
    # Lengths beyond the end, and bytes that are no text.
    (b"X\xff\xff\xff\xff", "ValueError"),
    (b"\x8d" + b"\xff" * 8, "ValueError"),
    (b"\x8b\xff\xff\xff\x7f", "ValueError"),
    (b"I" + b"9" * 5000 + b"\n", "ValueError"),
    (b"c\xff\xff\n\n", "Unicode"),
    (b"\xff", "ValueError"),
  ],
)
def test_malformed_program_is_refused(tmp_path, program, words):
  path = write_program(tmp_path / "w.bin", program, {0: FOUR.tobytes()})
  with pytest.raises(safetensors_io.BadWeights, match=words):
    torch_checkpoint.list_tensors(path)


def test_duplicate_name_is_refused(tmp_path):
  value = push_tensor(push_storage("0", 4), (4,), (1,))
  program = push_dict(**{"a": push_dict(b=value), "a.b": value})
  path = write_program(tmp_path / "w.bin", program, {0: FOUR.tobytes()})
  with pytest.raises(safetensors_io.BadWeights, match="'a.b' occurs twice"):
    torch_checkpoint.list_tensors(path)


@pytest.mark.parametrize(
  "program",
  [
    # Marks.
    b"(" * 600_000,
    # A long shape, a long name, many times.
    b"("
    + b"K\x01" * 100_000
    + b"tq\x00"
    + push_storage("0", 4)
    + b"q\x01"
    + push_global("torch._utils", "_rebuild_tensor_v2")
    + b"q\x02"
    + b"h\x02(h\x01K\x00h\x00h\x00tR0" * 20_000,
    # Two long names, joined many times.
    push_text("a" * 4_000_000) + b"q\x00" + b"h\x00h\x00\x930" * 50_000,
    # Tuples nested deeper than Python's stack.
    b")" + b"\x85" * 200_000,
  ],
  ids=["marks", "shapes", "names", "tuples"],
)
def test_work_is_bounded(tmp_path, program):
  # Without limits, each of these takes hours or all memory.
  path = write_program(tmp_path / "w.bin", program, {0: FOUR.tobytes()})
  with pytest.raises(safetensors_io.BadWeights):
    torch_checkpoint.list_tensors(path)


def test_zip_bombs_are_refused(tmp_path, monkeypatch):
  # A compressed storage of 4 MiB is read, and one beyond each limit refused.
  good = one_tensor(shape=(1 << 20,), count=1 << 20)
  path = write_program(
    tmp_path / "w.bin", good, {0: bytes(4 << 20)}, compress=zipfile.ZIP_DEFLATED
  )
  assert os.path.getsize(path) < 10_000
  assert not torch_checkpoint.list_tensors(path)["w"].read_raw().any()
  with monkeypatch.context() as patch:
    patch.setattr(torch_checkpoint, "_MAX_INFLATED_BYTES", 4 << 19)
    with pytest.raises(
      safetensors_io.BadWeights, match="compressed, to more than"
    ):
      torch_checkpoint.list_tensors(path)["w"].read_raw()
  with monkeypatch.context() as patch:
    patch.setattr(torch_checkpoint, "_MAX_PROGRAM_BYTES", 100)
    with pytest.raises(
      safetensors_io.BadWeights, match="data.pkl has .* more than 100"
    ):
      torch_checkpoint.list_tensors(path)
  with monkeypatch.context() as patch:
    patch.setattr(torch_checkpoint, "_MAX_DIRECTORY_BYTES", 100)
    with pytest.raises(safetensors_io.BadWeights, match="a directory of"):
      torch_checkpoint.list_tensors(path)
  # An entry that is larger than the directory says.
  size, lie = struct.pack("<I", 4 << 20), struct.pack("<I", 16)
  small = write_program(
    tmp_path / "v.bin",
    one_tensor(),
    {0: bytes(4 << 20)},
    compress=zipfile.ZIP_DEFLATED,
  )
  with open(small, "rb") as file:
    data = file.read()
  with open(small, "wb") as file:
    file.write(data.replace(size, lie))
  with pytest.raises(safetensors_io.BadWeights, match="data/0' is damaged"):
    torch_checkpoint.list_tensors(small)["w"].read_raw()


def rewrite_zip(path, change):
  """Write the entries of a zip file back with a change."""
  with zipfile.ZipFile(path) as file:
    items = [(name, file.read(name)) for name in file.namelist()]
  with (
    pytest.warns() if change == "twice" else open(os.devnull),
    zipfile.ZipFile(path, "w") as file,
  ):
    # Each change makes a file that torch.save would not write.
    for name, data in items + (items[-1:] if change == "twice" else []):
      if change == "bzip2":
        file.writestr(name, data, zipfile.ZIP_BZIP2)
      elif change == "no program":
        file.writestr(name.replace("data.pkl", "data.txt"), data)
      else:
        file.writestr(name, data)
    if change == "two programs":
      file.writestr("other/data.pkl", items[0][1])
  return path


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ("bzip2", "in a way that is not known"),
    ("twice", "not as PyTorch"),
    ("no program", "not as PyTorch"),
    ("two programs", "not as PyTorch"),
  ],
)
def test_foreign_zip_file_is_refused(tmp_path, change, words):
  path = save_arrays(tmp_path / "w.bin", {"w": FOUR})
  with pytest.raises(safetensors_io.BadWeights, match=words):
    torch_checkpoint.list_tensors(rewrite_zip(path, change))


def test_foreign_file_is_refused(tmp_path):
  for name, data in (
    ("empty", b""),
    ("pickle", pickle.dumps({})),
    ("text", b"weights"),
  ):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(safetensors_io.BadWeights, match="no intact zip file"):
      torch_checkpoint.list_tensors(str(tmp_path / name))
  for path in (tmp_path, tmp_path / "absent", "\0"):
    with pytest.raises(safetensors_io.BadWeights, match="no such file"):
      torch_checkpoint.list_tensors(str(path))
  path = save_arrays(tmp_path / "w.bin", {"w": FOUR}, order=b"middle")
  with pytest.raises(
    safetensors_io.BadWeights, match="byte order is b'middle'"
  ):
    torch_checkpoint.list_tensors(path)


def test_changed_number_is_refused(tmp_path):
  path = save_arrays(tmp_path / "w.bin", {"w": FOUR})
  with open(path, "rb") as file:
    data = bytearray(file.read())
  # The checksum covers every bit of the numbers.
  data[data.index(FOUR.tobytes()) + 5] ^= 1
  with open(path, "wb") as file:
    file.write(data)
  with pytest.raises(
    safetensors_io.BadWeights, match="'archive/data/0' is damaged"
  ):
    torch_checkpoint.list_tensors(path)["w"].read_raw()


def try_read(data, path):
  """Read `data` as a checkpoint; return None if `BadWeights` is raised."""
  path.write_bytes(data)
  try:
    found = torch_checkpoint.list_tensors(str(path))
    return {name: tensor.read_raw() for name, tensor in found.items()}
  except safetensors_io.BadWeights:
    return None


def test_every_truncation_is_refused(tmp_path):
  path = save_arrays(tmp_path / "w.bin", {"w": FOUR, "v": FOUR}, key="model")
  with open(path, "rb") as file:
    data = file.read()
  # The whole file is read; each shorter one is not.
  assert try_read(data, tmp_path / "x")
  for size in range(len(data)):
    assert try_read(data[:size], tmp_path / "x") is None


# The seeds are fixed, so that a failure can be repeated.
FUZZ = hypothesis.settings(
  max_examples=300,
  deadline=None,
  derandomize=True,
  suppress_health_check=list(hypothesis.HealthCheck),
)


@FUZZ
@hypothesis.given(seed=st.integers(0, 1 << 32), count=st.integers(1, 6))
def test_random_damage_is_refused(tmp_path_factory, seed, count):
  folder = tmp_path_factory.mktemp("fuzz")
  rng = random.Random(seed)
  # Change a few bytes anywhere in the file.
  kind = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
  path = save_arrays(folder / "w.bin", {"w": FOUR, "v": FOUR}, compress=kind)
  with open(path, "rb") as file:
    data = bytearray(file.read())
  for _ in range(count):
    data[rng.randrange(len(data))] = rng.choice([0, 255, rng.randrange(256)])
  found = try_read(bytes(data), folder / "x")
  # Checksums cover the numbers; names in the directory may have changed.
  for array in (found or {}).values():
    np.testing.assert_array_equal(array, FOUR)


# Instructions that may build tensors when they are combined.
FRAGMENTS = [
  push_text("w"),
  push_storage("0", 4),
  push_number(4),
  push_global("torch._utils", "_rebuild_tensor_v2"),
  push_tuple(push_number(1)),
  b"}",
  b")",
  b"(",
  b"q\x00",
  b"h\x00",
  b"\x94",
  b"u",
  b"s",
  b"t",
  b"\x85",
  b"\x86",
  b"\x87",
  b"R",
  b"b",
  b"Q",
  b"\x93",
  b"0",
  b"1",
  b"2",
  b"\x81",
  b"o",
  b"a",
  b"e",
]


@FUZZ
@hypothesis.given(
  st.lists(
    st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=4)), max_size=40
  )
)
def test_random_program_is_read_or_refused(tmp_path_factory, parts):
  path = write_program(
    tmp_path_factory.mktemp("fuzz") / "w.bin",
    one_tensor()[:-1] + b"".join(parts),
    {0: FOUR.tobytes()},
  )
  with open(path, "rb") as file:
    try_read(file.read(), tmp_path_factory.mktemp("fuzz") / "x")


@FUZZ
@hypothesis.given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_refused(tmp_path_factory, data, signed):
  folder = tmp_path_factory.mktemp("fuzz")
  assert try_read((b"PK\3\4" if signed else b"") + data, folder / "x") is None


def test_only_the_directory_is_read_on_opening(tmp_path, monkeypatch):
  """Reading one tensor of a large file does not read the others."""
  path = save_arrays(
    tmp_path / "w.bin", {"w": FOUR, "v": np.zeros(1 << 22, np.float32)}
  )
  # Count the bytes that zipfile reads.
  read = []
  plain = io.FileIO.read
  monkeypatch.setattr(
    torch_checkpoint._Directory,
    "read",
    lambda self, size=-1: read.append(data := plain(self, size)) or data,
  )
  np.testing.assert_array_equal(
    torch_checkpoint.list_tensors(path)["w"].read_raw(), FOUR
  )
  assert sum(map(len, read)) < 100_000
