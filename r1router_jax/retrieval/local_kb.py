"""A knowledge base of this process: passages, and an index of their vectors.

On disk it is a folder that `build_kb` writes and this module opens:

  passages.jsonl   one row each: {"id", "text", "image"}
  offsets.npy      where each row starts, so that only those found are read
  vectors.npy      one row each, float32
  index.json, scann/ or shards/, probe.npz
  bm25/            for hybrid search, see hybrid.py
  meta.json        counts, embedder, fingerprint of its weights; written last

What is searched may change, as a whole: a search that is under way ends with
the passages that it began with.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from r1router_jax.common.records import Passage, Query
from r1router_jax.retrieval import kb_updates, knowledge_base
from r1router_jax.retrieval.corpora import sources
from r1router_jax.retrieval.encoders import (
  batched_encoder,
  cross_encoder,
  registry,
)
from r1router_jax.retrieval.index import bm25, exact, factory
from r1router_jax.retrieval.kb_meta import FORMAT, read_meta


class Passages:
  """The passages of a file, each read when it is asked for; threads may share.

  Args:
    folder: of the knowledge base.
    kb: its kind.
    pictures: the folder that its pictures are named below.

  Attributes:
    pictures: that folder.
    size: of the file, in bytes.
  """

  def __init__(self, folder: str, kb: str, pictures: str = ""):
    self._kb, self.pictures = kb, pictures
    self._bytes = np.memmap(os.path.join(folder, "passages.jsonl"), mode="r")
    self.size = len(self._bytes)
    self._offsets = np.load(os.path.join(folder, "offsets.npy"), mmap_mode="r")

  def __len__(self) -> int:
    return len(self._offsets) - 1

  def __getitem__(self, row: int) -> Passage:
    start, stop = map(int, self._offsets[row : row + 2])
    fields = json.loads(self._bytes[start:stop].tobytes())
    if fields["image"]:
      fields["image"] = os.path.join(self.pictures, fields["image"])
    return Passage(kb=self._kb, **fields)

  def __iter__(self) -> Iterator[Passage]:
    return (self[row] for row in range(len(self)))


class Content(NamedTuple):
  """What is searched.

  Attributes:
    passages: all of them, by row.
    embedder: of queries.
    index: of the passages' vectors.
    words: an index of their words, for hybrid search.
    reranker: what reads the best of them again.
  """

  passages: Sequence[Passage] | Passages | kb_updates.Changed
  embedder: batched_encoder.Embedder
  index: exact.Index
  words: bm25.Words | None = None
  reranker: cross_encoder.Reranker | None = None

  def find(self, queries: Sequence[Query], k: int) -> exact.Found:
    """Scores and rows of the k best passages for each query."""
    if self.reranker is None:
      return self._retrieve(queries, k)
    found = self._retrieve(queries, max(k, cross_encoder.DEPTH))
    return self.reranker.rerank(queries, found, self.passages.__getitem__, k)

  def _retrieve(self, queries: Sequence[Query], k: int) -> exact.Found:
    vectors = self.embedder(queries)
    if self.words is None:
      return self.index.search(vectors, k)
    depth = max(k, bm25.DEPTH)
    return bm25.fuse(
      [
        self.index.search(vectors, depth)[1],
        self.words.search(queries, depth)[1],
      ],
      k,
    )


class LocalKB(knowledge_base.KnowledgeBase):
  """See the head of this module.

  Args:
    content: what is searched.
    meta: what meta.json says.
  """

  def __init__(self, content: Content, meta: Mapping[str, Any] | None = None):
    super().__init__(meta or {})
    self.content = content

  def __len__(self) -> int:
    return len(self.content.passages)

  @property
  def together(self) -> bool:
    return getattr(self.content.index, "together", False)

  @property
  def devices(self) -> Sequence[jax.Device]:
    reranker = self.content.reranker
    return (
      *self.content.embedder.devices,
      *(() if reranker is None else reranker.devices),
    )

  def _find(self, queries: Sequence[Query], k: int) -> list:
    content = self.content
    return [
      (content, *answer)
      for answer in zip(*content.find(queries, k), strict=True)
    ]

  def _read(self, found: Any) -> list[Passage]:
    content, scores, rows = found
    return [
      dataclasses.replace(content.passages[row], score=score)
      for score, row in zip(scores.tolist(), rows.tolist(), strict=True)
      if row >= 0
    ]

  def change(
    self, upserts: Iterable[Passage] = (), deletes: Iterable[str] = ()
  ) -> None:
    """Adds passages, in the place of those with the same ids, and takes some
    away, while others search.  Files on disk stay as they are.

    Args:
      upserts: to be found from now on.
      deletes: ids of passages.

    Raises:
      KeyError: where no passage has an id in `deletes`.
      ValueError: where words or shards of other hosts would have to change.
    """
    content = self.content
    if content.words is not None or self.together:
      raise ValueError(
        "Passages of a hybrid knowledge base, or of one whose shards lie on "
        "several hosts, cannot change in place.  Build another."
      )
    passages = kb_updates.changed(
      content.passages, [*upserts], [*deletes], content.embedder
    )
    with self._lock:
      self.content = content._replace(
        passages=passages, index=passages.over(content.index)
      )
      self._forget()


def open_kb(folder: str) -> LocalKB:
  """The knowledge base in `folder`.

  Raises:
    ValueError: where it is absent, unfinished, or does not fit its embedder.
  """
  meta = read_meta(folder)
  if meta is None:
    raise ValueError(
      f"{folder} holds no finished knowledge base.  Build it with: python -m "
      f"r1router_jax.build_kb --out={os.path.dirname(folder) or '.'}"
    )
  must = functools.partial(_must, folder)
  must("format", FORMAT, meta["format"])
  passages = Passages(
    folder,
    meta["kb"],
    sources.picture_folder(meta["source"], meta.get("pictures", "")),
  )
  searcher = factory.load(
    folder, np.load(os.path.join(folder, "vectors.npy"), mmap_mode="r")
  )
  embedder = registry.make(meta["embedder"], meta["weights"])
  words = bm25.Words.load(folder) if "hybrid" in meta else None
  reranker = cross_encoder.load(meta["rerank"]) if "rerank" in meta else None
  must("width", embedder.width, meta["width"])
  must("embedder weights", embedder.fingerprint, meta["fingerprint"])
  must("passages", len(passages), meta["rows"])
  must("rows of the index", searcher.rows, meta["rows"])
  must("width of the index", searcher.width, meta["width"])
  must("rows of bm25", words.rows if words else meta["rows"], meta["rows"])
  must(
    "reranker weights",
    reranker and reranker.fingerprint,
    meta.get("rerank_fingerprint"),
  )
  return LocalKB(Content(passages, embedder, searcher, words, reranker), meta)


def _must(folder: str, name: str, here: Any, there: Any) -> None:
  if here != there:
    raise ValueError(
      f"{folder}: {name} should be {there}, as meta.json says, and is "
      f"{here}.  Build it again: delete the folder and run build_kb."
    )
