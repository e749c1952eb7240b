r"""Builds knowledge bases: corpus -> passages -> vectors -> index.

  python -m r1router_jax.build_kb --out=DIR
  python -m r1router_jax.build_kb --out=DIR --kb=text --source=pages.jsonl

The first line builds all three of the embedded world, the second your own.
Each is a folder DIR/<kb>, see `retrieval/knowledge_base.py`.  The command may
be run again at any time: a finished knowledge base of the same corpus,
embedder and index is kept, an unfinished one goes on at the first missing
part.  A corpus too large for one machine is embedded by many that share DIR,
with --worker=0/8 to --worker=7/8; run it without --worker when they are done.
"""

import collections
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time

import numpy as np
from absl import flags, logging

from r1router_jax import commands, telemetry
from r1router_jax.retrieval import corpora, embedders, encoders, index
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
    "weights", "", "Folder of the embedder's weights, where it has none; of "
    "openai and tei the address, http://host:port/v1#model.",
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
  draft = tempfile.mkdtemp(prefix="draft-", dir=folder)
  rows, digest = _write_passages(draft, kb, corpus)
  meta = dict(
      format=kbs.FORMAT, kb=kb, rows=rows, width=embed.width, embedder=name,
      weights=weights, fingerprint=embed.fingerprint, index=index_kind,
      source=source if source == corpora.WORLD else os.path.abspath(source),
      passages=digest)
  if kbs.read_meta(folder) == meta:
    logging.info("%s: up to date, kept (%s rows).", folder, f"{rows:,}")
    shutil.rmtree(draft)
    return
  _take(draft, folder)
  passages = kbs.Passages(folder, kb, corpora.picture_folder(source))
  # Parts of another corpus or embedder have another name.
  name = hashlib.sha256(json.dumps(meta).encode()).hexdigest()[:16]
  parts = os.path.join(folder, f"parts-{name}")
  os.makedirs(parts, exist_ok=True)
  if not _embed(parts, passages, embed, worker):
    return
  vectors = _join(parts, rows, embed.width)
  searcher = index.build(vectors, index_kind)
  searcher.save(folder)
  found = index.recall(searcher, vectors)
  _write_json(os.path.join(folder, "meta.json"), meta)
  for rest in os.scandir(folder):
    if rest.name.startswith(("draft-", "parts-")):
      shutil.rmtree(rest.path)
  logging.info("%s: done, %s on disk, recall@10 against exact search %.3f.",
               folder, _size(_used(folder)), found)


def _write_passages(folder: str, kb: str, corpus) -> tuple[int, str]:
  """Writes good rows, names bad ones; their number and a digest of them."""
  digest, offsets, reasons = hashlib.sha256(), [0], collections.Counter()
  with open(os.path.join(folder, "passages.jsonl"), "wb") as file, open(
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
    logging.warning("%s: skipped %d of %d rows; skipped.txt names them all.",
                    kb, bad, rows + bad)
  if not rows:
    shutil.rmtree(folder)
    raise ValueError(
        f"The corpus has no usable row: {bad} are bad, mostly because "
        f"{reasons.most_common(1)}.  Mend it." if bad else
        "The corpus is empty.  Give one with rows.")
  np.save(os.path.join(folder, "offsets.npy"), np.array(offsets, np.int64))
  return rows, digest.hexdigest()[:16]


def _take(draft: str, folder: str) -> None:
  """Puts a draft's files in the place of those of an earlier build."""
  with contextlib.suppress(FileNotFoundError):
    os.remove(os.path.join(folder, "meta.json"))  # From here on unfinished.
  for name in os.listdir(draft):
    os.replace(os.path.join(draft, name), os.path.join(folder, name))
  os.rmdir(draft)


def _embed(
    folder: str,
    passages: kbs.Passages,
    embed: encoders.Embedder,
    worker: tuple[int, int],
) -> bool:
  """Embeds the parts missing in `folder`; whether all are there in the end."""
  kb = os.path.basename(os.path.dirname(folder))
  parts = range(0, len(passages), PART)
  path = os.path.join(folder, "{:08d}.npy").format
  here = [start for i, start in enumerate(parts) if i % worker[1] == worker[0]]
  todo = [start for start in here if not os.path.exists(path(start))]
  if len(todo) < len(here):
    logging.info("%s: %d of %d parts are there from an earlier run.", kb,
                 len(here) - len(todo), len(here))
  if todo:
    _announce(kb, passages, embed, len(todo))
  for start in telemetry.progress(todo, f"embed {kb}"):
    rows = range(start, min(start + PART, len(passages)))
    _write_array(path(start), embed([passages[row] for row in rows]))
  missing = sum(not os.path.exists(path(start)) for start in parts)
  if missing:
    logging.info("%s: this worker is done, %d parts of others are missing.",
                 kb, missing)
  return not missing


def _announce(kb: str, passages: kbs.Passages, embed: encoders.Embedder,
              parts: int) -> None:
  """Says what is coming, after a trial with passages from everywhere."""
  rows = np.linspace(0, len(passages) - 1, 128, dtype=np.int64).tolist()
  trial = [passages[row] for row in rows]
  embed(trial)  # Compiles.
  start = time.perf_counter()
  embed(trial)
  seconds = (time.perf_counter() - start) / len(rows) * min(
      parts * PART, len(passages))
  logging.info(
      "%s: %s rows of width %d, about %s on disk, %s to embed.", kb,
      f"{len(passages):,}", embed.width,
      _size(len(passages) * embed.width * 4 + passages.size),
      f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min")


def _join(folder: str, rows: int, width: int) -> np.ndarray:
  """All parts in one file beside `folder`, opened without being read."""
  path = os.path.join(os.path.dirname(folder), "vectors.npy")
  whole = np.lib.format.open_memmap(
      path + ".partial", "w+", np.float32, (rows, width))
  for start in range(0, rows, PART):
    whole[start:start + PART] = np.load(
        os.path.join(folder, f"{start:08d}.npy"))
  whole.flush()
  os.replace(path + ".partial", path)
  return np.load(path, mmap_mode="r")


def _write_array(path: str, array: np.ndarray) -> None:
  """Writes a file that is either whole or absent."""
  with open(path + ".partial", "wb") as file:
    np.save(file, array)
  os.replace(path + ".partial", path)


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
