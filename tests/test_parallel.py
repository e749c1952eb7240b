import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from r1router_jax import parallel
from tests import pair


def tree():
  return dict(
      w=np.arange(6, dtype=np.float32).reshape(2, 3), b=jnp.ones(3, jnp.int32),
      key=jax.random.key(3), step=np.int32(7))


def test_a_tree_comes_back_from_its_copies():
  copies = parallel.replicate(tree())
  assert copies["w"].shape == (8, 2, 3) and copies["step"].shape == (8,)
  assert [s.device for s in copies["w"].addressable_shards] == jax.devices()
  back = parallel.unreplicate(copies)
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree()):
    other = back[path[0].key]
    assert other.dtype == leaf.dtype and other.shape == leaf.shape
    if path[0].key == "key":
      leaf, other = jax.random.key_data(leaf), jax.random.key_data(other)
    np.testing.assert_array_equal(leaf, other)


def test_donating_the_copies_spares_the_original():
  original = np.zeros((64, 64), np.float32)
  on_device = jnp.asarray(original)
  add = jax.pmap(lambda x: x + 1, axis_name=parallel.DATA, donate_argnums=0)
  for source in (original, on_device):
    copies = parallel.replicate(source)
    total = add(copies)
    assert copies.is_deleted() and np.all(np.asarray(total) == 1)
  assert not original.any() and not on_device.any()


def test_shards_are_the_rows_in_order():
  batch = dict(x=np.arange(32).reshape(16, 2), weight=np.ones(16))
  parts = parallel.shard(batch)
  assert parts["x"].shape == (8, 2, 2) and parts["weight"].shape == (8, 2)
  np.testing.assert_array_equal(parts["x"].reshape(16, 2), batch["x"])


def test_gradient_of_eight_devices_is_that_of_one():
  """The pmap idiom of train.py: psum numerator, denominator and gradient."""
  rng = np.random.default_rng(0)
  w = rng.normal(size=3).astype(np.float32)
  batch = dict(x=rng.normal(size=(16, 3)).astype(np.float32),
               weight=rng.integers(0, 2, 16).astype(np.float32))

  def loss(w, batch, total):
    return jnp.sum(batch["weight"] * (batch["x"] @ w) ** 2) / total

  def update(w, batch):
    total = jax.lax.psum(batch["weight"].sum(), parallel.DATA)
    return jax.lax.psum(jax.grad(loss)(w, batch, total), parallel.DATA)

  grads = jax.pmap(update, axis_name=parallel.DATA)(
      parallel.replicate(w), parallel.shard(batch))
  np.testing.assert_allclose(
      parallel.unreplicate(grads), jax.grad(loss)(
          w, batch, batch["weight"].sum()), rtol=1e-5)


def test_a_batch_that_does_not_split_names_itself():
  with pytest.raises(ValueError, match=r"12 rows.*'tokens'.*8 devices.*pad"):
    parallel.shard(dict(tokens=np.zeros((12, 3))))


@pytest.mark.parametrize("axes, shape", [
    (dict(data=8), (8,)), (dict(data=-1), (8,)),
    (dict(data=2, fsdp=-1, model=1), (2, 4, 1)),
    (dict(data=1, fsdp=2, model=4), (1, 2, 4)),
])
def test_mesh(axes, shape):
  mesh = parallel.make_mesh(**axes)
  assert mesh.devices.shape == shape and mesh.axis_names == tuple(axes)
  spec = PartitionSpec(tuple(axes))
  x = jax.device_put(np.arange(16), NamedSharding(mesh, spec))
  assert len(x.addressable_shards) == 8 and int(x.sum()) == 120


@pytest.mark.parametrize("axes", [
    dict(data=3, fsdp=-1), dict(data=2, fsdp=2), dict(data=16),
    dict(data=-1, fsdp=-1), dict(data=0, fsdp=-1), dict(data=-2, fsdp=-1),
])
def test_mesh_that_does_not_tile(axes):
  with pytest.raises(ValueError, match="does not tile 8 devices"):
    parallel.make_mesh(**axes)


@pytest.fixture
def initialize(monkeypatch):
  """The calls of `jax.distributed.initialize`, which is not run."""
  calls = []
  monkeypatch.setattr(
      jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
  for name in list(os.environ):
    if name.startswith(("SLURM_", "TPU_", "MEGASCALE_", "JAX_")):
      monkeypatch.delenv(name)
  return calls


SLURM = dict(SLURM_NTASKS="2", SLURM_STEP_NODELIST="n[1-2]", SLURM_PROCID="0")


@pytest.mark.parametrize("variables, joins", [
    ({}, False),
    (SLURM, True),
    (dict(SLURM, SLURM_NTASKS="1"), False),
    (dict(SLURM_NTASKS="2"), False),  # Allocated, but not started by srun.
    (dict(TPU_WORKER_HOSTNAMES="a,b", TPU_ML_PLATFORM="JAX"), True),
    (dict(TPU_WORKER_HOSTNAMES="localhost", TPU_ML_PLATFORM="JAX"), False),
    (dict(TPU_WORKER_HOSTNAMES="a", MEGASCALE_NUM_SLICES="2"), True),
    (dict(TPU_ML_PLATFORM="JAX"), True),  # Its metadata server will tell.
])
def test_who_joins(initialize, monkeypatch, variables, joins):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  parallel.join_pod()
  assert initialize == [((), {})] * joins


def test_a_lone_tpu_goes_on(initialize, monkeypatch):
  def fails():
    raise ValueError("coordinator_address should be defined.")
  monkeypatch.setattr(jax.distributed, "initialize", fails)
  monkeypatch.setenv("TPU_ML_PLATFORM", "JAX")
  parallel.join_pod()
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
  with pytest.raises(ValueError):
    parallel.join_pod()


def test_half_a_description_of_the_group(initialize, monkeypatch):
  monkeypatch.setenv(parallel.PROCESSES, "2")
  with pytest.raises(ValueError, match="Set all three"):
    parallel.join_pod()


CHILD = """
import jax, numpy as np
from r1router_jax import parallel
parallel.join_pod()
parallel.join_pod()
first = 4 * jax.process_index()
total, w = jax.pmap(
    lambda w, x: (jax.lax.psum(w * x.sum(), parallel.DATA), w),
    axis_name=parallel.DATA)(
        parallel.replicate(np.float32(3)),
        parallel.shard(np.arange(first, first + 4, dtype=np.float32)))
print("total", float(parallel.unreplicate(total)), jax.process_count(),
      float(parallel.unreplicate(w)))
"""


def test_two_processes_make_one_job(tmp_path):
  output = pair.run(CHILD, tmp_path)
  assert all("total 84.0 2 3.0" in text for text in output), output
