"""Saves the whole state of a run, so that a run that dies loses little.

`<workdir>/checkpoints/<step>` appears whole or not at all, since Orbax renames
the folder once it is written.  Orbax restores a flipped byte without an error,
so a checksum of each leaf is saved beside the state.  With the bits of a leaf's
numbers as unsigned integers x_i, i the row-major index,

  checksum = sum_i (2 i + 1) x_i   mod 2^32

which any single flipped bit changes, and which does not depend on the order of
the sum or on the number of devices.  The metadata, these checksums and the
step have a digest.

A state that cannot be restored is moved to `<workdir>/damaged`, not deleted.

One run owns a workdir: a second one is told which process is the first.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jaxtyping import Array, UInt32

from r1router_jax.common import files
from r1router_jax.common.errors import UserError
from r1router_jax.parallel import multihost
from r1router_jax.training.train_step import is_finite

MAX_TO_KEEP = 3
# TensorStore, which writes for Orbax, raises a ValueError of any fault.
_SYSTEM_ERROR = re.compile(r"\[os_error_code='(\d+)'\]")


@jax.jit
def leaf_checksums(tree: Any) -> UInt32[Array, " leaves"]:
  """Compute the checksum, see the module's docstring, of each leaf."""
  return jnp.stack([_checksum(jnp.asarray(x)) for x in jax.tree.leaves(tree)])


def _digest_metadata(step: int, metadata: dict) -> str:
  """Return the digest of a step and its metadata, as JSON holds them."""
  text = json.dumps([step, metadata], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _checksum(x: Array) -> UInt32[Array, ""]:
  """Compute the checksum of one array."""
  # Unsigned integers of the same size hold the same bits.
  bits = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
  if x.dtype == bool:
    x = x.astype(bits)
  else:
    x = jax.lax.bitcast_convert_type(x, bits)
  # The row-major index, made shard by shard: a reshape to one axis would gather
  # a sharded array.
  index, stride = jnp.zeros(x.shape, jnp.uint32), 1
  for axis in reversed(range(x.ndim)):
    index += stride * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    stride = stride * x.shape[axis] % 2**32
  return jnp.sum(x.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)


class Checkpoints:
  """The newest states of one run, `MAX_TO_KEEP` of them.

  It is a context: at its end all writes are finished.  The workdir is in a
  bucket or on a disk that all processes see.  If another process works in this
  folder, it raises UserError.
  """

  def __init__(self, workdir: epath.PathLike):
    self._workdir = str(workdir)
    self._lock = contextlib.nullcontext()
    if "://" in self._workdir:  # A bucket, which has no locks.
      folder = epath.Path(workdir)
    else:
      if jax.process_index() == 0:
        self._lock = files.lock_folder(workdir)
      folder = epath.Path(os.path.abspath(workdir))
    # Folders that a killed process did not finish are removed.
    options = ocp.CheckpointManagerOptions(
      max_to_keep=MAX_TO_KEEP, cleanup_tmp_directories=True
    )
    folder /= "checkpoints"
    try:
      self._manager = ocp.CheckpointManager(folder, options=options)
    # Orbax reads its own notes on each step.
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:
      with self._lock:  # It ends here.
        raise UserError(
          f"{folder}: the _CHECKPOINT_METADATA of a step is damaged ({error})."
          "  Move that step elsewhere."
        ) from error

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_: object) -> None:
    # The lock ends after the last write.
    with self._lock, self._name_disk_errors():
      self._manager.wait_until_finished()
      self._manager.close()

  @contextlib.contextmanager
  def _name_disk_errors(self) -> Iterator[None]:
    """Raise an OSError that says what is kept if the disk takes no state.

    The state may be the one before, which is written in the background.
    """
    try:
      yield
    except (OSError, ValueError) as error:
      found = _SYSTEM_ERROR.search(str(error))
      code = int(found[1]) if found else getattr(error, "errno", None)
      if code is None:
        raise
      message = f"{os.strerror(code)} for a checkpoint; those before are kept, "
      message += "and the same command goes on from them"
      raise OSError(code, message, str(self._manager.directory)) from error

  def restore(self, shapes: Any) -> tuple[Any, dict]:
    """Restore the newest state that is whole, and its metadata.

    `shapes` is a tree like the state, of shapes with types and shardings.  If
    no state was saved, the result is (None, {}); if states were, and none is
    whole, it raises UserError.
    """
    reasons = {}
    # The newest first, until one is whole on all hosts.
    for step in sorted(self._manager.all_steps(), reverse=True):
      for _ in range(2):  # A disk or a network may fail once.
        try:
          restored, reason = self._restore_verified(step, shapes), ""
        except Exception as error:  # Orbax has some thirty ways to fail.
          text = f"{type(error).__name__}: {error}"
          reason = " ".join(text.split())[:200]
        if multihost.all_hosts_agree(not reason):
          if reasons:
            logging.warning("Going on from checkpoint %d instead.", step)
            self._set_aside(reasons)
          return restored
      reasons[step] = reason or "another process could not read it"
      logging.warning(
        f"Checkpoint {step} of {self._workdir} is damaged ({reasons[step]})."
      )
    # Nothing is moved, so that a wrong config does no harm.
    if reasons:
      newest = max(reasons)
      raise UserError(
        f"None of the checkpoints {sorted(reasons)} of {self._workdir} can "
        f"be restored; of {newest}: {reasons[newest]}.  Start with the "
        "config that wrote them, or in another workdir."
      )
    return None, {}

  def _restore_verified(self, step: int, shapes: Any) -> tuple[Any, dict]:
    """Restore the state and the metadata of one step, and compare checksums."""
    wanted = ocp.args.Composite(
      state=ocp.args.StandardRestore(shapes), about=ocp.args.JsonRestore()
    )
    found = self._manager.restore(step, args=wanted)
    metadata = dict(found.about)
    # Digest and checksums are no metadata of the run.
    if metadata.pop("digest", "") != _digest_metadata(step, metadata):
      raise UserError("its metadata was changed, or is of an older version")
    expected = metadata.pop("checksums")
    if np.asarray(leaf_checksums(found.state)).tolist() != expected:
      raise UserError("its numbers are not those that were saved")
    return found.state, metadata

  def _set_aside(self, steps: dict[int, str]) -> None:
    """Move damaged states away: the run will save at these steps again."""
    folder, now = self._manager.directory, time.time_ns()
    if jax.process_index() == 0:
      (folder.parent / "damaged").mkdir(exist_ok=True)
      for step in steps:
        (folder / str(step)).rename(folder.parent / f"damaged/{step}.{now}")
    multihost.all_hosts_agree(True)  # It is done.
    self._manager.reload()

  def save(self, step: int, state: Any, metadata: dict) -> None:
    """Save a state, and metadata as JSON holds it, in the background.

    If it is not finite, or not the newest, it raises an error; if the disk does
    not take it, or the state before, an OSError, here or at the end.
    """
    if not is_finite(state):
      raise FloatingPointError(f"Step {step} is not finite, and not saved.")
    checksums = np.asarray(leaf_checksums(state)).tolist()
    about = {**metadata, "checksums": checksums}
    about["digest"] = _digest_metadata(step, about)
    about, state = ocp.args.JsonSave(about), ocp.args.StandardSave(state)
    args = ocp.args.Composite(state=state, about=about)
    with self._name_disk_errors():
      is_saved = self._manager.save(step, args=args)
    # Orbax skips older steps silently.
    if not is_saved:
      newest = f"{self._manager.latest_step()} is the newest of {self._workdir}"
      raise UserError(f"Step {step} is not saved: {newest}; choose another.")
