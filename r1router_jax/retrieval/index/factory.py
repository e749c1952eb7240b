"""Builds, saves and loads an index of the kind that is asked for.

  auto        exact search for few rows, ScaNN for many
  exact       see exact.py
  scann       see scann_index.py
  milvus=URI  a Milvus server at URI, or in the file that URI names, see
              milvus_index.py

An index may be cut into shards, see sharded_index.py.  `index.json` in the
folder of the knowledge base says which index is there.
"""

import itertools
import os

import msgspec
import numpy as np
from absl import logging
from etils import epy
from jaxtyping import Float32

from r1router_jax.common import files, http_client, schema
from r1router_jax.common.errors import UserError
from r1router_jax.retrieval import kb_meta
from r1router_jax.retrieval.index import exact, milvus_index
from r1router_jax.retrieval.index.exact import Index, Vectors
from r1router_jax.retrieval.index.scann_index import (
  MIN_SCANN_ROWS,
  TARGET_RECALL,
  ScannIndex,
  is_scann_installed,
)

# This imports JAX, which a command that checks its flags does without.
with epy.lazy_imports():
  from r1router_jax.retrieval.index import sharded_index

INDEX_KINDS = ("auto", "exact", "scann")
INDEX_FILE = "index.json"
_MAX_RECALL_LOSS = 0.02  # Between building and loading an index.


class _Card(msgspec.Struct):
  """The schema of index.json, without what kinds have of their own."""

  kind: schema.one_of("exact", "scann", "milvus=", "shards")
  rows: schema.PositiveInt
  width: schema.PositiveInt
  parts: list["_Part"] = []

  def __post_init__(self):
    ends = [*itertools.accumulate(part.card.rows for part in self.parts)]
    starts = [part.first for part in self.parts]
    if self.kind == "shards" and [*starts, self.rows] != [0, *ends]:
      raise ValueError(f"its parts are not {self.rows:,} rows, in order")


class _Part(msgspec.Struct):
  first: schema.Count
  card: _Card


def build_index(
  vectors: Vectors,
  kind: str = "auto",
  num_shards: int = 1,
  collection: str = "",
  queries: Float32[np.ndarray, "n E"] | None = None,
) -> Index:
  """Build an index of `vectors`, of a `kind` as at the top of this module.

  `collection` is its name on a Milvus server; its recall is measured on
  `queries`, too.  If ScaNN's is too low, search is exact, with a warning.
  Raises a UserError if there are no vectors, some are not finite, or there is
  no such kind.
  """
  # A shard of NaN would be found nowhere, so all rows are checked first.
  _check_vectors(vectors)
  if num_shards > 1:
    shards = []
    for rows in sharded_index.split_rows(len(vectors), num_shards):
      part, name = vectors[rows.start : rows.stop], f"{collection}_{rows.start}"
      shard = build_index(part, kind, 1, name, queries)
      shards.append((rows.start, shard))
    return sharded_index.ShardedIndex(shards, len(vectors), False)
  if kind == "auto":
    kind = resolve_kind(len(vectors), kind)
    no_scann = "" if is_scann_installed() else "; ScaNN is not installed"
    rows = f"{len(vectors):,} rows{no_scann}"
    logging.info("Index: %s search of %s.", kind, rows)
  if kind == "exact":
    return exact.ExactIndex(vectors)
  if kind == "scann":
    probe = exact.RecallProbe.from_vectors(vectors, queries)
    index = ScannIndex.from_vectors(vectors, probe)
    return _require_recall(index, vectors, TARGET_RECALL, kind)
  uri = parse_index_kind(kind)
  index = milvus_index.MilvusIndex.from_vectors(vectors, uri, collection)
  # Measured now and whenever it is opened.
  index.probe = exact.RecallProbe.from_vectors(vectors, queries)
  return index


def _require_recall(
  index: exact.ProbedIndex, vectors: Vectors, least: float, name: str
) -> Index:
  """Return an index whose recall is at least this one, or exact search."""
  recall = index.measure_recall()
  text = "%s: recall@10 against exact search %.3f."
  logging.info(text, name, recall)
  if recall >= least:
    return index
  text = "%s: the index finds %.3f of the ten nearest rows, wanted %.3f.  "
  text += "Search is exact, and slower."
  logging.warning(text, name, recall, least)
  return exact.ExactIndex(vectors)


def _check_vectors(vectors: Vectors) -> None:
  """Raise a UserError if there are no vectors, or some have no length."""
  if not len(vectors):
    raise UserError("There are no vectors to index.  Give a corpus with rows.")
  # The square may overflow, and so may a score.
  bad_rows = np.flatnonzero(~np.isfinite(exact.row_lengths(vectors))).tolist()
  if bad_rows:
    raise UserError(
      f"{len(bad_rows)} vectors, of rows {bad_rows[:5]}, hold NaN, infinity or "
      "numbers whose squares are too large.  Embed them again."
    )


def parse_index_kind(kind: str) -> str:
  """Return `kind` or the URI of "milvus=URI"; raise a UserError for others."""
  return kind if kind in INDEX_KINDS else milvus_index.parse_uri(kind)


def save_index(index: Index, folder: str) -> None:
  """Write an index to a folder."""
  files.write_json(os.path.join(folder, INDEX_FILE), index.save(folder))


def load_index(folder: str, vectors: Vectors) -> Index:
  """Load the index of `vectors` that `save_index` wrote to `folder`.

  If its recall is lower than when it was built, search is exact, with a
  warning.

  Raises:
    FileNotFoundError: if there is no index.json.
    UserError: if index.json is damaged, or the index is at an address that the
      user has not allowed.
    RemoteServiceError: if a Milvus server does not answer.
  """
  path = os.path.join(folder, INDEX_FILE)
  metadata = kb_meta.read_json(path, _Card)
  if metadata is None:
    raise FileNotFoundError(path)
  return _open_index(folder, metadata, vectors)


def _open_index(folder: str, metadata: dict, vectors: Vectors) -> Index:
  """Open an index or one of its shards, of the kind that `metadata` names."""
  kind = metadata["kind"]
  if kind == "scann" and is_scann_installed():
    index = ScannIndex.load(folder, metadata)
  elif kind in ("exact", "scann"):
    if kind == "scann":
      logging.info("%s: ScaNN is not installed, searching exactly.", folder)
    return exact.ExactIndex(vectors)
  elif kind == milvus_index.MilvusIndex.KIND:
    http_client.check_address(metadata["uri"], folder)
    index = milvus_index.MilvusIndex.load(folder, metadata)
  else:
    # What is left is an index in shards, each of which is opened alike.
    def open_shard(part: str, card: dict, rows: range) -> Index:
      return _open_index(part, card, vectors[rows.start : rows.stop])

    return sharded_index.ShardedIndex.load(folder, metadata, open_shard)
  least = metadata["recall"] - _MAX_RECALL_LOSS
  return _require_recall(index, vectors, least, folder)


def resolve_kind(rows: int, kind: str) -> str:
  """Return "exact" or "scann", which "auto" and Milvus stand for."""
  if kind in ("exact", "scann"):
    return kind
  # Fewer rows are searched exactly in no time.
  use_scann = rows >= MIN_SCANN_ROWS and is_scann_installed()
  return "scann" if use_scann else "exact"
