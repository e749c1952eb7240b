"""The process in which PyTorch reads a checkpoint, apart from JAX.

  python -m r1router_jax.models.torch_reader FILE KEY OUTPUT

`torch_checkpoint` starts it.  It writes the tensors to a safetensors file, or
an error to stdout, as JSON: [reason, cure].

Source: docs.pytorch.org/docs/stable/notes/serialization.html.
"""

import json
import os
import re
import sys
import warnings
from typing import Any

from etils import epy

from r1router_jax.common.errors import UserError

# Imported when used: PyTorch is optional, and is never loaded beside JAX.
with epy.lazy_imports():
  import safetensors.torch
  import torch

ZIP_MAGIC = b"PK\3\4"

# Classes that published checkpoints keep beside their weights, in counters and
# configs (UniIR's is of omegaconf).  `_Skipped` stands for all of them.
_SKIPPED_CLASSES = """
  argparse.Namespace typing.Any builtins.bool builtins.dict builtins.float
  builtins.int builtins.list builtins.str numpy.dtype numpy.ndarray
  numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct
  numpy._core.multiarray.scalar numpy._core.multiarray._reconstruct
  omegaconf.base.ContainerMetadata omegaconf.base.Metadata
  omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig
  omegaconf.nodes.AnyNode
""".split()


class BadCheckpoint(UserError):
  """A file that cannot be read; the arguments are the reason and the cure."""


class _Skipped:
  """An object that keeps nothing of what a file puts in it."""

  def __init__(self, *_: Any):
    pass

  def __setstate__(self, state: Any):
    pass


def load_tensors(path: str, key: str) -> dict[str, Any]:
  """Return the PyTorch tensors of a checkpoint by name, mapped from the file.

  Raises:
    BadCheckpoint: the file is damaged, of another kind, or names a function or
      class that is not known.
  """
  found = _load_objects(path)
  entries = found if isinstance(found, dict) else {}
  if key and key not in entries:
    raise BadCheckpoint(
      f"it has no entry {key!r}, but {[str(n)[:40] for n in entries][:4]}",
      "Give the file as its authors publish it",
    )
  weights = entries[key] if key else entries
  # Sparse tensors, and those without numbers, are no weights.
  tensors = {
    name: value.detach()
    for name, value in (weights if isinstance(weights, dict) else {}).items()
    if isinstance(name, str)
    and isinstance(value, torch.Tensor)
    and value.layout is torch.strided
    and value.device.type == "cpu"
  }
  if not tensors:
    raise BadCheckpoint(
      "it holds no named tensors",
      "Give a file that torch.save wrote of a model's state_dict",
    )
  # Strides of 0 would make a tensor of any size of a single number.
  size = os.path.getsize(path)
  for name, x in tensors.items():
    if x.numel() * x.element_size() > size:
      fault = f"tensor {name[:80]} is larger than the file"
      raise BadCheckpoint(fault, "Save it again with torch.save")
  return tensors


def _load_objects(path: str) -> Any:
  """Return all that a checkpoint holds."""
  with open(path, "rb") as file:
    # Files of PyTorch before 1.6 are no zip files, and cannot be mapped.
    mapped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
  stand_ins = [(_Skipped, name) for name in _SKIPPED_CLASSES]
  # PyTorch adds items to plain dicts only.
  stand_ins.append((lambda *_: {}, "collections.defaultdict"))
  try:
    with torch.serialization.safe_globals(stand_ins):
      return torch.load(
        path, map_location="cpu", weights_only=True, mmap=mapped
      )
  # A damaged file can cause any exception.
  except Exception as error:
    if named := re.search(r"GLOBAL (\S+)", str(error)):
      raise BadCheckpoint(
        f"it names {named[1]}, which may run code and is no part of weights",
        "If you trust its authors, load it with their code, and save its "
        "state_dict alone with torch.save",
      ) from error
    # PyTorch gives its reason after long advice.
    reason = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    reason = f"{type(error).__name__}: {reason.partition('. ')[0][:200]}"
    raise BadCheckpoint(
      f"it is damaged ({' '.join(reason.split())})",
      "Fetch it again, or save it again with torch.save",
    ) from error


def main(path: str, key: str, output: str) -> None:
  """Write the tensors of a checkpoint to a safetensors file."""
  warnings.simplefilter("ignore")  # An error is to be one line.
  try:
    tensors = load_tensors(path, key)
  except BadCheckpoint as error:
    print(json.dumps(error.args))
    return
  weights, storages = {}, set()
  for name, x in tensors.items():
    # Quantised and complex tensors are no weights.
    if x.is_quantized or x.is_complex():
      continue
    # Others stay in the mapped file, unless two share their numbers.
    x = x.contiguous()
    storage = x.untyped_storage().data_ptr()
    weights[name] = x.clone() if storage in storages else x
    storages.add(storage)
  safetensors.torch.save_file(weights, output)


if __name__ == "__main__":
  main(*sys.argv[1:])
