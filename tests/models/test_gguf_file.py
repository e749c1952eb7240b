"""GGUF files: every value that is written is read; hostile files end early."""

import struct

import gguf
import numpy as np
import pytest

from r1router_jax.models import gguf_file
from r1router_jax.models.safetensors_io import BadWeights
from tests import tiny_gguf

# A header up to its keys: magic, version, numbers of tensors and of keys.
HEAD = struct.Struct("<4sIQQ")


def write_file(path, data):
  path.write_bytes(data)
  return path


def test_values_of_all_kinds_are_read(tmp_path):
  writer = gguf.GGUFWriter(str(tmp_path / "a.gguf"), "llama")
  wanted = dict(uint8=200, int8=-3, uint16=60000, int16=-300, uint32=1 << 31)
  wanted |= dict(int32=-7, float32=0.25, uint64=1 << 63, int64=-(1 << 40))
  wanted |= dict(float64=1e-300, bool=True, string="né 東")
  for kind, value in wanted.items():
    getattr(writer, f"add_{kind}")(f"x.{kind}", value)
  writer.add_array("x.words", ["a", "", "ß"])
  writer.add_array("x.numbers", [3, -1, 2])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  found = gguf_file.open_gguf(tmp_path / "a.gguf").metadata
  assert {kind: found[f"x.{kind}"] for kind in wanted} == wanted
  assert found["x.words"] == ["a", "", "ß"]
  np.testing.assert_array_equal(found["x.numbers"], [3, -1, 2])


@pytest.mark.parametrize("kind", tiny_gguf.KINDS)
def test_tensors_are_those_of_the_package(kind, tmp_path, monkeypatch):
  path = tmp_path / "a.gguf"
  wanted = tiny_gguf.write_gguf(path, quantisation=kind)
  # Few rows at a time, so that a tensor has several parts and a rest.
  monkeypatch.setattr(gguf_file, "_PART_NUMBERS", 640)
  found = gguf_file.open_gguf(path).tensors
  assert found.keys() == wanted.keys()
  for name, tensor in found.items():
    np.testing.assert_array_equal(tensor.read(), wanted[name])
    assert tensor.shape == wanted[name].shape


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path):
  tiny_gguf.write_gguf(tmp_path / "a.gguf", quantisation="Q4_1")
  whole = (tmp_path / "a.gguf").read_bytes()
  # Dense at the beginning, where each byte means something else.
  for size in [*range(0, 999, 17), *range(999, len(whole) - 32, 9999)]:
    cut = write_file(tmp_path / "b.gguf", whole[:size])
    with pytest.raises(BadWeights, match="b.gguf: no intact GGUF file"):
      gguf_file.open_gguf(cut)


def test_a_header_is_read_once_until_the_file_changes(tmp_path):
  path = tmp_path / "a.gguf"
  tiny_gguf.write_gguf(path)
  first = gguf_file.open_gguf(path)
  assert gguf_file.open_gguf(path) is first
  tiny_gguf.write_gguf(path, tied=False)
  found = gguf_file.open_gguf(path).tensors.keys()
  assert found - first.tensors.keys() == {"output.weight"}


def make_header(*keys, tensors=b"", count=0):
  data = HEAD.pack(b"GGUF", 3, count, len(keys)) + b"".join(keys) + tensors
  return data + bytes(64)


def make_key(name, kind, value):
  name = name.encode()
  return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


HUGE = struct.pack("<Q", 1 << 60)


def make_tensor(axes=(32,), kind=0, offset=0, name=b"w"):
  text = struct.pack("<Q", len(name)) + name + struct.pack("<I", len(axes))
  text += b"".join(struct.pack("<Q", axis) for axis in axes)
  return text + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize(
  "data, words",
  [
    (b"PK\3\4" + bytes(40), "it begins with b'PK"),
    (HEAD.pack(b"GGUF", 9, 0, 0), "its version is 9, known"),
    # Numbers that would fill the memory, or never end, if they were believed.
    (HEAD.pack(b"GGUF", 3, 0, 1 << 60) + make_key("x", 0, b"1"), "cut off"),
    (HEAD.pack(b"GGUF", 3, 1 << 60, 0) + make_tensor(), "cut off"),
    (make_header(make_key("x", 8, HUGE)), "cut off"),
    (make_header(make_key("x", 9, struct.pack("<I", 8) + HUGE)), "cut off"),
    (make_header(make_key("x", 9, struct.pack("<I", 5) + HUGE)), "cut off"),
    # Arrays in arrays could be nested without end.
    (make_header(make_key("x", 9, struct.pack("<I", 9) + HUGE)), "kind 9"),
    (make_header(make_key("x", 77, b"")), "kind 77"),
    (make_header(*[make_key("x", 0, b"1")] * 2), "key x occurs twice"),
    (make_header(make_key("x", 8, struct.pack("<Q", 1) + b"\xff")), "utf-8"),
    (
      make_header(make_key("general.alignment", 4, bytes(4))),
      "general.alignment is 0",
    ),
    (make_header(tensors=make_tensor([1 << 40] * 4), count=1), "before tensor"),
    (
      make_header(tensors=make_tensor(offset=1 << 62), count=1),
      "before tensor",
    ),
    (make_header(tensors=make_tensor([1] * 9), count=1), "9 axes"),
    (make_header(tensors=make_tensor([]), count=1), "0 axes"),
    (make_header(tensors=make_tensor([0, 1 << 60]), count=1), "no numbers"),
    (make_header(tensors=make_tensor() * 2, count=2), "tensor w occurs twice"),
    (make_header(tensors=make_tensor(kind=999), count=1), "999"),
    (make_header(tensors=make_tensor([33], kind=8), count=1), "33 columns as"),
  ],
)
def test_a_hostile_file_is_refused(data, words, tmp_path):
  path = write_file(tmp_path / "a.gguf", data)
  with pytest.raises(BadWeights, match=f"(?s)a.gguf: no .*({words}).*Fetch it"):
    gguf_file.open_gguf(path)


def test_a_kind_that_cannot_be_dequantised_is_named(tmp_path):
  tensor = make_tensor((2,), kind=int(gguf.GGMLQuantizationType.I32))
  path = write_file(tmp_path / "a.gguf", make_header(tensors=tensor, count=1))
  found = gguf_file.open_gguf(path).tensors["w"]
  with pytest.raises(BadWeights, match="tensor w is stored as I32.*Q8_0"):
    found.read()


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(BadWeights, match="a.gguf: no intact GGUF file"):
    gguf_file.open_gguf(tmp_path / "a.gguf")
