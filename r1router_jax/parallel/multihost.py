"""Runs of several processes: joining them, agreeing, and stopping together.

On several hosts every process runs the same command and calls
`initialize_distributed` before it touches a device.
"""

import os
import signal
import threading
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from r1router_jax.common.errors import UserError

# Environment variables.  Set all three in each process where neither a TPU nor
# SLURM tells JAX which processes take part.
COORDINATOR_VAR = "JAX_COORDINATOR_ADDRESS"  # host:port of process 0
NUM_PROCESSES_VAR = "JAX_NUM_PROCESSES"
PROCESS_ID_VAR = "JAX_PROCESS_ID"


def initialize_distributed() -> None:
  """Make one JAX job of the processes of all hosts; do nothing on one host.

  The processes are found by the three variables above, of which either all or
  none may be set, by SLURM (tasks that `srun` started), or by the TPU.
  """
  if jax.distributed.is_initialized():
    return
  names = COORDINATOR_VAR, NUM_PROCESSES_VAR, PROCESS_ID_VAR
  given = {name: os.environ[name] for name in names if name in os.environ}
  # Without srun SLURM sets no list of the step's nodes.
  slurm_tasks = int(os.environ.get("SLURM_NTASKS", 1))
  is_srun = slurm_tasks > 1 and "SLURM_STEP_NODELIST" in os.environ
  # Explicit variables come first, then SLURM, then the TPU.
  if len(given) == 3:
    _join_coordinator(*given.values())
  elif NUM_PROCESSES_VAR in given or PROCESS_ID_VAR in given:
    raise UserError(
      f"Of {COORDINATOR_VAR}, {NUM_PROCESSES_VAR} and {PROCESS_ID_VAR} only "
      f"{sorted(given)} are set.  Set all three in each process, or none."
    )
  elif is_srun:
    jax.distributed.initialize()
  elif _on_tpu():
    _join_tpu()
  if jax.distributed.is_initialized():
    logging.info(
      f"Process {jax.process_index()} of {jax.process_count()}, with "
      f"{jax.local_device_count()} of {jax.device_count()} devices."
    )


def _join_coordinator(address: str, processes: str, process: str) -> None:
  """Join the job of the process that listens at `address`."""
  # JAX would listen on every interface, which a group on one machine need not.
  is_local = address.rsplit(":", 1)[0] in ("localhost", "127.0.0.1")
  bind = dict(coordinator_bind_address=address if is_local else None)
  jax.distributed.initialize(address, int(processes), int(process), **bind)


def _on_tpu() -> bool:
  """Return whether this is a host of a TPU that may have more hosts."""
  for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
    if name in os.environ:
      # Several hosts of one slice, or several slices of one host each.
      slices = int(os.environ.get("MEGASCALE_NUM_SLICES") or 1)
      return "," in os.environ[name] or slices > 1
  # JAX sets this when it is imported where there are TPU chips.
  return os.environ.get("TPU_ML_PLATFORM") == "JAX"


def _join_tpu() -> None:
  """Join the other hosts of this TPU, if it has any."""
  try:
    jax.distributed.initialize()
  except (OSError, ValueError) as error:
    # No metadata server, or one that knows of no pod: a TPU in a notebook.
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if jax.distributed.is_initialized() or "," in hosts:
      raise
    logging.warning("This TPU belongs to no pod (%s); going on alone.", error)


class Preemption:
  """A context that notes SIGTERM, the sign that this machine is taken away.

  Call the object after each step to learn whether to stop.
  """

  def __enter__(self) -> "Preemption":
    self._signalled, self._previous_handler = False, None
    # In a job of several processes JAX catches the signal itself, and tells all
    # of them at the same step.  Python allows handlers in the main thread only.
    main_thread = threading.current_thread() is threading.main_thread()
    if main_thread and not jax.distributed.is_initialized():
      self._previous_handler = signal.signal(signal.SIGTERM, self._on_signal)
    return self

  def __exit__(self, *_: object) -> None:
    if self._previous_handler is not None:
      signal.signal(signal.SIGTERM, self._previous_handler)

  def _on_signal(self, *_: object) -> None:
    self._signalled = True

  def __call__(self, step: int) -> bool:
    """Return whether to stop after this step; the same in all processes."""
    if jax.distributed.is_initialized():
      return multihost_utils.reached_preemption_sync_point(step)
    return self._signalled


def local_slice(rows: np.ndarray) -> np.ndarray:
  """Return this process's rows of a batch."""
  return rows[jax.process_index() :: jax.process_count()]


def max_over_hosts(numbers: Sequence[int]) -> list[int]:
  """Return the maximum of each number over all processes."""
  if jax.process_count() == 1:
    return list(numbers)
  local = np.asarray(numbers, np.int32)
  return multihost_utils.process_allgather(local).max(axis=0).tolist()


def sum_over_hosts(numbers: Sequence[float]) -> list[float]:
  """Return the sum of each number over all processes; the same in all."""
  if jax.process_count() == 1:
    return list(numbers)
  local = np.asarray(numbers, np.float32)
  return multihost_utils.process_allgather(local).sum(axis=0).tolist()


def all_hosts_agree(condition: bool) -> bool:
  """Return whether a condition is true in all processes."""
  return max_over_hosts([not condition]) == [False]
