"""A knowledge base that another process serves, serve_kb or Search-R1's.

The requests and responses are described in search_api.py; retries and errors
are those of common/http_client.py.
"""

import base64
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging

from r1router_jax.common import http_client, images, row_files
from r1router_jax.common.records import Passage, Query
from r1router_jax.common.row_files import RejectedRow, RowError, SkipLog
from r1router_jax.retrieval import search_api
from r1router_jax.retrieval.corpora import sources
from r1router_jax.retrieval.knowledge_base import KnowledgeBase

# Limits of one request.  A single image may exceed the second one.
MAX_QUERIES_PER_REQUEST = 64
# Characters of all images, in base64.
MAX_IMAGE_CHARS = 24 << 20

_SCHEMA_CURE = "See that a server of Search-R1's schema answers there"


class RemoteKB(KnowledgeBase):
  """The knowledge base that is served at an address.

  A search returns what the server found or raises: an error never becomes a
  passage, or the absence of one.

  Args:
    kind: kind of the knowledge base.
    address: address of the server, http://host:port.

  Raises:
    ValueError: if the address is invalid, or the knowledge base is one of
      images and its server cannot be sent any.
    RemoteServiceError: if no server answers.
  """

  devices = ()

  def __init__(self, kind: str, address: str):
    self._client, self._kind = http_client.JsonHttpClient(address), kind
    self._skip_log = SkipLog(address)
    # Only serve_kb has /health; its "version" tells it from other programs.
    meta = self._client.get("/health")
    is_serve_kb = isinstance(meta, dict) and "version" in meta
    super().__init__(meta if is_serve_kb else {"kb": kind, "address": address})
    if is_serve_kb:
      return
    # Search-R1's schema has no images.
    if kind == "image":
      raise ValueError(
        f"{address} is no serve_kb, which alone can be sent images.  Serve "
        "the image knowledge base by python -m r1router_jax.serve_kb."
      )
    logging.info(
      "%s does not say what it serves: taken for a %s knowledge base.",
      address,
      kind,
    )

  def __len__(self) -> int:
    """Return the number of passages; 0 if the server does not say."""
    rows = self.meta.get("rows")
    # The number comes from outside: no bool, and no more than a disk can hold.
    return rows if type(rows) is int and 0 < rows < 1 << 48 else 0

  def _search_uncached(
    self, queries: Sequence[Query], k: int
  ) -> list[list[Passage]]:
    batches = list(_split_into_requests(queries))
    # Images are sent only if there are any: the field is no part of the
    # schema of Search-R1.
    bodies = []
    for batch, encoded_images in batches:
      texts = [query.text for query in batch]
      body = {"queries": texts, "topk": k, "return_scores": True}
      if any(encoded_images):
        body["images"] = encoded_images
      bodies.append(body)

    def parse_response(number: int, response: Any) -> list[list[Passage]]:
      return self._parse_response(response, len(batches[number][0]), k)

    responses = self._client.post("/retrieve", bodies, parse_response)
    return [passages for response in responses for passages in response]

  def _to_passages(self, result: list[Passage]) -> list[Passage]:
    return list(result)

  def _parse_response(
    self, response: Any, num_queries: int, k: int
  ) -> list[list[Passage]]:
    """Return the passages of a response, a list for each query.

    Raises:
      RowError: if the response does not follow the schema.
      RemoteServiceError: if the server has other passages than at the start.
    """
    found = response.get("result") if isinstance(response, dict) else None
    # What a server sends is untrusted.
    if not (
      isinstance(found, list)
      and len(found) == num_queries
      and all(isinstance(rows, list) and len(rows) <= k for rows in found)
    ):
      raise RowError(
        f'"result" holds no {num_queries} lists of at most {k} documents',
        _SCHEMA_CURE,
      )
    # Both are None if the server is not serve_kb.
    old_version, version = self.meta.get("version"), response.get("version")
    if old_version != version:
      raise http_client.RemoteServiceError(
        f"{self._client.address}: its passages or embedder are others than "
        f"at the start (version {version!a:.40}, was "
        f"{old_version!a:.40}).  Serve the former, or start a run of its own."
      )
    parsed = [[self._parse_row(row) for row in rows] for rows in found]
    return [
      [passage for passage in passages if passage is not None]
      for passages in parsed
    ]

  def _parse_row(self, row: Any) -> Passage | None:
    """Return the passage of a row of the response.

    Returns:
      The passage, or None if a prompt must not hold its text; such rows are
      logged and counted.

    Raises:
      RowError: if the row does not follow the schema.
    """
    document, score = None, None
    if isinstance(row, dict):
      document, score = row.get("document"), row.get("score")
    # NaN, infinity and True would pass as numbers otherwise.
    if (
      not isinstance(document, dict)
      or isinstance(score, bool)
      or not (isinstance(score, (int, float)) and math.isfinite(score))
    ):
      raise RowError(
        'a row is no {"document": {..}, "score": number}', _SCHEMA_CURE
      )
    contents = document.get("contents")
    if not (isinstance(contents, str) and contents.strip()):
      raise RowError("a document has no contents", "See what is served there")
    name = document.get("id")
    if name is None:
      # Search-R1's BM25 server sends no ids; a digest of the text serves.
      name = hashlib.sha256(contents.encode(errors="replace")).hexdigest()[:16]
    # A text that no prompt may hold costs its row, not the response.
    try:
      return Passage(
        row_files.validate_text("id", str(name) if type(name) is int else name),
        self._kind,
        row_files.validate_text("contents", search_api.passage_text(contents)),
        self._resolve_image(document.get("image")),
        float(score),
      )
    except RowError as error:
      where = f"{self._client.address}: document {name!a:.100}"
      self._skip_log(RejectedRow(where, *error.args))
      return None

  def _resolve_image(self, name: Any) -> str:
    """Return the local path of a passage's image, or "".

    Only images of the GeoRouter corpus, which comes with the package, are on
    this machine.
    """
    if not name or self.meta.get("source") != sources.GEOROUTER:
      return ""
    try:
      return images.resolve_path(str(name), sources.georouter_folder())
    except images.BadImage as error:
      raise RowError(
        str(error).rstrip("."), "Serve the world as it is"
      ) from None


def _split_into_requests(
  queries: Sequence[Query],
) -> Iterator[tuple[list[Query], list[str]]]:
  """Yield the queries of each request, with their images in base64 or ""."""
  batch, encoded_images, num_chars = [], [], 0
  for query in queries:
    encoded = ""
    if query.image:
      image_bytes = images.read_image_bytes(query.image)
      encoded = base64.b64encode(image_bytes).decode()
    # Checked before the query is added, so that no request is empty.
    is_full = (
      len(batch) == MAX_QUERIES_PER_REQUEST
      or num_chars + len(encoded) > MAX_IMAGE_CHARS
    )
    if batch and is_full:
      yield batch, encoded_images
      batch, encoded_images, num_chars = [], [], 0
    batch.append(query)
    encoded_images.append(encoded)
    num_chars += len(encoded)
  if batch:
    yield batch, encoded_images
