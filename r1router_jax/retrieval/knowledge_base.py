"""A knowledge base: passages and an index of their vectors.

On disk it is a folder that `build_kb` writes and this module opens:

  passages.jsonl   one row each: {"id", "text", "image"}
  offsets.npy      where each row starts, so that only those found are read
  vectors.npy      one row each, float32
  index.json, scann/
  bm25/            for hybrid search, see hybrid.py
  meta.json        counts, embedder, fingerprint of its weights; written last
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from absl import logging

from r1router_jax.records import Passage, Query
from r1router_jax.retrieval import (
    corpora,
    embedders,
    encoders,
    hybrid,
    index,
    rerank,
)

FORMAT = 1  # Of the folder; raise it when its files change.
# Kinds of knowledge base, and the embedder that each has unless told otherwise.
KINDS = {"text": "minilm", "image": "picture_caption", "table": "minilm"}
# What meta.json says of searching alone; vectors do not depend on it.
OPTIONS = ("hybrid", "rerank", "rerank_fingerprint")
_REMEMBERED = 100_000  # Answers; the same sub-questions come again and again.


class Passages:
  """The passages of a file, each read when it is asked for; threads may share.

  Args:
    folder: of the knowledge base.
    kb: its kind.
    pictures: the folder that its pictures are named below.

  Attributes:
    size: of the file, in bytes.
  """

  def __init__(self, folder: str, kb: str, pictures: str = ""):
    self._kb, self._pictures = kb, pictures
    self._bytes = np.memmap(os.path.join(folder, "passages.jsonl"), mode="r")
    self.size = len(self._bytes)
    self._offsets = np.load(os.path.join(folder, "offsets.npy"), mmap_mode="r")

  def __len__(self) -> int:
    return len(self._offsets) - 1

  def __getitem__(self, row: int) -> Passage:
    start, stop = map(int, self._offsets[row:row + 2])
    fields = json.loads(self._bytes[start:stop].tobytes())
    if fields["image"]:
      fields["image"] = os.path.join(self._pictures, fields["image"])
    return Passage(kb=self._kb, **fields)

  def __iter__(self) -> Iterator[Passage]:
    return (self[row] for row in range(len(self)))


class KnowledgeBase:
  """Answers queries with passages; see `search`.

  Args:
    passages: all of them.
    embedder: of queries.
    searcher: an index of the passages' vectors.
    words: an index of their words, for hybrid search.
    reranker: what reads the best of them again.
  """

  def __init__(self, passages: Sequence[Passage] | Passages,
               embedder: encoders.Embedder, searcher: index.Index,
               words: hybrid.Words | None = None,
               reranker: rerank.Reranker | None = None):
    self.passages, self.embedder, self.index = passages, embedder, searcher
    self.words, self.reranker = words, reranker
    self._answers: dict[tuple[Query, int], list[Passage]] = {}

  def __len__(self) -> int:
    return len(self.passages)

  @property
  def devices(self) -> Sequence[jax.Device]:
    """Those that it searches with."""
    more = () if self.reranker is None else self.reranker.devices
    return (*self.embedder.devices, *more)

  def search(self, queries: Sequence[Query], k: int) -> list[list[Passage]]:
    """For each query the k best passages, best first, with their scores."""
    known = self._answers  # Another thread may replace it meanwhile.
    new = [q for q in dict.fromkeys(queries) if (q, k) not in known]
    found = {}
    if new:
      scores, rows = self._find(new, k)
      found = {(query, k): self._read(*answer) for query, *answer
               in zip(new, scores, rows, strict=True)}
    answers = [list((found if (q, k) in found else known)[q, k])
               for q in queries]
    if len(known) + len(found) > _REMEMBERED:
      self._answers = known = {}
    known.update(found)
    return answers

  def _find(self, queries: Sequence[Query], k: int) -> index.Found:
    if self.reranker is None:
      return self._retrieve(queries, k)
    found = self._retrieve(queries, max(k, rerank.DEPTH))
    return self.reranker.rerank(queries, found, self.passages.__getitem__, k)

  def _retrieve(self, queries: Sequence[Query], k: int) -> index.Found:
    vectors = self.embedder(queries)
    if self.words is None:
      return self.index.search(vectors, k)
    depth = max(k, hybrid.DEPTH)
    return hybrid.fuse([self.index.search(vectors, depth)[1],
                        self.words.search(queries, depth)[1]], k)

  def _read(self, scores: np.ndarray, rows: np.ndarray) -> list[Passage]:
    return [dataclasses.replace(self.passages[row], score=score) for score, row
            in zip(scores.tolist(), rows.tolist(), strict=True) if row >= 0]


def open_kb(folder: str) -> KnowledgeBase:
  """The knowledge base in `folder`.

  Raises:
    ValueError: where it is absent, unfinished, or does not fit its embedder.
  """
  meta = read_meta(folder)
  if meta is None:
    raise ValueError(
        f"{folder} holds no finished knowledge base.  Build it with: python -m "
        f"r1router_jax.build_kb --out={os.path.dirname(folder) or '.'}")
  passages = Passages(
      folder, meta["kb"],
      corpora.picture_folder(meta["source"], meta.get("pictures", "")))
  vectors = os.path.join(folder, "vectors.npy")
  searcher = index.load(folder, vectors)
  embedder = embedders.make(meta["embedder"], meta["weights"])
  words = hybrid.Words.load(folder) if "hybrid" in meta else None
  reranker = rerank.load(meta["rerank"]) if "rerank" in meta else None
  for name, here, there in (
      ("format", FORMAT, meta["format"]),
      ("width", embedder.width, meta["width"]),
      ("embedder weights", embedder.fingerprint, meta["fingerprint"]),
      ("passages", len(passages), meta["rows"]),
      ("rows of the index", searcher.rows, meta["rows"]),
      ("width of the index", searcher.width, meta["width"]),
      ("rows of bm25", words.rows if words else meta["rows"], meta["rows"]),
      ("reranker weights", reranker and reranker.fingerprint,
       meta.get("rerank_fingerprint"))):
    if here != there:
      raise ValueError(
          f"{folder}: {name} should be {there}, as meta.json says, and is "
          f"{here}.  Build it again: delete the folder and run build_kb.")
  return KnowledgeBase(passages, embedder, searcher, words, reranker)


def open_kbs(folder: str, kbs: Sequence[str] = tuple(KINDS)
             ) -> dict[str, KnowledgeBase]:
  """The knowledge bases that `build_kb` wrote to `folder`, by kind."""
  opened = {kb: open_kb(os.path.join(folder, kb)) for kb in kbs}
  logging.info("Knowledge bases: %s.", ", ".join(
      f"{kb} {len(base):,}" for kb, base in opened.items()))
  return opened


Retrieve = Callable[[Sequence[tuple[str, str, str]]], list[tuple[Passage, ...]]]


def retriever(
    kbs: Mapping[str, KnowledgeBase], k: int | Mapping[str, int] = 1
) -> Retrieve:
  """Searches many knowledge bases at once.

  Args:
    kbs: by kind.
    k: passages to return, of each kind or of all alike.

  Returns:
    A function of (knowledge base, sub-question, picture) triples that gives
    the passages of each, best first.  Only the image knowledge base is shown
    the picture.
  """

  def retrieve(asked):
    found = [()] * len(asked)
    for kb in dict.fromkeys(kb for kb, _, _ in asked):
      members = [i for i, (other, _, _) in enumerate(asked) if other == kb]
      queries = [
          Query(asked[i][1], asked[i][2] if kb == "image" else "")
          for i in members]
      count = k if isinstance(k, int) else k[kb]
      for i, passages in zip(
          members, kbs[kb].search(queries, count), strict=True):
        found[i] = tuple(passages)
    return found

  return retrieve


def read_meta(folder: str) -> dict | None:
  """What meta.json says, None where there is none."""
  return read_json(os.path.join(folder, "meta.json"))


def read_json(path: str) -> dict | None:
  """What a file of a knowledge base says, None where there is none.

  Raises:
    ValueError: where it is damaged.
  """
  try:
    with open(path, encoding="utf-8") as file:
      return json.load(file)
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise ValueError(
        f"{path} is damaged ({error}).  Delete the folder and build it again."
    ) from None
