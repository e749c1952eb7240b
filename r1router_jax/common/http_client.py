"""An HTTP client that asks another process for JSON, and tries again.

Without an answer, or after one that means "not now" (status 429 or 5xx), a
request is sent again after random pauses that grow, and up to
`MAX_UNUSABLE_ANSWERS` times after an unusable one; any other status is final.
The time of a try, and of all tries, counts from the server's last answer to the
same call, as it may answer one request after another; a try without an answer
halves the requests in flight.

A request that does not succeed ends in a `RemoteServiceError`.  Answers are
untrusted: their sizes are bounded, and msgspec checks their types.
"""

import asyncio
import dataclasses
import ipaddress
import json
import os
import re
import ssl
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import anyio
import anyio.from_thread
import httpx
import msgspec
import tenacity
from absl import logging

from r1router_jax.common.errors import UserError
from r1router_jax.common.text import mend_json, sanitize_text

DEADLINE_SECONDS = 120.0  # Of all tries of a request; one may take a third.
MAX_UNUSABLE_ANSWERS = 3  # Tries of a request that may bring one.
MAX_IN_FLIGHT = 4  # Requests of one call.
RETRY_PAUSES = 0.2, 5.0  # Seconds of the shortest pause and of the longest.
MAX_ANSWER_BYTES = 64 << 20  # Of any answer, whatever was asked for.
# A request is answered, but unusably; or it is refused for its body.
UNUSABLE, BODY_ERROR_STATUSES = 200, (400, 413, 422)

API_KEY_VARIABLE = "OPENAI_API_KEY"

_EXCERPT_CHARS = 300  # Of an error's body, shown in a message.
_USER_INFO = re.compile("//.*@")

# Places that `allow_addresses` was given.
_allowed_places: set[str] = set()

# A function of (number of the request, its decoded answer).
ParseAnswer = Callable[[int, Any], Any]


class RemoteServiceError(UserError):
  """A remote service failed.

  The status is that of a refusal, `UNUSABLE` after answers, or 0.
  """

  def __init__(self, message: str, status: int = 0):
    super().__init__(message)
    self.status = status


class _FailedTry(Exception):
  """The reason why a request is sent again, after `seconds` or later."""

  def __init__(self, reason: str, seconds: float = 0.0):
    super().__init__(reason)
    self.seconds = seconds


class UnusableAnswer(_FailedTry):
  """The reason why an answer is not what was asked for."""


class JsonHttpClient:
  """A client of the JSON service at one address, see `validate_address`.

  Messages call it `service`, as in "a chat model".  A call keeps `in_flight`
  requests in flight; `deadline` is the seconds of all tries of a POST, None for
  `DEADLINE_SECONDS`.
  """

  def __init__(
    self,
    address: str,
    service: str,
    headers: Mapping[str, str] | None = None,
    *,
    in_flight: int = MAX_IN_FLIGHT,
    deadline: float | None = None,
  ):
    self.address, self.service = validate_address(address), service
    self.in_flight = in_flight
    self.deadline = DEADLINE_SECONDS if deadline is None else deadline
    # A small compressed body may expand to any size, so none is asked for.
    plain = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
    self.options = dict(
      headers=plain | dict(headers or {}),
      # Made once, since reading all certificates takes time.
      verify=ssl.create_default_context(),
      timeout=None,  # `_Call` limits a try as a whole.
      # Requests to this machine use no proxy and no credentials from .netrc.
      trust_env=not is_loopback(address),
    )

  def get(self, path: str, max_bytes: int) -> Any:
    """Return the JSON at `path`, or None if the service has no such path."""
    # What a server says of itself needs no time, so the deadline is never long.
    deadline = min(self.deadline, DEADLINE_SECONDS)
    call = _Call(self, "GET", path, deadline, max_bytes, keep_errors=(404, 405))
    (found,) = call.run([b""])
    return None if isinstance(found, RemoteServiceError) else found

  def post(
    self,
    path: str,
    bodies: Sequence[Any],
    schema: Any,
    parse: ParseAnswer,
    *,
    max_bytes: int,
    keep_errors: Sequence[int] = (),
  ) -> list[Any]:
    """Send all bodies, some at a time, and return their parsed answers.

    An answer of at most `max_bytes` and of the type `schema` is parsed, and
    `parse` may raise `UnusableAnswer`.  A RemoteServiceError with a status of
    `keep_errors` is the result of its request; others are raised.
    """
    most = min(max_bytes, MAX_ANSWER_BYTES)
    request = self, "POST", path, self.deadline, most
    call = _Call(*request, schema, parse, keep_errors)
    return call.run([json.dumps(body).encode() for body in bodies])


@dataclasses.dataclass
class _Call:
  """Requests that are sent together, see `JsonHttpClient.post`."""

  client: JsonHttpClient
  method: str
  path: str
  deadline: float
  max_bytes: int
  schema: Any = Any
  parse: ParseAnswer = lambda _, answer: answer
  keep_errors: Sequence[int] = ()

  def __post_init__(self):
    self._slots = anyio.CapacityLimiter(self.client.in_flight)
    # What the requests know of their server, see `_note_answer`.
    self._last_answer = time.monotonic()
    self._timers: set[asyncio.Timeout] = set()

  def run(self, bodies: Sequence[bytes]) -> list[Any]:
    """Send the bodies concurrently and return their results in order."""

    async def send_all() -> list[Any]:
      async with httpx.AsyncClient(**self.client.options) as self._http:
        sent = [self._send(number, body) for number, body in enumerate(bodies)]
        return await asyncio.gather(*sent)

    # A thread of its own: a notebook's thread runs an event loop already.
    with anyio.from_thread.start_blocking_portal() as portal:
      return portal.call(send_all)

  async def _send(self, number: int, body: bytes) -> Any:
    """Send a request until it succeeds or must not be tried again."""
    start, num_unusable = time.monotonic(), 0
    low, high = RETRY_PAUSES
    # Random pauses keep many clients from returning at the same moment.
    backoff = tenacity.wait_random_exponential(2 * low, high, min=low)

    def is_over(state: tenacity.RetryCallState) -> bool:
      nonlocal num_unusable
      fault = state.outcome.exception()
      num_unusable += isinstance(fault, UnusableAnswer)
      if state.attempt_number == 1:
        logging.warning("%s: %s, at try 1.", self.client.address, fault)
      # Give up if no time is left for the pause and one more try.
      left = self._seconds_left(start) - state.upcoming_sleep
      return num_unusable == MAX_UNUSABLE_ANSWERS or left < 0.1 * self.deadline

    retry = tenacity.AsyncRetrying(
      retry=tenacity.retry_if_exception_type(_FailedTry),
      wait=lambda s: max(backoff(s), s.outcome.exception().seconds),
      stop=is_over,
      retry_error_callback=self._give_up,
    )
    try:
      return await retry(self._try_once, number, body, start)
    except RemoteServiceError as error:
      if error.status in self.keep_errors:
        return error
      raise

  async def _try_once(self, number: int, body: bytes, start: float) -> Any:
    """Send a request once and return its parsed answer.

    Raises a _FailedTry for no answer, an unusable one, or one that asks to
    wait, and a RemoteServiceError for a refusal.
    """
    async with self._slots:
      in_flight = self._slots.total_tokens
      limit = min(self.deadline / 3, self._seconds_left(start))
      try:
        async with asyncio.timeout(limit) as timer:
          self._timers.add(timer)
          found = await self._exchange(body)
      except TimeoutError:
        # Those that began together time out together, and halve it once.
        fewer = min(self._slots.total_tokens, in_flight // 2)
        self._slots.total_tokens = max(1, fewer)
        raise _FailedTry(f"no whole answer in {limit:.1f} s") from None
      except httpx.HTTPError as error:
        raise _FailedTry(f"{type(error).__name__} {error}".strip()) from None
      finally:
        self._timers.discard(timer)
    self._note_answer()
    return self.parse(number, self._decode(found))

  async def _exchange(self, body: bytes) -> bytes:
    """Send a body once and return that of the answer."""
    url = self.client.address + self.path
    async with self._http.stream(self.method, url, content=body) as answer:
      status, headers, found = answer.status_code, answer.headers, bytearray()
      # Of an error's body a message shows only the beginning.
      limit = self.max_bytes if status == 200 else _EXCERPT_CHARS
      async for part in answer.aiter_raw():
        found += part
        if len(found) > limit:  # A body may have no end.
          break
    if status == 200:
      if len(found) > limit:
        raise UnusableAnswer(f"the answer has more than {limit:,} bytes")
      coding = headers.get("content-encoding", "identity")
      if coding != "identity":
        raise UnusableAnswer(f"the answer is compressed ({coding!a:.40})")
      return bytes(found)

    reason = sanitize_text(found.decode(errors="replace"), _EXCERPT_CHARS)
    if status == 429 or status >= 500:
      wait = headers.get("retry-after", "")
      seconds = float(wait) if wait.isdecimal() else 0.0
      raise _FailedTry(f"status {status} ({reason})", seconds)
    cure = "See that this is the address of what you want to ask."
    if status in (401, 403):
      cure = f"Set {API_KEY_VARIABLE} to its key."
    fault = f"{url} answered with status {status}: {reason or '-'}"
    raise RemoteServiceError(f"{fault}  {cure}", status)

  def _decode(self, body: bytes) -> Any:
    """Return the value of a JSON body, with whole characters alone."""
    body = mend_json(body, self.client.address)
    try:
      return msgspec.json.decode(body, type=self.schema)
    except (msgspec.DecodeError, RecursionError) as error:
      raise UnusableAnswer(f"the answer cannot be read: {error}") from None

  def _note_answer(self) -> None:
    """Let all requests in flight wait longer: the server is at work."""
    self._last_answer = time.monotonic()
    end = asyncio.get_running_loop().time() + self.deadline / 3
    for timer in self._timers:
      if not timer.expired():
        timer.reschedule(end)

  def _seconds_left(self, start: float) -> float:
    """Return the seconds that are left to a request of this start."""
    return max(start, self._last_answer) + self.deadline - time.monotonic()

  def _give_up(self, state: tenacity.RetryCallState) -> None:
    """Raise the error of a request that is not tried again."""
    reason = state.outcome.exception()
    wanted, status = "it runs and is reached from here", 0
    if isinstance(reason, UnusableAnswer):
      wanted, status = f"{self.client.service} answers there", UNUSABLE
    count, seconds = state.attempt_number, state.seconds_since_start
    fault = f"{self.client.address}: {reason}, at try {count}"
    fault += f" after {seconds:.1f} s"
    raise RemoteServiceError(f"{fault}.  See that {wanted}.", status)


def allow_addresses(addresses: Iterable[str]) -> None:
  """Note what the user names: addresses, address#model, or files.

  These alone are asked if a knowledge base's folder, which may come from a
  stranger, names them, and these alone are sent the API key; "" is none.
  """
  _allowed_places.update(_to_place(each) for each in addresses if each)


def check_address(address: str, folder: str) -> None:
  """Raise a UserError unless the user named what a folder names, too."""
  if (place := _to_place(address)) not in _allowed_places:
    place = sanitize_text(place, 200)
    cure = f"If you trust it, give --kb_addresses={place}"
    fault = f"{folder} names {place}, and may be from elsewhere"
    raise UserError(f"{fault}.  {cure}")


def _to_place(address: str) -> str:
  """Return an address without a model, or the whole path of a file."""
  place = address.partition("#")[0].rstrip("/")
  return place if "://" in place else os.path.abspath(place)


def authorization_header(address: str) -> Mapping[str, str]:
  """Return the header with the API key, or none if there is no key for it."""
  key = os.environ.get(API_KEY_VARIABLE, "")
  if not key or _to_place(address) not in _allowed_places:
    return {}
  # Plain HTTP is no risk inside this machine.
  if address.startswith("http://") and not is_loopback(address):
    text = "%s is sent the key in %s unencrypted; write https, or unset it."
    logging.warning(text, address, API_KEY_VARIABLE)
  return {"Authorization": f"Bearer {key}"}


def validate_address(address: str) -> str:
  """Return the address without a slash at its end.

  Raises a UserError if it is not http or https, or has more than a path.
  """
  try:
    parts = urllib.parse.urlsplit(address)
    # `hostname` and `port` raise ValueError if they are bad.
    is_bad = parts.scheme not in ("http", "https") or not parts.hostname
    is_bad |= parts.port == 0 or bool(parts.query or parts.fragment)
  except ValueError:
    is_bad = True
  if is_bad or "@" in address or " " in address or not address.isprintable():
    # A password, if there is one, is not shown.
    shown = _USER_INFO.sub("//...@", sanitize_text(address, 200))
    cure = "Write http://host:port, or https://host/path, without a password."
    raise UserError(f"{shown!r} is no address.  {cure}")
  return address.rstrip("/")


def is_loopback(address: str) -> bool:
  """Return whether an address names this machine."""
  try:
    host = urllib.parse.urlsplit(address).hostname or ""
    return host == "localhost" or ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False
