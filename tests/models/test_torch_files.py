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

from r1router_jax.models import hf, torch_files
from tests import torch_file as by_hand

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
  found = torch_files.tensors(str(path), key)
  assert found.keys() == wanted.keys()
  for name, x in wanted.items():
    x = x.detach()
    array = found[name].read()
    assert found[name].shape == array.shape == tuple(x.shape)
    assert str(x.dtype) == f"torch.{array.dtype}"
    np.testing.assert_array_equal(
        bits(array), x.contiguous().reshape(-1).view(torch.uint8).numpy())


@pytest.mark.oracle
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_kind_of_tensor(torch, tmp_path, protocol):
  torch.manual_seed(0)
  whole = torch.randn(6, 8)
  wanted = {str(kind): (torch.randn(3, 5) * 9).to(kind) for kind in (
      torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64,
      torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)}
  wanted |= {
      "scalar": torch.tensor(7), "empty": torch.zeros(0, 3),
      "turned": whole.t(), "part": whole[1:4, 2::3], "again": whole,
      "column": whole[:, 3],
      "axes": whole.reshape(2, 3, 2, 4).permute(3, 1, 0, 2),
      "ids": torch.arange(9).expand((1, -1)),
      "learned": torch.nn.Parameter(torch.randn(3, dtype=torch.bfloat16)),
      "é\u2028": torch.ones(1)}
  torch.save(wanted, tmp_path / "w.bin", pickle_protocol=protocol)
  agree(torch, tmp_path / "w.bin", wanted)


@pytest.mark.oracle
def test_a_checkpoint_of_training(torch, tmp_path):
  model = torch.nn.Sequential(
      torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 4))
  model[2].weight = torch.nn.Parameter(model[0].weight.t())  # Shared.
  optimiser = torch.optim.AdamW(model.parameters())
  model(torch.randn(5, 4)).sum().backward()
  optimiser.step()
  config = Config(lr=1e-3, inner=Config(deep=[1, {2, 3}]), raw=b"x")
  torch.save({
      "model": model.state_dict(), "optimizer": optimiser.state_dict(),
      "config": config, "counts": collections.Counter("abca"), "epoch": 3,
      "by number": {0: torch.ones(2)}, "listed": [torch.ones(2)],
      "small": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / "w.pth")
  agree(torch, tmp_path / "w.pth", model.state_dict(), "model")
  # What has no name is passed over, and what is not read is not there.
  names = {f"model.{name}" for name in model.state_dict()}
  assert torch_files.tensors(str(tmp_path / "w.pth")).keys() == names
  with pytest.raises(hf.BadWeights, match="no entry 'state'.*'optimizer'"):
    torch_files.tensors(str(tmp_path / "w.pth"), "state")
  with pytest.raises(hf.BadWeights, match="no named tensors"):
    torch_files.tensors(str(tmp_path / "w.pth"), "config")


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
  torch.save({"w": torch.ones(2)}, tmp_path / "w.bin",
             _use_new_zipfile_serialization=False)
  with pytest.raises(hf.BadWeights, match="before 1.6.  Save it again"):
    torch_files.tensors(str(tmp_path / "w.bin"))


@pytest.mark.oracle
def test_what_is_written_by_hand_is_pytorchs(torch, tmp_path):
  arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3),
            "b": np.ones(2, ml_dtypes.bfloat16), "c": np.array(5)}
  path = by_hand.save(tmp_path / "w.bin", arrays, key="model")
  agree(torch, path, torch.load(path)["model"], "model")


@pytest.mark.parametrize("options", [
    {}, dict(order=b""), dict(compress=zipfile.ZIP_DEFLATED)])
def test_what_is_written_is_read(tmp_path, options):
  rng = np.random.default_rng(0)
  arrays = {"a": rng.normal(size=(2, 3)).astype(np.float32),
            "b": rng.normal(size=40).astype(ml_dtypes.bfloat16),
            "c": np.array(-5), "d.e": rng.normal(size=(1, 7, 1)).astype("f2")}
  path = by_hand.save(tmp_path / "w.bin", arrays, **options)
  found = torch_files.tensors(path)
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    read = found[name].read()
    assert read.dtype == array.dtype and read.shape == array.shape
    np.testing.assert_array_equal(bits(read), bits(array))


def test_other_byte_orders(tmp_path):
  path = by_hand.write(
      tmp_path / "w.bin", by_hand.entries(w=by_hand.tensor(
          by_hand.storage("0", 4), (2, 2), (1, 2))),
      {0: FOUR.astype(">f4").tobytes()}, order=b"big")
  np.testing.assert_array_equal(
      torch_files.tensors(path)["w"].read(), [[0, 2], [1, 3]])


def one(shape=(4,), strides=(1,), offset=0, count=4, key="0",
        kind="FloatStorage"):
  return by_hand.entries(w=by_hand.tensor(
      by_hand.storage(key, count, kind), shape, strides, offset))


@pytest.mark.parametrize(("program", "words"), [
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
    (by_hand.entries(w=by_hand.several(by_hand.number(1))), "no named"),
    (by_hand.number(1), "no named"),
    (b"", "data.pkl is damaged"),
])
def test_a_tensor_is_within_its_storage(tmp_path, program, words):
  path = by_hand.write(tmp_path / "w.bin", program, {0: FOUR.tobytes()})
  with pytest.raises(hf.BadWeights, match=words):
    torch_files.tensors(path)


def attacks(command):
  """Programs that would run a command, were they run."""
  system, words = by_hand.named("os", "system"), by_hand.text(command)
  ran = by_hand.call(system, words)
  builtin = by_hand.named("builtins", "eval")
  storage, where = by_hand.storage("0", 4), by_hand.number(0)
  sizes = by_hand.several(by_hand.number(4)), by_hand.several(by_hand.number(1))
  rebuild = by_hand.named("torch._utils", "_rebuild_tensor_v2")
  return {
      "call": ran,
      "stack global": by_hand.text("os") + by_hand.text("system") + b"\x93" +
                      by_hand.several(words) + b"R",
      "inst": by_hand.MARK + words + b"ios\nsystem\n",
      "obj": by_hand.MARK + system + words + b"o",
      "newobj": system + by_hand.several(words) + b"\x81",
      "newobj_ex": system + by_hand.several(words) + b"}\x92",
      "build": ran + by_hand.entries(__setstate__=system) + b"b",
      "eval": by_hand.call(builtin, by_hand.text(
          f"__import__('os').system({command!r})")),
      "as a storage": by_hand.call(rebuild, ran, where, *sizes),
      "as an offset": by_hand.call(rebuild, storage, ran, *sizes),
      "as a shape": by_hand.call(rebuild, storage, where, ran, sizes[1]),
      "as a parameter": by_hand.call(
          by_hand.named("torch._utils", "_rebuild_parameter"), ran),
      "as a storage's type": by_hand.call(
          rebuild, by_hand.several(
              by_hand.text("storage"), ran, by_hand.text("0"),
              by_hand.text("cpu"), by_hand.number(4)) + b"Q", where, *sizes),
      "extension": b"\x82\x01",
      "by a name": by_hand.text("torch._utils._rebuild_tensor_v2") +
                   by_hand.several(storage, where, *sizes) + b"R",
  }


@pytest.mark.parametrize("kind", attacks(""))
def test_nothing_runs(tmp_path, kind):
  command = f"touch {tmp_path / 'ran'}"
  attack = attacks(command)[kind]
  good = by_hand.tensor(by_hand.storage("0", 4), (4,), (1,))
  path = by_hand.write(tmp_path / "w.bin", by_hand.entries(w=attack, v=good),
                       {0: FOUR.tobytes()})
  assert torch_files.tensors(path).keys() == {"v"}
  path = by_hand.write(tmp_path / "w.bin", attack)
  with pytest.raises(hf.BadWeights, match="no named tensors"):
    torch_files.tensors(path)
  assert os.listdir(tmp_path) == ["w.bin"]


def test_the_attacks_would_work(tmp_path):
  with pytest.raises(FileExistsError):
    pickle.loads(by_hand.call(  # noqa: S301 (ours)
        by_hand.named("os", "mkdir"), by_hand.text(str(tmp_path))) + b".")


def laughs(depth):
  """Dicts that each hold the one before under two names."""
  program = by_hand.tensor(by_hand.storage("0", 4), (4,), (1,)) + b"q\x00"
  for level in range(depth):
    inner = b"h" + bytes([level])
    program += by_hand.entries(a=inner, b=inner) + b"q" + bytes([level + 1])
  return program


SELF = b"}q\x00" + by_hand.MARK + by_hand.text("a") + b"h\x00u"


@pytest.mark.parametrize(("program", "words"), [
    (laughs(60), "more than 131072 names"),
    (SELF, "more than 131072 names"),
    (by_hand.entries(**{"a" * 2000: b"}"}), "more than 1000 letters"),
    (b"h\x07", "KeyError"), (b"q\x07", "IndexError"), (b"2", "IndexError"),
    (b"t", "IndexError"), (b"}u", "IndexError"), (b"R", "IndexError"),
    (b"}" + by_hand.MARK + by_hand.text("a") + b"u", "ValueError"),
    (b"X\xff\xff\xff\xff", "ValueError"),
    (b"\x8d" + b"\xff" * 8, "ValueError"),
    (b"\x8b\xff\xff\xff\x7f", "ValueError"),
    (b"I" + b"9" * 5000 + b"\n", "ValueError"),
    (b"c\xff\xff\n\n", "Unicode"), (b"\xff", "ValueError")])
def test_programs_that_go_nowhere(tmp_path, program, words):
  path = by_hand.write(tmp_path / "w.bin", program, {0: FOUR.tobytes()})
  with pytest.raises(hf.BadWeights, match=words):
    torch_files.tensors(path)


def test_two_names_for_one_tensor(tmp_path):
  value = by_hand.tensor(by_hand.storage("0", 4), (4,), (1,))
  program = by_hand.entries(**{"a": by_hand.entries(b=value), "a.b": value})
  path = by_hand.write(tmp_path / "w.bin", program, {0: FOUR.tobytes()})
  with pytest.raises(hf.BadWeights, match="'a.b' occurs twice"):
    torch_files.tensors(path)


@pytest.mark.parametrize("program", [
    b"(" * 600_000,
    # A long shape, a long name, many times.
    b"(" + b"K\x01" * 100_000 + b"tq\x00" + by_hand.storage("0", 4) + b"q\x01" +
    by_hand.named("torch._utils", "_rebuild_tensor_v2") + b"q\x02" +
    b"h\x02(h\x01K\x00h\x00h\x00tR0" * 20_000,
    by_hand.text("a" * 4_000_000) + b"q\x00" + b"h\x00h\x00\x930" * 50_000,
    b")" + b"\x85" * 200_000], ids=["marks", "shapes", "names", "tuples"])
def test_work_is_bounded(tmp_path, program):
  path = by_hand.write(tmp_path / "w.bin", program, {0: FOUR.tobytes()})
  start = time.process_time()
  with pytest.raises(hf.BadWeights):
    torch_files.tensors(path)
  assert time.process_time() - start < 10


def test_zip_bombs(tmp_path, monkeypatch):
  good = one(shape=(1 << 20,), count=1 << 20)
  path = by_hand.write(tmp_path / "w.bin", good, {0: bytes(4 << 20)},
                       compress=zipfile.ZIP_DEFLATED)
  assert os.path.getsize(path) < 10_000
  assert not torch_files.tensors(path)["w"].read().any()
  with monkeypatch.context() as patch:
    patch.setattr(torch_files, "_INFLATED_BYTES", 4 << 19)
    with pytest.raises(hf.BadWeights, match="compressed, to more than"):
      torch_files.tensors(path)["w"].read()
  with monkeypatch.context() as patch:
    patch.setattr(torch_files, "_PROGRAM_BYTES", 100)
    with pytest.raises(hf.BadWeights, match="data.pkl has .* more than 100"):
      torch_files.tensors(path)
  with monkeypatch.context() as patch:
    patch.setattr(torch_files, "_DIRECTORY_BYTES", 100)
    with pytest.raises(hf.BadWeights, match="a directory of"):
      torch_files.tensors(path)
  # It is larger than it says: the size stands in the directory, twice.
  size, lie = struct.pack("<I", 4 << 20), struct.pack("<I", 16)
  small = by_hand.write(tmp_path / "v.bin", one(), {0: bytes(4 << 20)},
                        compress=zipfile.ZIP_DEFLATED)
  with open(small, "rb") as file:
    data = file.read()
  with open(small, "wb") as file:
    file.write(data.replace(size, lie))
  with pytest.raises(hf.BadWeights, match="data/0' is damaged"):
    torch_files.tensors(small)["w"].read()


def entries_of(path, change):
  """A file's entries, changed, as another file."""
  with zipfile.ZipFile(path) as file:
    items = [(name, file.read(name)) for name in file.namelist()]
  with pytest.warns() if change == "twice" else open(os.devnull), (
      zipfile.ZipFile(path, "w")) as file:
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


@pytest.mark.parametrize(("change", "words"), [
    ("bzip2", "in a way that is not known"), ("twice", "not as PyTorch"),
    ("no program", "not as PyTorch"), ("two programs", "not as PyTorch")])
def test_other_zip_files(tmp_path, change, words):
  path = by_hand.save(tmp_path / "w.bin", {"w": FOUR})
  with pytest.raises(hf.BadWeights, match=words):
    torch_files.tensors(entries_of(path, change))


def test_other_files(tmp_path):
  for name, data in (("empty", b""), ("pickle", pickle.dumps({})),
                     ("text", b"weights")):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(hf.BadWeights, match="no intact zip file"):
      torch_files.tensors(str(tmp_path / name))
  for path in (tmp_path, tmp_path / "absent", "\0"):
    with pytest.raises(hf.BadWeights, match="no such file"):
      torch_files.tensors(str(path))
  path = by_hand.save(tmp_path / "w.bin", {"w": FOUR}, order=b"middle")
  with pytest.raises(hf.BadWeights, match="byte order is b'middle'"):
    torch_files.tensors(path)


def test_a_changed_number_is_noticed(tmp_path):
  path = by_hand.save(tmp_path / "w.bin", {"w": FOUR})
  with open(path, "rb") as file:
    data = bytearray(file.read())
  data[data.index(FOUR.tobytes()) + 5] ^= 1
  with open(path, "wb") as file:
    file.write(data)
  with pytest.raises(hf.BadWeights, match="'archive/data/0' is damaged"):
    torch_files.tensors(path)["w"].read()


def attempt(data, path):
  """Reads `data` as a checkpoint; anything but `BadWeights` is a failure."""
  path.write_bytes(data)
  try:
    found = torch_files.tensors(str(path))
    return {name: tensor.read() for name, tensor in found.items()}
  except hf.BadWeights:
    return None


def test_every_truncation_is_refused(tmp_path):
  path = by_hand.save(tmp_path / "w.bin", {"w": FOUR, "v": FOUR}, key="model")
  with open(path, "rb") as file:
    data = file.read()
  assert attempt(data, tmp_path / "x")
  for size in range(len(data)):
    assert attempt(data[:size], tmp_path / "x") is None


FUZZ = hypothesis.settings(
    max_examples=300, deadline=None, derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck))


@FUZZ
@hypothesis.given(seed=st.integers(0, 1 << 32), count=st.integers(1, 6))
def test_damage_is_noticed(tmp_path_factory, seed, count):
  folder = tmp_path_factory.mktemp("fuzz")
  rng = random.Random(seed)
  kind = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
  path = by_hand.save(folder / "w.bin", {"w": FOUR, "v": FOUR}, compress=kind)
  with open(path, "rb") as file:
    data = bytearray(file.read())
  for _ in range(count):
    data[rng.randrange(len(data))] = rng.choice([0, 255, rng.randrange(256)])
  found = attempt(bytes(data), folder / "x")
  # What checksums cover is right or refused; names in the directory may differ.
  for array in (found or {}).values():
    np.testing.assert_array_equal(array, FOUR)


PARTS = [by_hand.text("w"), by_hand.storage("0", 4), by_hand.number(4),
         by_hand.named("torch._utils", "_rebuild_tensor_v2"),
         by_hand.several(by_hand.number(1)), b"}", b")", b"(", b"q\x00",
         b"h\x00", b"\x94", b"u", b"s", b"t", b"\x85", b"\x86", b"\x87", b"R",
         b"b", b"Q", b"\x93", b"0", b"1", b"2", b"\x81", b"o", b"a", b"e"]


@FUZZ
@hypothesis.given(st.lists(
    st.one_of(st.sampled_from(PARTS), st.binary(max_size=4)), max_size=40))
def test_any_program_is_read_or_refused(tmp_path_factory, parts):
  path = by_hand.write(tmp_path_factory.mktemp("fuzz") / "w.bin",
                       one()[:-1] + b"".join(parts), {0: FOUR.tobytes()})
  with open(path, "rb") as file:
    attempt(file.read(), tmp_path_factory.mktemp("fuzz") / "x")


@FUZZ
@hypothesis.given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused(tmp_path_factory, data, signed):
  folder = tmp_path_factory.mktemp("fuzz")
  assert attempt((b"PK\3\4" if signed else b"") + data, folder / "x") is None


def test_the_directory_alone_is_read_at_once(tmp_path, monkeypatch):
  """A large file costs what is asked for."""
  path = by_hand.save(tmp_path / "w.bin", {
      "w": FOUR, "v": np.zeros(1 << 22, np.float32)})
  read = []
  plain = io.FileIO.read
  monkeypatch.setattr(torch_files._Directory, "read", lambda self, size=-1: (
      read.append(data := plain(self, size)) or data))
  np.testing.assert_array_equal(
      torch_files.tensors(path)["w"].read(), FOUR)
  assert sum(map(len, read)) < 100_000
