"""Atomic file writes, on local disks and in buckets."""

import contextlib
import json
from collections.abc import Iterator
from typing import IO, Any

from etils import epath


@contextlib.contextmanager
def atomic_write(path: epath.PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
  """Open a file for writing that takes its place only once it is complete.

  The data goes to `<path>.partial`, which replaces `path` when the block ends.
  A process that is killed, or a block that raises, leaves `path` as it was.
  """
  path = epath.Path(path)
  partial = path.with_name(f"{path.name}.partial")
  try:
    with partial.open(mode) as file:
      yield file
    partial.replace(path)
  except BaseException:  # Ctrl-C, too, must not leave half a file.
    partial.unlink(missing_ok=True)
    raise


def write_json(path: epath.PathLike, value: Any) -> None:
  """Write a JSON file that is either complete or as it was before."""
  with atomic_write(path, "w") as file:
    json.dump(value, file, indent=2)
