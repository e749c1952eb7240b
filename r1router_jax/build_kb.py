r"""Builds knowledge bases: corpus -> passages -> vectors -> index.

  python -m r1router_jax.build_kb --out=DIR
  python -m r1router_jax.build_kb --out=DIR --kb=text --source=pages.jsonl
  python -m r1router_jax.build_kb --out=DIR --source=wikipedia:extracted
  python -m r1router_jax.build_kb --out=DIR --source=mbeir:cand_pool.jsonl \
      --images=M-BEIR

The first line builds all three of the embedded world, the others your own or a
published one, see `retrieval/corpora.py`.  Each is a folder DIR/<kb>, see
`retrieval/local.py`.  Before anything is embedded the command says
what it takes; --dry_run stops there.

It may be run again at any time: a finished knowledge base of the same corpus,
embedder and index is kept, an unfinished one goes on at the first missing
block of passages or part of vectors.  A corpus too large for one machine is
read by `retrieval/beam.py`, and embedded by many that share DIR, with
--worker=0/8 to --worker=7/8; run it without --worker when they are done.
With --hybrid, passages are found by their words, too; with --rerank, a
cross-encoder puts those found in order.  Either may be added or left out later.
"""

import hashlib
import json
import os
import shutil

import numpy as np
from absl import flags, logging

from r1router_jax.common import cli, jsonl, progress
from r1router_jax.retrieval import (
  build_cost,
  embedding_chunks,
  kb_meta,
  local_kb,
  retriever,
)
from r1router_jax.retrieval.corpora import passage_writer, sources
from r1router_jax.retrieval.encoders import (
  batched_encoder,
  cross_encoder,
  registry,
)
from r1router_jax.retrieval.index import bm25, factory

# Names that other commands have, too, may be overridden.
_OUT = flags.DEFINE_string(
  "out", None, "Folder of the knowledge bases.", allow_override=True
)

_KB = flags.DEFINE_list(
  "kb",
  [],
  "Which to build; by default all that the source is for.",
  allow_override=True,
)

_SOURCE = flags.DEFINE_string(
  "source",
  sources.WORLD,
  "The corpus: georouter, the embedded world; .jsonl"
  " or .csv files, or a folder of pictures; or wikipedia:PATH, mbeir:PATH, "
  "open_wikitable:PATH.  A path may be a pattern.",
  allow_override=True,
)

_IMAGES = flags.DEFINE_string(
  "images",
  "",
  "Folder that the corpus names its pictures below, where that is not its own.",
  allow_override=True,
)

_EMBEDDER = flags.DEFINE_string(
  "embedder",
  "",
  f"One of {', '.join(registry.EMBEDDERS)}; by default "
  + ", ".join(f"{name} for {kb}" for kb, name in retriever.KINDS.items())
  + ".",
)

_WEIGHTS = flags.DEFINE_string(
  "weights",
  "",
  "Folder of the embedder's weights, where it has none; of "
  "openai and tei the address, http://host:port/v1#model.",
  allow_override=True,
)

_INDEX = flags.DEFINE_string(
  "index",
  "auto",
  "How vectors are searched: auto, exact, scann, or "
  "milvus=URI, a server's address or a file .db.",
)

_SHARDS = flags.DEFINE_integer(
  "shards",
  1,
  "Cut the index into so many parts; on several hosts each "
  "searches some of them.",
  lower_bound=1,
)

_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Reads the corpus, says what the rest takes, and stops."
)

_HYBRID = flags.DEFINE_bool(
  "hybrid", False, "Search by words, too (BM25), and fuse what is found."
)

_RERANK = flags.DEFINE_string(
  "rerank",
  "",
  "Folder of a cross-encoder that reads what is found: "
  "config.json, model.safetensors, tokenizer.json.",
)

_WORKER = flags.DEFINE_string(
  "worker", "", "I/N: embed every N-th part, from part I, and stop."
)


def build(
  folder: str,
  kb: str,
  source: str = sources.WORLD,
  *,
  pictures: str = "",
  embedder: str = "",
  weights: str = "",
  index_kind: str = "auto",
  shards: int = 1,
  with_words: bool = False,
  reranker: str = "",
  worker: tuple[int, int] = (0, 1),
  dry_run: bool = False,
) -> None:
  """Writes the knowledge base `kb` to `folder`; see the flags.

  Raises:
    ValueError: where corpus, embedder or folder cannot be used.
  """
  if kb not in retriever.KINDS:
    raise ValueError(
      f"--kb={kb} is no knowledge base; choose from {', '.join(retriever.KINDS)}."
    )
  factory.checked(index_kind)
  corpus = sources.find(kb, source, pictures)
  name = embedder or retriever.KINDS[kb]
  embed, options = registry.make(name, weights), _options(with_words, reranker)
  os.makedirs(folder, exist_ok=True)
  note = passage_writer.prepare(
    folder, corpus, kb_meta.read_meta(folder) is not None
  )
  meta = dict(
    format=kb_meta.FORMAT,
    kb=kb,
    rows=note["rows"],
    width=embed.width,
    embedder=name,
    weights=weights,
    fingerprint=embed.fingerprint,
    index=index_kind,
    source=sources.absolute(source),
    passages=note["digest"],
  )
  if shards > 1:
    meta["shards"] = shards
  if pictures:
    meta["pictures"] = os.path.abspath(pictures)
  known = kb_meta.read_meta(folder) or {}
  had = {name: known.pop(name) for name in kb_meta.OPTIONS if name in known}
  if known == meta:
    if had != options:
      _finish(folder, meta, options)
    logging.info("%s: up to date, kept (%s rows).", folder, f"{note['rows']:,}")
    return
  passages = local_kb.Passages(folder, kb, corpus.pictures)
  # Parts of another corpus or embedder have another name.
  name = hashlib.sha256(json.dumps(meta).encode()).hexdigest()[:16]
  store = embedding_chunks.Parts(
    os.path.join(folder, f"parts-{name}"), len(passages), worker
  )
  _announce(kb, passages, embed, store, index_kind)
  if dry_run or not _embed(kb, passages, embed, store):
    return
  vectors = store.join(embed.width)
  searcher = factory.build(vectors, index_kind, shards, f"{kb}_{name}")
  factory.save(searcher, folder)
  os.replace(store.whole, os.path.join(folder, "vectors.npy"))
  _finish(folder, meta, options)
  logging.info(
    "%s: done, %s on disk, recall@10 against exact search %.3f.",
    folder,
    _size(_used(folder)),
    searcher.recall(),
  )


def _announce(
  kb: str,
  passages: local_kb.Passages,
  embed: batched_encoder.Embedder,
  store: embedding_chunks.Parts,
  index_kind: str,
) -> None:
  """Says what is coming, after a trial with passages from everywhere."""
  rows = np.linspace(
    0, len(passages) - 1, build_cost.TRIAL[-1], dtype=np.int64
  ).tolist()
  trial = build_cost.try_out(
    embed, [passages[row] for row in rows], embedding_chunks.PART
  )
  todo = sum(len(store.rows(start)) for start in store.todo)
  seconds = trial.seconds * todo
  vectors = len(passages) * embed.width * 4
  done, peak = build_cost.disk(len(passages), embed.width, index_kind)
  logging.info(
    "%s: %s rows of width %d.  Disk: %s, and %s on the way.  Memory: %s to "
    "embed, %s to index, and up to %s more for files where there is room.  "
    "Time: %s to embed.",
    kb,
    f"{len(passages):,}",
    embed.width,
    _size(done + passages.size),
    _size(peak + passages.size),
    _size(trial.peak),
    _size(
      trial.held + build_cost.indexing(len(passages), embed.width, index_kind)
    ),
    _size(vectors + passages.size),
    f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min",
  )


def _embed(
  kb: str,
  passages: local_kb.Passages,
  embed: batched_encoder.Embedder,
  store: embedding_chunks.Parts,
) -> bool:
  """Embeds what is missing of our parts; whether all are there in the end."""
  if len(store.todo) < len(store.ours):
    logging.info(
      "%s: %d of %d parts are there from an earlier run.",
      kb,
      len(store.ours) - len(store.todo),
      len(store.ours),
    )
  for start in progress.progress(store.todo, f"embed {kb}"):
    store.save(start, embed([passages[row] for row in store.rows(start)]))
  missing = len(store.missing())
  if missing:
    logging.info(
      "%s: this worker is done, %d parts of others are missing.", kb, missing
    )
  return not missing


def _options(with_words: bool, reranker: str) -> dict:
  """What meta.json says of searching."""
  options = {"hybrid": True} if with_words else {}
  if reranker:
    path = os.path.abspath(reranker)
    options |= dict(
      rerank=path, rerank_fingerprint=cross_encoder.load(path).fingerprint
    )
  return options


def _finish(folder: str, meta: dict, options: dict) -> None:
  """Indexes words where wanted, writes meta.json, removes what is left over."""
  rest = ("draft-", "parts-")
  if "hybrid" in options:
    passages = local_kb.Passages(folder, meta["kb"])
    bm25.Words.build(passage.text for passage in passages).save(folder)
  else:
    rest += (bm25.FOLDER,)
  jsonl.write_json(os.path.join(folder, "meta.json"), meta | options)
  for entry in os.scandir(folder):
    if entry.name.startswith(rest):
      shutil.rmtree(entry.path)


def _used(folder: str) -> int:
  return sum(
    os.path.getsize(os.path.join(base, file))
    for base, _, files in os.walk(folder)
    for file in files
  )


def _size(count: int) -> str:
  return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _worker(text: str) -> tuple[int, int]:
  """ "2/8" as (2, 8)."""
  number, _, count = text.partition("/")
  if not (
    number.isdecimal() and count.isdecimal() and int(number) < int(count)
  ):
    raise ValueError(f"--worker={text} should be I/N with I < N, as in 0/8.")
  return int(number), int(count)


def main(_) -> None:
  asked = _KB.value or sources.feeds(_SOURCE.value)
  if _SOURCE.value != sources.WORLD and len(asked) != 1:
    raise ValueError(
      f"--source={_SOURCE.value} can feed one knowledge base.  Say which, "
      "as in --kb=text."
    )
  for kb in asked:
    build(
      os.path.join(_OUT.value, kb),
      kb,
      _SOURCE.value,
      pictures=_IMAGES.value,
      embedder=_EMBEDDER.value,
      weights=_WEIGHTS.value,
      index_kind=_INDEX.value,
      shards=_SHARDS.value,
      with_words=_HYBRID.value,
      reranker=_RERANK.value,
      worker=_worker(_WORKER.value) if _WORKER.value else (0, 1),
      dry_run=_DRY_RUN.value,
    )


if __name__ == "__main__":
  flags.mark_flag_as_required("out")
  cli.run(main)
