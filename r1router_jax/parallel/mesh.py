"""Device meshes, and how parameters and batches are sharded over them.

`SHARDING_RULES` give the sharding of each parameter on a mesh of all devices
(`make_mesh`).  Where every device holds all parameters, the mesh is that of one
host's devices (`local_mesh`).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from r1router_jax.common.errors import UserError

# The axis name of every pmap, and of the mesh's batch axis.
DATA = "data"

# Axes of the mesh that parameters are sharded over.
FSDP, TENSOR = "fsdp", "tensor"

# Axes of the mesh that the rows of a batch are sharded over.
BATCH_AXES = (DATA, FSDP)

# The end of a parameter's path, and a mesh axis for each dimension.  The
# inner dimension of a product is gathered (fsdp), its outer one split (tensor);
# the vision tower and the adapters are too thin for the latter.
SHARDING_RULES = (
  (r"(embed|head)", (TENSOR, FSDP)),
  (r"layers/(q|k|v|mlp/(gate|up))/w", (None, FSDP, TENSOR)),
  (r"layers/(q|k|v)/b", (None, TENSOR)),
  (r"layers/(o|mlp/down)/w", (None, TENSOR, FSDP)),
  (r"vision/blocks/.*/w", (None, FSDP, None)),
  (r"vision/(patch|merge1|merge2)/w", (FSDP, None)),
  (r"vision/.*/b", ()),
  (r"scale", ()),
  (r"lora_a", (None, FSDP, None)),
  (r"lora_b", (None, None, TENSOR)),
  (r"ns_coeffs", ()),  # Part of Muon's state.
)


def local_mesh() -> Mesh:
  """Return the mesh of this host's devices, with a batch axis only."""
  return Mesh(np.array(jax.local_devices()), (DATA,))


def make_mesh(**axes: int) -> Mesh:
  """Return a mesh over all devices; one size may be -1 and takes the rest."""
  sizes = mesh_sizes(jax.device_count(), axes)
  return jax.make_mesh(sizes, tuple(axes), (AxisType.Auto,) * len(sizes))


def mesh_from_devices(
  devices: Sequence[jax.Device], axes: Mapping[str, int], name: str
) -> Mesh:
  """Return a mesh over the given devices, those of a host side by side.

  See `mesh_sizes` for the axes, and for the name.
  """
  sizes = mesh_sizes(len(devices), axes, name)
  ordered = sorted(devices, key=lambda d: (d.process_index, d.id))
  grid, types = np.array(ordered).reshape(sizes), (AxisType.Auto,) * len(sizes)
  return Mesh(grid, tuple(axes), axis_types=types)


def mesh_sizes(
  devices: int, axes: Mapping[str, int], name: str = "config.mesh"
) -> list[int]:
  """Return the sizes of a mesh's axes, with the number that -1 stands for.

  If the mesh, called `name`, does not tile the devices, it raises UserError.
  """
  # The devices that the given sizes take, and whether -1 may take the rest.
  named = math.prod(size for size in axes.values() if size != -1)
  free = sum(size == -1 for size in axes.values())
  left, rest = divmod(devices, named) if named > 0 else (0, 1)
  if rest or free > 1 or (left > 1 and not free):
    raise UserError(
      f"{name} {dict(axes)} does not tile {devices} devices: its sizes "
      f"multiply to {named}.  Set one axis to -1 to take the rest."
    )
  return [left if size == -1 else size for size in axes.values()]


def local_submesh(mesh: Mesh) -> Mesh:
  """Return the part of a mesh that consists of this host's devices.

  No axis other than the first may cross hosts.
  """
  # The hosts of each index along the first axis.
  parts = mesh.devices.reshape(len(mesh.devices), -1)
  hosts = [{device.process_index for device in part} for part in parts]
  if any(len(host) > 1 for host in hosts):
    raise UserError(
      f"A mesh {dict(mesh.shape)} splits weights over several hosts of "
      f"{jax.local_device_count()} devices, and sampling cannot: choose "
      "config.rollout_mesh.tensor so that it divides the devices of a host."
    )
  local = mesh.devices[[host == {jax.process_index()} for host in hosts]]
  return Mesh(local, mesh.axis_names, axis_types=mesh.axis_types)


def to_local_arrays(tree: Any, mesh: Mesh) -> Any:
  """View the local shards of global arrays as arrays on the local submesh.

  Nothing may be sharded along the first mesh axis, since shards of other hosts
  would be lost.  Parameters in the layout for sampling are not.
  """
  local = local_submesh(mesh)

  def view(x):
    shards = [shard.data for shard in x.addressable_shards]
    sharding = NamedSharding(local, x.sharding.spec)
    return jax.make_array_from_single_device_arrays(x.shape, sharding, shards)

  return jax.tree.map(view, tree)


def gather_to_host(tree: Any) -> Any:
  """Return every leaf as a whole array on this host; all hosts take part."""

  def gather(x):
    is_global = isinstance(x, jax.Array) and not x.is_fully_addressable
    if is_global and not x.is_fully_replicated:
      return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)

  return jax.tree.map(gather, tree)


def tree_shardings(
  shapes: Any, mesh: Mesh, *, without: tuple[str, ...] = ()
) -> Any:
  """Return the sharding of each leaf of a tree, by `SHARDING_RULES`.

  The tree may be parameters or whatever holds them, such as the state of an
  optimizer, since a rule looks at the end of a path.  Scalars are replicated,
  and so is a dimension that the size of its axis does not divide.  Nothing is
  split along axes that the mesh lacks or that `without` names, e.g. `(FSDP,)`
  for sampling.  A leaf without a rule raises UserError.
  """
  sizes = {axis: n for axis, n in mesh.shape.items() if axis not in without}

  def leaf_sharding(path, leaf):
    if not leaf.shape:
      return NamedSharding(mesh, PartitionSpec())
    # A key of a dict, or a field of a NamedTuple of the optimizer's state.
    keys = (getattr(key, "key", getattr(key, "name", key)) for key in path)
    name = "/".join(map(str, keys))
    for end, axes in SHARDING_RULES:
      if re.search(f"(^|/){end}$", name):
        spec = [
          axis if axis in sizes and size % sizes[axis] == 0 else None
          for axis, size in zip(axes, leaf.shape, strict=False)
        ]
        return NamedSharding(mesh, PartitionSpec(*spec))
    raise UserError(
      f"No rule of mesh.SHARDING_RULES says how {name} {leaf.shape} lies on "
      "the mesh.  Add one."
    )

  return jax.tree_util.tree_map_with_path(leaf_sharding, shapes)


def with_shardings(shapes: Any, shardings: Any, dtype: Any = None) -> Any:
  """Return the shapes of a tree of arrays, or of shapes, with shardings.

  Arrays keep their dtype unless another one is given.
  """

  def describe(x, sharding):
    return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=sharding)

  return jax.tree.map(describe, shapes, shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Return the sharding of the rows of a batch."""
  # Not every mesh has an fsdp axis.
  axes = tuple(axis for axis in BATCH_AXES if axis in mesh.shape)
  return NamedSharding(mesh, PartitionSpec(axes))


def init_sharded(function: Callable, mesh: Mesh, *args: Any) -> Any:
  """Call a function under jit and return its result sharded over the mesh.

  The result is a copy, which the caller may donate, even where the function
  returns its arguments.
  """

  def call_and_copy(*args):
    return jax.tree.map(jnp.copy, function(*args))

  # Sharded when it is made, so that no device has to hold the whole tree.
  layout = tree_shardings(jax.eval_shape(function, *args), mesh)
  return jax.jit(call_and_copy, out_shardings=layout)(*args)


def shard_map_over_data(
  function: Callable, mesh: Mesh, *, shared: Sequence[int] = (), **options: Any
) -> Callable:
  """Return `jax.jit` of a function that runs on each data shard separately.

  A data shard is an index along the batch axis of the mesh; along other axes
  the compiler splits what the parameters' sharding splits.

  The returned function takes and returns trees whose leaves have a leading axis
  of data shards, except for the arguments at the positions `shared`.
  """

  def drop_shard_axis(arg):
    # Without the barrier XLA removes the axis again in each iteration of a
    # loop, which keeps the CPU compiler from fusing: a fifth of the speed of
    # sampling.
    dropped = jax.tree.map(lambda x: x.reshape(x.shape[1:]), arg)
    return jax.lax.optimization_barrier(dropped)

  def run_shard(*args):
    args = [
      arg if i in shared else drop_shard_axis(arg) for i, arg in enumerate(args)
    ]
    return jax.tree.map(lambda x: x[None], function(*args))

  def run_all(*args):
    split, whole = PartitionSpec(DATA), PartitionSpec()
    specs = tuple(whole if i in shared else split for i in range(len(args)))
    # Only the data axis is manual; the compiler takes care of the others.
    manual = dict(mesh=mesh, axis_names={DATA}, check_vma=False)
    specs = dict(in_specs=specs, out_specs=split)
    return jax.shard_map(run_shard, **specs, **manual)(*args)

  return jax.jit(run_all, **options)
