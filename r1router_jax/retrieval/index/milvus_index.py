"""An index that a Milvus server holds, for rows that outgrow a host's memory.

Rows lie in a collection of their own, by inner product, with the index that the
server finds best (AUTOINDEX).  A path that ends in .db instead of an address is
Milvus Lite's: the same, in this process.

Axes:  n queries   N rows   E width   k neighbours
"""

import contextlib
import os
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from r1router_jax.common import http_client, progress, text
from r1router_jax.retrieval.index.exact import Found, Probe, Vectors, check, pad

KIND = "milvus="

ROWS, QUERIES = 1000, 1000  # Of a request.

DEADLINE = 60.0  # Seconds of one.


class MilvusIndex:
  """See the head of this module.

  Args:
    uri: of the server, or the file.
    collection: its name there.
    rows, width: N and E.

  Raises:
    ValueError: where pymilvus is not installed.
    service.RetrievalError: where nobody answers.
  """

  def __init__(self, uri: str, collection: str, rows: int, width: int):
    try:
      import pymilvus
    except ImportError as error:
      raise ValueError(
        "Milvus needs its client: pip install 'r1router_jax[milvus]'."
      ) from error
    self.rows, self.width, self.uri = rows, width, uri
    self.collection = collection
    self._probe: Probe | None = None
    self._fault = pymilvus.MilvusException
    with self._asking():
      self._client = pymilvus.MilvusClient(uri, timeout=DEADLINE)

  @classmethod
  def build(cls, vectors: Vectors, uri: str, collection: str) -> "MilvusIndex":
    """A new collection of these rows, in the place of one of this name."""
    from pymilvus import DataType, MilvusClient

    index = cls(uri, collection, *vectors.shape)
    schema = MilvusClient.create_schema(auto_id=False)
    schema.add_field("row", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=index.width)
    how = MilvusClient.prepare_index_params()
    how.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
    with index._asking():
      index._client.drop_collection(collection)
      index._client.create_collection(
        collection, schema=schema, index_params=how
      )
      for start in progress.progress(
        range(0, index.rows, ROWS), f"insert into {collection}"
      ):
        index._client.insert(
          collection,
          [
            {"row": row, "vector": vectors[row]}
            for row in range(start, min(start + ROWS, index.rows))
          ],
        )
      index._client.flush(collection)
    index._probe = Probe.of(vectors)
    return index

  def search(self, vectors: Float[np.ndarray, "n E"], k: int) -> Found:
    """The k nearest rows, nearly."""
    vectors, parts = check(vectors, self.width, k), []
    for start in range(0, len(vectors), QUERIES):
      with self._asking():
        found = self._client.search(
          self.collection,
          data=list(vectors[start : start + QUERIES]),
          limit=min(k, self.rows),
          output_fields=["row"],
          consistency_level="Strong",
        )
      for hits in found:
        parts.append(
          (
            np.array([[hit["distance"] for hit in hits]], np.float32),
            np.array([[hit["row"] for hit in hits]], np.int64),
          )
        )
    return pad(parts, len(vectors), k)

  def recall(self) -> float:
    """Share of the ten nearest rows that are found; see `index.Probe`."""
    return self._probe.recall(self)

  def save(self, folder: str) -> dict:
    """Where it is; what `load` must know."""
    self._probe.save(folder)
    return dict(
      kind=KIND,
      rows=self.rows,
      width=self.width,
      uri=self.uri,
      collection=self.collection,
      recall=self.recall(),
    )

  @classmethod
  def load(cls, folder: str, card: dict) -> "MilvusIndex":
    """What `save` returned as `card`, asked again.

    Raises:
      ValueError: where it finds less than it did.
      service.RetrievalError: where nobody answers, or has no such collection.
    """
    index = cls(card["uri"], card["collection"], card["rows"], card["width"])
    index._probe = Probe.load(folder)
    index._probe.check(index, card["recall"], folder)
    return index

  @contextlib.contextmanager
  def _asking(self) -> Iterator[None]:
    try:
      yield
    except self._fault as error:
      raise http_client.RetrievalError(
        f"Milvus at {self.uri}, collection {self.collection}: "
        f"{text.clean(str(error), 300)}  See that it runs, and that the "
        "knowledge base was built there."
      ) from error


def address(kind: str) -> str:
  """The URI in "milvus=URI".

  Raises:
    ValueError: where it is none.
  """
  uri = kind.removeprefix(KIND)
  if uri == kind or not uri:
    raise ValueError(
      f"No index {kind!r}; choose auto, exact, scann or milvus=URI."
    )
  return http_client.checked(uri) if "://" in uri else os.path.abspath(uri)
