"""Meshes, and what lies on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from r1router_jax.parallel import mesh as mesh_lib


@pytest.mark.parametrize(
  "axes, split", [(dict(data=-1), 1), (dict(data=2, fsdp=2, tensor=2), 4)]
)
def test_init_sharded_follows_the_rules_and_copies(axes, split):
  given = {
    "embed": np.arange(48, dtype=np.float32).reshape(12, 4),
    "scale": jnp.ones(3),
  }
  mesh = mesh_lib.make_mesh(**axes)
  sharded = mesh_lib.init_sharded(lambda tree: tree, mesh, given)
  # The embedding is split over fsdp and tensor, a scale lies on each device.
  shards = sharded["embed"].addressable_shards
  assert len(shards) == 8 and shards[0].data.size == 48 // split
  assert sharded["scale"].sharding.is_fully_replicated
  jax.tree.map(
    np.testing.assert_array_equal, mesh_lib.gather_to_host(sharded), given
  )
  # The copy can be donated, and the given arrays remain.
  zeros = jax.jit(lambda x: jax.tree.map(lambda x: 0 * x, x), donate_argnums=0)
  zeros(sharded)
  assert sharded["embed"].is_deleted()
  # The given arrays are as before.
  assert given["embed"][-1, -1] == 47 and given["scale"].sum() == 3


def test_to_local_arrays_keeps_the_arrays_of_one_host():
  """All devices are local, so only the type of the mesh could change."""
  mesh = mesh_lib.mesh_from_devices(
    jax.devices(), dict(data=-1, tensor=2), "it"
  )
  assert mesh.shape == dict(data=4, tensor=2)
  assert [d.id for d in mesh.devices.flat] == list(range(8))
  x = mesh_lib.init_sharded(
    lambda x: x, mesh, {"embed": np.arange(8.0).reshape(4, 2)}
  )
  seen = mesh_lib.to_local_arrays(x, mesh)["embed"]
  assert seen.sharding.mesh == mesh_lib.local_submesh(mesh) == mesh
  np.testing.assert_array_equal(seen, x["embed"])


@pytest.mark.parametrize(
  "axes, shape",
  [
    (dict(data=8), (8,)),
    (dict(data=-1), (8,)),
    (dict(data=2, fsdp=-1, model=1), (2, 4, 1)),
    (dict(data=1, fsdp=2, model=4), (1, 2, 4)),
  ],
)
def test_mesh_has_the_axes_asked_for(axes, shape):
  mesh = mesh_lib.make_mesh(**axes)
  assert mesh.devices.shape == shape and mesh.axis_names == tuple(axes)
  spec = PartitionSpec(tuple(axes))
  x = jax.device_put(np.arange(16), NamedSharding(mesh, spec))
  assert len(x.addressable_shards) == 8 and int(x.sum()) == 120


@pytest.mark.parametrize(
  "axes",
  [
    dict(data=3, fsdp=-1),
    dict(data=2, fsdp=2),
    dict(data=16),
    dict(data=-1, fsdp=-1),
    dict(data=0, fsdp=-1),
    dict(data=-2, fsdp=-1),
  ],
)
def test_mesh_that_does_not_tile_is_rejected(axes):
  with pytest.raises(ValueError, match="does not tile 8 devices"):
    mesh_lib.make_mesh(**axes)
