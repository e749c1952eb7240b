"""A knowledge base that another process serves, serve_kb or Search-R1's.

The requests and responses are described in search_api.py; retries and errors
are those of common/http_client.py.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
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
# Bytes of one passage in a response, a row's, escaped; and of all else there.
MAX_PASSAGE_BYTES, MAX_HEALTH_BYTES = 2 * row_files.MAX_ROW_BYTES, 1 << 16
MAX_SCORE = float(np.finfo(np.float32).max)


class _Document(msgspec.Struct):
  """A document of a response; a bad id or image costs this document alone."""

  contents: str
  id: Any = None
  image: Any = None


class _Row(msgspec.Struct):
  document: _Document
  # No more than an inner product of float32 can be.
  score: Annotated[float, msgspec.Meta(ge=-MAX_SCORE, le=MAX_SCORE)]


class _Response(msgspec.Struct):
  result: list[list[_Row]]
  version: Any = None  # Only serve_kb has it.


class RemoteKB(KnowledgeBase):
  """The knowledge base that is served at an address, http://host:port.

  A search returns what the server found or raises: an error never becomes a
  passage, or the absence of one.  An invalid address, or a server that cannot
  be sent images but is for them, raises UserError; none, RemoteServiceError.
  """

  devices, image_folder = (), sources.georouter_folder()

  def __init__(self, kind: str, address: str):
    service = "a server of Search-R1's schema"
    self._client = http_client.JsonHttpClient(address, service)
    self._kind = kind
    self._skip_log = SkipLog(address)
    # Only serve_kb has /health; its "version" tells it from other programs.
    meta = self._client.get("/health", MAX_HEALTH_BYTES)
    is_serve_kb = isinstance(meta, dict) and "version" in meta
    super().__init__(meta if is_serve_kb else {"kb": kind, "address": address})
    if is_serve_kb:
      return
    # Search-R1's schema has no images.
    if kind == "image":
      message = f"{address} is no serve_kb, which alone can be sent images."
      cure = "Serve the knowledge base by python -m r1router_jax.serve_kb."
      raise UserError(f"{message}  {cure}")
    message = "%s does not say what it serves: taken for a %s knowledge base."
    logging.info(message, address, kind)

  def __len__(self) -> int:
    """Return the number of passages; 0 if the server does not say."""
    rows = self.meta.get("rows")
    # No bool, and no more than a disk can hold.
    return rows if type(rows) is int and 0 < rows < 1 << 48 else 0

  def _search_uncached(self, queries: Sequence[Query], k: int) -> list:
    bodies = []
    for part in _split_into_requests(queries):
      texts, encoded = zip(*part, strict=True)
      bodies.append({"queries": texts, "topk": k, "return_scores": True})
      # The schema of Search-R1 has no field for images.
      if any(encoded):
        bodies[-1]["images"] = encoded
    counts = [len(body["queries"]) for body in bodies]

    def parse_response(number: int, response: _Response) -> list[list[Passage]]:
      return self._parse_response(response, counts[number], k)

    most = MAX_HEALTH_BYTES + max(counts, default=0) * k * MAX_PASSAGE_BYTES
    request = "/retrieve", bodies, _Response, parse_response
    responses = self._client.post(*request, max_bytes=most)
    return [passages for response in responses for passages in response]

  def _to_passages(self, result: list[Passage]) -> list[Passage]:
    return list(result)

  def _parse_response(
    self, response: _Response, num_queries: int, k: int
  ) -> list[list[Passage]]:
    """Return the passages of a response, a list for each query."""
    found = response.result
    if len(found) != num_queries or any(len(rows) > k for rows in found):
      wanted = f"{num_queries} lists of at most {k} documents"
      raise http_client.UnusableAnswer(f'"result" holds no {wanted}')
    # Both are None if the server is not serve_kb.
    old_version, version = self.meta.get("version"), response.version
    if old_version != version:
      change = f"version {version!a:.40}, was {old_version!a:.40}"
      raise http_client.RemoteServiceError(
        f"{self._client.address}: its passages or embedder are others than at "
        f"the start ({change}).  Serve the former, or start a run of its own."
      )
    parsed = (map(self._parse_row, rows) for rows in found)
    return [[passage for passage in rows if passage] for rows in parsed]

  def _parse_row(self, row: _Row) -> Passage | None:
    """Return the passage of a row, or None, with a log, if it is unfit."""
    name, contents = row.document.id, row.document.contents
    if not contents.strip():
      raise http_client.UnusableAnswer("a document has no contents")
    if name is None:
      # Search-R1's BM25 server sends no ids; a digest of the text serves.
      name = hashlib.sha256(contents.encode()).hexdigest()[:16]
    # A text that no prompt may hold costs its row, not the response.
    try:
      return Passage(
        row_files.validate_text("id", str(name) if type(name) is int else name),
        self._kind,
        row_files.validate_text("contents", search_api.passage_text(contents)),
        self._resolve_image(row.document.image),
        row.score,
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
      return images.resolve_path(str(name), self.image_folder)
    except images.BadImage as error:
      reason = str(error).rstrip(".")
      raise RowError(reason, "Serve the world as it is") from None


def _split_into_requests(
  queries: Sequence[Query],
) -> Iterator[list[tuple[str, str]]]:
  """Yield the queries of each request: texts, with images in base64 or ""."""
  part, num_chars = [], 0
  for query in queries:
    data = images.read_image_bytes(query.image) if query.image else b""
    encoded = base64.b64encode(data).decode()
    num_chars += len(encoded)
    is_full = len(part) == MAX_QUERIES_PER_REQUEST
    # Checked before the query is added, so that no request is empty.
    if part and (is_full or num_chars > MAX_IMAGE_CHARS):
      yield part
      part, num_chars = [], len(encoded)
    part.append((query.text, encoded))
  if part:
    yield part
