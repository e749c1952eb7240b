"""Tests of reading and writing safetensors by weight rules."""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import pickle

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from flax import traverse_util
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.testing import assert_array_equal
from safetensors.numpy import load_file, save_file

from r1router_jax.models import safetensors_io
from r1router_jax.models.safetensors_io import (
  INDEX_FILE,
  WEIGHTS_FILE,
  BadWeights,
  StoredTensor,
  save_params,
  write_checkpoint,
)

# Two layers and two blocks, stacked, and a table.
AXES = dict(V=5, D=4, L=2, N=2, H=2, B=2)

WEIGHT_MAP = (
  ("embed.weight", "embed/table", "V D -> V D"),
  ("layers.{}.o.weight", "layers/o/kernel", "L D (N H) -> L N H D"),
  ("blocks.{}.w", "blocks/w", "B D 1 -> B D"),
  ("buffer.{}.ids", "", ""),
)


EMBED = "embed.weight"


def make_tensors():
  """Return tensors by name that fit `WEIGHT_MAP`."""
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  tensors = {"embed.weight": normal(5, 4)}
  tensors |= {f"layers.{i}.o.weight": normal(4, 4) for i in range(2)}
  return tensors | {f"blocks.{i}.w": normal(4, 1) for i in range(2)}


def load(path, **options):
  options = dict(weight_map=WEIGHT_MAP, axes=AXES) | options
  return safetensors_io.load_params(str(path), **options)


@pytest.fixture
def path(tmp_path):
  path = str(tmp_path / "w.safetensors")
  save_file(make_tensors() | {"buffer.3.ids": np.arange(3)}, path)
  return path


def test_load_follows_the_patterns(path):
  params, stored = (load(path), make_tensors())
  assert_array_equal(params["embed"]["table"], stored["embed.weight"])
  kernel, blocks = params["layers"]["o"]["kernel"], params["blocks"]["w"]
  for layer in range(2):
    # Heads are the outer axis of the flat one.
    flat = stored[f"layers.{layer}.o.weight"]
    for n, h in np.ndindex(2, 2):
      assert_array_equal(kernel[layer, n, h], flat[:, n * 2 + h])
    assert_array_equal(blocks[layer], stored[f"blocks.{layer}.w"][:, 0])


def test_save_is_the_inverse_of_load(path, tmp_path):
  params = load(path)
  for umask in (0o022, 0o077):
    folder = tmp_path / f"{umask}"
    # The umask belongs to the process, so it is put back.
    before = os.umask(umask)
    try:
      save_params(str(folder), params, WEIGHT_MAP, AXES)
    finally:
      os.umask(before)
    file = folder / WEIGHTS_FILE
    assert os.stat(file).st_mode & 0o777 == 0o666 & ~umask
    written = load_file(file)
    assert written.keys() == make_tensors().keys()
    for name, tensor in make_tensors().items():
      assert_array_equal(written[name], tensor)


def test_large_checkpoint_is_split_and_indexed(path, tmp_path):
  params = load(path, dtype=jnp.bfloat16)
  save_params(str(tmp_path / "many"), params, WEIGHT_MAP, AXES, shard_bytes=40)
  index = json.loads((tmp_path / "many" / INDEX_FILE).read_text())
  # The folder holds exactly the files of the index.
  assert len(set(index["weight_map"].values())) > 1
  names = {INDEX_FILE, *index["weight_map"].values()}
  assert {*os.listdir(tmp_path / "many")} == names
  again = load(tmp_path / "many")
  assert again["embed"]["table"].dtype == jnp.bfloat16
  assert_array_equal(again["blocks"]["w"], params["blocks"]["w"])
  # A small checkpoint is one file, without an index.
  save_params(str(tmp_path / "few"), params, WEIGHT_MAP, AXES)
  assert os.listdir(tmp_path / "few") == [WEIGHTS_FILE]


# Bytes of a shard with which `WEIGHT_MAP` becomes one file, a few or many.
SIZES = dict(one=1 << 20, few=100, many=40)


def save(folder, params, size):
  options = dict(shard_bytes=SIZES[size])
  save_params(str(folder), params, WEIGHT_MAP, AXES, **options)


def assert_equal(got, wanted):
  jax.tree.map(assert_array_equal, got, wanted)


@pytest.mark.parametrize("after", SIZES)
@pytest.mark.parametrize("before", SIZES)
def test_new_weights_replace_those_of_before(path, tmp_path, before, after):
  params, folder = load(path), tmp_path / "w"
  (tmp_path / "w").mkdir()
  (folder / "other.safetensors").write_bytes(b"of somebody else")
  for number, size in enumerate((before, after, before, after)):
    wanted = jax.tree.map(lambda x, n=number: x + n, params)
    save(folder, wanted, size)
    assert_equal(load(folder), wanted)
    files = {
      os.path.basename(x) for x in safetensors_io.checkpoint_files(str(folder))
    }
    assert (len(files) == 1) == (size == "one")
    index = {INDEX_FILE} if size != "one" else set()
    assert {*os.listdir(folder)} == files | index | {"other.safetensors"}


class Killed(BaseException):
  pass


@pytest.mark.parametrize("before, after", [*itertools.product(SIZES, SIZES)])
def test_a_save_that_is_cut_off_leaves_old_or_new_weights(
  path, tmp_path, monkeypatch, before, after
):
  params, kind = load(path), type(epath.Path("/"))
  others = jax.tree.map(lambda x: x + 1, params)
  rename, unlink, outcomes = kind.replace, kind.unlink, []
  for allowed in range(9):
    folder, left = tmp_path / f"{allowed}", [allowed]
    save(folder, params, before)

    def act(function, left=left):
      def limited(*args, **options):
        left[0] -= 1
        if left[0] < 0:
          raise Killed
        return function(*args, **options)

      return limited

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
      patch.setattr(kind, "replace", act(rename))
      patch.setattr(kind, "unlink", act(unlink))
      save(folder, others, after)
    found = load(folder)
    is_new = bool((found["embed"]["table"] == others["embed"]["table"]).all())
    assert_equal(found, others if is_new else params)
    outcomes.append(is_new)
  assert outcomes[0] is False and outcomes == sorted(outcomes)


@pytest.mark.parametrize("size", SIZES)
def test_weights_that_are_not_finite_leave_those_of_before(
  path, tmp_path, size
):
  params, folder = load(path), tmp_path / "w"
  save(folder, params, size)
  files = {file.name: file.read_bytes() for file in folder.iterdir()}
  for value in (np.nan, np.inf):
    # In the last tensor, when others are written already.
    bad = jax.tree.map(np.copy, params)
    bad["blocks"]["w"][-1, -1] = value
    with pytest.raises(BadWeights, match="blocks.1.w holds NaN or inf.* train"):
      save(folder, bad, size)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == files


@pytest.mark.parametrize("change", [0, 1e-3])
def test_a_tied_tensor_must_be_a_copy(path, tmp_path, change):
  rules = (*WEIGHT_MAP, ("head.weight", "", EMBED))
  tensors = make_tensors()
  tensors["head.weight"] = tensors[EMBED] + np.float32(change)
  path = str(tmp_path / "tied.safetensors")
  save_file(tensors, path)
  if change:
    with pytest.raises(BadWeights, match="head.weight differs.*tie_word_emb"):
      load(path, weight_map=rules)
  else:
    assert load(path, weight_map=rules).keys() == {"embed", "layers", "blocks"}


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_other_precisions_are_cast(tmp_path, dtype):
  tensors = {name: x.astype(dtype) for name, x in make_tensors().items()}
  path = str(tmp_path / "w.safetensors")
  save_file(tensors, path)
  table = load(path, dtype=np.float32)["embed"]["table"]
  assert table.dtype == np.float32
  assert_array_equal(table, tensors[EMBED].astype(np.float32))


@pytest.mark.parametrize(
  "embed, kernel, w",
  [
    ((None, "y"), (None, "x", None, "y"), ("x",)),
    ((), ("x", None, None, "y"), (None, "y")),
    ((None, "x"), ("x",), ("x", "y")),
  ],
)
def test_sharded_load_equals_whole_load(path, embed, kernel, w):
  # Split axes of every kind: the layers', a head's, none.
  mesh = jax.make_mesh((2, 4), ("x", "y"), (AxisType.Auto,) * 2)
  axes = {"embed/table": embed, "layers/o/kernel": kernel, "blocks/w": w}
  shardings = {
    leaf: NamedSharding(mesh, PartitionSpec(*axes[leaf])) for leaf in axes
  }
  tree = traverse_util.unflatten_dict(shardings, sep="/")
  params, whole = (
    traverse_util.flatten_dict(found, sep="/")
    for found in (load(path, shardings=tree), load(path))
  )
  # Every parameter has the sharding and the values that were asked for.
  assert params.keys() == whole.keys()
  for name, got in params.items():
    assert got.sharding == shardings[name]
    assert_array_equal(np.asarray(got), whole[name])


def test_prefixes_are_replaced(tmp_path):
  path = str(tmp_path / "w.safetensors")
  save_file({"model." + name: x for name, x in make_tensors().items()}, path)
  params = load(path, prefixes=[("x.", ""), ("model.", "")])
  assert params["embed"]["table"].shape == (5, 4)


def ones(*shape, dtype=np.float32):
  return np.ones(shape, dtype)


F8, BF16 = ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16


@pytest.mark.parametrize(
  ("change", "words"),
  [
    # Names: one missing (None), one unknown, one layer too many.
    ({"blocks.1.w": None}, "1 tensors missing.*blocks.1.w"),
    ({"head": ones(2)}, "1 unknown.*head"),
    ({"blocks.2.w": ones(4, 1)}, "unknown.*blocks.2.w"),
    # Shapes; the last two are exchanged.
    ({EMBED: ones(4, 5)}, rf"{EMBED} has shape \(4, 5\), wanted \(5, 4\)"),
    ({"blocks.0.w": ones(5, 4), EMBED: ones(4, 1)}, f"{EMBED} has shape"),
    # Dtypes.
    ({EMBED: ones(5, 4, dtype=np.int8)}, f"{EMBED} holds I8"),
    ({EMBED: ones(5, 4, dtype=F8)}, f"{EMBED} holds F8_E4M3"),
    # Values.
    ({EMBED: np.nan * ones(5, 4)}, f"{EMBED} holds NaN"),
    ({"blocks.1.w": np.inf * ones(4, 1, dtype=BF16)}, "1.w holds NaN or inf"),
  ],
)
def test_unfit_tensor_is_refused(tmp_path, change, words):
  path = str(tmp_path / "w.safetensors")
  tensors = make_tensors() | change
  save_file({n: x for n, x in tensors.items() if x is not None}, path)
  with pytest.raises(BadWeights, match=words):
    load(path)


def make_damages():
  """Return functions that damage the bytes of a file, by name."""
  # The first eight bytes are the length of the header.
  size = (1 << 62).to_bytes(8, "little")
  return {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "one byte more": lambda data: data + b"x",
    "huge header": lambda data: size + data[8:],
    "pickle": lambda data: pickle.dumps({"a": 1}),
  }


@pytest.mark.parametrize("kind", make_damages())
def test_damaged_file_is_refused(path, kind):
  path = pathlib.Path(path)
  path.write_bytes(make_damages()[kind](path.read_bytes()))
  with pytest.raises(BadWeights, match="w.safetensors"):
    load(path)


def test_other_formats_are_refused(tmp_path):
  (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
  with pytest.raises(BadWeights, match="only .safetensors"):
    load(tmp_path / "pytorch_model.bin")
  # A folder without any weights.
  with pytest.raises(BadWeights, match="neither"):
    load(tmp_path)


@pytest.mark.parametrize(
  "index",
  [
    '{"weight_map": {"embed.weight": "../w.safetensors"}}',
    "[]",
    "{",
    "{}",
    '{"weight_map": {"embed.weight": "w.bin"}}',
  ],
)
def test_index_with_foreign_files_is_refused(path, tmp_path, index):
  folder = tmp_path / "model"
  folder.mkdir()
  (folder / INDEX_FILE).write_text(index)
  with pytest.raises(BadWeights, match="index"):
    load(folder)


def test_save_refuses_parameters_of_another_model(tmp_path):
  with pytest.raises(BadWeights, match="layers/o/kernel"):
    save_params(str(tmp_path), {"embed": 0}, WEIGHT_MAP, AXES)


def test_save_refuses_parameters_of_other_sizes(path, tmp_path):
  params = load(path)
  with pytest.raises(BadWeights, match=r"blocks/w has shape \(2, 4\)"):
    save_params(str(tmp_path), params, WEIGHT_MAP, AXES | dict(B=1))


def test_failed_write_leaves_no_file(tmp_path):
  read = functools.partial(np.full, 1, 1e9, np.float32)
  tensor = StoredTensor("f", "big", (1,), "F32", read).cast_to(np.float16)
  with pytest.raises(BadWeights, match="big has numbers beyond float16"):
    write_checkpoint(str(tmp_path / "x"), {"big": tensor.cast_to(np.float16)})
  assert not os.listdir(tmp_path / "x")


def test_every_dtype_is_written(tmp_path):
  rng = np.random.default_rng(0)
  arrays = {
    name: rng.integers(0, 2, (3, n)).astype(dtype)
    for n, (name, dtype) in enumerate(sorted(safetensors_io.DTYPES.items()))
  }
  tensors = {
    name: StoredTensor("f", name, x.shape, name, lambda x=x: x)
    for name, x in arrays.items()
  }
  write_checkpoint(str(tmp_path), tensors)
  written = load_file(tmp_path / WEIGHTS_FILE)
  assert written.keys() == arrays.keys()
  for name, array in arrays.items():
    assert written[name].dtype == array.dtype
    assert_array_equal(written[name], array)
