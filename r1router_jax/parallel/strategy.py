"""Two strategies to run one train step on many devices.

  pmap   each device holds all parameters and has its own rows of the batch;
         the train step adds sums over devices where it needs them
  fsdp   one program over a mesh (data, fsdp, tensor), for what does not fit
         one device; the compiler splits it as `mesh.SHARDING_RULES` say

The state is a tree of arrays, without an axis of devices, under both.  So one
loss and one loop (train.py) serve both, and both give the gradient of one
device.

Axes:  D data shards of this host's batch   B rows of a shard
  M microbatches of an update   m = B / M rows of a microbatch
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r1router_jax.common.errors import UserError
from r1router_jax.parallel import mesh as mesh_lib

KINDS = ("pmap", "fsdp")


@dataclasses.dataclass(frozen=True)
class ParallelStrategy:
  """The way in which a run uses its devices."""

  kind: str  # One of `KINDS`.
  mesh: Mesh  # Of the parameters as this process sees them.
  global_mesh: Mesh  # As all processes see them, e.g. in checkpoints.
  rollout_mesh: Mesh  # On which responses are sampled.
  local_shards: int  # D, the number of data shards of this host.

  @property
  def axis_name(self) -> str | None:
    """Return the axis over which a train step adds up; None if it need not."""
    return mesh_lib.DATA if self.kind == "pmap" else None

  def init_sharded(self, function: Callable, *args: Any) -> Any:
    """Call a function under jit and return its result sharded over `mesh`."""
    return mesh_lib.init_sharded(function, self.mesh, *args)

  def abstract_state(self, function: Callable, *args: Any) -> Any:
    """Return the shapes and shardings of a function's result on all hosts."""
    shapes = jax.eval_shape(function, *args)
    return mesh_lib.with_shardings(
      shapes, mesh_lib.tree_shardings(shapes, self.global_mesh)
    )

  def jit_train_step(self, train_step: Callable) -> Callable:
    """Compile (state, reference, batch) -> (state, metrics) for all devices.

    The compiled step donates the state that it is given, and takes this host's
    batches, with leaves [D, M, m, ...].  `train_step`, of one data shard under
    pmap, of all shards under fsdp, sees batches of leaves [M, m, ...].
    """
    # One program per device; the state is replicated, the batch is not.
    if self.kind == "pmap":
      axes = dict(in_axes=(None, None, 0), out_axes=None)
      return jax.pmap(train_step, mesh_lib.DATA, **axes, donate_argnums=0)
    # fsdp: one program over the global batch.
    jitted = jax.jit(train_step, donate_argnums=0)

    def run(state, reference, batch):
      with jax.set_mesh(self.mesh):
        return jitted(state, reference, self._to_global_rows(batch))

    return run

  def jit_by_row(self, function: Callable) -> Callable:
    """Compile (parameters, batch) -> one array of all rows, for all devices.

    The batch is as that of `jit_train_step`, and so is what the function sees;
    it returns [M, m, ...], and the compiled one this host's [D, M, m, ...] as a
    NumPy array.
    """
    if self.kind == "pmap":
      mapped = jax.pmap(function, mesh_lib.DATA, in_axes=(None, 0))
      return lambda params, batch: np.asarray(mapped(params, batch))
    # fsdp: one program over the global batch.
    jitted = jax.jit(function, out_shardings=self._row_sharding)

    def run(params, batch):
      with jax.set_mesh(self.mesh):
        rows = jitted(params, self._to_global_rows(batch))
      # [M, D m of all hosts, ...] -> [D, M, m, ...] of this host.  Devices that
      # split weights hold the same rows.
      shards = {s.index[1].start or 0: s.data for s in rows.addressable_shards}
      local = np.concatenate([shards[start] for start in sorted(shards)], 1)
      shape = len(local), self.local_shards, -1, *local.shape[2:]
      return np.moveaxis(local.reshape(shape), 1, 0)

    return run

  @property
  def _row_sharding(self) -> NamedSharding:
    """The sharding of the rows of microbatches, [M, rows, ...]."""
    rows = mesh_lib.batch_sharding(self.mesh).spec
    return NamedSharding(self.mesh, PartitionSpec(None, *rows))

  def _to_global_rows(self, batch: Any) -> Any:
    """Convert [D, M, m, ...] of this host to [M, D m of all hosts, ...]."""

    def convert(x):
      x = np.moveaxis(x, 0, 1)
      x = x.reshape(len(x), x.shape[1] * x.shape[2], *x.shape[3:])
      return jax.make_array_from_process_local_data(self._row_sharding, x)

    return jax.tree.map(convert, batch)

  def to_global(self, state: Any) -> Any:
    """Convert host-local arrays to global arrays, as checkpoints need."""
    # One host, or fsdp: the arrays are global already.
    if self.mesh == self.global_mesh:
      return state
    return multihost_utils.host_local_array_to_global_array(
      state, self.global_mesh, PartitionSpec()
    )

  def to_local(self, state: Any) -> Any:
    """Undo `to_global`; the result is a copy, which may be donated."""
    if self.mesh != self.global_mesh:
      state = multihost_utils.global_array_to_host_local_array(
        state, self.global_mesh, PartitionSpec()
      )
    return self.init_sharded(lambda state: state, state)


def make_strategy(
  kind: str, mesh: Mapping[str, int], rollout_mesh: Mapping[str, int]
) -> ParallelStrategy:
  """Return the strategy of `config.parallel`, over all devices.

  `mesh` and `rollout_mesh` have the sizes of axes, for updates and sampling.  A
  mesh that does not tile the devices, and pmap with one that splits parameters,
  raise UserError.
  """
  if kind not in KINDS:
    raise UserError(
      f"config.parallel is {kind!r}: take one of {', '.join(KINDS)}."
    )
  # All devices of all hosts; under pmap each host samples on its own devices.
  training = mesh_lib.make_mesh(**mesh)
  make_rollout_mesh = functools.partial(
    mesh_lib.mesh_from_devices, axes=rollout_mesh, name="config.rollout_mesh"
  )
  if kind == "fsdp":
    rollout = make_rollout_mesh(jax.devices())
    shards = _local_batch_shards(training)
    return ParallelStrategy(kind, training, training, rollout, shards)
  if training.shape[mesh_lib.DATA] != jax.device_count():
    raise UserError(
      f"config.mesh {dict(mesh)} splits the weights over devices, and "
      "config.parallel 'pmap' keeps them whole on each: take 'fsdp'."
    )
  local = mesh_lib.local_mesh()
  global_mesh = training if jax.process_count() > 1 else local
  rollout = make_rollout_mesh(jax.local_devices())
  return ParallelStrategy(kind, local, global_mesh, rollout, local.size)


def _local_batch_shards(mesh: Mesh) -> int:
  """Return the number of data shards of this host; none may cross hosts."""
  # Of as many rows as there are devices, the first one that each device has.
  rows = mesh_lib.batch_sharding(mesh).devices_indices_map((mesh.size,))
  local, remote = set(), set()
  for device, index in rows.items():
    # Data shards are told apart by their first row.
    is_local = device.process_index == jax.process_index()
    (local if is_local else remote).add(index[0].start)
  if local & remote:
    raise UserError(
      f"config.mesh {dict(mesh.shape)} gives the same rows of a batch to "
      "several hosts: choose `tensor` so that it divides the "
      f"{jax.local_device_count()} devices of a host."
    )
  return len(local)
