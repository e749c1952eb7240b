"""Which index, and where it is kept.

  auto        exact search of few rows, ScaNN of many
  exact       see index.py
  scann       likewise
  milvus=URI  a Milvus server at URI, or in the file that it names; milvus.py

An index may be cut into shards, see shards.py.  `index.json` in the folder of
the knowledge base says what is there.
"""

import json
import os

import numpy as np
from absl import logging

from r1router_jax.retrieval.index import milvus_index, sharded_index
from r1router_jax.retrieval.index.exact import ExactIndex, Stored, Vectors
from r1router_jax.retrieval.index.scann_index import (
  EXACT_ROWS,
  ScannIndex,
  available,
)

KINDS = ("auto", "exact", "scann")

FILE = "index.json"

_CHECKED = 1 << 16  # Rows looked at together.


def build(
  vectors: Vectors, kind: str = "auto", parts: int = 1, name: str = ""
) -> Stored:
  """An index of `vectors`.

  Args:
    vectors: all rows.
    kind: see the head of this module.
    parts: how many shards.
    name: of the collection, where others share the engine.

  Raises:
    ValueError: where `vectors` are none or not all finite, or there is no such
      kind.
  """
  if not len(vectors):
    raise ValueError("There are no vectors to index.  Give a corpus with rows.")
  bad = [
    start + int(row)
    for start in range(0, len(vectors), _CHECKED)
    for row in np.flatnonzero(
      ~np.isfinite(vectors[start : start + _CHECKED]).all(axis=1)
    )
  ]
  if bad:
    raise ValueError(
      f"{len(bad)} vectors, of rows {bad[:5]}, hold NaN or infinity.  Embed "
      "them again."
    )
  if parts > 1:
    return sharded_index.Shards(
      [
        (
          rows.start,
          build(
            vectors[rows.start : rows.stop], kind, 1, f"{name}_{rows.start}"
          ),
        )
        for rows in sharded_index.ranges(len(vectors), parts)
      ],
      len(vectors),
      False,
    )
  if kind == "auto":
    kind = _choose(len(vectors))
  if kind == "exact":
    return ExactIndex(vectors)
  if kind == "scann":
    return ScannIndex.build(vectors)
  return milvus_index.MilvusIndex.build(vectors, checked(kind), name)


def checked(kind: str) -> str:
  """`kind`, or the address in "milvus=URI".

  Raises:
    ValueError: where there is no such kind.
  """
  return kind if kind in KINDS else milvus_index.address(kind)


def save(index: Stored, folder: str) -> None:
  """Writes an index to a folder."""
  card = index.save(folder)
  with open(os.path.join(folder, FILE), "w", encoding="utf-8") as file:
    json.dump(card, file)


def load(folder: str, vectors: Vectors) -> Stored:
  """The index of `vectors` that `save` wrote to `folder`.

  On several hosts, each opens some of the shards.

  Raises:
    ValueError: where it finds less than it did.
    service.RetrievalError: where an engine does not answer.
  """
  with open(os.path.join(folder, FILE), encoding="utf-8") as file:
    card = json.load(file)
  return _open(folder, card, vectors)


def _open(folder: str, card: dict, vectors: Vectors) -> Stored:
  kind = card["kind"]
  if kind == sharded_index.KIND:
    return sharded_index.Shards.load(
      folder,
      card,
      lambda place, part, rows: _open(
        place, part, vectors[rows.start : rows.stop]
      ),
    )
  if kind == milvus_index.KIND:
    return milvus_index.MilvusIndex.load(folder, card)
  if kind == "scann" and available():
    return ScannIndex.load(folder, card)
  if kind == "scann":
    logging.info("%s: ScaNN is not installed, searching exactly.", folder)
  return ExactIndex(vectors)


def _choose(rows: int) -> str:
  if rows < EXACT_ROWS:
    kind, reason = "exact", f"fewer than {EXACT_ROWS:,}"
  elif not available():
    kind, reason = "exact", "ScaNN is not installed"
  else:
    kind, reason = "scann", f"at least {EXACT_ROWS:,}"
  logging.info("Index: %s search of %s rows (%s).", kind, f"{rows:,}", reason)
  return kind
