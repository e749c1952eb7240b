"""Saving and restoring the whole state of a run, through Orbax."""

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


class Checkpoints:
  """The newest states of one run, under `<workdir>/checkpoints`."""

  def __init__(self, workdir: str | pathlib.Path, *, keep: int = 2):
    self._manager = ocp.CheckpointManager(
        pathlib.Path(workdir).absolute() / "checkpoints",
        options=ocp.CheckpointManagerOptions(max_to_keep=keep))

  def restore(self, state: Any) -> Any:
    """The newest state of the run, or `state` where none was saved."""
    step = self._manager.latest_step()
    if step is None:
      return state
    return self._manager.restore(
        step, args=ocp.args.StandardRestore(jax.tree.map(np.asarray, state)))

  def save(self, step: int, state: Any) -> None:
    """Saves the state after update `step`, in the background."""
    self._manager.save(step, args=ocp.args.StandardSave(state))

  def close(self) -> None:
    """Waits for writes in flight."""
    self._manager.wait_until_finished()
    self._manager.close()
