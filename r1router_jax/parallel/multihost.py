"""Many hosts: who takes part in a run, its share of it, and when to stop.

On several hosts every process runs the same command and calls `join_pod`
before it touches a device.
"""

import os
import signal
import threading
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

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
  given = {
    name: os.environ[name]
    for name in (COORDINATOR, PROCESSES, PROCESS)
    if name in os.environ
  }
  if len(given) == 3:
    _join_named(*given.values())
  elif PROCESSES in given or PROCESS in given:
    raise ValueError(
      f"Of {COORDINATOR}, {PROCESSES} and {PROCESS} only {sorted(given)} "
      "are set.  Set all three in each process, or none."
    )
  elif int(os.environ.get("SLURM_NTASKS", 1)) > 1 and (
    "SLURM_STEP_NODELIST" in os.environ
  ):
    jax.distributed.initialize()
  elif _on_tpu():
    _join_tpu()
  if jax.distributed.is_initialized():
    logging.info(
      "Process %d of %d, with %d of %d devices.",
      jax.process_index(),
      jax.process_count(),
      jax.local_device_count(),
      jax.device_count(),
    )


def _join_named(address: str, processes: str, process: str) -> None:
  host = address.rsplit(":", 1)[0]
  # JAX would listen on every interface, which a group on one machine need not.
  local = host in ("localhost", "127.0.0.1")
  jax.distributed.initialize(
    address,
    int(processes),
    int(process),
    coordinator_bind_address=address if local else None,
  )


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
      "TPU_WORKER_HOSTNAMES", ""
    ):
      raise
    logging.warning("This TPU belongs to no pod (%s); going on alone.", error)


class Preemption:
  """Whether this machine is about to be taken away: a context, in which SIGTERM
  is noted and no more, and a question to be asked after each step.
  """

  def __enter__(self) -> "Preemption":
    self._asked = False
    # In a job of many, JAX catches the signal, and tells all at one step.
    self._before = (
      None
      if jax.distributed.is_initialized()
      or threading.current_thread() is not threading.main_thread()
      else signal.signal(signal.SIGTERM, self._note)
    )
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


def mine(rows: np.ndarray) -> np.ndarray:
  """This process's share of the rows of a batch; each has at least one."""
  return rows[jax.process_index() % len(rows) :: jax.process_count()]


def most(numbers: Sequence[int]) -> list[int]:
  """Of each number the greatest that any process has."""
  if jax.process_count() == 1:
    return list(numbers)
  return (
    multihost_utils.process_allgather(np.asarray(numbers, np.int32))
    .max(axis=0)
    .tolist()
  )


def agreed(good: bool) -> bool:
  """Whether all processes say so."""
  return most([not good]) == [False]
