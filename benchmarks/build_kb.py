r"""A text knowledge base of a million passages: announced, and as it was.

  python benchmarks/build_kb.py [--rows=1000000] [--folder=/tmp/build_kb]

Articles of random words, in files as wikiextractor writes them, become
passages, vectors (a fixed random projection of hashed words, width 384) and an
index.
It is built twice: unbroken, and killed while it reads and while it embeds, and
taken up again.  Two JSON lines: what the unbroken build announced and took, in
bytes, and which files of the other differ.

  embed, index   memory that the process held, by /proc/self/statm, at most
  disk, peak     bytes of the folder in the end, and at most
  seconds        of reading, embedding, indexing

Both cores are busy for a quarter of an hour; 6 GB of disk.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib

import numpy as np

from r1router_jax import build_kb
from r1router_jax.retrieval import build_cost, embedding_chunks
from r1router_jax.retrieval.corpora import passage_writer
from r1router_jax.retrieval.encoders import registry
from r1router_jax.retrieval.index import factory

ARTICLES = 100  # In a file.


class Hashed:
  """A fixed random projection of the words' hashes, of length 1."""

  width, fingerprint, devices = 384, "hashed-1", ()

  def __init__(self):
    self._table = np.random.default_rng(0).standard_normal(
      (1 << 13, self.width), np.float32
    )

  def __call__(self, items):
    vectors = np.stack(
      [
        self._table[
          [
            zlib.crc32(word) % len(self._table)
            for word in item.text.encode().split()
          ]
        ].sum(axis=0)
        for item in items
      ]
    )
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_articles(folder: pathlib.Path, rows: int) -> None:
  """Articles of some ten windows each, `rows` of these in all."""
  rng, made, number = np.random.default_rng(0), 0, 0
  words = np.array(
    [
      f"{syllable}{i}"
      for i in range(5000)
      for syllable in ("ka", "lomi", "resato", "tu")
    ]
  )
  while made < rows:
    path = folder / f"{chr(65 + number // 2600)}{chr(65 + number // 100 % 26)}"
    path.mkdir(parents=True, exist_ok=True)
    with open(path / f"wiki_{number % 100:02d}", "w") as file:
      for i in range(ARTICLES):
        windows = min(1 + rng.poisson(9), max(1, rows - made))
        # Words of an article repeat, as in a text on something.
        topic = rng.choice(words, 60)
        text = " ".join(rng.choice(topic, 100 + 50 * (windows - 1)))
        file.write(
          f'<doc id="{number * ARTICLES + i}" url="u" title="About '
          f'{topic[0]}">\nAbout {topic[0]}\n\n{text}\n\n</doc>\n'
        )
        made += windows
        if made >= rows:
          break
    number += 1


def used(folder: pathlib.Path) -> int:
  total = 0
  for path in folder.rglob("*"):
    try:
      total += path.stat().st_size
    except FileNotFoundError:  # Moved meanwhile.
      pass
  return total


def watched(owner, name: str, found: dict, phase: str) -> None:
  """Makes a function note its seconds and the memory held meanwhile."""
  call = getattr(owner, name)

  def wrapper(*args, **kwargs):
    start = time.perf_counter()
    with build_cost.PeakMemory() as peak:
      result = call(*args, **kwargs)
    found[phase] = max(found.get(phase, 0), peak.bytes)
    found["seconds"][phase] = round(
      found["seconds"].get(phase, 0) + time.perf_counter() - start, 1
    )
    return result

  setattr(owner, name, wrapper)


def noted(owner, name: str, found: dict) -> None:
  """Makes a function note what it returns."""
  call = getattr(owner, name)

  def wrapper(*args, **kwargs):
    found[name] = call(*args, **kwargs)
    return found[name]

  setattr(owner, name, wrapper)


def child(source: str, folder: str) -> None:
  """Builds, and prints what was announced and what it took."""
  registry.EMBEDDERS["minilm"] = lambda weights: Hashed()
  said, took = {}, {"seconds": {}}
  for name in (
    "measure_embedding",
    "estimate_index_memory",
    "estimate_disk_bytes",
  ):
    noted(build_cost, name, said)
  watched(passage_writer, "ensure_passages", took, "read")
  watched(build_kb, "_embed_chunks", took, "embed")
  watched(factory, "build_index", took, "index")
  watched(factory, "save_index", took, "index")
  path, most, done = pathlib.Path(folder), 0, threading.Event()

  def look():
    nonlocal most
    while not done.wait(1):
      most = max(most, used(path))

  watch = threading.Thread(target=look)
  watch.start()
  build_kb.build(build_kb.KbSpec(folder, "text", source))
  done.set()
  watch.join()
  passages = os.path.getsize(path / "passages.jsonl")
  trial = said["measure_embedding"]
  announced = dict(
    embed=trial.peak_bytes,
    index=trial.resident_bytes + said["estimate_index_memory"],
    disk=said["estimate_disk_bytes"][0] + passages,
    peak=said["estimate_disk_bytes"][1] + passages,
  )
  measured = dict(
    embed=took["embed"], index=took["index"], disk=used(path), peak=most
  )
  with open("/proc/self/status") as file:
    (mapped,) = (line.split()[1] for line in file if line.startswith("VmHWM"))
  print(
    json.dumps(
      dict(
        announced=announced,
        measured=measured,
        ratio={
          key: round(announced[key] / measured[key], 2) for key in measured
        },
        read=took["read"],
        with_mapped_files=int(mapped) * 1024,
        seconds=took["seconds"],
      )
    )
  )


def start(source: str, folder: pathlib.Path) -> subprocess.Popen:
  return subprocess.Popen(
    [
      sys.executable,
      __file__,
      "--child",
      f"--source={source}",
      f"--folder={folder}",
    ],
    stdout=subprocess.PIPE,
    text=True,
  )


def killed_when(process: subprocess.Popen, ready) -> None:
  """Kills the process as soon as `ready()`."""
  while not ready():
    if process.poll() is not None:
      raise RuntimeError("It ended before it could be killed.")
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.wait()


def digests(folder: pathlib.Path) -> dict[str, str]:
  found = {}
  for path in sorted(folder.rglob("*")):
    if path.is_file():
      with open(path, "rb") as file:
        found[str(path.relative_to(folder))] = hashlib.file_digest(
          file, "sha256"
        ).hexdigest()
  return found


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--rows", type=int, default=1_000_000)
  parser.add_argument("--folder", default="/tmp/build_kb")
  parser.add_argument("--source", default="")
  parser.add_argument("--child", action="store_true")
  args = parser.parse_args()
  if args.child:
    child(args.source, args.folder)
    return
  folder = pathlib.Path(args.folder)
  shutil.rmtree(folder, ignore_errors=True)
  write_articles(folder / "raw", args.rows)
  source = f"wikipedia:{folder / 'raw'}"

  whole = start(source, folder / "whole")
  print(whole.communicate()[0], end="", flush=True)
  broken = folder / "broken"
  count = args.rows // embedding_chunks.CHUNK_ROWS
  for ready in (
    lambda: any(
      json.loads(path.read_text())["rows"] > args.rows // 3
      for path in broken.glob("draft-*/journal.json")
    ),
    lambda: len(list(broken.glob("parts-*/*.npy"))) > count // 2,
  ):
    killed_when(start(source, broken), ready)
  start(source, broken).communicate()
  wanted, found = digests(folder / "whole"), digests(broken)
  print(
    json.dumps(
      dict(
        files=len(wanted),
        differ=sorted(
          name
          for name in wanted.keys() | found.keys()
          if wanted.get(name) != found.get(name)
        ),
      )
    )
  )


if __name__ == "__main__":
  main()
