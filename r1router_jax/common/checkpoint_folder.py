"""Finds a checkpoint's folder on this disk or on the Hugging Face hub."""

import os
import pathlib
import re


def locate_checkpoint(name: str | os.PathLike) -> pathlib.Path:
  """Return the folder of a checkpoint, after a download if that is needed.

  The name is a folder, or the id of a model on the hub, "owner/model"; a
  FileNotFoundError says that there is neither.  Only JSON and safetensors files
  are taken from the hub, so nothing that could run.
  """
  # A local folder comes before a model of the same name on the hub.
  if os.path.isdir(name):
    return pathlib.Path(name)
  # An id on the hub has one slash; everything else is meant as a path.
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", os.fspath(name)):
    raise FileNotFoundError(f"There is no folder {name}.")
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
