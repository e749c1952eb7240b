"""Saving and restoring: the whole training state, and bare parameters.

A training state goes through Orbax, so that a run goes on where it was; bare
parameters are a flat safetensors file, `layers/q/w` and so on, which any tool
reads and no tool executes.
"""

import pathlib
from typing import Any

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors
from safetensors.numpy import load_file, save_file


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


def save_params(path: str | pathlib.Path, params: dict) -> None:
  """Writes a tree of arrays as one safetensors file."""
  flat = flax.traverse_util.flatten_dict(params, sep="/")
  path = pathlib.Path(path)
  partial = path.with_suffix(".partial")
  save_file({k: np.ascontiguousarray(v) for k, v in flat.items()}, partial)
  partial.replace(path)


def load_params(path: str | pathlib.Path) -> dict:
  """Reads what `save_params` wrote; float16 weights come back as float32.

  Raises:
    ValueError: where the file is no whole safetensors file.
  """
  try:
    flat = load_file(path)
  except safetensors.SafetensorError as error:
    raise ValueError(
        f"{path} is not a whole safetensors file ({error}).  Copy it again, or "
        "train anew.") from error
  flat = {k: v.astype(np.float32) for k, v in flat.items()}
  return flax.traverse_util.unflatten_dict(flat, sep="/")
