"""Many devices, many hosts: the only file that knows how they are arranged.

Two drivers share one loss (see train.py).  Under `jax.pmap` each device holds
all parameters and its part of the batch: `replicate`, `shard`, `unreplicate`.
Under `jax.jit` a mesh lays out both: `make_mesh`, `RULES`, `shardings`.

On several hosts every process runs the same command and calls `join_pod`
before it touches a device.  `shard` then splits what this host has read over
the devices of this host.

Axes:  D devices of this host
"""

import math
import os
import re
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
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
)

# Set all three where neither a TPU nor SLURM says who takes part.
COORDINATOR = "JAX_COORDINATOR_ADDRESS"  # host:port of process 0
PROCESSES = "JAX_NUM_PROCESSES"
PROCESS = "JAX_PROCESS_ID"


def join_pod() -> None:
  """Makes one job of the processes of a pod; does nothing on a single host.

  Who takes part is read from the three variables above, from SLURM (tasks that
  `srun` started), or from the TPU.
  """
  if jax.distributed.is_initialized():
    return
  given = {name: os.environ[name] for name in (COORDINATOR, PROCESSES, PROCESS)
           if name in os.environ}
  if len(given) == 3:
    _join_named(*given.values())
  elif PROCESSES in given or PROCESS in given:
    raise ValueError(
        f"Of {COORDINATOR}, {PROCESSES} and {PROCESS} only {sorted(given)} "
        "are set.  Set all three in each process, or none.")
  elif int(os.environ.get("SLURM_NTASKS", 1)) > 1 and (
      "SLURM_STEP_NODELIST" in os.environ):
    jax.distributed.initialize()
  elif _on_tpu():
    _join_tpu()
  if jax.distributed.is_initialized():
    logging.info("Process %d of %d, with %d of %d devices.",
                 jax.process_index(), jax.process_count(),
                 jax.local_device_count(), jax.device_count())


def _join_named(address: str, processes: str, process: str) -> None:
  host = address.rsplit(":", 1)[0]
  # JAX would listen on every interface, which a group on one machine need not.
  local = host in ("localhost", "127.0.0.1")
  jax.distributed.initialize(
      address, int(processes), int(process),
      coordinator_bind_address=address if local else None)


def _on_tpu() -> bool:
  """Whether this is a host of a TPU that may have more hosts."""
  for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
    if name in os.environ:
      slices = int(os.environ.get("MEGASCALE_NUM_SLICES") or 1)
      return "," in os.environ[name] or slices > 1
  # JAX sets this when it is imported where there are TPU chips.
  return os.environ.get("TPU_ML_PLATFORM") == "JAX"


def _join_tpu() -> None:
  try:
    jax.distributed.initialize()
  except (OSError, ValueError) as error:
    # No metadata server, or one that knows of no pod: a TPU in a notebook.
    if jax.distributed.is_initialized() or "," in os.environ.get(
        "TPU_WORKER_HOSTNAMES", ""):
      raise
    logging.warning("This TPU belongs to no pod (%s); going on alone.", error)


class Preemption:
  """Whether this machine is about to be taken away: a context, in which SIGTERM
  is noted and no more, and a question to be asked after each step."""

  def __enter__(self) -> "Preemption":
    self._asked = False
    # In a job of many, JAX catches the signal, and tells all at one step.
    self._before = (
        None if jax.distributed.is_initialized()
        or threading.current_thread() is not threading.main_thread()
        else signal.signal(signal.SIGTERM, self._note))
    return self

  def __exit__(self, *_: object) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def _note(self, *_: object) -> None:
    self._asked = True

  def __call__(self, step: int) -> bool:
    """Whether to stop after this step; the same in all processes."""
    if jax.distributed.is_initialized():
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked


def local_mesh() -> Mesh:
  """The devices of this host along the batch."""
  return Mesh(np.array(jax.local_devices()), (DATA,))


def replicate(tree: Any) -> Any:
  """A copy on each device of this host: leaves [...] become [D, ...]."""
  devices = jax.local_devices()
  layout = NamedSharding(local_mesh(), PartitionSpec(DATA))

  def copies(x):
    x = x[None] if isinstance(x, jax.Array) else np.asarray(x)[None]
    # Never the caller's own memory, as the copy may be donated.
    each = [jax.device_put(x, device, may_alias=False) for device in devices]
    return jax.make_array_from_single_device_arrays(
        (len(devices), *x.shape[1:]), layout, each)

  return jax.tree.map(copies, tree)


def unreplicate(tree: Any) -> Any:
  """The copy of the first device: leaves [D, ...] become [...]."""
  return jax.tree.map(lambda x: x.addressable_shards[0].data[0], tree)


def shard(batch: Any) -> Any:
  """Splits a host's batch over its devices: leaves [B, ...] -> [D, B/D, ...].

  A last, smaller batch has to be padded by the caller, with rows of weight 0.
  """
  count = jax.local_device_count()

  def split(path, x):
    each, rest = divmod(x.shape[0], count)
    if rest:
      raise ValueError(
          f"A batch of {x.shape[0]} rows (batch{jax.tree_util.keystr(path)}) "
          f"does not split over the {count} devices of this host: choose a "
          "multiple for the batch size, or pad it with rows of weight 0.")
    return x.reshape(count, each, *x.shape[1:])

  return jax.tree_util.tree_map_with_path(split, batch)


def make_mesh(**axes: int) -> Mesh:
  """A mesh over all devices; one axis may be -1 and takes what is left."""
  sizes = mesh_sizes(jax.device_count(), axes)
  return jax.make_mesh(sizes, tuple(axes), (AxisType.Auto,) * len(sizes))


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
        f"multiply to {named}.  Set one axis to -1 to take the rest.")
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
    name = "/".join(str(getattr(key, "key", getattr(key, "name", key)))
                    for key in path)
    if not leaf.shape:
      return NamedSharding(mesh, PartitionSpec())
    for end, axes in RULES:
      if re.search(f"(^|/){end}$", name):
        sizes = {a: n for a, n in mesh.shape.items() if a not in without}
        return NamedSharding(mesh, PartitionSpec(*(
            axis if axis in sizes and size % sizes[axis] == 0 else None
            for axis, size in zip(axes, leaf.shape, strict=False))))
    raise ValueError(f"No rule of parallel.RULES says how {name} "
                     f"{leaf.shape} lies on the mesh.  Add one.")

  return jax.tree_util.tree_map_with_path(layout, shapes)


def by_path(shapes: Any, mesh: Mesh, **options: Any) -> dict[str, Any]:
  """`shardings` of nested dicts by path, "layers/q/w", as `hf.load` asks."""
  return traverse_util.flatten_dict(
      shardings(shapes, mesh, **options), sep="/")


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
    args = [arg if i in shared else jax.lax.optimization_barrier(
        jax.tree.map(lambda x: x.reshape(x.shape[1:]), arg))
        for i, arg in enumerate(args)]
    return jax.tree.map(lambda x: x[None], function(*args))

  def mapped(*args):
    specs = tuple(PartitionSpec() if i in shared else PartitionSpec(DATA)
                  for i in range(len(args)))
    return jax.shard_map(
        local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(DATA),
        axis_names={DATA}, check_vma=False)(*args)

  return jax.jit(mapped, **options)


def rows(mesh: Mesh, before: int = 0) -> NamedSharding:
  """How a batch lies on the mesh, its rows after `before` other dimensions."""
  axes = tuple(axis for axis in ROWS if axis in mesh.shape)
  return NamedSharding(mesh, PartitionSpec(*(None,) * before, axes))
