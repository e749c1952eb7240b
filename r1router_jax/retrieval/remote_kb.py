"""A knowledge base that another process serves: ours, or Search-R1's.

What is sent and answered is in schema.py, what may go wrong in service.py.
"""

import base64
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging

from r1router_jax.common import http_client, images, row_files
from r1router_jax.common.records import Passage, Query
from r1router_jax.common.row_files import BadRow, Fault, Skipped
from r1router_jax.retrieval import search_api
from r1router_jax.retrieval.corpora import sources
from r1router_jax.retrieval.knowledge_base import KnowledgeBase

QUERIES = 64  # Of a request, at most,

PICTURES = 24 << 20  # and characters of its pictures, unless there is but one.


class RemoteKB(KnowledgeBase):
  """The knowledge base of kind `kb` that is served at `address`.

  Nothing that goes wrong becomes a passage, or the lack of one: a search finds
  what is there, or raises.

  Raises:
    ValueError: where the address is none, or cannot be sent pictures and must.
    service.RetrievalError: where nobody answers.
  """

  devices = ()

  def __init__(self, kb: str, address: str):
    self._service, self._kb = http_client.Service(address), kb
    self._skipped = Skipped(address)
    said = self._service.get("/health")
    ours = isinstance(said, dict) and "version" in said
    super().__init__(said if ours else {"kb": kb, "address": address})
    if ours:
      return
    if kb == "image":
      raise ValueError(
        f"{address} is no serve_kb, which alone can be sent pictures.  Serve "
        "the image knowledge base by python -m r1router_jax.serve_kb."
      )
    logging.info(
      "%s does not say what it serves: taken for a %s knowledge base.",
      address,
      kb,
    )

  def __len__(self) -> int:
    """Its passages; 0 where the server does not say."""
    rows = self.meta.get("rows")
    return rows if type(rows) is int and 0 < rows < 1 << 48 else 0

  def _find(self, queries: Sequence[Query], k: int) -> list[list[Passage]]:
    parts = list(_parts(queries))
    answers = self._service.post(
      "/retrieve",
      [
        dict(queries=[query.text for query in part], topk=k, return_scores=True)
        | ({"images": shown} if any(shown) else {})
        for part, shown in parts
      ],
      lambda number, answer: self._answer(answer, len(parts[number][0]), k),
    )
    return [found for part in answers for found in part]

  def _read(self, found: list[Passage]) -> list[Passage]:
    return list(found)

  def _answer(self, answer: Any, count: int, k: int) -> list[list[Passage]]:
    """The passages of an answer to `count` queries.

    Raises:
      Fault: where it is not of the schema.
      service.RetrievalError: where it is of other passages than at the start.
    """
    found = answer.get("result") if isinstance(answer, dict) else None
    if not (
      isinstance(found, list)
      and len(found) == count
      and all(isinstance(one, list) and len(one) <= k for one in found)
    ):
      raise Fault(
        f'"result" holds no {count} lists of at most {k} documents',
        "See that a server of Search-R1's schema answers there",
      )
    if (version := self.meta.get("version")) != answer.get("version"):
      raise http_client.RetrievalError(
        f"{self._service.address}: its passages or embedder are others than "
        f"at the start (version {answer.get('version')!a:.40}, was "
        f"{version!a:.40}).  Serve the former, or start a run of its own."
      )
    return [
      [passage for row in one if (passage := self._passage(row)) is not None]
      for one in found
    ]

  def _passage(self, row: Any) -> Passage | None:
    """The passage of a document; None, counted, where a prompt may not hold
    its text.
    """
    document, score = (
      (row.get("document"), row.get("score"))
      if isinstance(row, dict)
      else (None, None)
    )
    if (
      not isinstance(document, dict)
      or isinstance(score, bool)
      or not (isinstance(score, (int, float)) and math.isfinite(score))
    ):
      raise Fault(
        'a row is no {"document": {..}, "score": number}',
        "See that a server of Search-R1's schema answers there",
      )
    contents = document.get("contents")
    if not (isinstance(contents, str) and contents.strip()):
      raise Fault("a document has no contents", "See what is served there")
    name = document.get("id")
    if name is None:  # Search-R1's keyword search gives none.
      name = hashlib.sha256(contents.encode(errors="replace")).hexdigest()[:16]
    try:
      return Passage(
        row_files.check("id", str(name) if type(name) is int else name),
        self._kb,
        row_files.check("contents", search_api.text(contents)),
        self._picture(document.get("image")),
        float(score),
      )
    except Fault as fault:
      self._skipped(
        BadRow(f"{self._service.address}: document {name!a:.100}", *fault.args)
      )
      return None

  def _picture(self, name: Any) -> str:
    """Where the picture lies here: those of the embedded world alone do."""
    if not name or self.meta.get("source") != sources.WORLD:
      return ""
    try:
      return images.resolve(str(name), sources.world_folder())
    except images.BadImage as error:
      raise Fault(str(error).rstrip("."), "Serve the world as it is") from None


def _parts(queries: Sequence[Query]) -> Iterator[tuple[list[Query], list[str]]]:
  """The queries of each request, and their pictures in base64, or ""."""
  part, shown = [], []
  for query in queries:
    picture = (
      query.image and base64.b64encode(images.read(query.image)).decode()
    )
    if part and (
      len(part) == QUERIES or sum(map(len, shown)) + len(picture) > PICTURES
    ):
      yield part, shown
      part, shown = [], []
    part.append(query)
    shown.append(picture)
  if part:
    yield part, shown
