"""A knowledge base of this process: passages, and an index of their vectors.

On disk it is a folder of `build_kb`'s, of which this module opens the current
version, see kb_versions.py:

  passages.jsonl   one passage per line: {"id", "text", "image"}
  offsets.npy      where each line starts, so that only passages found are read
  vectors.npy      one float32 row per passage
  index.json, scann/ or shards/, probe.npz     see index/factory.py
  bm25/            for hybrid search, see index/bm25.py
  meta.json        counts, embedder, fingerprint of its weights
"""

import dataclasses
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import msgspec
import numpy as np

from r1router_jax.common import files, http_client, images
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Passage, Query
from r1router_jax.retrieval import kb_meta, kb_versions, knowledge_base
from r1router_jax.retrieval.corpora import sources
from r1router_jax.retrieval.encoders import cross_encoder, registry
from r1router_jax.retrieval.encoders.batched_encoder import Embedder
from r1router_jax.retrieval.index import bm25, exact, factory

_CURE = "Build it again: delete the folder and run build_kb."
# What readers of damaged files raise: JSON, NumPy, ScaNN and bm25s.
_DAMAGE = (AttributeError, EOFError, LookupError, RuntimeError, TypeError)
_DAMAGE += (ValueError, zipfile.BadZipFile, FileNotFoundError)


class _StoredPassage(msgspec.Struct, forbid_unknown_fields=True):
  """A line of passages.jsonl."""

  id: str
  text: str
  image: str


class PassageFile:
  """The passages in a folder, each read when asked for.

  Threads may share an instance.  Images are below `image_folder`.
  """

  def __init__(self, folder: str, kind: str, image_folder: str = ""):
    self.folder, self._kind = folder, kind
    # Without links, as the paths of images are.
    self.image_folder = os.path.realpath(image_folder)
    # Mapped files are safe to share: reading moves no position.
    self._bytes = np.memmap(os.path.join(folder, "passages.jsonl"), mode="r")
    self.num_bytes = len(self._bytes)
    self._offsets = np.load(os.path.join(folder, "offsets.npy"), mmap_mode="r")
    # A copy that broke off would fail only when a search finds what is missing.
    first, last = self._offsets[[0, -1]].tolist()
    if (first, last) != (0, self.num_bytes):
      fault = f"passages.jsonl has {self.num_bytes:,} bytes, offsets.npy wants"
      raise UserError(f"{folder}: {fault} {first:,} to {last:,}.  {_CURE}")

  def __len__(self) -> int:
    return len(self._offsets) - 1

  def __getitem__(self, row: int) -> Passage:
    # Row i is between offsets i and i + 1; the last offset is the end.
    start, stop = map(int, self._offsets[row : row + 2])
    try:
      line = self._bytes[start:stop].tobytes()
      stored = msgspec.json.decode(line, type=_StoredPassage)
      image = stored.image
      # The folder may come from a stranger, and name any file of this disk.
      if image:
        image = images.resolve_path(image, self.image_folder)
    except (msgspec.DecodeError, images.BadImage) as error:
      fault = f"line {row + 1} of passages.jsonl is damaged ({error})"
      raise UserError(f"{self.folder}: {fault}.  {_CURE}") from None
    return Passage(stored.id, self._kind, stored.text, image)

  def __iter__(self) -> Iterator[Passage]:
    return (self[row] for row in range(len(self)))


class SearchStack(NamedTuple):
  """All that a search uses."""

  passages: Sequence[Passage] | PassageFile
  embedder: Embedder
  index: exact.Index
  bm25_index: bm25.Bm25Index | None = None  # For hybrid search.
  # It scores the best passages again, each together with the query.
  reranker: cross_encoder.Reranker | None = None

  def search(self, queries: Sequence[Query], k: int) -> exact.SearchResult:
    """Return scores and rows of the k best passages for each query."""
    if self.reranker is None:
      return self._find_rows(queries, k)
    # The reranker can only sort what was found, so it gets more than k.
    depth = max(k, cross_encoder.RERANK_DEPTH)
    found = self._find_rows(queries, depth)
    return self.reranker.rerank(queries, found, self.passages.__getitem__, k)

  def _find_rows(self, queries: Sequence[Query], k: int) -> exact.SearchResult:
    """Search by vectors, and by words in hybrid search."""
    vectors = self.embedder(queries)
    if self.bm25_index is None:
      return self.index.search(vectors, k)
    # A passage may be low in one list and high in the other.
    depth = max(k, bm25.FUSION_DEPTH)
    by_vector = self.index.search(vectors, depth)
    by_words = self.bm25_index.search(queries, depth)
    return bm25.fuse_scores(by_vector, by_words, k)


class LocalKB(knowledge_base.KnowledgeBase):
  """A knowledge base that this process searches, see the top of this module."""

  def __init__(self, stack: SearchStack, meta: Mapping[str, Any] | None = None):
    super().__init__(meta or {})
    self.stack = stack
    self.image_folder = getattr(stack.passages, "image_folder", "")

  def __len__(self) -> int:
    return len(self.stack.passages)

  @property
  def collective(self) -> bool:
    """Return whether other hosts hold shards of the index."""
    return getattr(self.stack.index, "collective", False)

  @property
  def devices(self) -> Sequence[jax.Device]:
    """Return the devices of the embedder and the reranker."""
    models = (self.stack.embedder, self.stack.reranker)
    return [device for model in models if model for device in model.devices]

  def _search_uncached(self, queries: Sequence[Query], k: int) -> list:
    scores, rows = self.stack.search(queries, k)
    # Copied, since a row that the cache keeps would keep all the others, too.
    return [(x.copy(), y.copy()) for x, y in zip(scores, rows, strict=True)]

  @staticmethod
  def _result_bytes(result: Any) -> int:
    scores, rows = result
    return scores.nbytes + rows.nbytes

  def _to_passages(self, result: Any) -> list[Passage]:
    scores, rows = (each.tolist() for each in result)
    # The replaced copy belongs to the caller; row -1 is padding.
    return [
      dataclasses.replace(self.stack.passages[row], score=score)
      for score, row in zip(scores, rows, strict=True)
      if row >= 0
    ]


def open_kb(folder: str) -> LocalKB:
  """Open the knowledge base in `folder`.

  Raises a UserError if it is absent, unfinished or damaged, or its files, its
  embedder or its reranker are not those that meta.json names.
  """
  kb_meta.read_finished_meta(folder)
  version = kb_versions.version_folder(folder)
  try:
    if version != folder:
      kb_versions.check_files(version)
    meta = kb_meta.read_finished_meta(version)
    return LocalKB(_open_stack(version, meta), meta)
  except _DAMAGE as error:
    # A build may have removed the version since it was looked up.
    if kb_versions.version_folder(folder) != version:
      return open_kb(folder)
    if isinstance(error, UserError):
      raise
    fault = f"{type(error).__name__}: {error}"
    raise UserError(f"{folder} is damaged ({fault}).  {_CURE}") from error


def _open_stack(folder: str, meta: Mapping[str, Any]) -> SearchStack:
  """Open what a search uses, and compare it with meta.json."""
  _require_equal(folder, ("format", kb_meta.FORMAT_VERSION, meta["format"]))
  # Files are mapped; only the index and the weights are read here.
  where = meta["source"], meta.get("pictures", "")
  image_folder = sources.resolve_image_folder(*where)
  passages = PassageFile(folder, meta["kb"], image_folder)
  vectors = np.load(os.path.join(folder, "vectors.npy"), mmap_mode="r")
  rows, width = meta["rows"], meta["width"]
  _require_equal(
    folder,
    ("passages", len(passages), rows),
    ("shape of vectors.npy", vectors.shape, (rows, width)),
    ("type of vectors.npy", vectors.dtype, np.float32),
  )
  index = factory.load_index(folder, vectors)
  embedder_name = kb_meta.from_stored_embedder(meta["embedder"])
  if "://" in meta["weights"]:
    http_client.check_address(meta["weights"], folder)
  embedder = registry.get_embedder(embedder_name, meta["weights"])
  # Words and reranker are options, which meta.json may leave out.
  words = _open_words(folder, meta) if "hybrid" in meta else None
  weights = meta.get("rerank")
  load = cross_encoder.load_reranker
  reranker = weights and files.load_once(load, weights)

  # A folder may be mixed from two builds, and weights may have been replaced.
  fingerprint = reranker and reranker.fingerprint
  tokenizer = registry.digest_tokenizer(meta["weights"])
  _require_equal(
    folder,
    ("width", embedder.width, width),
    ("embedder's files", embedder.fingerprint, meta["fingerprint"]),
    ("embedder's tokenizer", tokenizer, meta.get("tokenizer", tokenizer)),
    ("rows of the index", index.rows, rows),
    ("width of the index", index.width, width),
    ("rows of bm25", words.rows if words else rows, rows),
    ("presence of bm25", os.path.isdir(f"{folder}/bm25"), words is not None),
    ("reranker weights", fingerprint, meta.get("rerank_fingerprint")),
  )
  return SearchStack(passages, embedder, index, words, reranker)


def _open_words(folder: str, meta: Mapping[str, Any]) -> bm25.Bm25Index:
  """Open the index of words, unless another version split the passages."""
  if meta.get("words", 1) != bm25.WORDS_VERSION:
    fault = "another version of r1router_jax split its passages into words"
    cure = "Run build_kb as before: it embeds nothing again."
    raise UserError(f"{folder}: {fault}.  {cure}")
  return bm25.Bm25Index.load(folder)


def _require_equal(folder: str, *checks: tuple[str, Any, Any]) -> None:
  """Raise a UserError unless what was found, by name, is what was expected."""
  for name, found, expected in checks:
    if found != expected:
      fault = f"{name} should be {expected}, as meta.json says, and is {found}"
      raise UserError(f"{folder}: {fault}.  {_CURE}")
