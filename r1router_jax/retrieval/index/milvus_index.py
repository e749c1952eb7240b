"""An index on a Milvus server, for rows that outgrow a host's memory.

Each index is a collection of its own, searched by inner product, with the index
that the server finds best (AUTOINDEX).  A path that ends in .db instead of an
address is Milvus Lite, which runs in this process.

Axes:  n queries   N rows   E width   k neighbours
"""

import contextlib
import os
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from r1router_jax.common import http_client, progress
from r1router_jax.common.errors import UserError
from r1router_jax.common.text import sanitize_text
from r1router_jax.retrieval.index.exact import (
  ProbedIndex,
  RecallProbe,
  SearchResult,
  Vectors,
  pad_results,
  validate_queries,
)

ROWS_PER_INSERT, QUERIES_PER_REQUEST = 1000, 1000
TIMEOUT_SECONDS = 60.0  # That one request may take.


class MilvusIndex(ProbedIndex):
  """The index `collection` on a Milvus server, or in a file, at `uri`.

  Raises:
    UserError: if pymilvus is not installed.
    RemoteServiceError: if the server does not answer.
  """

  KIND = "milvus="
  STORED = ("rows", "width", "uri", "collection")

  def __init__(self, rows: int, width: int, uri: str, collection: str):
    # An optional dependency.
    try:
      import pymilvus
    except ImportError as error:
      raise UserError(
        "Milvus needs its client: pip install 'r1router_jax[milvus]'."
      ) from error
    self.rows, self.width = rows, width
    self.uri, self.collection = uri, collection
    self._milvus_error = pymilvus.MilvusException
    with self._translate_errors():
      self._client = pymilvus.MilvusClient(uri, timeout=TIMEOUT_SECONDS)

  @classmethod
  def from_vectors(
    cls, vectors: Vectors, uri: str, collection: str
  ) -> "MilvusIndex":
    """Build a collection of these rows; it replaces one of the same name."""
    from pymilvus import DataType, MilvusClient

    # 1. Describe the collection.
    index = cls(*vectors.shape, uri, collection)
    schema = MilvusClient.create_schema(auto_id=False)
    schema.add_field("row", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=index.width)
    params = MilvusClient.prepare_index_params()
    params.add_index("vector", index_type="AUTOINDEX", metric_type="IP")

    # 2. Insert the rows.
    with index._translate_errors():
      client = index._client
      client.drop_collection(collection)
      client.create_collection(collection, schema=schema, index_params=params)
      starts = range(0, index.rows, ROWS_PER_INSERT)
      for start in progress.show_progress(starts, f"insert into {collection}"):
        stop = min(start + ROWS_PER_INSERT, index.rows)
        rows = [{"row": i, "vector": vectors[i]} for i in range(start, stop)]
        client.insert(collection, rows)
      client.flush(collection)
    return index

  def search(self, vectors: Float[np.ndarray, "n E"], k: int) -> SearchResult:
    """Return approximately the k nearest rows."""
    vectors = validate_queries(vectors, self.width, k)
    results = []
    for start in range(0, len(vectors), QUERIES_PER_REQUEST):
      with self._translate_errors():
        found = self._client.search(
          self.collection,
          data=list(vectors[start : start + QUERIES_PER_REQUEST]),
          limit=min(k, self.rows),
          output_fields=["row"],
          consistency_level="Strong",
        )
      # Each query may bring fewer hits than k.
      for hits in found:
        scores, rows = ([[hit[x] for hit in hits]] for x in ("distance", "row"))
        results.append((np.array(scores), np.array(rows)))
    return pad_results(results, len(vectors), k)

  @classmethod
  def load(cls, folder: str, metadata: dict) -> "MilvusIndex":
    """Connect to the collection of an index, given what `save` returned.

    Raises a RemoteServiceError if the server does not answer, or has no such
    collection.
    """
    index = cls(*(metadata[name] for name in cls.STORED))
    index.probe = RecallProbe.load(folder)
    return index

  @contextlib.contextmanager
  def _translate_errors(self) -> Iterator[None]:
    """Raise errors of Milvus as RemoteServiceError, with the cure."""
    try:
      yield
    except self._milvus_error as error:
      raise http_client.RemoteServiceError(
        f"Milvus at {self.uri}, collection {self.collection}: "
        f"{sanitize_text(str(error), 300)}  See that it runs, and that the "
        "knowledge base was built there."
      ) from error


def parse_uri(kind: str) -> str:
  """Return the URI of "milvus=URI"; paths of files become absolute.

  Raises a UserError if `kind` has another form, or the address is invalid.
  """
  uri = kind.removeprefix(MilvusIndex.KIND)
  if uri == kind or not uri:
    message = f"No index {kind!r}; choose auto, exact, scann or milvus=URI."
    raise UserError(message)
  if "://" in uri:
    return http_client.validate_address(uri)
  return os.path.abspath(uri)
