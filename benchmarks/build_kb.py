r"""Builds a knowledge base of a million passages, undisturbed and interrupted.

  python benchmarks/build_kb.py [--rows=1000000] [--folder=/tmp/build_kb]

Articles of random words, in files as wikiextractor writes them, become
passages, vectors (a fixed random projection of hashed words, width 384) and an
index.  This is done twice: undisturbed, and killed while it reads and again
while it embeds, and continued each time.  Two JSON lines are printed: what the
undisturbed build announced and what it took, in bytes, and which files of the
interrupted build differ from its own:

  embed, index   most memory that the process held, by /proc/self/statm
  disk, peak     bytes of the folder when done, and the most on the way
  seconds        of reading, embedding and indexing

With a million rows, both cores are busy for a quarter of an hour, and 6 GB of
disk are used.
"""

import argparse
import hashlib
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import common
import numpy as np

from r1router_jax import build_kb
from r1router_jax.common.records import Passage
from r1router_jax.retrieval import build_cost, embedding_chunks, kb_versions
from r1router_jax.retrieval.corpora import passage_writer
from r1router_jax.retrieval.encoders import registry
from r1router_jax.retrieval.index import factory

ARTICLES_PER_FILE = 100


class HashEmbedder:
  """A fixed random projection of the hashes of words, of length 1."""

  width, fingerprint, devices = 384, "hashed-1", ()

  def __init__(self):
    rng = np.random.default_rng(0)
    self._table = rng.standard_normal((1 << 13, self.width), np.float32)

  def __call__(self, items: Sequence[Passage]) -> np.ndarray:
    """Return the vector of each passage, [n, width]."""
    vectors = np.stack([self._sum_words(item.text) for item in items])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

  def _sum_words(self, text: str) -> np.ndarray:
    # Unlike Python's hash, crc32 is the same in every process.
    words = text.encode().split()
    hashes = [zlib.crc32(word) % len(self._table) for word in words]
    return self._table[hashes].sum(axis=0)


def write_articles(folder: pathlib.Path, rows: int) -> None:
  """Write articles of some ten passages each, `rows` passages in all."""
  rng, written, number = np.random.default_rng(0), 0, 0
  syllables = "ka", "lomi", "resato", "tu"
  words = np.array([f"{s}{i}" for i in range(5000) for s in syllables])
  while written < rows:
    # Folders AA, AB, ... of a hundred files each, as wikiextractor makes them.
    first, second = chr(65 + number // 2600), chr(65 + number // 100 % 26)
    path = folder / f"{first}{second}"
    path.mkdir(parents=True, exist_ok=True)
    with open(path / f"wiki_{number % 100:02d}", "w") as file:
      for i in range(ARTICLES_PER_FILE):
        passages = min(1 + rng.poisson(9), max(1, rows - written))
        # An article repeats its words, as texts about one subject do.
        topic = rng.choice(words, 60)
        # A passage is 100 words, of which the next one repeats 50.
        text = " ".join(rng.choice(topic, 100 + 50 * (passages - 1)))
        file.write(
          f'<doc id="{number * ARTICLES_PER_FILE + i}" url="u" title="About '
          f'{topic[0]}">\nAbout {topic[0]}\n\n{text}\n\n</doc>\n'
        )
        written += passages
        if written >= rows:
          break
    number += 1


def folder_bytes(folder: pathlib.Path) -> int:
  """Return the size of all files below a folder that a build changes."""
  sizes = {}
  for path in folder.rglob("*"):
    try:
      # A file may have several names.
      sizes[path.stat().st_ino] = path.stat().st_size
    except FileNotFoundError:
      # The build has moved it since it was listed.
      pass
  return sum(sizes.values())


def record_cost(owner: ModuleType, name: str, costs: dict, phase: str) -> None:
  """Make a function of a module record its seconds and its memory.

  Args:
    owner: the module.
    name: the function.
    costs: most memory by phase, and under "seconds" the seconds by phase.
    phase: the phase that the function belongs to.
  """
  function = getattr(owner, name)

  def measured_function(*args, **kwargs):
    start = time.perf_counter()
    with build_cost.watch_memory() as peak:
      result = function(*args, **kwargs)
    costs[phase] = max(costs.get(phase, 0), peak[0])
    seconds = costs["seconds"].get(phase, 0) + time.perf_counter() - start
    costs["seconds"][phase] = round(seconds, 1)
    return result

  setattr(owner, name, measured_function)


def record_result(owner: ModuleType, name: str, results: dict) -> None:
  """Make a function of a module record what it returns, under its name."""
  function = getattr(owner, name)

  def recorded_function(*args, **kwargs):
    results[name] = function(*args, **kwargs)
    return results[name]

  setattr(owner, name, recorded_function)


class DiskWatcher:
  """The most disk space that a folder takes inside of a `with` block.

  Attributes:
    bytes: the most so far.
  """

  def __init__(self, folder: pathlib.Path):
    self.bytes, self._folder = 0, folder
    self._done = threading.Event()
    self._thread = threading.Thread(target=self._watch_folder)

  def __enter__(self) -> "DiskWatcher":
    self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._done.set()
    self._thread.join()

  def _watch_folder(self) -> None:
    # Listing the folder takes time itself, so not more often.
    while not self._done.wait(1):
      self.bytes = max(self.bytes, folder_bytes(self._folder))


def build_and_measure(source: str, folder: pathlib.Path) -> None:
  """Build a knowledge base; print what was announced, and what it took."""
  # A real embedder would take hours for a million rows.
  registry.EMBEDDERS["minilm"] = lambda weights: HashEmbedder()
  # The build's own functions tell what it announces and when its phases are.
  estimates, costs = {}, {"seconds": {}}
  for name in (
    "measure_embedding",
    "estimate_index_memory",
    "estimate_disk_bytes",
  ):
    record_result(build_cost, name, estimates)
  record_cost(passage_writer, "ensure_passages", costs, "read")
  record_cost(build_kb, "_embed_chunks", costs, "embed")
  record_cost(factory, "build_index", costs, "index")
  record_cost(factory, "save_index", costs, "index")
  with DiskWatcher(folder) as disk:
    build_kb.build(build_kb.KbSpec(str(folder), "text", source, hybrid=False))

  # The estimates do not include the passages, which the build logs with them.
  version = pathlib.Path(kb_versions.version_folder(str(folder)))
  passages = (version / "passages.jsonl").stat().st_size
  trial = estimates["measure_embedding"]
  final_disk, peak_disk = estimates["estimate_disk_bytes"]
  announced = dict(
    embed=trial.peak_bytes,
    index=trial.resident_bytes + estimates["estimate_index_memory"],
    disk=final_disk + passages,
    peak=peak_disk + passages,
  )
  measured = dict(
    embed=costs["embed"],
    index=costs["index"],
    disk=folder_bytes(folder),
    # A short build may end before the watcher looks.
    peak=max(disk.bytes, folder_bytes(folder)),
  )
  common.print_row(
    announced=announced,
    measured=measured,
    ratio={key: round(announced[key] / measured[key], 2) for key in measured},
    read=costs["read"],
    with_mapped_files=peak_resident_bytes(),
    seconds=costs["seconds"],
  )


def peak_resident_bytes() -> int:
  """Return the most memory of this process, mapped files included."""
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM"):
      return int(line.split()[1]) * 1024
  raise ValueError("/proc/self/status has no VmHWM.")


def start_build(source: str, folder: pathlib.Path) -> subprocess.Popen:
  """Start a process that builds and measures."""
  flags = ["--child", f"--source={source}", f"--folder={folder}"]
  return subprocess.Popen(
    [sys.executable, __file__, *flags], stdout=subprocess.PIPE, text=True
  )


def kill_when(process: subprocess.Popen, is_ready: Callable[[], bool]) -> None:
  """Kill the process as soon as `is_ready()`.

  Raises:
    RuntimeError: if the process ends before.
  """
  # Often, so that the process does not get much further than wanted.
  while not is_ready():
    if process.poll() is not None:
      raise RuntimeError("The build ended before it could be killed.")
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.wait()


def build_interrupted(source: str, folder: pathlib.Path, rows: int) -> None:
  """Build, killed after a third of reading and after half of embedding."""

  def has_read_third():
    journals = folder.glob("draft-*/journal.json")
    return any(json.loads(j.read_text())["rows"] > rows // 3 for j in journals)

  def has_embedded_half():
    chunks = list(folder.glob("parts-*/*.npy"))
    return len(chunks) > rows // embedding_chunks.CHUNK_ROWS // 2

  for is_ready in (has_read_third, has_embedded_half):
    kill_when(start_build(source, folder), is_ready)
  start_build(source, folder).communicate()


def file_digests(folder: pathlib.Path) -> dict[str, Any]:
  """Return the SHA-256 of each file below a folder, by relative path."""
  digests = {}
  for path in sorted(folder.rglob("*")):
    if path.is_file():
      with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
      digests[str(path.relative_to(folder))] = digest
  return digests


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--rows", type=int, default=1_000_000)
  parser.add_argument(
    "--folder", type=pathlib.Path, default=pathlib.Path("/tmp/build_kb")
  )
  # Flags of the processes that this script starts.
  parser.add_argument("--source", default="", help=argparse.SUPPRESS)
  parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    build_and_measure(args.source, args.folder)
    return

  # 1. The corpus.
  shutil.rmtree(args.folder, ignore_errors=True)
  write_articles(args.folder / "raw", args.rows)
  source = f"wikipedia:{args.folder / 'raw'}"
  # 2. Build it undisturbed, and print what that took.
  whole, interrupted = args.folder / "whole", args.folder / "interrupted"
  print(start_build(source, whole).communicate()[0], end="", flush=True)
  # 3. Build it with interruptions, and compare.
  build_interrupted(source, interrupted, args.rows)
  expected, found = file_digests(whole), file_digests(interrupted)
  names = sorted(expected.keys() | found.keys())
  differ = [name for name in names if expected.get(name) != found.get(name)]
  common.print_row(files=len(expected), differ=differ)


if __name__ == "__main__":
  main()
