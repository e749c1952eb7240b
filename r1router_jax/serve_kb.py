"""Serves one knowledge base to other processes.

  python -m r1router_jax.serve_kb --kb=runs/kb/text --port=8000

Other commands search it with --kb=text=http://127.0.0.1:8000,..., and so does
whatever speaks to Search-R1's retrieval server; retrieval/schema.py says how.
Beside a run that needs the accelerator start it with JAX_PLATFORMS=cpu.

Requests are untrusted: their sizes are bounded, and a bad one is answered with
{"error": ...} and a status of 4xx.  `SEARCHES` are made at a time; whoever
finds no place in a second is answered 503 and may ask again.  There is no
authentication: whoever reaches the port may search.  SIGHUP opens the folder
anew, for instance after build_kb, while the former passages are searched.
SIGTERM ends the server when the searches under way are answered.
"""

import collections
import contextlib
import hashlib
import http.server
import json
import os
import signal
import socketserver
import tempfile
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from absl import flags, logging

from r1router_jax.common import cli, http_client, images
from r1router_jax.common import text as text_lib
from r1router_jax.common.records import Passage, Query
from r1router_jax.retrieval import local_kb, search_api
from r1router_jax.retrieval.search_api import Refused

_KB = flags.DEFINE_string(
  "kb",
  "runs/quickstart/kb/text",
  "Folder of one knowledge base, as build_kb wrote it.",
  allow_override=True,
)

_PORT = flags.DEFINE_integer(
  "port",
  8000,
  "Where to listen; 0 takes a free one.",
  lower_bound=0,
  upper_bound=65535,
)

_HOST = flags.DEFINE_string(
  "host",
  "127.0.0.1",
  "The address to listen at.  Any but a loopback one "
  "lets others search: there is no authentication.",
)


CONNECTIONS = 32

SEARCHES = 4  # At a time.

PATIENCE = 1.0  # Seconds, for one of these.

SECONDS = 10.0  # To send or to be sent a body.


class Server(http.server.ThreadingHTTPServer):
  """Listens at (host, port); `serve_forever` answers, from many threads.

  Args:
    base: what is searched.
    host: to listen at.
    port: likewise; 0 takes a free one.
  """

  request_queue_size = 128
  # Without asking for the host's name, which can take long.
  server_bind = socketserver.TCPServer.server_bind

  def __init__(self, base: local_kb.LocalKB, host: str, port: int):
    super().__init__((host, port), Handler)
    self.serve(base)
    self.address = "http://{}:{}".format(*self.server_address)
    self._searches = threading.Semaphore(SEARCHES)
    self._connections = threading.Semaphore(CONNECTIONS)
    self._lock = threading.Lock()
    self._folder = tempfile.TemporaryDirectory(prefix="serve_kb-")
    self._kept: collections.OrderedDict[str, None] = collections.OrderedDict()

  def serve(self, base: local_kb.LocalKB) -> None:
    """Searches `base`, from the next request on."""
    self.served = base, search_api.card(base.meta)

  @property
  def kb(self) -> str:
    """The kind of knowledge base."""
    return self.served[1]["kb"]

  def process_request(self, request: Any, client_address: Any) -> None:
    if self._connections.acquire(blocking=False):
      super().process_request(request, client_address)
    else:  # Whoever is turned away before it spoke asks again.
      self.shutdown_request(request)

  def process_request_thread(self, request: Any, client_address: Any) -> None:
    try:
      super().process_request_thread(request, client_address)
    finally:
      self._connections.release()

  def handle_error(self, request: Any, client_address: Any) -> None:
    logging.debug("%s: broken off", client_address, exc_info=True)

  @contextlib.contextmanager
  def place(self) -> Iterator[None]:
    """One of the `SEARCHES` at a time.

    Raises:
      Refused: where none is free.
    """
    if not self._searches.acquire(timeout=PATIENCE):
      raise Refused(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"{SEARCHES} searches are under way; ask again",
      )
    try:
      yield
    finally:
      self._searches.release()

  def search(self, request: search_api.Request) -> bytes:
    """The answer to a request.

    Raises:
      Refused: where a picture cannot be read, or the answer would be too long.
    """
    base, card = self.served
    queries = [
      Query(text, self._file(picture) if picture else "")
      for text, picture in zip(request.texts, request.pictures, strict=True)
    ]
    try:
      found = base.search(queries, request.k) if queries else []
    except images.BadImage as error:
      said = str(error).replace(self._folder.name + os.sep, "")
      raise Refused(HTTPStatus.BAD_REQUEST, f'"images": {said}') from None
    size, parts = 0, []
    for passages in found:
      parts.append(
        json.dumps(
          [_row(base, passage, request.scores) for passage in passages]
        )
      )
      size += len(parts[-1])
      if size > http_client.MAX_ANSWER:
        raise Refused(
          HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
          f"the answer would have more than {http_client.MAX_ANSWER:,} bytes: "
          'send fewer "queries", or a smaller "topk"',
        )
    return (
      f'{{"result": [{", ".join(parts)}], "version": "{card["version"]}"}}'
    ).encode()

  def _file(self, picture: bytes) -> str:
    """Its path, which names the content, so that the same picture makes the
    same query.  More are kept than the searches at a time can need.
    """
    path = os.path.join(self._folder.name, hashlib.sha256(picture).hexdigest())
    with self._lock:
      if path not in self._kept:
        with open(path, "wb") as file:
          file.write(picture)
      self._kept[path] = None
      self._kept.move_to_end(path)
      if len(self._kept) > 2 * SEARCHES * search_api.PICTURES:
        os.remove(self._kept.popitem(last=False)[0])
    return path

  def end(self) -> None:
    """Waits for the searches under way, and closes."""
    for _ in range(SEARCHES):
      self._searches.acquire(timeout=SECONDS)
    self.server_close()
    self._folder.cleanup()


class Handler(http.server.BaseHTTPRequestHandler):
  """One connection."""

  server: Server
  protocol_version = "HTTP/1.1"  # Connections are kept for further requests.
  server_version, sys_version = "r1router_jax", ""
  timeout = SECONDS

  def do_GET(self) -> None:
    if self.path == "/health":
      self._send(HTTPStatus.OK, json.dumps(self.server.served[1]).encode())
    else:
      self.send_error(
        HTTPStatus.NOT_FOUND, "there are GET /health and POST /retrieve"
      )

  def do_POST(self) -> None:
    try:
      if self.path != "/retrieve":
        raise Refused(HTTPStatus.NOT_FOUND, "there is POST /retrieve")
      body = self._body()
      with self.server.place():
        self._send(HTTPStatus.OK, self._search(body))
    except Refused as refused:
      self.send_error(refused.status, str(refused))

  def _search(self, body: bytes) -> bytes:
    try:
      return self.server.search(search_api.read(body, self.server.kb))
    except Refused:
      raise
    except Exception:  # No request may end the server.
      logging.exception("A search failed.")
      raise Refused(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "the search failed; the server's log says why",
      ) from None

  def _body(self) -> bytes:
    """The body of the request, of the length that it says."""
    length = self.headers.get("Content-Length", "")
    most = (
      search_api.PICTURES_BODY if self.server.kb == "image" else search_api.BODY
    )
    if not length.isdecimal():
      raise Refused(HTTPStatus.LENGTH_REQUIRED, "say the Content-Length")
    if len(length) > 12 or int(length) > most:
      raise Refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body has {length[:20]} bytes; send at most {most:,}",
      )
    parts, left, end = [], int(length), time.monotonic() + SECONDS
    while left:
      part = self.rfile.read1(min(left, 1 << 16))
      if not part or time.monotonic() > end:
        raise Refused(HTTPStatus.REQUEST_TIMEOUT, "the body is incomplete")
      parts.append(part)
      left -= len(part)
    return b"".join(parts)

  def send_error(
    self, code: int, message: str | None = None, explain: str | None = None
  ) -> None:
    """Also of what the base class refuses.  The body may not have been read,
    so the connection ends.
    """
    del explain
    self.close_connection = True
    status = HTTPStatus(code)
    self._send(
      status,
      json.dumps(
        {"error": text_lib.clean(message or status.phrase, 500)}
      ).encode(),
    )

  def _send(self, status: HTTPStatus, body: bytes) -> None:
    self.send_response(status)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(body)))
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
      self.send_header("Retry-After", "1")
    if self.close_connection:
      self.send_header("Connection", "close")
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, format: str, *args: Any) -> None:
    logging.debug(
      "%s: %s", self.client_address[0], text_lib.clean(format % args)
    )


def _row(base: local_kb.LocalKB, passage: Passage, scores: bool) -> dict:
  shown = search_api.document(
    passage,
    passage.image
    and os.path.relpath(passage.image, base.content.passages.pictures),
  )
  return dict(document=shown, score=passage.score) if scores else shown


def _serve_anew(server: Server, folder: str) -> None:
  try:
    base = local_kb.open_kb(folder)
  except ValueError as error:
    logging.error("%s  The former passages are served on.", error)
    return
  server.serve(base)
  logging.info("%s: opened anew (%s passages).", folder, f"{len(base):,}")


def main(_) -> None:
  base = local_kb.open_kb(_KB.value)
  try:
    server = Server(base, _HOST.value, _PORT.value)
  except OSError as error:
    raise ValueError(
      f"Cannot listen at {_HOST.value}:{_PORT.value} ({error}).  Choose "
      "another --port, or a --host of this machine."
    ) from error
  if not http_client.is_loopback(server.address):
    logging.warning(
      "%s may be reached from other machines, and there is no "
      "authentication: whoever reaches it may search.",
      server.address,
    )
  signal.signal(
    signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start()
  )
  signal.signal(
    signal.SIGHUP,
    lambda *_: threading.Thread(
      target=_serve_anew, args=(server, _KB.value)
    ).start(),
  )
  print(
    f"Serving {server.kb} ({len(base):,} passages) at {server.address}",
    flush=True,
  )
  server.serve_forever(poll_interval=0.1)
  server.end()


if __name__ == "__main__":
  cli.run(main)
