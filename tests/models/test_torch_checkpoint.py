"""Tests that PyTorch files are read as PyTorch reads them, or are refused."""

import argparse
import builtins
import collections
import importlib.metadata
import os
import pickle
import random
import re
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest

from r1router_jax.common.errors import UserError
from r1router_jax.models import safetensors_io, torch_checkpoint, torch_reader


@pytest.fixture
def torch():
  return pytest.importorskip("torch")


class Call:
  """An object whose pickle calls a function."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


def write_zip(path, program=b"\x80\x02}.", compression=zipfile.ZIP_STORED):
  """Write a checkpoint with a pickle and a storage, without PyTorch."""
  with zipfile.ZipFile(path, "w", compression) as file:
    file.writestr("archive/data.pkl", program)
    file.writestr("archive/byteorder", "little")
    file.writestr("archive/data/0", bytes(range(64)))
    file.writestr("archive/version", "3\n")
  return path


def open_names(path, key=""):
  with torch_checkpoint.open_tensors(str(path), key) as found:
    return set(found)


def assert_refused(path, words, key=""):
  """Assert that a file is refused in one line with its name and a reason."""
  with pytest.raises(safetensors_io.BadWeights, match=words) as caught:
    open_names(path, key)
  assert str(caught.value).startswith(f"{path}: ")
  assert "\n" not in str(caught.value)


def assert_tensors_equal(torch, path, wanted, key=""):
  """Assert that a file's tensors are those of `wanted`, bit by bit."""
  with torch_checkpoint.open_tensors(str(path), key) as found:
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
      array = found[name].read_raw()
      assert found[name].shape == array.shape == tuple(x.shape)
      assert str(x.dtype) == f"torch.{array.dtype}"
      flat = x.detach().contiguous().reshape(-1)
      assert array.tobytes() == flat.view(torch.uint8).numpy().tobytes()


@pytest.mark.oracle
@pytest.mark.parametrize("zipped", [True, False])
def test_dtypes_and_layouts_agree_with_torch(torch, tmp_path, zipped):
  torch.manual_seed(0)
  # A tensor of each dtype, then views of all kinds.
  names = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool"
  wanted = {
    name: (torch.randn(3, 5) * 9).to(getattr(torch, name))
    for name in names.split()
  }
  whole = torch.randn(6, 8)
  wanted |= dict(scalar=torch.tensor(7), empty=torch.zeros(0, 3), again=whole)
  wanted |= dict(turned=whole.t(), part=whole[1:4, 2::3])
  wanted |= {"ids": torch.arange(9).expand((1, -1)), "é\u2028": torch.ones(1)}
  learned = torch.randn(3, dtype=torch.bfloat16)
  wanted["learned"] = torch.nn.Parameter(learned)
  path = tmp_path / "w.bin"
  # PyTorch before 1.6 wrote the other form.
  torch.save(wanted, path, _use_new_zipfile_serialization=zipped)
  assert_tensors_equal(torch, path, wanted)
  # Half of a file is no file.
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  assert_refused(path, "no intact zip" if zipped else "it is damaged")


@pytest.mark.oracle
def test_training_checkpoint_agrees_with_torch(torch, tmp_path, monkeypatch):
  # Two names for one storage, one of them transposed.
  model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 4))
  model[1].weight = torch.nn.Parameter(model[0].weight.t())
  optimiser = torch.optim.AdamW(model.parameters())
  model(torch.randn(5, 4)).sum().backward()
  optimiser.step()
  # A config as UniIR's, whose library need not be installed to skip it.
  module = types.ModuleType("omegaconf.dictconfig")
  config_class = type("DictConfig", (), {"__module__": module.__name__})
  module.DictConfig = config_class
  monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
  monkeypatch.setitem(sys.modules, module.__name__, module)
  config = config_class()
  config.content = {"kind": dict, "counts": collections.defaultdict(int, a=1)}
  options = argparse.Namespace(lr=np.float64(1), sizes=np.arange(3))
  saved = {"model": model.state_dict(), "optimizer": optimiser.state_dict()}
  saved |= {"config": config, "arguments": options, 3: [torch.ones(2)]}
  saved["small"] = torch.zeros(2, dtype=torch.complex64)
  path = tmp_path / "w.pth"
  torch.save(saved, path)
  monkeypatch.delitem(sys.modules, module.__name__)
  assert_tensors_equal(torch, path, model.state_dict(), "model")
  assert open_names(path) == set()
  assert_refused(path, "no entry 'state'.*'optimizer'", "state")
  assert_refused(path, "no named tensors", "config")


@pytest.mark.oracle
def test_file_without_checksums_is_read(torch, tmp_path):
  torch.serialization.set_crc32_options(False)
  try:
    torch.save({"w": torch.arange(4.0)}, tmp_path / "w.bin")
  finally:
    torch.serialization.set_crc32_options(True)
  assert_tensors_equal(torch, tmp_path / "w.bin", {"w": torch.arange(4.0)})


@pytest.mark.oracle
def test_end_of_the_reader_is_reported(torch, tmp_path, monkeypatch):
  torch.save({"w": torch.ones(4)}, tmp_path / "w.bin")
  # A disk without room for the tensors.
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  (tmp_path / "safetensors.py").write_text("raise SystemExit(1)")
  assert_refused(tmp_path / "w.bin", "its reader died.  Check that PyTorch")


@pytest.mark.oracle
@pytest.mark.parametrize(
  ("function", "arguments"),
  [
    (os.mkdir, ["ran"]),
    (builtins.eval, ["__import__('os').mkdir('ran')"]),
    (subprocess.run, [["mkdir", "ran"]]),
    (pickle.loads, [pickle.dumps(Call(os.mkdir, "ran"))]),
    # Not even a harmless class is known, unless it is on the list.
    (collections.UserDict, []),
  ],
)
def test_file_with_code_is_refused(tmp_path, monkeypatch, function, arguments):
  pytest.importorskip("torch")
  monkeypatch.chdir(tmp_path)
  program = pickle.dumps({"w": Call(function, *arguments)}, protocol=2)
  path = write_zip(tmp_path / "w.bin", program)
  assert_refused(path, rf"it names \S*{function.__name__}, which may run code")
  assert os.listdir() == ["w.bin"]
  # The attack itself works.
  pickle.loads(program)  # noqa: S301 (the test's own pickle)
  assert ("ran" in os.listdir()) == (function is not collections.UserDict)


@pytest.mark.oracle
@pytest.mark.parametrize(
  "attack",
  [
    b"(S'mkdir ran'\nios\nsystem\n",
    b"(cos\nsystem\nX\x09\0\0\0mkdir ranoK",
    b"X\x02\0\0\0osX\x06\0\0\0system\x93X\x09\0\0\0mkdir ran\x85R",
    b"\x82\x01",
    # Objects on the list do nothing, whatever they are given.
    b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x85R",
    b"cbuiltins\ndict\n)\x81}X\x0c\0\0\0__setstate__cnumpy\ndtype\nsb",
  ],
)
def test_other_ways_to_code_are_closed(tmp_path, monkeypatch, attack):
  pytest.importorskip("torch")
  monkeypatch.chdir(tmp_path)
  path = write_zip(tmp_path / "w.bin", b"\x80\x02" + attack + b".")
  with pytest.raises(torch_reader.BadCheckpoint):
    torch_reader.load_tensors(str(path), "")
  assert os.listdir() == ["w.bin"]


@pytest.mark.oracle
@pytest.mark.parametrize(
  "view",  # Offset, shape and strides.
  [(1, [4], [1]), (0, [5], [1]), (0, [4], [2]), (-1, [4], [1]), (0, [-1], [1])],
)
def test_tensor_beyond_the_file_is_refused(torch, tmp_path, view):
  storage = torch.ones(4).storage()
  rebuild = torch._utils._rebuild_tensor_v2
  tensor = Call(rebuild, storage, *view, False, {})
  torch.save({"w": tensor}, tmp_path / "w.bin")
  with pytest.raises(torch_reader.BadCheckpoint, match="it is damaged"):
    torch_reader.load_tensors(str(tmp_path / "w.bin"), "")


@pytest.mark.oracle
def test_damaged_pickle_is_read_or_refused(torch, tmp_path):
  torch.save({"w": torch.ones(4), "v": torch.ones(2)}, tmp_path / "good")
  with zipfile.ZipFile(tmp_path / "good") as file:
    program = file.read("good/data.pkl")
  rng = random.Random(0)  # Fixed, so that a failure can be repeated.
  for _ in range(300):
    damaged = bytearray(program)
    for _ in range(rng.randint(1, 4)):
      damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    path = write_zip(tmp_path / "w.bin", bytes(damaged))
    try:
      torch_reader.load_tensors(str(path), "")
    except torch_reader.BadCheckpoint as error:
      assert "\n" not in "".join(error.args)


# The tests below need no PyTorch.


@pytest.mark.parametrize("version", [None, "2.5.1"])
def test_missing_or_old_torch_has_a_cure(tmp_path, monkeypatch, version):
  def find_version(name):
    if version:
      return version
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, "version", find_version)
  words = "2.6 or newer reads this file.  pip install 'r1router_jax[c"
  with pytest.raises(UserError, match=re.escape(words)):
    open_names(write_zip(tmp_path / "w.bin"))


def test_reader_loads_neither_jax_nor_torch_on_import():
  code = "import sys, r1router_jax.models.torch_reader; "
  code += "sys.exit('jax' in sys.modules or 'torch' in sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"<!DOCTYPE html><html>Not found</html>",
    b"version https://git-lfs.github.com/spec/v1",
    pickle.dumps({}),
    b"sys_info\0" + bytes(600),  # A tar file, PyTorch's first form.
  ],
)
def test_foreign_file_is_refused(tmp_path, data):
  (tmp_path / "w.bin").write_bytes(data)
  assert_refused(tmp_path / "w.bin", "torch.save did not write it")


def test_missing_file_is_refused(tmp_path):
  for path in (tmp_path, tmp_path / "absent", "\0"):
    assert_refused(path, "no such file")


def test_zip_bombs_are_refused(tmp_path):
  bomb = bytes(4 << 20)
  path = write_zip(tmp_path / "w.bin", bomb, zipfile.ZIP_DEFLATED)
  assert_refused(path, "it is compressed")
  # Entries that share their bytes, and one that promises more than there is.
  path = write_zip(tmp_path / "v.bin")
  size, lie = (64).to_bytes(4, "little"), (4 << 20).to_bytes(4, "little")
  path.write_bytes(path.read_bytes().replace(size, lie))
  assert_refused(path, "larger than the file")


def test_changed_number_is_refused(tmp_path):
  path = write_zip(tmp_path / "w.bin")
  # The checksum covers every bit of the numbers.
  path.write_bytes(path.read_bytes().replace(bytes(range(64)), bytes(64)))
  assert_refused(path, "no intact zip file.*Bad CRC-32.*data/0")


def test_every_truncation_is_refused(tmp_path):
  data = write_zip(tmp_path / "w.bin").read_bytes()
  for size in range(len(data)):
    (tmp_path / "v.bin").write_bytes(data[:size])
    assert_refused(tmp_path / "v.bin", "no intact zip|did not write it")
