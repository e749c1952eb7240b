"""Serves one knowledge base to other processes over HTTP.

  python -m r1router_jax.serve_kb --kb_dir=runs/kb --kind=text --port=8000

Other commands search it with --kb_dir=text=http://127.0.0.1:8000,..., and so
does any client of Search-R1's retrieval server; retrieval/search_api.py
describes requests and responses.  Beside a run that needs the accelerator,
start the server with JAX_PLATFORMS=cpu.

Requests are untrusted: their sizes and times are bounded, and an invalid one
gets {"error": ...} and a status of 4xx.  Those that wait are searched together,
see retrieval/search_queue.py; one for which there is no room gets 503 at once.
There is no authentication: anyone who reaches the port may search, but no page
of a browser may.

SIGHUP opens the folder again, while the former passages are still searched.
SIGTERM ends the server after the searches that are under way.
"""

import asyncio
import concurrent.futures
import json
import os
import signal
import socket
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from absl import flags, logging
from etils import epy
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http import h11_impl

from r1router_jax.common import cli, http_client, shared_flags
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS, Query
from r1router_jax.common.text import sanitize_text
from r1router_jax.retrieval import kb_meta, search_api

# These need JAX; without it, flags can be checked at once.
with epy.lazy_imports():
  from r1router_jax.retrieval import local_kb, search_queue

_KB_DIR = shared_flags.define_flag(
  "kb_dir",
  help="Folder of the knowledge bases, as build_kb wrote it, or without --kind "
  "the folder of a single one.",
)
_KB_ADDRESSES = shared_flags.define_flag("kb_addresses")
_KIND_HELP = "Kind of the knowledge base."
_KIND = flags.DEFINE_enum("kind", None, KBS, _KIND_HELP, allow_override=True)
_PORT = flags.DEFINE_integer(
  "port", 8000, "Port; 0 takes a free one.", lower_bound=0, upper_bound=65535
)
_HOST_HELP = "Address; any but a loopback one lets other machines search, as "
_HOST_HELP += "there is no authentication."
_HOST = flags.DEFINE_string("host", "127.0.0.1", _HOST_HELP)

# Connections beyond these end the one that is idle for the longest time.  A
# process may usually have 1,024 files open.
MAX_CONNECTIONS = 800
IDLE_SECONDS = 10.0  # Until the head of a connection's next request is there.
BODY_SECONDS = 10.0  # To receive or to send a body.
MAX_HELD_BYTES = 256 << 20  # Of requests and answers, all together.
_CLOSE = {"Connection": "close"}  # Of an answer, after which no request comes.


class BoundedConnection(h11_impl.H11Protocol):
  """A connection that waits only some seconds for a head, or for a reader.

  uvicorn has no limit of its own for these.
  """

  def connection_made(self, transport: asyncio.Transport) -> None:
    """Begin to wait for a request, and make room if there are too many."""
    idle = [other for other in self.connections if other.is_idle]
    super().connection_made(transport)
    self._wait_for_request()
    if len(self.connections) > MAX_CONNECTIONS and idle:
      min(idle, key=lambda other: other.idle_since).transport.abort()

  @property
  def is_idle(self) -> bool:
    """Return whether no request is under way."""
    return self.cycle is None or self.cycle.response_complete

  def _wait_for_request(self) -> None:
    self.idle_since = self.loop.time()
    self._idle_timer = self.loop.call_later(IDLE_SECONDS, self._end_if_idle)

  def _end_if_idle(self) -> None:
    # Bytes of half a head, or of a body that nobody wants, are no request.
    if self.is_idle:
      self.transport.abort()

  def on_response_complete(self) -> None:
    """Wait for the next request."""
    self._idle_timer.cancel()
    self._wait_for_request()
    super().on_response_complete()

  def pause_writing(self) -> None:
    """Wait for the peer to read its answer."""
    super().pause_writing()
    abort = self.transport.abort
    self._write_timer = self.loop.call_later(BODY_SECONDS, abort)

  def resume_writing(self) -> None:
    """Go on sending."""
    super().resume_writing()
    self._write_timer.cancel()

  def send_400_response(self, msg: str) -> None:
    """Answer what is no HTTP, unless an answer was sent before."""
    if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
      body = json.dumps({"error": msg}).encode()
      self.transport.write(
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
      )
    self.transport.close()


class SearchServer:
  """An HTTP server, at `address`, that searches a knowledge base."""

  def __init__(self, kb: "local_kb.LocalKB", host: str, port: int):
    # Who connects from here on is answered by `run`.
    self._socket = socket.create_server((host, port), backlog=1024)
    # Else the body of an answer may wait 40 ms for its head to be confirmed.
    self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self._host = host
    self.address = "http://{}:{}".format(*self._socket.getsockname()[:2])
    self._queue = search_queue.SearchQueue()
    self._num_read_bytes = 0  # Of bodies that are not complete.
    self.set_kb(kb)
    health = Route("/health", self._answer_health)
    search = Route("/retrieve", self._answer_search, methods=["POST"])
    handlers = {HTTPException: _send_error, Exception: _send_error}
    self._app = Starlette(routes=[health, search], exception_handlers=handlers)
    self._app.router.redirect_slashes = False
    # Of the event loops and parsers that may be installed, these.
    options = dict(loop="asyncio", http=BoundedConnection, ws="none")
    # Peers may cause warnings at will.
    options |= dict(log_config=None, log_level="error", access_log=False)
    options |= dict(lifespan="off", timeout_keep_alive=round(IDLE_SECONDS))
    options |= dict(proxy_headers=False, server_header=False)
    options |= dict(interface="asgi3")  # It does not recognise a method.
    names = {"Server": "r1router_jax", "X-Content-Type-Options": "nosniff"}
    headers = list(names.items())
    config = uvicorn.Config(self._answer, **options, headers=headers)
    self._server = uvicorn.Server(config)

  def set_kb(self, kb: "local_kb.LocalKB") -> None:
    """Search `kb` from the next request on."""
    # One assignment, so that no request sees the one without the other.
    index_name = type(kb.stack.index).__name__
    self._served = kb, search_api.describe_kb(kb.meta, index_name)

  @property
  def health(self) -> dict[str, Any]:
    """Return the response to GET /health."""
    return self._served[1]

  def run(self) -> None:
    """Answer requests until `stop` is called, and those under way then."""
    self._server.run(sockets=[self._socket])

  def stop(self) -> None:
    """Make `run` end; called by another thread or a signal."""
    self._server.should_exit = True

  async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request, whose headers are checked whatever it asks for."""
    answer = self._app
    try:
      self._check_headers(Headers(scope=scope))
    except HTTPException as error:
      answer = _send_error(Request(scope), error)
    await answer(scope, receive, send)

  async def _answer_health(self, request: Request) -> Response:
    """Answer GET /health."""
    return JSONResponse(self.health)

  async def _answer_search(self, request: Request) -> Response:
    """Answer POST /retrieve."""
    # A new knowledge base does not change a request under way.
    kb, health = self._served
    body = await self._read_body(request)
    try:
      search = search_api.parse_request(body, health["kb"])
    except UserError as error:
      raise HTTPException(HTTPStatus.BAD_REQUEST, str(error)) from None
    # Who does not wait any more is not searched for.
    found = asyncio.create_task(self._queue.search(kb, search, len(body)))
    gone = asyncio.create_task(request.receive())
    await asyncio.wait((found, gone), return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if not found.done():
      found.cancel()
      raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, "the client has gone")
    version = health["version"].encode()
    answer = b'{"result":%b,"version":"%b"}' % (found.result(), version)
    return Response(answer, media_type="application/json")

  async def _read_body(self, request: Request) -> bytes:
    """Return the body of a request, or raise an HTTPException for its size."""
    # 1. h11 has checked the length.
    length = request.headers.get("content-length")
    max_bytes = search_api.MAX_BODY_BYTES
    if self.health["kb"] == "image":
      max_bytes = search_api.MAX_IMAGE_BODY_BYTES
    if length is None:
      raise HTTPException(HTTPStatus.LENGTH_REQUIRED, "say the Content-Length")
    if int(length) > max_bytes:
      message = f"the body has {length} bytes; send at most {max_bytes:,}"
      raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)

    # 2. Bytes count from when they are here, so that nobody reserves room.
    parts = []
    try:
      async with asyncio.timeout(BODY_SECONDS):
        async for part in request.stream():
          self._check_memory()
          parts.append(part)
          self._num_read_bytes += len(part)
    except (TimeoutError, ClientDisconnect):
      status = HTTPStatus.REQUEST_TIMEOUT
      raise HTTPException(status, "the body is incomplete", _CLOSE) from None
    finally:
      self._num_read_bytes -= sum(map(len, parts))
    return b"".join(parts)

  def _check_memory(self) -> None:
    """Raise an HTTPException if requests and answers take too much memory."""
    peers = (each.transport for each in self._server.server_state.connections)
    num_unsent = sum(peer.get_write_buffer_size() for peer in peers)
    num_bytes = self._num_read_bytes + self._queue.num_bytes + num_unsent
    if num_bytes > MAX_HELD_BYTES:
      raise search_queue.busy_error("too many requests are under way")

  def _check_headers(self, headers: Headers) -> None:
    """Raise an HTTPException if a page of a browser may have sent a request.

    Such a page may make the browser look up its own name as 127.0.0.1.  Nor may
    a proxy have read another end of the body than this server.
    """
    if "content-length" in headers and "transfer-encoding" in headers:
      message = "send a Content-Length or a Transfer-Encoding, not both"
      raise HTTPException(HTTPStatus.BAD_REQUEST, message, _CLOSE)
    if "origin" in headers:
      message = "pages of browsers may not search; send no Origin"
      raise HTTPException(HTTPStatus.FORBIDDEN, message)
    host = headers.get("host", self._host)
    is_local = http_client.is_loopback(self.address)
    if is_local and not http_client.is_loopback(f"http://{host}"):
      if host.rpartition(":")[0] != self._host:
        message = f"this is no server of {host}; ask {self.address}"
        raise HTTPException(HTTPStatus.MISDIRECTED_REQUEST, message)


def _send_error(_: Request, error: Exception) -> JSONResponse:
  """Return the response for an error; uvicorn logs all but an HTTPException."""
  if not isinstance(error, HTTPException):
    message = "the request failed; the server's log says why"
    error = HTTPException(HTTPStatus.INTERNAL_SERVER_ERROR, message)
  content = {"error": sanitize_text(error.detail, 500)}
  return JSONResponse(content, error.status_code, error.headers)


def find_kb_folder(kb_dir: str, kind: str | None) -> str:
  """Return the folder of the knowledge base to serve.

  Raises a UserError if it is not finished, or there are several and no `kind`.
  """
  # Checked from meta.json alone, before anything is imported.
  folder = os.path.join(kb_dir, kind) if kind else kb_dir
  if not kind and kb_meta.read_meta(folder) is None:
    if any(kb_meta.read_meta(os.path.join(folder, name)) for name in KBS):
      message = "holds knowledge bases by kind.  Say which, as in --kind=text."
      raise UserError(f"{kb_dir} {message}")
  kb_meta.read_finished_meta(folder)
  return folder


def _open_kb(folder: str) -> "local_kb.LocalKB":
  """Open a knowledge base, and search it once."""
  kb = local_kb.open_kb(folder)
  # This compiles a search, and finds damage that files do not show.
  kb.search([Query("probe")], 1)
  return kb


def reload_kb(server: SearchServer, folder: str) -> None:
  """Serve the folder's present knowledge base, or the former if it is bad."""
  try:
    kb = _open_kb(folder)
    kind = kb.meta["kb"]
    if kind != server.health["kb"]:
      message = f"{folder} holds the {kind} knowledge base now."
      raise UserError(f"{message}  Serve it by a server of its own.")
    server.set_kb(kb)
    logging.info("%s: opened anew (%s passages).", folder, f"{len(kb):,}")
  except Exception as error:
    # Damaged files raise whatever their readers do; the server must live.
    text = "%s: %s: %s  The former passages are served on."
    logging.error(text, folder, type(error).__name__, error)
    logging.debug("Its traceback:", exc_info=True)


def _handle_signals(server: SearchServer, folder: str) -> None:
  """Make SIGTERM end the server, and SIGHUP open the folder again."""
  # A handler interrupts the event loop, so another thread does the work; there
  # is one alone, so that the last reload counts.
  thread = concurrent.futures.ThreadPoolExecutor(1)
  reload = reload_kb, server, folder
  signal.signal(signal.SIGHUP, lambda *_: thread.submit(*reload))
  # uvicorn handles SIGTERM alike while it runs, and raises it when it has
  # ended; this handler is for the time before and after.
  signal.signal(signal.SIGTERM, lambda *_: server.stop())


def main(_) -> None:
  """Serve until SIGTERM comes."""
  folder = find_kb_folder(_KB_DIR.value, _KIND.value)
  http_client.allow_addresses(_KB_ADDRESSES.value)
  # Opened before the port, so that a client never meets an empty server.
  kb = _open_kb(folder)
  try:
    server = SearchServer(kb, _HOST.value, _PORT.value)
  except OSError as error:
    fault = f"Cannot listen at {_HOST.value}:{_PORT.value} ({error})"
    cure = "Choose another --port, or a --host of this machine."
    raise UserError(f"{fault}.  {cure}") from error
  if not http_client.is_loopback(server.address):
    text = "Other machines may reach %s and search: there is no authentication."
    logging.warning(text, server.address)
  _handle_signals(server, folder)
  # A program that starts the server reads the address from this line.
  what = f"{server.health['kb']} ({len(kb):,} passages)"
  print(f"Serving {what} at {server.address}", flush=True)
  server.run()


if __name__ == "__main__":
  cli.run(main)
