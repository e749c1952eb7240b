"""Two ways to run one update on many devices.

  pmap   each device holds all parameters and has its own rows of the batch;
         the update adds up over devices what it must
  fsdp   one program over a mesh (data, fsdp, tensor), for what does not fit
         one device; the compiler splits it as `parallel.RULES` say

State is a tree of arrays, without an axis of devices, under both.  So one loss
and one loop (train.py) serve both, and both give the gradient of one device.

Axes:  D shares of this host's batch   B rows of a share   M passes of an update
  m = B / M rows of a pass
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r1router_jax.parallel import mesh as mesh_lib

KINDS = ("pmap", "fsdp")


@dataclasses.dataclass(frozen=True)
class Driver:
  """How a run lies on its devices.

  Attributes:
    kind: one of `KINDS`.
    mesh: where this process sees parameters lie.
    everywhere: where they lie as all processes see it, in checkpoints.
    rollout: where responses are drawn.
    parts: D.
  """

  kind: str
  mesh: Mesh
  everywhere: Mesh
  rollout: Mesh
  parts: int

  @property
  def axis(self) -> str | None:
    """The name of the axis over which an update adds up, if it must."""
    return mesh_lib.DATA if self.kind == "pmap" else None

  def born(self, function: Callable, *args: Any) -> Any:
    """See `parallel.born`."""
    return mesh_lib.born(function, self.mesh, *args)

  def shapes(self, function: Callable, *args: Any) -> Any:
    """What `born` would make, as all processes see it."""
    shapes = jax.eval_shape(function, *args)
    return jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
      shapes,
      mesh_lib.shardings(shapes, self.everywhere),
    )

  def compile(self, update: Callable) -> Callable:
    """An update (state, reference, batch) -> (state, metrics) on all devices.

    Batches have leaves [D, M, m, ...]; the update sees leaves [M, m, ...], of
    one share under pmap, of all shares under fsdp.  The state that it is given
    gives its memory away.
    """
    if self.kind == "pmap":
      return jax.pmap(
        update,
        axis_name=mesh_lib.DATA,
        in_axes=(None, None, 0),
        out_axes=None,
        donate_argnums=0,
      )
    step = jax.jit(update, donate_argnums=0)
    rows = NamedSharding(
      self.mesh, PartitionSpec(None, *mesh_lib.rows(self.mesh).spec)
    )

    def joined(x):
      x = np.moveaxis(x, 0, 1)
      return jax.make_array_from_process_local_data(
        rows, x.reshape(len(x), x.shape[1] * x.shape[2], *x.shape[3:])
      )

    def run(state, reference, batch):
      with jax.set_mesh(self.mesh):
        return step(state, reference, jax.tree.map(joined, batch))

    return run

  def shared(self, state: Any) -> Any:
    """The state as all processes see it."""
    if self.mesh == self.everywhere:
      return state
    return multihost_utils.host_local_array_to_global_array(
      state, self.everywhere, PartitionSpec()
    )

  def own(self, state: Any) -> Any:
    """The inverse of `shared`, in memory that may be donated."""
    if self.mesh != self.everywhere:
      state = multihost_utils.global_array_to_host_local_array(
        state, self.everywhere, PartitionSpec()
      )
    return self.born(lambda state: state, state)


def make(
  kind: str, mesh: Mapping[str, int], rollout_mesh: Mapping[str, int]
) -> Driver:
  """The driver of `config.parallel`, over all devices.

  Raises:
    ValueError: where a mesh does not tile them, or splits what it cannot.
  """
  if kind not in KINDS:
    raise ValueError(
      f"config.parallel is {kind!r}: take one of {', '.join(KINDS)}."
    )
  training = mesh_lib.make_mesh(**mesh)
  if kind == "fsdp":
    return Driver(
      kind,
      training,
      training,
      mesh_lib.mesh_of(jax.devices(), rollout_mesh, "config.rollout_mesh"),
      _parts_here(training),
    )
  if training.shape[mesh_lib.DATA] != jax.device_count():
    raise ValueError(
      f"config.mesh {dict(mesh)} splits the weights over devices, and "
      "config.parallel 'pmap' keeps them whole on each: take 'fsdp'."
    )
  own = mesh_lib.local_mesh()
  return Driver(
    kind,
    own,
    training if jax.process_count() > 1 else own,
    mesh_lib.mesh_of(jax.local_devices(), rollout_mesh, "config.rollout_mesh"),
    jax.local_device_count(),
  )


def _parts_here(mesh: Mesh) -> int:
  """How many parts of the rows of a batch are of this host alone."""
  rows = mesh_lib.rows(mesh).devices_indices_map((mesh.size,))
  mine = {
    where[0].start
    for device, where in rows.items()
    if device.process_index == jax.process_index()
  }
  others = {
    where[0].start
    for device, where in rows.items()
    if device.process_index != jax.process_index()
  }
  if mine & others:
    raise ValueError(
      f"config.mesh {dict(mesh.shape)} gives the same rows of a batch to "
      "several hosts: choose `tensor` so that it divides the "
      f"{jax.local_device_count()} devices of a host."
    )
  return len(mine)
