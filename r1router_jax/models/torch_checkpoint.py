"""Read PyTorch checkpoints (.bin, .pth) without running code that they hold.

A checkpoint is a pickle, which is a program, beside the numbers of its tensors.
PyTorch reads it, with `weights_only`, in a process of its own (`torch_reader`),
so that only names, shapes and numbers reach this one.  A tensor's numbers stay
in the file until it is read.
"""

import contextlib
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator

import numpy as np

from r1router_jax.common.errors import UserError
from r1router_jax.models import safetensors_io, torch_reader

# First bytes of files that PyTorch before 1.6 wrote.
_OLD_FORMAT_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")

_DTYPE_KEYS = {dtype.name: key for key, dtype in safetensors_io.DTYPES.items()}


@contextlib.contextmanager
def open_tensors(
  path: str, key: str = ""
) -> Iterator[dict[str, safetensors_io.StoredTensor]]:
  """Open a checkpoint, and yield its tensors by name, none of them read yet.

  Args:
    path: the checkpoint file.
    key: name of the entry that holds the weights, such as "model", in a file
      with several entries; "" if the file is the weights alone.

  Yields:
    Tensors by name, which can be read until the `with` block ends.

  Raises:
    BadWeights: the file is damaged, of another kind, or names a function or
      class that is no part of weights.
    UserError: PyTorch is missing or too old.
  """
  _check_file(path)
  _check_torch(path)
  # The reader lists all tensors at once, and sends one when it is read.
  command = [sys.executable, "-m", torch_reader.__name__, path, key]
  pipe = subprocess.PIPE
  # In a session of its own it does not answer Ctrl-C, which ends both.
  with subprocess.Popen(
    command, stdin=pipe, stdout=pipe, start_new_session=True
  ) as reader:
    try:
      line = reader.stdout.readline()
      if not line:
        raise _bad_file(path, "its reader died", "Check that PyTorch works")
      answer = json.loads(line)
      if isinstance(answer, list):
        raise _bad_file(path, *answer)
      # Quantised and complex tensors are no weights.
      yield {
        name: safetensors_io.StoredTensor(
          path,
          name,
          tuple(shape),
          _DTYPE_KEYS[dtype],
          functools.partial(_read_tensor, reader, path, name, shape, dtype),
        )
        for name, (dtype, shape) in answer.items()
        if dtype in _DTYPE_KEYS
      }
    finally:
      reader.kill()


def _read_tensor(
  reader: subprocess.Popen, path: str, name: str, shape: list[int], dtype: str
) -> np.ndarray:
  """Ask the reader for the numbers of a tensor."""
  array = np.empty(shape, dtype)
  with contextlib.suppress(BrokenPipeError):
    os.write(reader.stdin.fileno(), json.dumps(name).encode() + b"\n")
  if reader.stdout.readinto(array.reshape(-1).view("u1")) != array.nbytes:
    raise _bad_file(path, f"its reader died at tensor {name}")
  return array


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
