"""A knowledge base: passages and an index of their vectors.

On disk it is a folder that `build_kb` writes and this module opens:

  passages.jsonl   one row each: {"id", "text", "image"}
  offsets.npy      where each row starts, so that only those found are read
  vectors.npy      one row each, float32
  index.json, scann/
  meta.json        counts, embedder, fingerprint of its weights; written last
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from r1router_jax.records import Passage, Query
from r1router_jax.retrieval import corpora, embedders, encoders, index

FORMAT = 1  # Of the folder; raise it when its files change.
# Kinds of knowledge base, and the embedder that each has unless told otherwise.
KINDS = {"text": "minilm", "image": "picture_caption", "table": "minilm"}
_REMEMBERED = 100_000  # Answers; the same sub-questions come again and again.


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
    start, stop = map(int, self._offsets[row:row + 2])
    fields = json.loads(self._bytes[start:stop].tobytes())
    if fields["image"]:
      fields["image"] = os.path.join(self.pictures, fields["image"])
    return Passage(kb=self._kb, **fields)

  def __iter__(self) -> Iterator[Passage]:
    return (self[row] for row in range(len(self)))


class KnowledgeBase:
  """Answers queries with passages; see `search`.

  Args:
    passages, embedder, searcher: what it is made of.
    meta: what its meta.json says.
  """

  def __init__(self, passages: Sequence[Passage] | Passages,
               embedder: encoders.Embedder, searcher: index.Index,
               meta: Mapping[str, Any] | None = None):
    self.passages, self.embedder, self.index = passages, embedder, searcher
    self.meta = dict(meta or {})
    self._answers: dict[tuple[Query, int], list[Passage]] = {}

  def __len__(self) -> int:
    return len(self.passages)

  @property
  def devices(self) -> Sequence[jax.Device]:
    """Those that it searches with."""
    return self.embedder.devices

  def search(self, queries: Sequence[Query], k: int) -> list[list[Passage]]:
    """For each query the k best passages, best first, with their scores."""
    known = self._answers  # Another thread may replace it meanwhile.
    new = [q for q in dict.fromkeys(queries) if (q, k) not in known]
    found = {}
    if new:
      found = {(query, k): answer for query, answer
               in zip(new, self._find(new, k), strict=True)}
    answers = [list((found if (q, k) in found else known)[q, k])
               for q in queries]
    if len(known) + len(found) > _REMEMBERED:
      self._answers = known = {}
    known.update(found)
    return answers

  def _find(self, queries: Sequence[Query], k: int) -> list[list[Passage]]:
    """As `search`, for queries that were not asked before."""
    scores, rows = self.index.search(self.embedder(queries), k)
    return [self._read(*answer) for answer in zip(scores, rows, strict=True)]

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
      folder, meta["kb"], corpora.picture_folder(meta["source"]))
  vectors = os.path.join(folder, "vectors.npy")
  searcher = index.load(folder, vectors)
  embedder = embedders.make(meta["embedder"], meta["weights"])
  for name, here, there in (
      ("format", FORMAT, meta["format"]),
      ("width", embedder.width, meta["width"]),
      ("embedder weights", embedder.fingerprint, meta["fingerprint"]),
      ("passages", len(passages), meta["rows"]),
      ("rows of the index", searcher.rows, meta["rows"]),
      ("width of the index", searcher.width, meta["width"])):
    if here != there:
      raise ValueError(
          f"{folder}: {name} should be {there}, as meta.json says, and is "
          f"{here}.  Build it again: delete the folder and run build_kb.")
  return KnowledgeBase(passages, embedder, searcher, meta)


def open_kbs(where: str, kbs: Sequence[str] = tuple(KINDS)
             ) -> dict[str, KnowledgeBase]:
  """Knowledge bases by kind.

  Args:
    where: the folder that `build_kb` wrote, or the place of each, as in
      "text=http://127.0.0.1:8000,image=DIR/image,table=DIR/table": a folder, or
      the address of a server, see remote.py.
    kbs: the kinds to open.

  Raises:
    ValueError: where one is not there, or of another kind.
    service.RetrievalError: where a server does not answer.
  """
  from r1router_jax.retrieval import remote  # It needs this module.
  opened = {}
  for kb, place in _places(where, kbs).items():
    opened[kb] = remote.RemoteKB(kb, place) if "://" in place else (
        open_kb(place))
    kind = opened[kb].meta.get("kb", kb)
    if kind != kb:
      raise ValueError(
          f"{kb}={place} is a knowledge base of kind {kind}.  Name it by that.")
  logging.info("Knowledge bases: %s.", ", ".join(
      f"{kb} {len(base):,}" for kb, base in opened.items()))
  return opened


def _places(where: str, kbs: Sequence[str]) -> dict[str, str]:
  """Where each knowledge base is."""
  if not re.match(rf"({'|'.join(KINDS)})=", where):
    return {kb: os.path.join(where, kb) for kb in kbs}
  pairs = [part.split("=", 1) for part in where.split(",")]
  named = {pair[0].strip(): pair[-1].strip() for pair in pairs}
  if len(named) < len(pairs) or set(named) != set(kbs) or not all(
      len(pair) == 2 and pair[1] for pair in pairs):
    raise ValueError(
        f"{where}: name the place of each of {', '.join(kbs)} once, as in "
        + ",".join(f"{kb}=PLACE" for kb in kbs) + ".")
  return named


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
  try:
    with open(os.path.join(folder, "meta.json"), encoding="utf-8") as file:
      return json.load(file)
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise ValueError(
        f"{folder}/meta.json is damaged ({error}).  Delete the folder and "
        "build it again.") from None
