import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1router_jax import checkpoints


def params():
  rng = np.random.default_rng(0)
  return {"layers": {"q": {"w": rng.normal(size=(2, 3, 4)).astype(np.float32)}},
          "embed": rng.normal(size=(5, 3)).astype(np.float32)}


def assert_equal(got, wanted):
  assert jax.tree.structure(got) == jax.tree.structure(wanted)
  jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_parameters_come_back(tmp_path):
  checkpoints.save_params(tmp_path / "p.safetensors", params())
  assert_equal(checkpoints.load_params(tmp_path / "p.safetensors"), params())
  assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]


def test_half_precision_comes_back_as_float32(tmp_path):
  half = jax.tree.map(lambda x: x.astype(np.float16), params())
  checkpoints.save_params(tmp_path / "p.safetensors", half)
  loaded = checkpoints.load_params(tmp_path / "p.safetensors")
  assert {x.dtype for x in jax.tree.leaves(loaded)} == {np.dtype("float32")}
  jax.tree.map(np.testing.assert_array_equal, loaded, half)


def test_devices_may_hold_what_is_saved(tmp_path):
  checkpoints.save_params(
      tmp_path / "p.safetensors", jax.tree.map(jnp.asarray, params()))
  # A view that is not contiguous is written as it reads.
  turned = jax.tree.map(np.transpose, params())
  checkpoints.save_params(tmp_path / "t.safetensors", turned)
  assert_equal(checkpoints.load_params(tmp_path / "t.safetensors"), turned)


@pytest.mark.parametrize("kept", [0, 20, -1])
def test_a_truncated_file_is_named(tmp_path, kept):
  path = tmp_path / "p.safetensors"
  checkpoints.save_params(path, params())
  path.write_bytes(path.read_bytes()[:kept])
  with pytest.raises(ValueError, match="p.safetensors is not a whole"):
    checkpoints.load_params(path)


def state(step):
  tree = jax.tree.map(lambda x: x + step, params())
  return step, tree, optax.adamw(1e-3).init(tree)


def test_the_newest_state_comes_back(tmp_path):
  saved = checkpoints.Checkpoints(tmp_path)
  assert_equal(saved.restore(state(0)), state(0))  # Nothing was saved yet.
  for step in (10, 20, 30):
    saved.save(step, jax.tree.map(np.asarray, state(step)))
  saved.close()
  again = checkpoints.Checkpoints(tmp_path)
  assert_equal(again.restore(state(0)), state(30))
  again.close()
  kept = {p.name for p in (tmp_path / "checkpoints").iterdir()}
  assert kept == {"20", "30"}
