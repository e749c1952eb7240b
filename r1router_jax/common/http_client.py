"""An HTTP client that asks another process for JSON, and tries again.

A request may take `DEADLINE_SECONDS`, or as long as its client is told, over
all tries; one try may take a third of that.  If nobody answers, the connection
breaks, or the answer means "not now" (status 429 or 5xx), the request is sent
again after pauses that double, since the server may be restarting.  An invalid
answer is asked for again, too, but only until there were `MAX_INVALID_ANSWERS`
of them; a refusal (any other status, also a redirect) is final.

A request that does not succeed ends in a `RemoteServiceError`, which says who
was asked, what came back and what to do.  Answers are untrusted: their sizes
are bounded, and their JSON is read strictly.
"""

import asyncio
import concurrent.futures
import dataclasses
import ipaddress
import itertools
import json
import random
import re
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import httpx
from absl import logging

from r1router_jax.common import row_files
from r1router_jax.common.errors import UserError
from r1router_jax.common.text import sanitize_text

DEADLINE_SECONDS = 120.0  # All tries of a request together.
MAX_INVALID_ANSWERS = 3  # Tries that may bring one.
MAX_IN_FLIGHT = 4  # Requests of one call.
RETRY_PAUSES = 0.2, 5.0  # Seconds of the first pause and of the longest.
MAX_ANSWER_BYTES = 64 << 20
BODY_ERROR_STATUSES = 400, 413, 422  # A request is refused for its body.

_EXCERPT_CHARS = 300  # Of an error's body, shown in a message.
_USER_INFO = re.compile("//.*@")

# A function of (number of the request, its parsed JSON answer).
ParseAnswer = Callable[[int, Any], Any]


class RemoteServiceError(UserError):
  """A remote service failed (status 0), or refused a request with a status."""

  def __init__(self, message: str, status: int = 0):
    super().__init__(message)
    self.status = status


class _RetryLater(Exception):
  """An answer that asks for another try, after `seconds` or later."""

  def __init__(self, reason: str, seconds: float):
    super().__init__(reason)
    self.seconds = seconds


@dataclasses.dataclass(frozen=True)
class _Request:
  """One HTTP request; `number` is its position among those of a call."""

  number: int
  method: str
  url: str
  body: bytes
  parse: ParseAnswer


class JsonHttpClient:
  """A client of the JSON service at one address.

  Args:
    address: "http://host:port" or "https://host", optionally with a path.
    headers: headers of all requests.
    in_flight: requests that one call keeps in flight.
    deadline: seconds of all tries of a request; None for `DEADLINE_SECONDS`.

  Raises:
    UserError: the address is not of that form.
  """

  def __init__(
    self,
    address: str,
    headers: Mapping[str, str] | None = None,
    *,
    in_flight: int = MAX_IN_FLIGHT,
    deadline: float | None = None,
  ):
    self.address, self._in_flight = validate_address(address), in_flight
    self._deadline = DEADLINE_SECONDS if deadline is None else deadline
    # Only a plain body can be bounded while it is read: a small compressed one
    # may expand to any size.
    self._headers = {"Accept-Encoding": "identity"} | dict(headers or {})
    # Made once, since reading all certificates takes time.
    self._trust = ssl.create_default_context()

  def get(self, path: str) -> Any:
    """Return the JSON at `path`, or None if the service has no such path."""
    url = self.address + path
    request = _Request(0, "GET", url, b"", lambda _, found: found)
    try:
      (answer,) = _run_in_thread(self._send_all([request]))
      return answer
    except RemoteServiceError as error:
      if error.status in (404, 405):
        return None
      raise

  def post(
    self,
    path: str,
    bodies: Sequence[Any],
    parse: ParseAnswer,
    on_refused: ParseAnswer | None = None,
  ) -> list[Any]:
    """Send all bodies, some at a time, and return their parsed answers.

    Args:
      path: path below the client's address.
      bodies: values that JSON can hold, one for each request.
      parse: makes the result of an answer, or raises `RowError`.
      on_refused: makes the result of (number, error) for a body that is refused
        with one of `BODY_ERROR_STATUSES`; by default the error is raised.

    Raises:
      RemoteServiceError: one of the requests does not succeed.
    """
    url = self.address + path
    requests = [
      _Request(number, "POST", url, json.dumps(body).encode(), parse)
      for number, body in enumerate(bodies)
    ]
    return _run_in_thread(self._send_all(requests, on_refused))

  async def _send_all(
    self, requests: Sequence[_Request], on_refused: ParseAnswer | None = None
  ) -> list[Any]:
    """Send requests concurrently and return their results in order."""
    slots = asyncio.Semaphore(self._in_flight)

    async def send_one(client, request):
      try:
        async with slots:
          return await self._send_with_retries(client, request)
      except RemoteServiceError as error:
        if on_refused is None or error.status not in BODY_ERROR_STATUSES:
          raise
        return on_refused(request.number, error)

    async with httpx.AsyncClient(
      headers=self._headers,
      verify=self._trust,
      timeout=None,  # `_send_with_retries` limits the time of a try.
      # Requests to this machine use no proxy and no credentials from .netrc.
      trust_env=not is_loopback(self.address),
    ) as client:
      return await asyncio.gather(*(send_one(client, r) for r in requests))

  async def _send_with_retries(
    self, client: httpx.AsyncClient, request: _Request
  ) -> Any:
    """Send a request until it succeeds or must not be tried again."""
    start, backoff = time.monotonic(), RETRY_PAUSES[0]
    deadline = self._deadline
    invalid, cure = 0, "See that it runs and is reached from here"
    for tries in itertools.count(1):
      # Random pauses keep many clients from returning at the same moment.
      pause = backoff * random.uniform(0.5, 1.0)
      limit = min(start + deadline - time.monotonic(), deadline / 3)
      try:
        async with asyncio.timeout(limit):
          return await self._send_once(client, request)
      except row_files.RowError as error:
        invalid += 1
        reason, cure = error.args
      except _RetryLater as answer:
        reason, pause = str(answer), max(pause, answer.seconds)
      except TimeoutError:
        reason = f"no whole answer in {limit:.1f} s"
      except httpx.HTTPError as error:
        reason = f"{type(error).__name__} {error}".strip()

      # Give up if no time is left for the pause and one more try.
      spent = time.monotonic() - start
      if invalid == MAX_INVALID_ANSWERS or spent + pause > 0.9 * deadline:
        tried = f"at try {tries} after {spent:.1f} s"
        raise RemoteServiceError(f"{self.address}: {reason}, {tried}.  {cure}.")
      if tries == 1:
        text = "%s: %s; trying again, for %.0f s."
        logging.warning(text, self.address, reason, deadline)
      await asyncio.sleep(pause)
      backoff = min(2 * backoff, RETRY_PAUSES[1])

  async def _send_once(
    self, client: httpx.AsyncClient, request: _Request
  ) -> Any:
    """Send a request once and return its parsed answer.

    Raises:
      RowError: the answer is invalid.
      _RetryLater: the service asks for another try.
      RemoteServiceError: the service refuses the request.
    """
    kind = {"Content-Type": "application/json"}
    async with client.stream(
      request.method, request.url, content=request.body, headers=kind
    ) as answer:
      status = answer.status_code
      # Of an error's body a message shows only the beginning.
      limit = MAX_ANSWER_BYTES if status == 200 else _EXCERPT_CHARS
      body = await _read_body(answer, limit)
    if status == 200:
      if len(body) > MAX_ANSWER_BYTES:
        fault = f"the answer has more than {MAX_ANSWER_BYTES:,} bytes"
        raise row_files.RowError(fault, "See what it is that answers there")
      return request.parse(request.number, row_files.parse_json(body))

    message = sanitize_text(body.decode(errors="replace"), _EXCERPT_CHARS)
    if status == 429 or status >= 500:
      wait = answer.headers.get("retry-after", "")
      seconds = float(wait) if wait.isdecimal() else 0.0
      raise _RetryLater(f"status {status} ({message})", seconds)
    raise RemoteServiceError(
      f"{request.url} answered with status {status}: {message or '-'}  "
      "See that this is the address of what you want to ask.",
      status,
    )


async def _read_body(answer: httpx.Response, limit: int) -> bytes:
  """Read the body, stopping soon after `limit` bytes if it is longer."""
  # The limit holds while the body comes in, since a body may have no end.
  parts, size = [], 0
  async for part in answer.aiter_raw():
    parts.append(part)
    size += len(part)
    if size > limit:
      break
  return b"".join(parts)


def _run_in_thread(coroutine: Coroutine) -> Any:
  """Run a coroutine in its own thread: a notebook's runs a loop already."""
  result = concurrent.futures.Future()

  def run():
    try:
      result.set_result(asyncio.run(coroutine))
    except BaseException as error:
      # Raised again in the caller's thread, by `result()`.
      result.set_exception(error)

  # A daemon, so that Ctrl-C need not wait for the thread.
  threading.Thread(target=run, daemon=True).start()
  return result.result()


def validate_address(address: str) -> str:
  """Return the address without a slash at its end.

  Raises:
    UserError: the address is not http or https, or has more than a path.
  """
  try:
    parts = urllib.parse.urlsplit(address)
    # `hostname` and `port` raise UserError if they are bad.
    good = (
      parts.scheme in ("http", "https")
      and parts.hostname
      and parts.port != 0
      and address.isprintable()
      and " " not in address
    )
  except ValueError:
    good = False
  if not good or parts.username or parts.query or parts.fragment:
    # A password, if there is one, is not shown.
    shown = _USER_INFO.sub("//...@", sanitize_text(address, 200))
    raise UserError(
      f"{shown!r} is no address.  Write http://host:port, or "
      "https://host/path, and no name or password."
    )
  return address.rstrip("/")


def is_loopback(address: str) -> bool:
  """Return whether an address names this machine."""
  host = urllib.parse.urlsplit(address).hostname or ""
  try:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False
