"""The whole state of a run on disk, so that a run that dies loses little.

`<workdir>/checkpoints/<step>` appears whole or not at all: Orbax renames it
when it is written.  As Orbax restores a flipped byte without a word, a checksum
of each leaf lies beside the state.  With the bits of a leaf's numbers as
unsigned integers x_i, i the row-major index,

  checksum = sum_i (2 i + 1) x_i   mod 2^32

which any single flipped bit changes, and which is the same in whatever order,
and on however many devices, it is added up.

One run owns a workdir: whoever comes second is told who was first.
"""

import fcntl
import os
import pathlib
import socket
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jaxtyping import Array, UInt32

from r1router_jax.parallel import multihost

LOCK = ".lock"


@jax.jit
def checksums(tree: Any) -> UInt32[Array, " leaves"]:
  """One number for each leaf; see above."""

  def checksum(x):
    bits = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    x = (
      x.astype(bits)
      if x.dtype == bool
      else jax.lax.bitcast_convert_type(x, bits)
    )
    index, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
      index += stride * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
      stride = stride * x.shape[axis] % 2**32
    return jnp.sum(x.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)

  return jnp.stack([checksum(jnp.asarray(x)) for x in jax.tree.leaves(tree)])


class Checkpoints:
  """The newest states of one run; a context, at whose end all is written.

  Args:
    workdir: of the run, in a bucket or on a disk that all processes see.
    keep: how many states remain.

  Raises:
    ValueError: where another process works in this folder.
  """

  def __init__(self, workdir: epath.PathLike, *, keep: int = 3):
    self._workdir, bucket = str(workdir), "://" in str(workdir)
    self._lock = None if bucket else _lock(pathlib.Path(workdir))
    self._manager = ocp.CheckpointManager(
      epath.Path(workdir if bucket else os.path.abspath(workdir))
      / "checkpoints",
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=True
      ),
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def restore(self, shapes: Any) -> tuple[Any, dict]:
    """The newest state that is whole, and what was saved beside it.

    Both are empty, None and {}, where none was saved.

    Args:
      shapes: a tree of its structure, shapes, types and layouts.

    Raises:
      ValueError: where states were saved, and none is whole.
    """
    reasons = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        found, reason = self._read(step, shapes), ""
      except Exception as error:  # Orbax has some thirty ways to fail.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
      if not multihost.agreed(not reason):
        reasons[step] = reason or "another process could not read it"
        logging.warning(
          "Checkpoint %d of %s is damaged (%s).",
          step,
          self._workdir,
          reasons[step],
        )
        continue
      if reasons:
        logging.warning("Going on from checkpoint %d instead.", step)
      for damaged in reasons:  # Its place is needed again.
        self._manager.delete(damaged)
      return found
    if reasons:
      newest = max(reasons)
      raise ValueError(
        f"None of the checkpoints {sorted(reasons)} of {self._workdir} can "
        f"be restored; of {newest}: {reasons[newest]}.  Start with the "
        "config that wrote them, or in another workdir."
      )
    return None, {}

  def _read(self, step: int, shapes: Any) -> tuple[Any, dict]:
    found = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(shapes), about=ocp.args.JsonRestore()
      ),
    )
    about = dict(found.about)
    if np.asarray(checksums(found.state)).tolist() != about.pop("checksums"):
      raise ValueError("its numbers are not those that were saved")
    return found.state, about

  def save(self, step: int, state: Any, about: dict) -> None:
    """Saves the state after update `step`, in the background.

    Args:
      step: updates so far.
      state: a tree of arrays.
      about: what JSON can say about it.
    """
    about = about | dict(checksums=np.asarray(checksums(state)).tolist())
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)
      ),
    )

  def close(self) -> None:
    """Waits for writes in flight, and lets others work here."""
    self._manager.wait_until_finished()
    self._manager.close()
    if self._lock is not None:
      self._lock.close()


def _lock(workdir: pathlib.Path) -> IO[str] | None:
  """A file that this process alone holds; None but for a job's process 0."""
  if jax.process_index():
    return None
  workdir.mkdir(parents=True, exist_ok=True)
  file = (workdir / LOCK).open("a+")
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    owner = file.read().strip()
    file.close()
    raise ValueError(
      f"{workdir} is in use by {owner}.  Wait for it, or choose another "
      "--workdir."
    ) from None
  file.truncate(0)
  file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
  file.flush()
  return file
