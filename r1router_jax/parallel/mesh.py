"""Many devices: how parameters and batches lie on them.

A mesh says where parameters and batches lie: `make_mesh`, `RULES`, `shardings`.
Where each device holds all parameters it is that of one host, `local_mesh`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = "data"  # The axis name of every pmap, and of the mesh's batch axis.

FSDP, TENSOR = "fsdp", "tensor"  # Axes of the mesh that parameters lie along.

ROWS = (DATA, FSDP)  # Axes that the rows of a batch lie along.


# How a parameter lies on the mesh: the end of its path, an axis per dimension.
# A product's inner dimension is gathered (fsdp), its outer one split (tensor);
# the picture tower and the adapters are too thin to be split.
RULES = (
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
  (r"ns_coeffs", ()),  # Of Muon.
)


def local_mesh() -> Mesh:
  """The devices of this host along the batch."""
  return Mesh(np.array(jax.local_devices()), (DATA,))


def born(function: Callable, mesh: Mesh, *args: Any) -> Any:
  """What the function returns, laid out on the mesh by `RULES`.

  Its memory is its own, and so may be donated.

  Raises:
    ValueError: where a leaf has no rule.
  """
  layout = shardings(jax.eval_shape(function, *args), mesh)
  copied = lambda *args: jax.tree.map(jnp.copy, function(*args))
  return jax.jit(copied, out_shardings=layout)(*args)


def whole(tree: Any) -> Any:
  """Arrays of this host with all numbers of each leaf, on every host."""
  return jax.tree.map(
    lambda x: (
      multihost_utils.process_allgather(x, tiled=True)
      if isinstance(x, jax.Array)
      and not (x.is_fully_addressable or x.is_fully_replicated)
      else np.asarray(x)
    ),
    tree,
  )


def here(mesh: Mesh) -> Mesh:
  """The part of a mesh that is this host's, as a mesh of its own.

  Raises:
    ValueError: where an axis other than the first goes from host to host.
  """
  hosts = [
    {d.process_index for d in part}
    for part in mesh.devices.reshape(len(mesh.devices), -1)
  ]
  if any(len(host) > 1 for host in hosts):
    raise ValueError(
      f"A mesh {dict(mesh.shape)} splits weights over several hosts of "
      f"{jax.local_device_count()} devices, and sampling cannot: choose "
      "config.rollout_mesh.tensor so that it divides the devices of a host."
    )
  mine = mesh.devices[[host == {jax.process_index()} for host in hosts]]
  return Mesh(mine, mesh.axis_names, axis_types=mesh.axis_types)


def seen_here(tree: Any, mesh: Mesh) -> Any:
  """Arrays that lie on a mesh as arrays of this host's part of it.

  What is split along the first axis of the mesh would be lost: parameters are
  not, in a layout for sampling.
  """
  local = here(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_single_device_arrays(
      x.shape,
      NamedSharding(local, x.sharding.spec),
      [shard.data for shard in x.addressable_shards],
    ),
    tree,
  )


def make_mesh(**axes: int) -> Mesh:
  """A mesh over all devices; one axis may be -1 and takes what is left."""
  sizes = mesh_sizes(jax.device_count(), axes)
  return jax.make_mesh(sizes, tuple(axes), (AxisType.Auto,) * len(sizes))


def mesh_of(
  devices: Sequence[jax.Device], axes: Mapping[str, int], name: str
) -> Mesh:
  """The mesh `name` over devices, those of a host side by side."""
  sizes = mesh_sizes(len(devices), axes, name)
  ordered = sorted(devices, key=lambda d: (d.process_index, d.id))
  return Mesh(
    np.array(ordered).reshape(sizes),
    tuple(axes),
    axis_types=(AxisType.Auto,) * len(sizes),
  )


def mesh_sizes(
  devices: int, axes: Mapping[str, int], name: str = "config.mesh"
) -> list[int]:
  """The sizes of a mesh's axes, one of which may be -1 for what is left.

  Raises:
    ValueError: where the mesh `name` does not tile so many devices.
  """
  named = math.prod(size for size in axes.values() if size != -1)
  free = sum(size == -1 for size in axes.values())
  left, rest = divmod(devices, named) if named > 0 else (0, 1)
  if rest or free > 1 or (left > 1 and not free):
    raise ValueError(
      f"{name} {dict(axes)} does not tile {devices} devices: its sizes "
      f"multiply to {named}.  Set one axis to -1 to take the rest."
    )
  return [left if size == -1 else size for size in axes.values()]


def shardings(shapes: Any, mesh: Mesh, *, without: tuple[str, ...] = ()) -> Any:
  """How each leaf of a tree lies on the mesh, by `RULES`.

  The tree may be parameters or whatever holds them, such as an optimiser's
  state, since a rule looks at the end of a path; scalars lie everywhere.  A
  dimension that its axis does not divide is not split.

  Args:
    shapes: a tree of arrays, or of their shapes.
    mesh: with axes of `RULES`; those that it lacks split nothing.
    without: axes along which nothing is split, e.g. `(FSDP,)` for sampling.

  Raises:
    ValueError: where a leaf has no rule.
  """

  def layout(path, leaf):
    name = "/".join(
      str(getattr(key, "key", getattr(key, "name", key))) for key in path
    )
    if not leaf.shape:
      return NamedSharding(mesh, PartitionSpec())
    for end, axes in RULES:
      if re.search(f"(^|/){end}$", name):
        sizes = {a: n for a, n in mesh.shape.items() if a not in without}
        return NamedSharding(
          mesh,
          PartitionSpec(
            *(
              axis if axis in sizes and size % sizes[axis] == 0 else None
              for axis, size in zip(axes, leaf.shape, strict=False)
            )
          ),
        )
    raise ValueError(
      f"No rule of parallel.RULES says how {name} "
      f"{leaf.shape} lies on the mesh.  Add one."
    )

  return jax.tree_util.tree_map_with_path(layout, shapes)


def by_path(shapes: Any, mesh: Mesh, **options: Any) -> dict[str, Any]:
  """`shardings` of nested dicts by path, "layers/q/w", as `hf.load` asks."""
  return traverse_util.flatten_dict(shardings(shapes, mesh, **options), sep="/")


def each_part(
  function: Callable, mesh: Mesh, *, shared: Sequence[int] = (), **options: Any
) -> Callable:
  """`jax.jit` of a function of one part's rows, run on all parts at once.

  A part is a place along the batch axis of the mesh; along other axes the
  compiler splits what the parameters' layout splits.

  Args:
    function: of trees without the leading axis of parts that ours have.
    mesh: with `DATA` among its axes.
    shared: positions of arguments that are the same for all parts, and so lack
      that axis.
    **options: of `jax.jit`.
  """

  def local(*args):
    # Kept apart, or XLA takes the axis off again and again within loops, where
    # it keeps the CPU compiler from fusing: a fifth of the speed of sampling.
    args = [
      arg
      if i in shared
      else jax.lax.optimization_barrier(
        jax.tree.map(lambda x: x.reshape(x.shape[1:]), arg)
      )
      for i, arg in enumerate(args)
    ]
    return jax.tree.map(lambda x: x[None], function(*args))

  def mapped(*args):
    specs = tuple(
      PartitionSpec() if i in shared else PartitionSpec(DATA)
      for i in range(len(args))
    )
    return jax.shard_map(
      local,
      mesh=mesh,
      in_specs=specs,
      out_specs=PartitionSpec(DATA),
      axis_names={DATA},
      check_vma=False,
    )(*args)

  return jax.jit(mapped, **options)


def rows(mesh: Mesh) -> NamedSharding:
  """How a batch lies on the mesh."""
  axes = tuple(axis for axis in ROWS if axis in mesh.shape)
  return NamedSharding(mesh, PartitionSpec(axes))
