"""Joins the queries of requests that wait into one search after another.

While a search runs in a thread, further requests wait in line; the next search
takes queries of as many as fit.  A large request goes back to the end of the
line in between, so that it does not hold up the others.  All but the search
itself runs in one event loop.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import itertools
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator
from http import HTTPStatus

import msgspec
from absl import logging
from starlette.exceptions import HTTPException

from r1router_jax.common import http_client, images
from r1router_jax.common.records import Passage, Query
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.search_api import SearchRequest

# Of one search: queries, passages, and bytes of the requests that it is for.
MAX_SEARCH_QUERIES, MAX_SEARCH_PASSAGES = 256, 1 << 14
MAX_SEARCH_BYTES = 32 << 20
# Requests in line, and seconds that a new one may have to wait there.
MAX_WAITING, MAX_WAIT_SECONDS = 1024, 30.0


@dataclasses.dataclass(eq=False)
class _Job:
  """A request in line, with what was found for its first queries."""

  kb: local_kb.LocalKB
  request: SearchRequest
  num_bytes: int  # Of the request, and of what was found.
  answer: asyncio.Future
  found: list[bytes] = dataclasses.field(default_factory=list)
  error: Exception | None = None

  @property
  def num_missing(self) -> int:
    """Return how many queries are still to be searched."""
    return len(self.request.queries) - len(self.found)

  @property
  def max_queries(self) -> int:
    """Return how many queries of this kind one search takes."""
    most = MAX_SEARCH_PASSAGES // self.request.topk
    return max(1, min(MAX_SEARCH_QUERIES, most))


# Jobs that are searched together, each with a number of its queries.
_Batch = list[tuple[_Job, int]]


class SearchQueue:
  """A line of requests, and the task that searches for them."""

  def __init__(self):
    self._waiting: list[_Job] = []
    self._search_seconds = 0.0  # Of a search, a moving average.
    self._task = None
    # Files of this folder last for one search.
    self._image_folder = tempfile.TemporaryDirectory(prefix="serve_kb-")

  @property
  def num_bytes(self) -> int:
    """Return how many bytes the waiting requests and their answers hold."""
    return sum(job.num_bytes for job in self._waiting)

  async def search(
    self, kb: local_kb.LocalKB, request: SearchRequest, num_bytes: int
  ) -> bytes:
    """Wait for a request's turn, and return the "result" of its response.

    The body of the request had `num_bytes`.  Raises an HTTPException: 503 at
    once if it would have to wait too long, 413 if its answer would be too long,
    400 if an image cannot be read, and 500 if the search fails otherwise.
    """
    if not request.queries:
      return b"[]"
    # It waits for the search under way, and for those of all before it.
    searches = sum(job.num_missing / job.max_queries for job in self._waiting)
    is_long = (1 + searches) * self._search_seconds > MAX_WAIT_SECONDS
    if len(self._waiting) >= MAX_WAITING or (self._waiting and is_long):
      raise busy_error(f"{len(self._waiting)} requests wait")
    answer = asyncio.get_running_loop().create_future()
    job = _Job(kb, request, num_bytes, answer)
    self._waiting.append(job)
    if self._task is None or self._task.done():
      self._task = asyncio.create_task(self._search_waiting())
    try:
      return await answer
    finally:
      # It is still in line if whoever waited for it does so no more.
      if job in self._waiting:
        self._waiting.remove(job)

  async def _search_waiting(self) -> None:
    """Search until no request waits."""
    while self._waiting:
      # 1. Search in a thread, while requests are read and answers are sent.
      batch = self._take_batch()
      start = time.monotonic()
      await asyncio.to_thread(self._search_batch, batch)
      seconds = time.monotonic() - start
      self._search_seconds += 0.5 * (seconds - self._search_seconds)
      # 2. Answer requests that are done with; the others wait again.
      for job, _ in batch:
        if job.answer.cancelled():
          continue
        if job.error:
          job.answer.set_exception(job.error)
        elif job.num_missing:
          self._waiting.append(job)
        else:
          job.answer.set_result(b"[" + b",".join(job.found) + b"]")

  def _take_batch(self) -> _Batch:
    """Take jobs out of the line, from its head, for one search."""
    head, batch = self._waiting[0], []
    queries_left, bytes_left = head.max_queries, MAX_SEARCH_BYTES
    for job in self._waiting:
      # One search has one knowledge base and one number of passages.
      if job.kb is not head.kb or job.request.topk != head.request.topk:
        continue
      if batch and (not queries_left or bytes_left < job.num_bytes):
        break
      batch.append((job, min(job.num_missing, queries_left)))
      queries_left -= batch[-1][1]
      bytes_left -= job.num_bytes
    taken = {job for job, _ in batch}
    self._waiting = [job for job in self._waiting if job not in taken]
    return batch

  def _search_batch(self, batch: _Batch) -> None:
    """Search for queries of jobs; keep what is found, or the error."""
    (job, _), *others = batch
    try:
      with self._store_images(batch) as queries:
        found = iter(job.kb.search(queries, job.request.topk))
      parts = ((job, itertools.islice(found, count)) for job, count in batch)
      answers = [(job, _encode_results(job, part)) for job, part in parts]
    except Exception as error:
      # A fault concerns the request that has it, which halving finds.
      if others:
        half = len(batch) // 2
        self._search_batch(batch[:half])
        self._search_batch(batch[half:])
      else:
        job.error = self._to_http_error(error)
      return
    for job, results in answers:
      job.found += results
      job.num_bytes += sum(map(len, results))

  @contextlib.contextmanager
  def _store_images(self, batch: _Batch) -> Iterator[list[Query]]:
    """Hold the images of a batch in files; yields its queries."""
    folder, queries = pathlib.Path(self._image_folder.name), []
    try:
      for job, count in batch:
        for i in range(len(job.found), len(job.found) + count):
          text, image, path = job.request.queries[i], job.request.images[i], ""
          if image:
            # Named by the content, so that an image makes the same query again.
            path = folder / hashlib.sha256(image).hexdigest()
            path.write_bytes(image)
          queries.append(Query(text, str(path)))
      yield queries
    finally:
      for path in folder.iterdir():
        path.unlink()

  def _to_http_error(self, error: Exception) -> HTTPException:
    """Return what to answer after an error; log it if it is the server's."""
    if isinstance(error, HTTPException):
      return error
    if isinstance(error, images.BadImage):
      # The client has no business with paths of this machine.
      reason = str(error).replace(self._image_folder.name + os.sep, "")
      return HTTPException(HTTPStatus.BAD_REQUEST, f'"images": {reason}')
    logging.error("A search failed.", exc_info=error)
    message = "the search failed; the server's log says why"
    return HTTPException(HTTPStatus.INTERNAL_SERVER_ERROR, message)


def busy_error(reason: str) -> HTTPException:
  """Return the answer to a request for which there is no room now."""
  pause = {"Retry-After": "1"}  # Clients of this package wait so many seconds.
  status = HTTPStatus.SERVICE_UNAVAILABLE
  return HTTPException(status, f"{reason}; ask again", pause)


def _encode_results(job: _Job, results: Iterator[list[Passage]]) -> list[bytes]:
  """Return the passages of each query as JSON; raise if they are too long."""
  encoded, num_bytes, limit = [], job.num_bytes, http_client.MAX_ANSWER_BYTES
  for passages in results:
    rows = []
    for passage in passages:
      # The text of a passage holds its title.
      row = {"id": passage.id, "contents": f'""\n{passage.text}'}
      if passage.image:
        # Absolute paths would reveal the disk of this machine.
        folder = job.kb.stack.passages.image_folder
        row["image"] = os.path.relpath(passage.image, folder)
      if job.request.return_scores:
        row = {"document": row, "score": passage.score}
      rows.append(row)
    encoded.append(msgspec.json.encode(rows))
    num_bytes += len(encoded[-1])
    if num_bytes > limit:
      message = f"the answer would have more than {limit:,} bytes: send "
      message += 'fewer "queries", or a smaller "topk"'
      raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
  return encoded
