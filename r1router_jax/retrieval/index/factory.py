"""Builds, saves and loads an index of the kind that is asked for.

  auto        exact search for few rows, ScaNN for many
  exact       see exact.py
  scann       see scann_index.py
  milvus=URI  a Milvus server at URI, or in the file that URI names, see
              milvus_index.py

An index may be cut into shards, see sharded_index.py.  `index.json` in the
folder of the knowledge base says which index is there.
"""

import json
import os

import numpy as np
from absl import logging
from etils import epy

from r1router_jax.common.errors import UserError
from r1router_jax.retrieval.index import exact, milvus_index
from r1router_jax.retrieval.index.exact import Index, Vectors
from r1router_jax.retrieval.index.scann_index import (
  MIN_SCANN_ROWS,
  ScannIndex,
  is_scann_installed,
)

# This imports JAX, which a command that checks its flags does without.
with epy.lazy_imports():
  from r1router_jax.retrieval.index import sharded_index

INDEX_KINDS = ("auto", "exact", "scann")
INDEX_FILE = "index.json"
# Rows that are checked for NaN at once.
_CHECK_BATCH = 1 << 16


def build_index(
  vectors: Vectors,
  kind: str = "auto",
  num_shards: int = 1,
  collection: str = "",
) -> Index:
  """Build an index of `vectors`, of a `kind` as at the top of this module.

  `collection` is its name on a Milvus server.  Raises a UserError if there are
  no vectors, some are not finite, or there is no such kind.
  """
  # A shard of NaN would be found nowhere, so all rows are checked first.
  _check_vectors(vectors)
  if num_shards > 1:
    shards = []
    for rows in sharded_index.split_rows(len(vectors), num_shards):
      part, name = vectors[rows.start : rows.stop], f"{collection}_{rows.start}"
      shards.append((rows.start, build_index(part, kind, 1, name)))
    return sharded_index.ShardedIndex(shards, len(vectors), False)
  if kind == "auto":
    kind = resolve_kind(len(vectors), kind)
    no_scann = "" if is_scann_installed() else "; ScaNN is not installed"
    rows = f"{len(vectors):,} rows{no_scann}"
    logging.info("Index: %s search of %s.", kind, rows)
  if kind == "exact":
    return exact.ExactIndex(vectors)
  if kind == "scann":
    return ScannIndex.from_vectors(vectors)
  uri = parse_index_kind(kind)
  return milvus_index.MilvusIndex.from_vectors(vectors, uri, collection)


def _check_vectors(vectors: Vectors) -> None:
  """Raise a UserError if there are no vectors, or some are not finite."""
  if not len(vectors):
    raise UserError("There are no vectors to index.  Give a corpus with rows.")
  # In batches: a mask of all numbers would take a quarter of their memory.
  bad_rows = []
  for start in range(0, len(vectors), _CHECK_BATCH):
    is_finite = np.isfinite(vectors[start : start + _CHECK_BATCH]).all(axis=1)
    bad_rows += [start + int(row) for row in np.flatnonzero(~is_finite)]
  if bad_rows:
    raise UserError(
      f"{len(bad_rows)} vectors, of rows {bad_rows[:5]}, hold NaN or infinity."
      "  Embed them again."
    )


def parse_index_kind(kind: str) -> str:
  """Return `kind` or the URI of "milvus=URI"; raise a UserError for others."""
  return kind if kind in INDEX_KINDS else milvus_index.parse_uri(kind)


def save_index(index: Index, folder: str) -> None:
  """Write an index to a folder."""
  metadata = index.save(folder)
  with open(os.path.join(folder, INDEX_FILE), "w", encoding="utf-8") as file:
    json.dump(metadata, file)


def load_index(folder: str, vectors: Vectors) -> Index:
  """Load the index of `vectors` that `save_index` wrote to `folder`.

  Raises:
    UserError: if its recall is lower than when it was built.
    RemoteServiceError: if a Milvus server does not answer.
  """
  with open(os.path.join(folder, INDEX_FILE), encoding="utf-8") as file:
    metadata = json.load(file)
  return _open_index(folder, metadata, vectors)


def _open_index(folder: str, metadata: dict, vectors: Vectors) -> Index:
  """Open an index or one of its shards, of the kind that `metadata` names."""
  kind = metadata["kind"]
  if kind == "scann" and is_scann_installed():
    return ScannIndex.load(folder, metadata)
  if kind == "scann":
    logging.info("%s: ScaNN is not installed, searching exactly.", folder)
  if kind in ("exact", "scann"):
    return exact.ExactIndex(vectors)
  if kind == milvus_index.MilvusIndex.KIND:
    return milvus_index.MilvusIndex.load(folder, metadata)

  # What is left is an index in shards.  Each shard is opened in the same way.
  def open_shard(part: str, card: dict, rows: range) -> Index:
    return _open_index(part, card, vectors[rows.start : rows.stop])

  return sharded_index.ShardedIndex.load(folder, metadata, open_shard)


def resolve_kind(rows: int, kind: str) -> str:
  """Return "exact" or "scann", which "auto" and Milvus stand for."""
  if kind in ("exact", "scann"):
    return kind
  # Fewer rows are searched exactly in no time.
  use_scann = rows >= MIN_SCANN_ROWS and is_scann_installed()
  return "scann" if use_scann else "exact"
