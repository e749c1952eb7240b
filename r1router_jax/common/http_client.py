"""Asks another process for JSON over HTTP, whatever becomes of it meanwhile.

A request has `DEADLINE` seconds, however often it is tried, or as many as its
service is given.  A try is over after a third of that.  Where nobody answers,
the connection breaks, or the answer is "not now" (429, or 5xx), there is
another, after pauses that double: who is asked may be started again in between.
An answer that is not what was asked for is given `WRONG` tries, and what is
refused (any other status, so also a redirect) none.

What does not succeed ends in a `RetrievalError`, which says who was asked, what
came and what to do.  Answers are untrusted: sizes are bounded, and JSON is read
strictly.
"""

import asyncio
import concurrent.futures
import functools
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

from r1router_jax.common import row_files, text

DEADLINE = 120.0  # Seconds, of all tries of a request.

WRONG = 3  # Tries that may bring a wrong answer.

IN_FLIGHT = 4  # Requests at a time.

PAUSES = 0.2, 5.0  # Seconds, the first between tries and the longest.

MAX_ANSWER = 64 << 20  # Bytes.

OF_THE_BODY = 400, 413, 422  # Statuses of what is refused for what it says.

_SHOWN = 300  # Of what came, in a message.

_USER = re.compile("//.*@")


Read = Callable[[int, Any], Any]  # (number of the request, its answer)


class RetrievalError(ConnectionError):
  """Another process does not do what a knowledge base needs of it.

  Attributes:
    status: of the answer, where one came that refuses.
  """

  def __init__(self, message: str, status: int = 0):
    super().__init__(message)
    self.status = status


class _NotNow(Exception):
  """An answer that asks for another try, in so many seconds or later."""

  def __init__(self, reason: str, seconds: float):
    super().__init__(reason)
    self.seconds = seconds


class Service:
  """Who answers at an address.

  Args:
    address: "http://host:port", or with https, or with a path.
    headers: of all requests.
    in_flight: requests at a time.
    deadline: seconds of all tries of a request; None for `DEADLINE`.

  Raises:
    ValueError: where this is no such address.
  """

  def __init__(
    self,
    address: str,
    headers: Mapping[str, str] | None = None,
    *,
    in_flight: int = IN_FLIGHT,
    deadline: float | None = None,
  ):
    self.address, self._in_flight = checked(address), in_flight
    self._deadline = DEADLINE if deadline is None else deadline
    self._headers = {"Accept-Encoding": "identity"} | dict(headers or {})
    self._trust = ssl.create_default_context()

  def get(self, path: str) -> Any:
    """What is at `path`, or None where nothing is."""
    try:
      (answer,) = _run(self._all("GET", path, [b""], lambda _, found: found))
      return answer
    except RetrievalError as error:
      if error.status in (404, 405):
        return None
      raise

  def post(
    self,
    path: str,
    bodies: Sequence[Any],
    read: Read,
    refused: Read | None = None,
  ) -> list[Any]:
    """Sends each body, some at a time; what `read` makes of the answers.

    Args:
      path: below the address.
      bodies: what JSON can say.
      read: raises `rows.Fault` where an answer is wrong.
      refused: what to make of the error of a body that is refused for what it
        holds (`OF_THE_BODY`); by default it is raised.

    Raises:
      RetrievalError: where one of them does not succeed.
    """
    return _run(
      self._all(
        "POST",
        path,
        [json.dumps(body).encode() for body in bodies],
        read,
        refused,
      )
    )

  async def _all(
    self,
    method: str,
    path: str,
    bodies: Sequence[bytes],
    read: Read,
    refused: Read | None = None,
  ) -> list[Any]:
    async def one(number, body):
      try:
        return await self._one(
          slots,
          functools.partial(
            self._try,
            client,
            method,
            path,
            body,
            functools.partial(read, number),
          ),
        )
      except RetrievalError as error:
        if refused is None or error.status not in OF_THE_BODY:
          raise
        return refused(number, error)

    slots = asyncio.Semaphore(self._in_flight)
    async with httpx.AsyncClient(
      headers=self._headers,
      verify=self._trust,
      timeout=None,
      # Neither proxies nor credentials of others for this machine.
      trust_env=not is_loopback(self.address),
    ) as client:
      return await asyncio.gather(*itertools.starmap(one, enumerate(bodies)))

  async def _one(
    self, slots: asyncio.Semaphore, attempt: Callable[[], Coroutine]
  ) -> Any:
    """Tries until it succeeds, or must not go on."""
    async with slots:
      start, backoff, wrong, cure = time.monotonic(), PAUSES[0], 0, ""
      deadline = self._deadline
      for tries in itertools.count(1):
        pause = backoff * random.uniform(0.5, 1.0)
        left = start + deadline - time.monotonic()
        try:
          async with asyncio.timeout(min(left, deadline / 3)):
            return await attempt()
        except row_files.Fault as fault:
          wrong += 1
          reason, cure = fault.args
        except _NotNow as answer:
          reason, pause = str(answer), max(pause, answer.seconds)
        except TimeoutError:
          reason = f"no whole answer in {min(left, deadline / 3):.1f} s"
        except httpx.HTTPError as error:
          reason = f"{type(error).__name__} {error}".strip()
        spent = time.monotonic() - start
        # A try needs some time, too.
        if wrong == WRONG or spent + pause > 0.9 * deadline:
          raise RetrievalError(
            f"{self.address}: {reason}, at try {tries} after {spent:.1f} s.  "
            + (cure or "See that it runs and is reached from here")
            + "."
          )
        if tries == 1:
          logging.warning(
            "%s: %s; trying again, for %.0f s.", self.address, reason, deadline
          )
        await asyncio.sleep(pause)
        backoff = min(2 * backoff, PAUSES[1])

  async def _try(
    self,
    client: httpx.AsyncClient,
    method: str,
    path: str,
    body: bytes,
    read: Callable[[Any], Any],
  ) -> Any:
    async with client.stream(
      method,
      self.address + path,
      content=body,
      headers={"Content-Type": "application/json"},
    ) as answer:
      status, good = answer.status_code, answer.status_code == 200
      found = await _body(answer, MAX_ANSWER if good else _SHOWN)
    if good:
      if len(found) > MAX_ANSWER:
        raise row_files.Fault(
          f"the answer has more than {MAX_ANSWER:,} bytes",
          "See what it is that answers there",
        )
      return read(row_files.parse(found))
    said = text.clean(found.decode(errors="replace"), _SHOWN)
    if status == 429 or status >= 500:
      seconds = answer.headers.get("retry-after", "")
      raise _NotNow(
        f"status {status} ({said})",
        float(seconds) if seconds.isdecimal() else 0.0,
      )
    raise RetrievalError(
      f"{self.address}{path} answered with status {status}: {said or '-'}  "
      "See that this is the address of what you want to ask.",
      status,
    )


async def _body(answer: httpx.Response, limit: int) -> bytes:
  """The body, or a little more of it than the limit."""
  parts, size = [], 0
  async for part in answer.aiter_raw():
    parts.append(part)
    size += len(part)
    if size > limit:
      break
  return b"".join(parts)


def _run(coroutine: Coroutine) -> Any:
  """Its result, from a thread of its own: a notebook's has a loop that runs."""
  result = concurrent.futures.Future()

  def run():
    try:
      result.set_result(asyncio.run(coroutine))
    except BaseException as error:
      result.set_exception(error)

  # A daemon, so that Ctrl-C need not wait for it.
  threading.Thread(target=run, daemon=True).start()
  return result.result()


def checked(address: str) -> str:
  """The address without a slash at its end.

  Raises:
    ValueError: where it is none of http or https, or has more than a path.
  """
  try:
    parts = urllib.parse.urlsplit(address)
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
    raise ValueError(
      f"{_USER.sub('//...@', text.clean(address, 200))!r} is no address."
      "  Write http://host:port, or https://host/path, and no name or "
      "password."
    )
  return address.rstrip("/")


def is_loopback(address: str) -> bool:
  """Whether this very machine is named."""
  host = urllib.parse.urlsplit(address).hostname or ""
  try:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False
