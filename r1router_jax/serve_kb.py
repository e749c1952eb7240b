"""Serves one knowledge base to other processes over HTTP.

  python -m r1router_jax.serve_kb --kb_dir=runs/kb --kind=text --port=8000

Other commands search it with --kb_dir=text=http://127.0.0.1:8000,..., and so
does any client of Search-R1's retrieval server; retrieval/search_api.py
describes requests and responses.  Beside a run that needs the accelerator,
start the server with JAX_PLATFORMS=cpu.

Requests are untrusted: their sizes are bounded, and an invalid one gets
{"error": ...} and a status of 4xx.  `MAX_SEARCHES` searches run at a time; a
request that has waited a second for its turn gets 503 and may be sent again.
There is no authentication: anyone who reaches the port may search.

SIGHUP opens the folder again, for instance after build_kb, while the former
passages are still searched.  SIGTERM ends the server after the searches that
are under way.
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
from etils import epy

from r1router_jax.common import cli, http_client, images, shared_flags
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS, Passage, Query
from r1router_jax.common.text import sanitize_text
from r1router_jax.retrieval import kb_meta, search_api
from r1router_jax.retrieval.search_api import RequestError

# This needs JAX; without it, flags can be checked at once.
with epy.lazy_imports():
  from r1router_jax.retrieval import local_kb

_KB_DIR = shared_flags.define_flag(
  "kb_dir",
  help="Folder of the knowledge bases, as build_kb wrote it, or without --kind "
  "the folder of a single one.",
)
_KEY_ADDRESS = shared_flags.define_flag("key_address")
_KIND = flags.DEFINE_enum(
  "kind", None, KBS, "Kind of the knowledge base.", allow_override=True
)
_PORT = flags.DEFINE_integer(
  "port", 8000, "Port; 0 takes a free one.", lower_bound=0, upper_bound=65535
)
_HOST = flags.DEFINE_string(
  "host",
  "127.0.0.1",
  "Address to listen at.  Any but a loopback address lets other machines "
  "search: there is no authentication.",
)

MAX_CONNECTIONS = 32  # Open at a time.
MAX_SEARCHES = 4  # Running at a time.
QUEUE_SECONDS = 1.0  # That a request waits for one of these searches to end.
BODY_SECONDS = 10.0  # To receive or to send a body.
_READ_BYTES = 1 << 16  # Of a body, at a time.


class SearchServer(http.server.ThreadingHTTPServer):
  """An HTTP server that searches a knowledge base.

  `serve_forever` answers each connection in a thread.  `address` is
  http://host:port; a port of 0 takes a free one.
  """

  request_queue_size = 128
  # Unlike HTTPServer's, this does not look up the name of the host, which can
  # take long.
  server_bind = socketserver.TCPServer.server_bind

  def __init__(self, kb: "local_kb.LocalKB", host: str, port: int):
    super().__init__((host, port), RequestHandler)
    self.set_kb(kb)
    self.address = "http://{}:{}".format(*self.server_address)
    # Connections wait for slots, so there are more of them.
    self._searches = threading.Semaphore(MAX_SEARCHES)
    self._connections = threading.Semaphore(MAX_CONNECTIONS)
    # Images of queries, least recently used first.
    self._image_lock = threading.Lock()
    self._image_folder = tempfile.TemporaryDirectory(prefix="serve_kb-")
    self._image_paths = collections.OrderedDict()

  def set_kb(self, kb: "local_kb.LocalKB") -> None:
    """Search `kb` from the next request on."""
    # One assignment, so that no thread sees the one without the other.
    self._served = kb, search_api.describe_kb(kb.meta)

  @property
  def health(self) -> dict[str, Any]:
    """Return the response to GET /health."""
    return self._served[1]

  @property
  def kind(self) -> str:
    """Return the kind of the knowledge base."""
    return self.health["kb"]

  def process_request(self, request: Any, client_address: Any) -> None:
    """Answer a connection, or close it if there are too many."""
    if self._connections.acquire(blocking=False):
      super().process_request(request, client_address)
    else:
      # A client whose connection ends before a response tries again.
      self.shutdown_request(request)

  def process_request_thread(self, request: Any, client_address: Any) -> None:
    """Answer a connection in a thread of its own."""
    try:
      super().process_request_thread(request, client_address)
    finally:
      self._connections.release()

  def handle_error(self, request: Any, client_address: Any) -> None:
    """Log a connection that broke off."""
    logging.debug("%s: broken off", client_address, exc_info=True)

  @contextlib.contextmanager
  def search_slot(self) -> Iterator[None]:
    """Hold a slot; raise a RequestError if none is free in `QUEUE_SECONDS`."""
    if not self._searches.acquire(timeout=QUEUE_SECONDS):
      message = f"{MAX_SEARCHES} searches are under way; ask again"
      raise RequestError(message, HTTPStatus.SERVICE_UNAVAILABLE)
    try:
      yield
    finally:
      self._searches.release()

  def search(self, request: search_api.SearchRequest) -> bytes:
    """Return the body of the response.

    Raises a RequestError if an image is bad, or the response would be too long.
    """
    # 1. Search.  A new knowledge base does not change a request under way.
    kb, health = self._served
    queries = [
      Query(text, self._store_image(image) if image else "")
      for text, image in zip(request.texts, request.images, strict=True)
    ]
    try:
      found = kb.search(queries, request.k) if queries else []
    except images.BadImage as error:
      # The client has no business with paths of this machine.
      reason = str(error).replace(self._image_folder.name + os.sep, "")
      raise RequestError(f'"images": {reason}') from None

    # 2. Encode the passages query by query, and stop when it is too long.
    num_bytes, parts, limit = 0, [], http_client.MAX_ANSWER_BYTES
    for passages in found:
      rows = [_make_row(kb, passage, request) for passage in passages]
      parts.append(json.dumps(rows))
      num_bytes += len(parts[-1])
      if num_bytes > limit:
        raise RequestError(
          f"the answer would have more than {limit:,} bytes: "
          'send fewer "queries", or a smaller "topk"',
          HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )
    # 3. Put the encoded parts together, which need not be parsed again.
    result, version = ", ".join(parts), health["version"]
    return f'{{"result": [{result}], "version": "{version}"}}'.encode()

  def _store_image(self, image: bytes) -> str:
    """Write the image of a query to a file and return its path."""
    # Named by the content, so that the same image makes the same query.
    digest = hashlib.sha256(image).hexdigest()
    path = os.path.join(self._image_folder.name, digest)
    with self._image_lock:
      if path not in self._image_paths:
        with open(path, "wb") as file:
          file.write(image)
      self._image_paths[path] = None
      self._image_paths.move_to_end(path)
      # Twice as many are kept as the searches that run at a time can need.
      if len(self._image_paths) > 2 * MAX_SEARCHES * search_api.MAX_IMAGES:
        os.remove(self._image_paths.popitem(last=False)[0])
    return path

  def wait_and_close(self) -> None:
    """Wait for the searches under way, then close the server."""
    # With all slots taken, no search is under way.
    for _ in range(MAX_SEARCHES):
      self._searches.acquire(timeout=BODY_SECONDS)
    self.server_close()
    self._image_folder.cleanup()


class RequestHandler(http.server.BaseHTTPRequestHandler):
  """The handler of the requests of one connection."""

  server: SearchServer
  protocol_version = "HTTP/1.1"  # A connection serves several requests.
  server_version, sys_version = "r1router_jax", ""
  timeout = BODY_SECONDS

  def do_GET(self) -> None:
    """Answer GET /health."""
    # Other programs use this to see whether the server is up.
    if self.path == "/health":
      self._send_json(HTTPStatus.OK, json.dumps(self.server.health).encode())
    else:
      self.send_error(404, "there are GET /health and POST /retrieve")

  def do_POST(self) -> None:
    """Answer POST /retrieve."""
    try:
      if self.path != "/retrieve":
        raise RequestError("there is POST /retrieve", HTTPStatus.NOT_FOUND)
      # A slow client sends its body before it takes a slot.
      body = self._read_body()
      with self.server.search_slot():
        self._send_json(HTTPStatus.OK, self._search_body(body))
    except RequestError as error:
      self.send_error(error.status, str(error))

  def _search_body(self, body: bytes) -> bytes:
    """Return the body of a response; raise nothing but a RequestError."""
    try:
      request = search_api.parse_request(body, self.server.kind)
      return self.server.search(request)
    except RequestError:
      raise
    except Exception:  # No request may end the server.
      logging.exception("A search failed.")
      message = "the search failed; the server's log says why"
      status = HTTPStatus.INTERNAL_SERVER_ERROR
      raise RequestError(message, status) from None

  def _read_body(self) -> bytes:
    """Return the body of the request, which has the length that it declares.

    Raises a RequestError if the length is missing or too large, or the body
    does not arrive in `BODY_SECONDS`.
    """
    length = self.headers.get("Content-Length", "")
    max_bytes = search_api.MAX_BODY_BYTES
    if self.server.kind == "image":
      max_bytes = search_api.MAX_IMAGE_BODY_BYTES
    if not length.isdecimal():
      raise RequestError("say the Content-Length", HTTPStatus.LENGTH_REQUIRED)
    # int() of a very long number would take long.
    if len(length) > 12 or int(length) > max_bytes:
      message = f"the body has {length[:20]} bytes; send at most {max_bytes:,}"
      raise RequestError(message, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

    # The time-out of the socket holds for each read, so a client that sends a
    # byte now and then needs a limit of its own.
    parts, missing = [], int(length)
    deadline = time.monotonic() + BODY_SECONDS
    while missing:
      part = self.rfile.read1(min(missing, _READ_BYTES))
      if not part or time.monotonic() > deadline:
        raise RequestError("the body is incomplete", HTTPStatus.REQUEST_TIMEOUT)
      parts.append(part)
      missing -= len(part)
    return b"".join(parts)

  def send_error(
    self, code: int, message: str | None = None, explain: str | None = None
  ) -> None:
    """Send an error as JSON; the base class calls this, too."""
    del explain
    # The body may be unread, and would be taken for the next request.
    self.close_connection = True
    status = HTTPStatus(code)
    error = {"error": sanitize_text(message or status.phrase, 500)}
    self._send_json(status, json.dumps(error).encode())

  def _send_json(self, status: HTTPStatus, body: bytes) -> None:
    """Send a response."""
    self.send_response(status)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(body)))
    # Clients of this package wait that many seconds.
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
      self.send_header("Retry-After", "1")
    if self.close_connection:
      self.send_header("Connection", "close")
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, format: str, *args: Any) -> None:
    """Log a request, which the base class would print."""
    text = sanitize_text(format % args)
    logging.debug("%s: %s", self.client_address[0], text)


def _make_row(
  kb: "local_kb.LocalKB", passage: Passage, request: search_api.SearchRequest
) -> dict:
  """Return a passage as a row of the response."""
  # Absolute paths would reveal the disk of this machine.
  image = ""
  if passage.image:
    image = os.path.relpath(passage.image, kb.stack.passages.image_folder)
  document = search_api.to_document(passage, image)
  scored = {"document": document, "score": passage.score}
  return scored if request.with_scores else document


def find_kb_folder(kb_dir: str, kind: str | None) -> str:
  """Return the folder of the knowledge base to serve.

  Without `kind` it is that of the single one.  Raises a UserError if there is
  no finished knowledge base, or `kind` is missing.
  """
  # Checked from meta.json alone, before anything is imported.
  folder = os.path.join(kb_dir, kind) if kind else kb_dir
  if not kind and kb_meta.read_meta(folder) is None:
    if any(kb_meta.read_meta(os.path.join(folder, name)) for name in KBS):
      message = "holds knowledge bases by kind.  Say which, as in --kind=text."
      raise UserError(f"{kb_dir} {message}")
  kb_meta.read_finished_meta(folder)
  return folder


def _reload_kb(server: SearchServer, folder: str) -> None:
  """Open the folder again; keep the former passages if that fails."""
  try:
    kb = local_kb.open_kb(folder)
  except ValueError as error:
    logging.error("%s  The former passages are served on.", error)
    return
  server.set_kb(kb)
  logging.info("%s: opened anew (%s passages).", folder, f"{len(kb):,}")


def _handle_signals(server: SearchServer, folder: str) -> None:
  """Make SIGTERM end the server, and SIGHUP open the folder again.

  Both run in threads: a handler interrupts the loop that `shutdown` waits for.
  """

  def handle_signal(number: int, _: object) -> None:
    target, args = _reload_kb, (server, folder)
    if number == signal.SIGTERM:
      target, args = server.shutdown, ()
    threading.Thread(target=target, args=args).start()

  signal.signal(signal.SIGTERM, handle_signal)
  signal.signal(signal.SIGHUP, handle_signal)


def main(_) -> None:
  """Serve until SIGTERM comes."""
  folder = find_kb_folder(_KB_DIR.value, _KIND.value)
  http_client.allow_key(_KEY_ADDRESS.value)
  kb = local_kb.open_kb(folder)
  # Opened before the port, so that a client never meets an empty server.
  try:
    server = SearchServer(kb, _HOST.value, _PORT.value)
  except OSError as error:
    raise UserError(
      f"Cannot listen at {_HOST.value}:{_PORT.value} ({error}).  Choose "
      "another --port, or a --host of this machine."
    ) from error
  if not http_client.is_loopback(server.address):
    logging.warning(
      "%s may be reached from other machines, and there is no "
      "authentication: whoever reaches it may search.",
      server.address,
    )
  _handle_signals(server, folder)
  # A program that starts the server reads the address from this line.
  what = f"{server.kind} ({len(kb):,} passages)"
  print(f"Serving {what} at {server.address}", flush=True)
  server.serve_forever(poll_interval=0.1)
  server.wait_and_close()


if __name__ == "__main__":
  cli.run(main)
