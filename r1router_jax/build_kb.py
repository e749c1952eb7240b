r"""Builds knowledge bases: corpus -> passages -> vectors -> index.

  python -m r1router_jax.build_kb --kb_dir=DIR
  python -m r1router_jax.build_kb --kb_dir=DIR --source=my_documents
  python -m r1router_jax.build_kb --kb_dir=DIR --kind=text --source=pages.jsonl
  python -m r1router_jax.build_kb --kb_dir=DIR --source=wikipedia:extracted
  python -m r1router_jax.build_kb --kb_dir=DIR --source=mbeir:cand_pool.jsonl \
      --images=M-BEIR

The first command builds all three knowledge bases of GeoRouter, the corpus
that comes with the package; the second those that a folder of your own texts,
tables and images has something for, see retrieval/corpora/folders.py.  The
others build one from files of rows or from a published corpus, see
retrieval/corpora/sources.py.  Each is a folder DIR/<kind>, see
retrieval/local_kb.py.  Before anything is embedded, the command logs the disk
space, memory and time that it needs.  With --faiss_index=FILE nothing is: the
vectors are those of a ready index, see retrieval/index/faiss_import.py.

The command may be run again at any time, also while the knowledge base is
served.  A finished one of the same corpus, embedder and index is kept; another
is a new version beside it, see retrieval/kb_versions.py; an unfinished one goes
on at the first block of passages, or chunk of vectors, that is missing.  A
corpus too large for one machine is read by retrieval/corpora/beam_pipeline.py,
and embedded by several machines that share DIR, with --worker=0/8 to
--worker=7/8; then run the command without --worker.  --hybrid, --nohybrid and
--rerank may be added or left out later.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import NamedTuple, TypeAlias

import numpy as np
from absl import flags, logging
from etils import epy

from r1router_jax.common import cli, files, http_client, progress, shared_flags
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS, Query
from r1router_jax.retrieval import kb_meta, kb_versions
from r1router_jax.retrieval.corpora import folders, passage_writer, sources
from r1router_jax.retrieval.index import factory, faiss_import

# These need JAX; without them, flags can be checked at once.
with epy.lazy_imports():
  from r1router_jax.retrieval import build_cost, embedding_chunks, local_kb
  from r1router_jax.retrieval.encoders import (
    batched_encoder,
    cross_encoder,
    registry,
  )
  from r1router_jax.retrieval.index import bm25

Passages: TypeAlias = "local_kb.PassageFile"
Chunks: TypeAlias = "embedding_chunks.EmbeddingChunks"
Embedder: TypeAlias = "batched_encoder.Embedder"

# Keys of registry.EMBEDDERS, whose import needs JAX.
EMBEDDER_NAMES = ("minilm", "image", "image_caption", "bge_m3", "clip_sf")
EMBEDDER_NAMES += ("open_wikitable", "openai", "openai_raw", "tei", "tei_raw")
EMBEDDER_NAMES += ("e5", "contriever", "bge", "gte", "qwen3_embedding")
EMBEDDER_NAMES += ("siglip2", "hf")
# Those that come with weights.
_WITH_WEIGHTS = EMBEDDER_NAMES[:3]

_DEFAULTS = ", ".join(
  f"{name} for {kind}" for kind, name in kb_meta.DEFAULT_EMBEDDERS.items()
)

_KB_DIR = shared_flags.define_flag(
  "kb_dir", default=None, help="Folder to write to; each kind gets its own."
)
_KIND, _SOURCE, _IMAGES = sources.define_source_flags()
_EMBEDDER = flags.DEFINE_string(
  "embedder",
  "",
  f"The embedder, one of {', '.join(EMBEDDER_NAMES)}; by default {_DEFAULTS}.  "
  "openai and tei scale a server's vectors to length 1; the raw ones do not.  "
  "hf:FOLDER is the encoder of a folder, which its own files describe.",
)
_WEIGHTS = flags.DEFINE_string(
  "weights",
  "",
  "Folder of the weights of an embedder that comes without any; for openai and "
  "tei the address, http://host:port/v1#model.",
  allow_override=True,  # Other commands define it, too.
)
_INDEX = flags.DEFINE_string(
  "index",
  "auto",
  "How vectors are searched: auto, exact, scann, or milvus=URI, where URI is "
  "the address of a server or a .db file.",
)
_SHARDS = flags.DEFINE_integer(
  "shards", 1, "Shards of the index, which several hosts share.", lower_bound=1
)
_PROBE_QUERIES = flags.DEFINE_string(
  "probe_queries",
  "",
  "Text file with a question on each line, as users ask them: ScaNN is tuned "
  "until it finds their passages, too.",
)
_FAISS_INDEX = flags.DEFINE_string(
  "faiss_index",
  "",
  "FAISS index, Flat or IVF-Flat, of the rows of --source in their order: its "
  "vectors are taken, each row is a passage, and nothing is embedded but a few "
  "rows as a check.",
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Read the corpus, log what the rest needs, and stop."
)
_HYBRID = flags.DEFINE_bool(
  "hybrid",
  None,
  "Search by words, too (BM25), and fuse both results; by default for your own "
  "files, and not for published corpora.",
)
_RERANK = flags.DEFINE_string(
  "rerank", "", "Folder of a cross-encoder that sorts the passages found."
)
_WORKER = flags.DEFINE_string(
  "worker", "", "I/N: embed every N-th chunk, from chunk I on, and stop."
)


@dataclasses.dataclass(frozen=True)
class KbSpec:
  """The description of a knowledge base to build, see the flags.

  Raises a UserError if there is no such kind, index or embedder.
  """

  folder: str  # Of this one knowledge base.
  kind: str
  source: str = sources.GEOROUTER
  image_folder: str = ""  # "" for that of the corpus.
  embedder: str = ""  # "" for the default of the kind.
  weights: str = ""
  index_kind: str = "auto"  # See retrieval/index/factory.py.
  shards: int = 1
  hybrid: bool | None = None  # None for the default of the source.
  reranker: str = ""  # "" for none.
  worker: tuple[int, int] = (0, 1)  # (i, n) for the i-th of n processes.
  probe_queries: str = ""  # File of questions; "" for none.
  faiss_index: str = ""  # File of ready vectors; "" for none.

  def __post_init__(self):
    # All of these can be checked before anything is imported or read.
    if self.kind not in KBS:
      cure = f"choose from {', '.join(KBS)}."
      raise UserError(f"--kind={self.kind} is no knowledge base; {cure}")
    factory.parse_index_kind(self.index_kind)
    if self.embedder_name not in EMBEDDER_NAMES:
      cure = f"choose one of {', '.join(EMBEDDER_NAMES)}."
      raise UserError(f"No embedder {self.embedder_name!r}; {cure}")
    if not self.weights and self.embedder_name not in _WITH_WEIGHTS:
      cure = "give their folder, or a server's address, by --weights."
      fault = f"--embedder={self.embedder_name} comes without weights"
      raise UserError(f"{fault}: {cure}")
    if self.faiss_index and not sources.is_own(self.source):
      fault = f"--faiss_index is for rows of your own, not {self.source}"
      raise UserError(f"{fault}: name their file by --source.")
    if self.faiss_index and not os.path.isfile(self.faiss_index):
      fault = f"--faiss_index={self.faiss_index} is no file"
      raise UserError(f"{fault}.  Give a FAISS index.")

  @property
  def embedder_name(self) -> str:
    """Return the name of the embedder, chosen or by default."""
    return self.embedder or kb_meta.DEFAULT_EMBEDDERS[self.kind]

  @property
  def is_hybrid(self) -> bool:
    """Return whether words are searched, too, as chosen or by default."""
    if self.hybrid is None:
      return sources.is_own(self.source)
    return self.hybrid


class _BuildJob(NamedTuple):
  """A build whose passages are read."""

  spec: KbSpec
  embedder: Embedder
  passages: Passages
  meta: dict  # What meta.json says of passages, vectors and index.
  options: dict  # What it says of searching.
  probe_queries: list[Query]
  imported: faiss_import.FaissVectors | None  # None to embed the passages.

  @property
  def meta_digest(self) -> str:
    """Return a name that differs for another corpus, embedder or index."""
    return hashlib.sha256(json.dumps(self.meta).encode()).hexdigest()[:16]


def build(
  spec: KbSpec, dry_run: bool = False, named: set[str] | None = None
) -> None:
  """Build a knowledge base, or what is missing of it.

  A dry run reads the corpus, and logs what the rest needs.  A process that
  builds the same waits for this one.  For `named` see `row_files.SkipLog`.
  Raises a UserError if the corpus, the embedder or the folder cannot be used.
  """
  # 1. Passages and embedder.
  # Whatever may be wrong is found before the folder is made.
  corpus, imported = _open_inputs(spec)
  # What the user names here may be asked, unlike what a folder names.
  index_place = factory.parse_index_kind(spec.index_kind)
  http_client.allow_addresses([spec.weights, index_place])
  embedder = registry.get_embedder(spec.embedder_name, spec.weights)
  options = _search_options(spec)
  queries = _read_probe_queries(spec.probe_queries)
  with contextlib.ExitStack() as held:
    held.enter_context(files.lock_folder(spec.folder, wait=True))
    note, place = passage_writer.ensure_passages(spec.folder, corpus, named)
    passages = local_kb.PassageFile(place, spec.kind, corpus.image_folder)
    meta = _make_meta(spec, embedder, note, queries)
    rest = meta, options, queries, imported
    job = _BuildJob(spec, embedder, passages, *rest)
    # 2. Stop here if all else is there.
    if _is_up_to_date(job):
      return
    # An unfinished build is found by this name, so it must not change.
    path = os.path.join(spec.folder, f"parts-{job.meta_digest}")
    chunks = embedding_chunks.EmbeddingChunks(path, len(passages), spec.worker)
    if imported:
      _probe_imported(job)
    else:
      _log_cost(job, chunks)
    if dry_run:
      return
    # 3. Vectors.  Workers embed side by side; one that was started twice waits.
    number, count = spec.worker
    if count > 1:
      held.close()
      name = f".lock-{number}-of-{count}"
      held.enter_context(files.lock_folder(spec.folder, name, wait=True))
    if not _embed_chunks(job, chunks):
      return
    # 4. Index, unless another worker was the last one, too.
    if count > 1:
      held.close()
      held.enter_context(files.lock_folder(spec.folder, wait=True))
      if kb_meta.read_meta(spec.folder) == job.meta | job.options:
        return
    _index_vectors(job, chunks)


def _open_inputs(
  spec: KbSpec,
) -> tuple[sources.Source, faiss_import.FaissVectors | None]:
  """Return the files of a corpus, and the vectors of a ready index or None."""
  path, place = spec.faiss_index, (spec.source, spec.image_folder)
  imported = faiss_import.FaissVectors(path) if path else None
  # A row of a ready index is one passage.
  corpus = sources.open_source(spec.kind, *place, whole=bool(path))
  return corpus, imported


def _read_probe_queries(path: str) -> list[Query]:
  """Return some questions of a text file, one on each line; "" has none."""
  text = pathlib.Path(path).read_text("utf-8", "replace") if path else ""
  queries = [Query(line) for line in text.split("\n") if line.strip()]
  if path and not queries:
    raise UserError(f"{path} is empty.  Write a question on each line.")
  return queries[:: len(queries) // 1000 + 1]


def _search_options(spec: KbSpec) -> dict:
  options = {}
  if spec.is_hybrid:
    options = {"hybrid": True, "words": bm25.WORDS_VERSION}
  if spec.reranker:
    path = os.path.abspath(spec.reranker)
    reranker = files.load_once(cross_encoder.load_reranker, path)
    options |= {"rerank": path, "rerank_fingerprint": reranker.fingerprint}
  return options


def _make_meta(
  spec: KbSpec, embedder: Embedder, note: dict, queries: list[Query]
) -> dict:
  # Only when set, so that older folders without these keys are equal.
  added = {"shards": spec.shards} if spec.shards > 1 else {}
  if spec.image_folder:
    added["pictures"] = os.path.abspath(spec.image_folder)
  if queries:
    texts = json.dumps([query.text for query in queries]).encode()
    added["probe_queries"] = hashlib.sha256(texts).hexdigest()[:16]
  if spec.faiss_index:
    added["imported"] = faiss_import.digest_index(spec.faiss_index)
  if tokenizer := registry.digest_tokenizer(spec.weights):
    added["tokenizer"] = tokenizer
  # The order of keys is part of `meta_digest`, and must not change.
  return {
    "format": kb_meta.FORMAT_VERSION,
    "kb": spec.kind,
    "rows": note["rows"],
    "width": embedder.width,
    "embedder": kb_meta.to_stored_embedder(spec.embedder_name),
    "weights": _absolute_path(spec.weights),
    "fingerprint": embedder.fingerprint,
    "index": spec.index_kind,
    "source": sources.absolute_source(spec.source),
    "passages": note["digest"],
  } | added


def _absolute_path(weights: str) -> str:
  """Return the absolute path of weights, which may be an address or ""."""
  return os.path.abspath(weights) if os.path.exists(weights) else weights


def _is_up_to_date(job: _BuildJob) -> bool:
  """Return whether all is there already, after options of searching changed."""
  folder = job.spec.folder
  old_meta = kb_meta.read_meta(folder) or {}
  # Vectors do not depend on the options.
  options = old_meta.keys() & set(kb_meta.SEARCH_OPTIONS)
  old_options = {name: old_meta.pop(name) for name in options}
  old_meta["weights"] = _absolute_path(old_meta.get("weights", ""))
  # Older versions kept no digest of it.
  if "tokenizer" in job.meta:
    old_meta.setdefault("tokenizer", job.meta["tokenizer"])
  if old_meta != job.meta:
    return False
  version = kb_versions.version_folder(folder)
  # The version's own passages may have been damaged.
  if old_options != job.options or job.passages.folder != version:
    _make_version(job, version)
  kb_versions.remove_leftovers(folder)
  rows = f"{job.meta['rows']:,}"
  logging.info("%s: up to date, kept (%s rows).", folder, rows)
  return True


def _probe_imported(job: _BuildJob) -> None:
  """Raise a UserError unless a ready index has the vectors of the passages."""
  job.imported.check(job.passages, job.embedder)
  what = f"{len(job.passages):,} vectors of {job.spec.faiss_index}"
  text = "%s: the %s pass the probe; no other passages are embedded."
  logging.info(text, job.spec.kind, what)


def _log_cost(job: _BuildJob, chunks: Chunks) -> None:
  """Embed a few passages, and log the disk, memory and time that all need."""
  # The sample is spread evenly, since passages may be sorted by length.
  passages, width = job.passages, job.embedder.width
  rows = len(passages)
  spread = np.linspace(0, rows - 1, build_cost.TRIAL_ROWS[-1], dtype=np.int64)
  sample = [passages[row] for row in spread.tolist()]
  # The trial also compiles what embeds the chunks.
  chunk_rows = embedding_chunks.CHUNK_ROWS
  trial = build_cost.measure_embedding(job.embedder, sample, chunk_rows)
  pending = sum(len(chunks.chunk_rows(x)) for x in chunks.find_pending())
  seconds = trial.seconds_per_row * pending

  # Passages come on top of vectors and index.
  word_bytes = passages.num_bytes if job.spec.is_hybrid else 0
  size = rows, width, job.spec.index_kind, word_bytes
  disk = [x + passages.num_bytes for x in build_cost.estimate_disk_bytes(*size)]
  index_memory = build_cost.estimate_index_memory(*size)
  memory = (trial.peak_bytes, trial.resident_bytes + index_memory)
  amounts = (*disk, *memory, rows * width * 4 + passages.num_bytes)
  logging.info(
    "%s: %s rows of width %d.  Disk: %s, and %s on the way.  Memory: %s to "
    "embed, %s to index, and up to %s more for files where there is room.  "
    "Time: %s to embed.",
    *(job.spec.kind, f"{rows:,}", width, *map(_format_bytes, amounts)),
    f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min",
  )


def _embed_chunks(job: _BuildJob, chunks: Chunks) -> bool:
  """Embed missing chunks; return whether those of all workers are there."""
  kind, pending, own = job.spec.kind, chunks.find_pending(), chunks.own_starts
  if done := len(own) - len(pending):
    text = "%s: %d of %d parts are there from an earlier run."
    logging.info(text, kind, done, len(own))
  # A build that is killed here has lost one chunk at most.
  work = f"{'import' if job.imported else 'embed'} {kind}"
  for start in progress.show_progress(pending, work):
    chunks.save_chunk(start, *_make_vectors(job, chunks.chunk_rows(start)))
  if missing := len(chunks.find_missing()):
    text = "%s: this worker is done, %d parts of others are missing."
    logging.info(text, kind, missing)
  return not missing


def _make_vectors(job: _BuildJob, rows: range) -> tuple[np.ndarray, list[str]]:
  """Return the vectors of passages, and the ids of those that were cut."""
  if job.imported:
    return job.imported.read(rows), []
  batch = [job.passages[row] for row in rows]
  with batched_encoder.collect_cut() as cut_ids:
    return job.embedder(batch), cut_ids


def _index_vectors(job: _BuildJob, chunks: Chunks) -> None:
  """Join the chunks, index their vectors, and finish the knowledge base."""
  spec, asked = job.spec, job.probe_queries
  # If this is interrupted, the next run finds the vectors joined already.
  vectors = chunks.join_chunks(job.embedder.width)
  how = spec.index_kind, spec.shards, f"{spec.kind}_{job.meta_digest}"
  queries = job.embedder(asked) if asked else None
  index = factory.build_index(vectors, *how, queries)
  factory.save_index(index, chunks.folder)
  cut_ids = chunks.read_cut_ids()
  _make_version(job, chunks.folder)
  kb_versions.remove_leftovers(spec.folder)
  paths = pathlib.Path(kb_versions.version_folder(spec.folder)).rglob("*")
  size = sum(path.stat().st_size for path in paths if path.is_file())
  text = "%s: done, %s on disk, recall@10 against exact search %.3f."
  recall = index.measure_recall()
  logging.info(text, spec.folder, _format_bytes(size), recall)
  if cut_ids:
    logging.warning(
      "%s: %s of %s passages are longer than the embedder reads, such as %a; "
      "their ends are found by --hybrid alone.  Write shorter ones, or choose "
      "an --embedder that reads more.",
      *(spec.folder, f"{len(cut_ids):,}", f"{len(job.passages):,}", cut_ids[0]),
    )


def _make_version(job: _BuildJob, vector_folder: str) -> None:
  """Make a version with the vectors and the index of a folder the current."""
  folder = job.spec.folder
  parts = job.passages.folder, vector_folder
  version = kb_versions.start_version(folder, *parts)
  # Words are cheap to index, so they are not kept.
  if "hybrid" in job.options:
    texts = (passage.text for passage in job.passages)
    bm25.Bm25Index.from_texts(texts).save(version)
  path = os.path.join(version, kb_versions.META_FILE)
  files.write_json(path, job.meta | job.options)
  kb_versions.finish_version(folder, version)


def _format_bytes(count: int) -> str:
  return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _parse_worker(text: str) -> tuple[int, int]:
  """Return "2/8" as (2, 8), "" as (0, 1); raise a UserError for others."""
  number, _, count = (text or "0/1").partition("/")
  are_numbers = number.isdecimal() and count.isdecimal()
  if not are_numbers or int(number) >= int(count):
    raise UserError(f"--worker={text} should be I/N with I < N, as in 0/8.")
  return int(number), int(count)


def _split_embedder(embedder: str, weights: str) -> tuple[str, str]:
  """Return name and weights of an embedder; that of a folder is "hf:FOLDER"."""
  name, _, folder = embedder.partition(":")
  if name != "hf" or not folder:
    return embedder, weights
  if weights:
    fault = f"--embedder={embedder} and --weights={weights} name two folders"
    raise UserError(f"{fault}: leave out --weights.")
  return name, folder


def _check_place(kb_dir: str, source: str) -> None:
  """Raise a UserError if what is built would be read as part of its source."""
  inside = os.path.realpath(kb_dir) + os.sep
  if inside.startswith(os.path.realpath(source) + os.sep):
    raise UserError(
      f"--kb_dir={kb_dir} is inside of --source={source}, and would be read as "
      "documents.  Give a folder beside it."
    )


def main(_) -> None:
  """Build the knowledge bases that the flags describe."""
  # A folder of the name georouter is no source.
  if sources.is_own(_SOURCE.value) and os.path.isdir(_SOURCE.value):
    _check_place(_KB_DIR.value, _SOURCE.value)
    folders.warn_of_unread(_SOURCE.value)
  # A damaged document costs each kind its rows, and is named once.
  named: set[str] = set()
  kinds = sources.choose_kbs(_SOURCE.value, _KIND.value, _IMAGES.value, named)
  if _FAISS_INDEX.value:
    sources.require_single_kb(_SOURCE.value, kinds)
  embedder, weights = _split_embedder(_EMBEDDER.value, _WEIGHTS.value)
  values = dict(
    source=_SOURCE.value,
    image_folder=_IMAGES.value,
    embedder=embedder,
    weights=weights,
    index_kind=_INDEX.value,
    shards=_SHARDS.value,
    hybrid=_HYBRID.value,
    reranker=_RERANK.value,
    worker=_parse_worker(_WORKER.value),
    probe_queries=_PROBE_QUERIES.value,
    faiss_index=_FAISS_INDEX.value,
  )
  # All specs are checked before the first is built, and a wrong source is named
  # before the embedder is imported.
  specs = [KbSpec(os.path.join(_KB_DIR.value, x), x, **values) for x in kinds]
  for spec in specs:
    sources.open_source(spec.kind, spec.source, spec.image_folder)
  for spec in specs:
    build(spec, _DRY_RUN.value, named)


if __name__ == "__main__":
  flags.mark_flag_as_required("kb_dir")
  cli.run(main)
