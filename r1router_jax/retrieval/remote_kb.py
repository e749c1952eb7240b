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
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Passage, Query
from r1router_jax.common.row_files import RejectedRow, RowError, SkipLog
from r1router_jax.retrieval import search_api
from r1router_jax.retrieval.corpora import sources
from r1router_jax.retrieval.knowledge_base import KnowledgeBase

# Limits of one request, of images in base64; a single one may exceed it.
MAX_QUERIES_PER_REQUEST, MAX_IMAGE_CHARS = 64, 24 << 20

_SCHEMA_CURE = "See that a server of Search-R1's schema answers there"


class RemoteKB(KnowledgeBase):
  """The knowledge base that is served at an address.

  A search returns what the server found or raises: an error never becomes a
  passage, or the absence of one.  The address is http://host:port.

  Raises:
    UserError: if the address is invalid, or the knowledge base is one of
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
      raise UserError(
        f"{address} is no serve_kb, which alone can be sent images.  Serve "
        "the image knowledge base by python -m r1router_jax.serve_kb."
      )
    message = "%s does not say what it serves: taken for a %s knowledge base."
    logging.info(message, address, kind)

  def __len__(self) -> int:
    """Return the number of passages; 0 if the server does not say."""
    rows = self.meta.get("rows")
    # The number comes from outside: no bool, and no more than a disk can hold.
    return rows if type(rows) is int and 0 < rows < 1 << 48 else 0

  def _search_uncached(
    self, queries: Sequence[Query], k: int
  ) -> list[list[Passage]]:
    options = {"topk": k, "return_scores": True}
    bodies = [fields | options for fields in _split_into_requests(queries)]

    def parse_response(number: int, response: Any) -> list[list[Passage]]:
      return self._parse_response(response, len(bodies[number]["queries"]), k)

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
    is_valid = isinstance(found, list) and len(found) == num_queries
    if not is_valid or not all(
      isinstance(rows, list) and len(rows) <= k for rows in found
    ):
      message = (
        f'"result" holds no {num_queries} lists of at most {k} documents'
      )
      raise RowError(message, _SCHEMA_CURE)
    # Both are None if the server is not serve_kb.
    old_version, version = self.meta.get("version"), response.get("version")
    if old_version != version:
      raise http_client.RemoteServiceError(
        f"{self._client.address}: its passages or embedder are others than "
        f"at the start (version {version!a:.40}, was "
        f"{old_version!a:.40}).  Serve the former, or start a run of its own."
      )
    parsed = (map(self._parse_row, rows) for rows in found)
    return [[passage for passage in rows if passage] for rows in parsed]

  def _parse_row(self, row: Any) -> Passage | None:
    """Return the passage of a row, or None if a prompt must not hold its text.

    Such rows are logged and counted; a row off the schema raises a RowError.
    """
    row = row if isinstance(row, dict) else {}
    document, score = row.get("document"), row.get("score")
    # NaN, infinity and True would pass as numbers otherwise.
    is_number = isinstance(score, (int, float)) and not isinstance(score, bool)
    if not (isinstance(document, dict) and is_number and math.isfinite(score)):
      message = 'a row is no {"document": {..}, "score": number}'
      raise RowError(message, _SCHEMA_CURE)
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
    """Return the local path of a passage's image, or ""."""
    # Only images of this corpus, which comes with the package, are here.
    if not name or self.meta.get("source") != sources.GEOROUTER:
      return ""
    try:
      return images.resolve_path(str(name), sources.georouter_folder())
    except images.BadImage as error:
      reason = str(error).rstrip(".")
      raise RowError(reason, "Serve the world as it is") from None


def _split_into_requests(queries: Sequence[Query]) -> Iterator[dict[str, list]]:
  """Yield the "queries" of each request, and their "images" if it has any."""
  texts, encoded_images, num_chars = [], [], 0
  for query in queries:
    encoded = ""
    if query.image:
      image_bytes = images.read_image_bytes(query.image)
      encoded = base64.b64encode(image_bytes).decode()
    num_chars += len(encoded)
    is_full = len(texts) == MAX_QUERIES_PER_REQUEST
    # Checked before the query is added, so that no request is empty.
    if texts and (is_full or num_chars > MAX_IMAGE_CHARS):
      yield _request_fields(texts, encoded_images)
      texts, encoded_images, num_chars = [], [], len(encoded)
    texts.append(query.text)
    encoded_images.append(encoded)
  if texts:
    yield _request_fields(texts, encoded_images)


def _request_fields(texts: list[str], encoded: list[str]) -> dict[str, list]:
  # The schema of Search-R1 has no field for images.
  return {"queries": texts} | ({"images": encoded} if any(encoded) else {})
