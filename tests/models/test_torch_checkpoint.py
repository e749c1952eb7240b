"""PyTorch's files read as PyTorch reads them, and hostile ones refused."""

import collections
import io
import os
import pickle
import random
import struct
import time
import zipfile

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest

from r1router_jax.models import safetensors_io, torch_checkpoint
from tests import handwritten_torch_file

FOUR = np.arange(4, dtype=np.float32)


class Config:
  """Something of the authors' own, as in the files that they publish."""

  def __init__(self, **fields):
    self.__dict__.update(fields)


def bits(array):
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


@pytest.fixture
def torch():
  return pytest.importorskip("torch")


def agree(torch, path, wanted, key=""):
  """Whether a file's tensors are those of `wanted`, bit by bit."""
  found = torch_checkpoint.tensors(str(path), key)
  assert found.keys() == wanted.keys()
  for name, x in wanted.items():
    x = x.detach()
    array = found[name].read()
    assert found[name].shape == array.shape == tuple(x.shape)
    assert str(x.dtype) == f"torch.{array.dtype}"
    np.testing.assert_array_equal(
      bits(array), x.contiguous().reshape(-1).view(torch.uint8).numpy()
    )


@pytest.mark.oracle
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_kind_of_tensor(torch, tmp_path, protocol):
  torch.manual_seed(0)
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
  agree(torch, tmp_path / "w.bin", wanted)


@pytest.mark.oracle
def test_a_checkpoint_of_training(torch, tmp_path):
  model = torch.nn.Sequential(
    torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 4)
  )
  model[2].weight = torch.nn.Parameter(model[0].weight.t())  # Shared.
  optimiser = torch.optim.AdamW(model.parameters())
  model(torch.randn(5, 4)).sum().backward()
  optimiser.step()
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
  agree(torch, tmp_path / "w.pth", model.state_dict(), "model")
  # What has no name is passed over, and what is not read is not there.
  names = {f"model.{name}" for name in model.state_dict()}
  assert torch_checkpoint.tensors(str(tmp_path / "w.pth")).keys() == names
  with pytest.raises(
    safetensors_io.BadWeights, match="no entry 'state'.*'optimizer'"
  ):
    torch_checkpoint.tensors(str(tmp_path / "w.pth"), "state")
  with pytest.raises(safetensors_io.BadWeights, match="no named tensors"):
    torch_checkpoint.tensors(str(tmp_path / "w.pth"), "config")


@pytest.mark.oracle
def test_checksums_may_be_left_out(torch, tmp_path):
  torch.serialization.set_crc32_options(False)
  try:
    torch.save({"w": torch.arange(4.0)}, tmp_path / "w.bin")
  finally:
    torch.serialization.set_crc32_options(True)
  agree(torch, tmp_path / "w.bin", {"w": torch.arange(4.0)})


@pytest.mark.oracle
def test_the_old_format_is_named(torch, tmp_path):
  torch.save(
    {"w": torch.ones(2)},
    tmp_path / "w.bin",
    _use_new_zipfile_serialization=False,
  )
  with pytest.raises(
    safetensors_io.BadWeights, match="before 1.6.  Save it again"
  ):
    torch_checkpoint.tensors(str(tmp_path / "w.bin"))


@pytest.mark.oracle
def test_what_is_written_by_hand_is_pytorchs(torch, tmp_path):
  arrays = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones(2, ml_dtypes.bfloat16),
    "c": np.array(5),
  }
  path = handwritten_torch_file.save(tmp_path / "w.bin", arrays, key="model")
  agree(torch, path, torch.load(path)["model"], "model")


@pytest.mark.parametrize(
  "options", [{}, dict(order=b""), dict(compress=zipfile.ZIP_DEFLATED)]
)
def test_what_is_written_is_read(tmp_path, options):
  rng = np.random.default_rng(0)
  arrays = {
    "a": rng.normal(size=(2, 3)).astype(np.float32),
    "b": rng.normal(size=40).astype(ml_dtypes.bfloat16),
    "c": np.array(-5),
    "d.e": rng.normal(size=(1, 7, 1)).astype("f2"),
  }
  path = handwritten_torch_file.save(tmp_path / "w.bin", arrays, **options)
  found = torch_checkpoint.tensors(path)
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    read = found[name].read()
    assert read.dtype == array.dtype and read.shape == array.shape
    np.testing.assert_array_equal(bits(read), bits(array))


def test_other_byte_orders(tmp_path):
  path = handwritten_torch_file.write(
    tmp_path / "w.bin",
    handwritten_torch_file.entries(
      w=handwritten_torch_file.tensor(
        handwritten_torch_file.storage("0", 4), (2, 2), (1, 2)
      )
    ),
    {0: FOUR.astype(">f4").tobytes()},
    order=b"big",
  )
  np.testing.assert_array_equal(
    torch_checkpoint.tensors(path)["w"].read(), [[0, 2], [1, 3]]
  )


def one(
  shape=(4,), strides=(1,), offset=0, count=4, key="0", kind="FloatStorage"
):
  return handwritten_torch_file.entries(
    w=handwritten_torch_file.tensor(
      handwritten_torch_file.storage(key, count, kind), shape, strides, offset
    )
  )


@pytest.mark.parametrize(
  ("program", "words"),
  [
    (one(offset=1), "not within"),
    (one(offset=-1), "cannot be"),
    (one(strides=(2,)), "not within"),
    (one(strides=(-1,)), "cannot be"),
    (one(shape=(5,)), "not within"),
    (one(shape=(2, 3), strides=(2, 1)), "not within"),
    (one(shape=(-1,)), "cannot be"),
    (one(shape=(1 << 61,), strides=(0,)), "not within"),
    (one(shape=(1 << 900,)), "cannot be"),
    (one(shape=(1 << 61, 0), strides=(0, 1)), "not within"),
    (one(shape=(2,), strides=(1, 1)), "no named"),
    (one(shape=(1,) * 40, strides=(1,) * 40), "no named"),
    (one(count=5), "has 16 bytes, wanted 20"),
    (one(count=1 << 61), "has 16 bytes"),
    (one(count=-4), "cannot be"),
    (one(kind="DoubleStorage"), "has 16 bytes, wanted 32"),
    (one(kind="QInt8Storage"), "no named"),
    (one(key="1"), "has 0 bytes"),
    (one(key="../data/0"), "no named"),
    (one(key="٠"), "no named"),
    (
      handwritten_torch_file.entries(
        w=handwritten_torch_file.several(handwritten_torch_file.number(1))
      ),
      "no named",
    ),
    (handwritten_torch_file.number(1), "no named"),
    (b"", "data.pkl is damaged"),
  ],
)
def test_a_tensor_is_within_its_storage(tmp_path, program, words):
  path = handwritten_torch_file.write(
    tmp_path / "w.bin", program, {0: FOUR.tobytes()}
  )
  with pytest.raises(safetensors_io.BadWeights, match=words):
    torch_checkpoint.tensors(path)


def attacks(command):
  """Programs that would run a command, were they run."""
  system, words = (
    handwritten_torch_file.named("os", "system"),
    handwritten_torch_file.text(command),
  )
  ran = handwritten_torch_file.call(system, words)
  builtin = handwritten_torch_file.named("builtins", "eval")
  storage, where = (
    handwritten_torch_file.storage("0", 4),
    handwritten_torch_file.number(0),
  )
  sizes = (
    handwritten_torch_file.several(handwritten_torch_file.number(4)),
    handwritten_torch_file.several(handwritten_torch_file.number(1)),
  )
  rebuild = handwritten_torch_file.named("torch._utils", "_rebuild_tensor_v2")
  return {
    "call": ran,
    "stack global": handwritten_torch_file.text("os")
    + handwritten_torch_file.text("system")
    + b"\x93"
    + handwritten_torch_file.several(words)
    + b"R",
    "inst": handwritten_torch_file.MARK + words + b"ios\nsystem\n",
    "obj": handwritten_torch_file.MARK + system + words + b"o",
    "newobj": system + handwritten_torch_file.several(words) + b"\x81",
    "newobj_ex": system + handwritten_torch_file.several(words) + b"}\x92",
    "build": ran + handwritten_torch_file.entries(__setstate__=system) + b"b",
    "eval": handwritten_torch_file.call(
      builtin,
      handwritten_torch_file.text(f"__import__('os').system({command!r})"),
    ),
    "as a storage": handwritten_torch_file.call(rebuild, ran, where, *sizes),
    "as an offset": handwritten_torch_file.call(rebuild, storage, ran, *sizes),
    "as a shape": handwritten_torch_file.call(
      rebuild, storage, where, ran, sizes[1]
    ),
    "as a parameter": handwritten_torch_file.call(
      handwritten_torch_file.named("torch._utils", "_rebuild_parameter"), ran
    ),
    "as a storage's type": handwritten_torch_file.call(
      rebuild,
      handwritten_torch_file.several(
        handwritten_torch_file.text("storage"),
        ran,
        handwritten_torch_file.text("0"),
        handwritten_torch_file.text("cpu"),
        handwritten_torch_file.number(4),
      )
      + b"Q",
      where,
      *sizes,
    ),
    "extension": b"\x82\x01",
    "by a name": handwritten_torch_file.text("torch._utils._rebuild_tensor_v2")
    + handwritten_torch_file.several(storage, where, *sizes)
    + b"R",
  }


@pytest.mark.parametrize("kind", attacks(""))
def test_nothing_runs(tmp_path, kind):
  command = f"touch {tmp_path / 'ran'}"
  attack = attacks(command)[kind]
  good = handwritten_torch_file.tensor(
    handwritten_torch_file.storage("0", 4), (4,), (1,)
  )
  path = handwritten_torch_file.write(
    tmp_path / "w.bin",
    handwritten_torch_file.entries(w=attack, v=good),
    {0: FOUR.tobytes()},
  )
  assert torch_checkpoint.tensors(path).keys() == {"v"}
  path = handwritten_torch_file.write(tmp_path / "w.bin", attack)
  with pytest.raises(safetensors_io.BadWeights, match="no named tensors"):
    torch_checkpoint.tensors(path)
  assert os.listdir(tmp_path) == ["w.bin"]


def test_the_attacks_would_work(tmp_path):
  with pytest.raises(FileExistsError):
    pickle.loads(
      handwritten_torch_file.call(  # noqa: S301 (ours)
        handwritten_torch_file.named("os", "mkdir"),
        handwritten_torch_file.text(str(tmp_path)),
      )
      + b"."
    )


def laughs(depth):
  """Dicts that each hold the one before under two names."""
  program = (
    handwritten_torch_file.tensor(
      handwritten_torch_file.storage("0", 4), (4,), (1,)
    )
    + b"q\x00"
  )
  for level in range(depth):
    inner = b"h" + bytes([level])
    program += (
      handwritten_torch_file.entries(a=inner, b=inner)
      + b"q"
      + bytes([level + 1])
    )
  return program


SELF = (
  b"}q\x00"
  + handwritten_torch_file.MARK
  + handwritten_torch_file.text("a")
  + b"h\x00u"
)


@pytest.mark.parametrize(
  ("program", "words"),
  [
    (laughs(60), "more than 131072 names"),
    (SELF, "more than 131072 names"),
    (
      handwritten_torch_file.entries(**{"a" * 2000: b"}"}),
      "more than 1000 letters",
    ),
    (b"h\x07", "KeyError"),
    (b"q\x07", "IndexError"),
    (b"2", "IndexError"),
    (b"t", "IndexError"),
    (b"}u", "IndexError"),
    (b"R", "IndexError"),
    (
      b"}"
      + handwritten_torch_file.MARK
      + handwritten_torch_file.text("a")
      + b"u",
      "ValueError",
    ),
    (b"X\xff\xff\xff\xff", "ValueError"),
    (b"\x8d" + b"\xff" * 8, "ValueError"),
    (b"\x8b\xff\xff\xff\x7f", "ValueError"),
    (b"I" + b"9" * 5000 + b"\n", "ValueError"),
    (b"c\xff\xff\n\n", "Unicode"),
    (b"\xff", "ValueError"),
  ],
)
def test_programs_that_go_nowhere(tmp_path, program, words):
  path = handwritten_torch_file.write(
    tmp_path / "w.bin", program, {0: FOUR.tobytes()}
  )
  with pytest.raises(safetensors_io.BadWeights, match=words):
    torch_checkpoint.tensors(path)


def test_two_names_for_one_tensor(tmp_path):
  value = handwritten_torch_file.tensor(
    handwritten_torch_file.storage("0", 4), (4,), (1,)
  )
  program = handwritten_torch_file.entries(
    **{"a": handwritten_torch_file.entries(b=value), "a.b": value}
  )
  path = handwritten_torch_file.write(
    tmp_path / "w.bin", program, {0: FOUR.tobytes()}
  )
  with pytest.raises(safetensors_io.BadWeights, match="'a.b' occurs twice"):
    torch_checkpoint.tensors(path)


@pytest.mark.parametrize(
  "program",
  [
    b"(" * 600_000,
    # A long shape, a long name, many times.
    b"("
    + b"K\x01" * 100_000
    + b"tq\x00"
    + handwritten_torch_file.storage("0", 4)
    + b"q\x01"
    + handwritten_torch_file.named("torch._utils", "_rebuild_tensor_v2")
    + b"q\x02"
    + b"h\x02(h\x01K\x00h\x00h\x00tR0" * 20_000,
    handwritten_torch_file.text("a" * 4_000_000)
    + b"q\x00"
    + b"h\x00h\x00\x930" * 50_000,
    b")" + b"\x85" * 200_000,
  ],
  ids=["marks", "shapes", "names", "tuples"],
)
def test_work_is_bounded(tmp_path, program):
  path = handwritten_torch_file.write(
    tmp_path / "w.bin", program, {0: FOUR.tobytes()}
  )
  start = time.process_time()
  with pytest.raises(safetensors_io.BadWeights):
    torch_checkpoint.tensors(path)
  assert time.process_time() - start < 10


def test_zip_bombs(tmp_path, monkeypatch):
  good = one(shape=(1 << 20,), count=1 << 20)
  path = handwritten_torch_file.write(
    tmp_path / "w.bin", good, {0: bytes(4 << 20)}, compress=zipfile.ZIP_DEFLATED
  )
  assert os.path.getsize(path) < 10_000
  assert not torch_checkpoint.tensors(path)["w"].read().any()
  with monkeypatch.context() as patch:
    patch.setattr(torch_checkpoint, "_INFLATED_BYTES", 4 << 19)
    with pytest.raises(
      safetensors_io.BadWeights, match="compressed, to more than"
    ):
      torch_checkpoint.tensors(path)["w"].read()
  with monkeypatch.context() as patch:
    patch.setattr(torch_checkpoint, "_PROGRAM_BYTES", 100)
    with pytest.raises(
      safetensors_io.BadWeights, match="data.pkl has .* more than 100"
    ):
      torch_checkpoint.tensors(path)
  with monkeypatch.context() as patch:
    patch.setattr(torch_checkpoint, "_DIRECTORY_BYTES", 100)
    with pytest.raises(safetensors_io.BadWeights, match="a directory of"):
      torch_checkpoint.tensors(path)
  # It is larger than it says: the size stands in the directory, twice.
  size, lie = struct.pack("<I", 4 << 20), struct.pack("<I", 16)
  small = handwritten_torch_file.write(
    tmp_path / "v.bin",
    one(),
    {0: bytes(4 << 20)},
    compress=zipfile.ZIP_DEFLATED,
  )
  with open(small, "rb") as file:
    data = file.read()
  with open(small, "wb") as file:
    file.write(data.replace(size, lie))
  with pytest.raises(safetensors_io.BadWeights, match="data/0' is damaged"):
    torch_checkpoint.tensors(small)["w"].read()


def entries_of(path, change):
  """A file's entries, changed, as another file."""
  with zipfile.ZipFile(path) as file:
    items = [(name, file.read(name)) for name in file.namelist()]
  with (
    pytest.warns() if change == "twice" else open(os.devnull),
    zipfile.ZipFile(path, "w") as file,
  ):
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
def test_other_zip_files(tmp_path, change, words):
  path = handwritten_torch_file.save(tmp_path / "w.bin", {"w": FOUR})
  with pytest.raises(safetensors_io.BadWeights, match=words):
    torch_checkpoint.tensors(entries_of(path, change))


def test_other_files(tmp_path):
  for name, data in (
    ("empty", b""),
    ("pickle", pickle.dumps({})),
    ("text", b"weights"),
  ):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(safetensors_io.BadWeights, match="no intact zip file"):
      torch_checkpoint.tensors(str(tmp_path / name))
  for path in (tmp_path, tmp_path / "absent", "\0"):
    with pytest.raises(safetensors_io.BadWeights, match="no such file"):
      torch_checkpoint.tensors(str(path))
  path = handwritten_torch_file.save(
    tmp_path / "w.bin", {"w": FOUR}, order=b"middle"
  )
  with pytest.raises(
    safetensors_io.BadWeights, match="byte order is b'middle'"
  ):
    torch_checkpoint.tensors(path)


def test_a_changed_number_is_noticed(tmp_path):
  path = handwritten_torch_file.save(tmp_path / "w.bin", {"w": FOUR})
  with open(path, "rb") as file:
    data = bytearray(file.read())
  data[data.index(FOUR.tobytes()) + 5] ^= 1
  with open(path, "wb") as file:
    file.write(data)
  with pytest.raises(
    safetensors_io.BadWeights, match="'archive/data/0' is damaged"
  ):
    torch_checkpoint.tensors(path)["w"].read()


def attempt(data, path):
  """Reads `data` as a checkpoint; anything but `BadWeights` is a failure."""
  path.write_bytes(data)
  try:
    found = torch_checkpoint.tensors(str(path))
    return {name: tensor.read() for name, tensor in found.items()}
  except safetensors_io.BadWeights:
    return None


def test_every_truncation_is_refused(tmp_path):
  path = handwritten_torch_file.save(
    tmp_path / "w.bin", {"w": FOUR, "v": FOUR}, key="model"
  )
  with open(path, "rb") as file:
    data = file.read()
  assert attempt(data, tmp_path / "x")
  for size in range(len(data)):
    assert attempt(data[:size], tmp_path / "x") is None


FUZZ = hypothesis.settings(
  max_examples=300,
  deadline=None,
  derandomize=True,
  suppress_health_check=list(hypothesis.HealthCheck),
)


@FUZZ
@hypothesis.given(seed=st.integers(0, 1 << 32), count=st.integers(1, 6))
def test_damage_is_noticed(tmp_path_factory, seed, count):
  folder = tmp_path_factory.mktemp("fuzz")
  rng = random.Random(seed)
  kind = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
  path = handwritten_torch_file.save(
    folder / "w.bin", {"w": FOUR, "v": FOUR}, compress=kind
  )
  with open(path, "rb") as file:
    data = bytearray(file.read())
  for _ in range(count):
    data[rng.randrange(len(data))] = rng.choice([0, 255, rng.randrange(256)])
  found = attempt(bytes(data), folder / "x")
  # What checksums cover is right or refused; names in the directory may differ.
  for array in (found or {}).values():
    np.testing.assert_array_equal(array, FOUR)


PARTS = [
  handwritten_torch_file.text("w"),
  handwritten_torch_file.storage("0", 4),
  handwritten_torch_file.number(4),
  handwritten_torch_file.named("torch._utils", "_rebuild_tensor_v2"),
  handwritten_torch_file.several(handwritten_torch_file.number(1)),
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
    st.one_of(st.sampled_from(PARTS), st.binary(max_size=4)), max_size=40
  )
)
def test_any_program_is_read_or_refused(tmp_path_factory, parts):
  path = handwritten_torch_file.write(
    tmp_path_factory.mktemp("fuzz") / "w.bin",
    one()[:-1] + b"".join(parts),
    {0: FOUR.tobytes()},
  )
  with open(path, "rb") as file:
    attempt(file.read(), tmp_path_factory.mktemp("fuzz") / "x")


@FUZZ
@hypothesis.given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused(tmp_path_factory, data, signed):
  folder = tmp_path_factory.mktemp("fuzz")
  assert attempt((b"PK\3\4" if signed else b"") + data, folder / "x") is None


def test_the_directory_alone_is_read_at_once(tmp_path, monkeypatch):
  """A large file costs what is asked for."""
  path = handwritten_torch_file.save(
    tmp_path / "w.bin", {"w": FOUR, "v": np.zeros(1 << 22, np.float32)}
  )
  read = []
  plain = io.FileIO.read
  monkeypatch.setattr(
    torch_checkpoint._Directory,
    "read",
    lambda self, size=-1: read.append(data := plain(self, size)) or data,
  )
  np.testing.assert_array_equal(
    torch_checkpoint.tensors(path)["w"].read(), FOUR
  )
  assert sum(map(len, read)) < 100_000
