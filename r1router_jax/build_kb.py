r"""Builds knowledge bases: corpus -> passages -> vectors -> index.

  python -m r1router_jax.build_kb --out=DIR              # The embedded world.
  python -m r1router_jax.build_kb --out=DIR --kb=text --source=pages.jsonl

Each is a folder DIR/<kb>, see `retrieval/knowledge_base.py`.  The command may be
run again at any time: a finished knowledge base of the same corpus, embedder
and index is kept, an unfinished one goes on at the first missing part.  A
corpus too large for one machine is embedded by many that share DIR, with
--worker=0/8 to --worker=7/8; run it without --worker when they are done.
"""

import collections
import hashlib
import json
import os
import shutil
import time

import numpy as np
from absl import flags, logging

from r1router_jax import commands, telemetry
from r1router_jax.records import Passage
from r1router_jax.retrieval import corpora, embedders, index
from r1router_jax.retrieval import knowledge_base as kbs

# Names that other commands have, too, may be overridden.
_OUT = flags.DEFINE_string(
    "out", None, "Folder of the knowledge bases.", allow_override=True)
_KB = flags.DEFINE_list(
    "kb", list(kbs.KINDS), "Which to build.", allow_override=True)
_SOURCE = flags.DEFINE_string(
    "source", corpora.WORLD, "The corpus: georouter, the embedded world, or a "
    ".jsonl or .csv file, or a folder of pictures.", allow_override=True)
_EMBEDDER = flags.DEFINE_string(
    "embedder", "", f"One of {', '.join(embedders.EMBEDDERS)}; by default "
    + ", ".join(f"{name} for {kb}" for kb, name in kbs.KINDS.items()) + ".")
_WEIGHTS = flags.DEFINE_string(
    "weights", "", "Folder of the embedder's weights, where it has none.",
    allow_override=True)
_INDEX = flags.DEFINE_enum(
    "index", "auto", ["auto", "exact", "scann"], "How vectors are searched.")
_WORKER = flags.DEFINE_string(
    "worker", "", "I/N: embed every N-th part, from part I, and stop.")

PART = 1024  # Rows embedded between two saves.


def build(
    folder: str,
    kb: str,
    source: str = corpora.WORLD,
    *,
    embedder: str = "",
    weights: str = "",
    index_kind: str = "auto",
    worker: tuple[int, int] = (0, 1),
) -> None:
  """Writes the knowledge base `kb` to `folder`; see the flags.

  Raises:
    ValueError: where corpus, embedder or folder cannot be used.
  """
  if kb not in kbs.KINDS:
    raise ValueError(
        f"--kb={kb} is no knowledge base; choose from {', '.join(kbs.KINDS)}.")
  corpus = corpora.read(kb, source)
  name = embedder or kbs.KINDS[kb]
  embed = embedders.make(name, weights)
  os.makedirs(folder, exist_ok=True)
  rows, digest = _write_passages(folder, kb, corpus)
  meta = dict(
      format=kbs.FORMAT, kb=kb, rows=rows, width=embed.width, embedder=name,
      weights=weights, fingerprint=embed.fingerprint, index=index_kind,
      source=source if source == corpora.WORLD else os.path.abspath(source),
      passages=digest)
  if kbs.read_meta(folder) == meta:
    logging.info("%s: up to date, kept (%s rows).", folder, f"{rows:,}")
    return
  _forget(folder, meta)
  passages = kbs.Passages(folder, kb, corpora.picture_folder(source))
  if not _embed(folder, passages, embed, worker):
    return
  vectors = _join(folder, rows, embed.width)
  searcher = index.build(vectors, index_kind)
  searcher.save(folder)
  found = index.recall(searcher, vectors)
  _write_json(os.path.join(folder, "meta.json"), meta)
  shutil.rmtree(os.path.join(folder, "parts"))
  logging.info("%s: done, %s on disk, recall@10 against exact search %.3f.",
               folder, _size(_used(folder)), found)


def _write_passages(folder: str, kb: str, corpus) -> tuple[int, str]:
  """Writes good rows, names bad ones; their number and a digest of them."""
  path = os.path.join(folder, "passages.jsonl")
  digest, offsets, reasons = hashlib.sha256(), [0], collections.Counter()
  with open(path + ".partial", "wb") as file, open(
      os.path.join(folder, "skipped.txt"), "w", encoding="utf-8",
      errors="backslashreplace") as skipped:
    for row in corpus:
      if isinstance(row, corpora.BadRow):
        reasons[row.reason] += 1
        skipped.write(f"{row}\n")
        if reasons.total() <= 5:
          logging.warning("%s: skipped %s", kb, telemetry.clean(str(row), 300))
        continue
      line = json.dumps(dict(id=row.id, text=row.text, image=row.image))
      file.write(line.encode() + b"\n")
      digest.update(line.encode() + b"\n")
      offsets.append(file.tell())
  rows, bad = len(offsets) - 1, reasons.total()
  if bad:
    logging.warning("%s: skipped %d of %d rows, all named in %s.", kb, bad,
                    rows + bad, os.path.join(folder, "skipped.txt"))
  if not rows:
    raise ValueError(
        f"The corpus has no usable row: {bad} are bad, mostly because "
        f"{reasons.most_common(1)}.  Mend it." if bad else
        "The corpus is empty.  Give one with rows.")
  np.save(os.path.join(folder, "offsets.npy"), np.array(offsets, np.int64))
  os.replace(path + ".partial", path)
  return rows, digest.hexdigest()[:16]


def _forget(folder: str, meta: dict) -> None:
  """Removes what an earlier build of anything else than `meta` left."""
  plan = os.path.join(folder, "parts", "plan.json")
  try:
    with open(plan, encoding="utf-8") as file:
      same = json.load(file) == meta
  except (OSError, ValueError):
    same = False
  if not same:
    shutil.rmtree(os.path.join(folder, "parts"), ignore_errors=True)
    os.makedirs(os.path.join(folder, "parts"))
    _write_json(plan, meta)
  if os.path.exists(os.path.join(folder, "meta.json")):
    os.remove(os.path.join(folder, "meta.json"))


def _embed(
    folder: str,
    passages: kbs.Passages,
    embed: embedders.Embedder,
    worker: tuple[int, int],
) -> bool:
  """Embeds the missing parts; whether all parts are there in the end."""
  parts = range(0, len(passages), PART)
  path = os.path.join(folder, "parts", "{:08d}.npy").format
  here = [start for i, start in enumerate(parts) if i % worker[1] == worker[0]]
  todo = [start for start in here if not os.path.exists(path(start))]
  if len(todo) < len(here):
    logging.info("%s: %d of %d parts are there from an earlier run.", folder,
                 len(here) - len(todo), len(here))
  if todo:
    _announce(folder, passages, embed, len(todo))
  for start in telemetry.progress(todo, f"embed {os.path.basename(folder)}"):
    rows = range(start, min(start + PART, len(passages)))
    vectors = embed([passages[row] for row in rows])
    # A name that does not end in .npy until the file is whole.
    with open(path(start) + ".partial", "wb") as file:
      np.save(file, vectors)
    os.replace(path(start) + ".partial", path(start))
  missing = sum(not os.path.exists(path(start)) for start in parts)
  if missing:
    logging.info("%s: this worker is done, %d parts of others are missing.",
                 folder, missing)
  return not missing


def _announce(folder: str, passages: kbs.Passages, embed: embedders.Embedder,
              parts: int) -> None:
  """Says what is coming, after a trial with a few passages of any length."""
  rows = np.linspace(0, len(passages) - 1, 128, dtype=np.int64)
  trial: list[Passage] = [passages[row] for row in rows.tolist()]
  embed(trial)  # Compiles.
  start = time.perf_counter()
  embed(trial)
  seconds = (time.perf_counter() - start) / len(rows) * parts * PART
  disk = len(passages) * embed.width * 4 + os.path.getsize(
      os.path.join(folder, "passages.jsonl"))
  logging.info(
      "%s: %s rows of width %d, about %s on disk, %s to embed.", folder,
      f"{len(passages):,}", embed.width, _size(disk),
      f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min")


def _join(folder: str, rows: int, width: int) -> np.ndarray:
  """All parts in one file, opened without being read."""
  path = os.path.join(folder, "vectors.npy")
  whole = np.lib.format.open_memmap(
      path + ".partial", "w+", np.float32, (rows, width))
  for start in range(0, rows, PART):
    whole[start:start + PART] = np.load(
        os.path.join(folder, "parts", f"{start:08d}.npy"))
  whole.flush()
  os.replace(path + ".partial", path)
  return np.load(path, mmap_mode="r")


def _write_json(path: str, value: dict) -> None:
  with open(path + ".partial", "w", encoding="utf-8") as file:
    json.dump(value, file, indent=2)
  os.replace(path + ".partial", path)


def _used(folder: str) -> int:
  return sum(os.path.getsize(os.path.join(base, file))
             for base, _, files in os.walk(folder) for file in files)


def _size(count: int) -> str:
  return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _worker(text: str) -> tuple[int, int]:
  """"2/8" as (2, 8)."""
  number, _, count = text.partition("/")
  if not (number.isdecimal() and count.isdecimal()
          and int(number) < int(count)):
    raise ValueError(f"--worker={text} should be I/N with I < N, as in 0/8.")
  return int(number), int(count)


def main(_) -> None:
  if _SOURCE.value != corpora.WORLD and len(_KB.value) != 1:
    raise ValueError(
        f"--source={_SOURCE.value} can feed one knowledge base.  Say which, "
        "as in --kb=text.")
  for kb in _KB.value:
    build(os.path.join(_OUT.value, kb), kb, _SOURCE.value,
          embedder=_EMBEDDER.value, weights=_WEIGHTS.value,
          index_kind=_INDEX.value,
          worker=_worker(_WORKER.value) if _WORKER.value else (0, 1))


if __name__ == "__main__":
  flags.mark_flag_as_required("out")
  commands.run(main)
