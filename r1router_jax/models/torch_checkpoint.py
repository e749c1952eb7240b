"""Read PyTorch checkpoints (.bin, .pth) without running code that they hold.

A checkpoint is a pickle, which is a program, beside the numbers of its tensors.
PyTorch reads it, with `weights_only`, in a process of its own (`torch_reader`),
which writes the tensors to a safetensors file; this process opens that alone.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator

from r1router_jax.common.errors import UserError
from r1router_jax.models import safetensors_io, torch_reader

# First bytes of files that PyTorch before 1.6 wrote.
_OLD_FORMAT_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")


@contextlib.contextmanager
def open_tensors(
  path: str, key: str = ""
) -> Iterator[dict[str, safetensors_io.StoredTensor]]:
  """Open a checkpoint and yield its tensors by name, unread.

  They can be read until the `with` block ends.  `key` names the entry that
  holds the weights, such as "model"; it is "" if the file is the weights alone.

  Raises:
    BadWeights: the file is damaged, of another kind, or names a function or
      class that is no part of weights.
    UserError: PyTorch is missing or too old.
  """
  _check_file(path)
  _check_torch(path)
  with tempfile.TemporaryDirectory() as folder:
    copy = os.path.join(folder, safetensors_io.WEIGHTS_FILE)
    command = [sys.executable, "-m", torch_reader.__name__, path, key, copy]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.stdout:
      raise _bad_file(path, *json.loads(done.stdout))
    if done.returncode:
      raise _bad_file(path, "its reader died", "Check that PyTorch works")
    with safetensors_io.open_tensors(copy) as tensors:
      # Errors are to name the file that the user gave.
      yield {
        name: dataclasses.replace(tensor, file=path)
        for name, tensor in tensors.items()
      }


def _bad_file(
  path: str, reason: str, cure: str = "Fetch it again"
) -> safetensors_io.BadWeights:
  """Return the error that says what is wrong with a file, and the cure."""
  return safetensors_io.BadWeights(f"{path}: {reason}.  {cure}.")


def _check_torch(path: str) -> None:
  """Raise UserError unless a PyTorch is installed that reads files safely."""
  try:
    version = importlib.metadata.version("torch").split(".")
  except importlib.metadata.PackageNotFoundError:
    version = ["0", "0"]
  # Older versions run code in spite of weights_only (CVE-2025-32434).
  if (int(version[0]), int(version[1])) < (2, 6):
    raise UserError(
      f"{path}: only PyTorch 2.6 or newer reads this file.  "
      "pip install 'r1router_jax[convert]'."
    )


def _check_file(path: str) -> None:
  """Raise BadWeights for a file that PyTorch should not be given."""
  if not os.path.isfile(path):
    raise _bad_file(
      path, "there is no such file", "Give the path of a .bin or .pth"
    )
  with open(path, "rb") as file:
    head = file.read(len(_OLD_FORMAT_MAGIC))
  if head == _OLD_FORMAT_MAGIC:
    return
  if not head.startswith(torch_reader.ZIP_MAGIC):
    raise _bad_file(path, f"torch.save did not write it; it begins with {head}")

  size, problem = os.path.getsize(path), ""
  try:
    with zipfile.ZipFile(path) as archive:
      for entry in archive.infolist():
        # torch.save does not compress: an entry that grows is a bomb.
        size -= entry.file_size
        if size < 0 or entry.compress_type != zipfile.ZIP_STORED:
          problem = "it is compressed, or its entries are larger than the file"
          break
        # torch.load does not compare checksums; 0 stands for none.
        with archive.open(entry) as data:
          while entry.CRC and data.read(1 << 20):
            pass
  # A damaged directory can cause any exception in zipfile.
  except Exception as error:
    problem = f"it is no intact zip file ({error})"
  if problem:
    raise _bad_file(path, problem, "Fetch it again, or save it with torch.save")
