"""Whatever a server does, a request ends in its answer or in one error."""

import asyncio
import gzip
import signal
import subprocess
import sys
import threading
import time

import msgspec
import pytest

from r1router_jax.common import http_client
from r1router_jax.common.http_client import JsonHttpClient, RemoteServiceError
from tests.raw_http_server import make_response, serve_raw


class Answer(msgspec.Struct):
  text: str
  number: float = 0.0


@pytest.fixture(autouse=True)
def fast_retries(monkeypatch):
  monkeypatch.setattr(http_client, "RETRY_PAUSES", (0.01, 0.05))


def ask(address, bodies=({},), deadline=20.0, max_bytes=1000, **options):
  """Send the bodies and return the texts of the answers."""
  client = JsonHttpClient(address, "a parrot", deadline=deadline, **options)
  return client.post(
    "/x", bodies, Answer, lambda _, found: found.text, max_bytes=max_bytes
  )


def drip(start, part):
  """Return an action that sends a start, and then a part again and again."""

  def act(number, body, connection):
    connection.sendall(start)
    while True:
      connection.sendall(part)
      time.sleep(0.02)

  return act


# What a server does that never ends an answer.
STUCK = {
  "hangs": lambda *_: time.sleep(3),
  "drips a head": drip(b"HTTP/1.1 200 OK\r\nX: ", b"a"),
  "drips a body": drip(make_response(b" " * 999)[:-999], b" "),
  "says continue": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}
YEARS = "Retry-After: " + "9" * 5000
# What it answers at once, and what the error says of it.
FAULTS = {
  "is no HTTP": (b"\x00\xff" * 99, "RemoteProtocolError"),
  "sends half": (make_response(b"a")[:-1], "RemoteProtocolError"),
  "hangs up": (b"", "RemoteProtocolError"),
  "fails": (make_response(b"sorry", 500), r"status 500 \(sorry\)"),
  "is busy": (make_response(b"", 429), "status 429"),
  "is busy for years": (make_response(b"", 503, YEARS), r"status 503 \(\), at"),
}


@pytest.mark.parametrize("name", [*STUCK, *FAULTS])
def test_dead_server_is_an_error_within_the_deadline(name, monkeypatch):
  act, reason, deadline = STUCK.get(name), "no whole answer in", 0.6
  if not act:
    answer, reason = FAULTS[name]
    act, deadline = lambda *_: answer, 20.0
    # No other try follows, which a loaded machine might find too short.
    if name != "is busy for years":
      monkeypatch.setattr(http_client, "RETRY_PAUSES", (19.0, 19.0))
  with serve_raw(act) as (address, _):
    with pytest.raises(RemoteServiceError, match=reason) as raised:
      ask(address, deadline=deadline)
  message = str(raised.value)
  assert raised.value.status == 0 and message.startswith(address)
  assert message.endswith("See that it runs and is reached from here.")


DIGITS = b"9" * 400
UNUSABLE = {
  "a page": (b"<html>", "malformed"),
  "nothing": (b"", "truncated"),
  "another type": (b'{"text": 5}', "Expected `str`, got `int`"),
  "no text": (b"{}", "missing required field"),
  "NaN": (b'{"text": "a", "number": NaN}', "malformed"),
  "a large number": (b'{"text": "a", "number": 1e999}', "out of range"),
  "many digits": (b'{"text": "a", "number": ' + DIGITS + b"}", "out of range"),
  "no UTF-8": (b'{"text": "\xff"}', "UTF-8"),
  "nested": (b'{"x": ' + b"[" * 900, "recursion|truncated"),
  "too long": (b" " * 5000 + b'{"text": "a"}', "more than 1,000 bytes"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_answer_is_asked_for_three_times(name):
  body, reason = UNUSABLE[name]
  with serve_raw(lambda *_: make_response(body)) as (address, heads):
    with pytest.raises(RemoteServiceError, match=reason) as raised:
      ask(address)
  assert len(heads) == 3 and raised.value.status == http_client.UNUSABLE
  assert str(raised.value).endswith("See that a parrot answers there.")


def test_compressed_answer_is_neither_asked_for_nor_unfolded():
  bomb = gzip.compress(b" " * (1 << 24))
  packed = make_response(bomb, 200, "Content-Encoding: gzip")
  with serve_raw(lambda *_: packed) as (address, heads):
    with pytest.raises(RemoteServiceError, match=r"compressed \('gzip'\)"):
      ask(address, max_bytes=1 << 20)
  assert "accept-encoding: identity" in heads[0].lower()


@pytest.mark.parametrize("status", [302, 400, 401, 404])
def test_refusal_is_final(status):
  refusal = make_response(b"\x1b[31mno", status, "Location: /x")
  with serve_raw(lambda *_: refusal) as (address, heads):
    reason = f"/x answered with status {status}: no"
    with pytest.raises(RemoteServiceError, match=reason) as raised:
      ask(address)
  assert len(heads) == 1 and raised.value.status == status


def test_answers_return_in_order_although_each_request_fails_first():
  answers = [answer for answer, _ in list(FAULTS.values())[:-1]]
  failed = set()

  def act(number, body, connection):
    if body in failed:
      return make_response(b'{"text": "%s"}' % body)
    failed.add(body)
    return answers[int(body) % len(answers)]

  with serve_raw(act) as (address, heads):
    found = ask(address, range(8))
  assert found == list("01234567") and len(heads) == 16


def test_halves_of_surrogate_pairs_become_replacement_characters(caplog):
  text = rb'"\ud83d a\\ud83d \ud83d\ude00 \n\uDE00"'
  with serve_raw(lambda *_: make_response(b'{"text":%s}' % text)) as (at, _):
    assert ask(at) == ["\ufffd a\\ud83d \U0001f600 \n\ufffd"]
  assert "2 halves of surrogate pairs" in caplog.text


def test_server_that_answers_one_after_another_is_waited_for():
  turn = threading.Lock()

  def act(number, body, connection):
    with turn:
      time.sleep(0.15)
    return make_response(b'{"text": "a"}')

  with serve_raw(act) as (address, heads):
    # All of them take longer than a try may last without any answer.
    assert ask(address, range(12), deadline=3.0, in_flight=12) == ["a"] * 12
  assert len(heads) == 12


def test_fewer_requests_are_in_flight_after_one_timed_out():
  lock, now, counts = threading.Lock(), [0], []

  def act(number, body, connection):
    if number < 8:
      time.sleep(2)
    with lock:
      now[0] += 1
      counts.append(now[0])
    time.sleep(0.02)
    with lock:
      now[0] -= 1
    return make_response(b'{"text": "a"}')

  with serve_raw(act) as (address, _):
    ask(address, range(16), deadline=1.5, in_flight=8)
    assert max(counts) == 4


def test_call_works_where_an_event_loop_runs_and_uses_no_proxy(monkeypatch):
  monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

  async def ask_in_loop(address):
    return ask(address)

  with serve_raw(lambda *_: make_response(b'{"text": "a"}')) as (address, _):
    assert asyncio.run(ask_in_loop(address)) == ["a"]


def test_ctrl_c_ends_a_request_that_hangs():
  code = """if True:
    import signal, sys
    from r1router_jax.common.http_client import JsonHttpClient
    # Whatever runs in the background of a shell ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    JsonHttpClient(sys.argv[1], "a parrot", deadline=600).get("/x", 99)"""
  arrived = threading.Event()

  def act(number, body, connection):
    arrived.set()
    time.sleep(30)

  with serve_raw(act) as (address, _):
    command = [sys.executable, "-c", code, address]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert arrived.wait(60)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=60)
  assert child.returncode and "KeyboardInterrupt" in stderr


ADDRESSES = """ftp://a //a http:// http://u:secret@h http://h?q=1 http://h#f
  http://h:99999 http://h:0 http://[::1 http://\u202e.test""".split()


@pytest.mark.parametrize("address", [*ADDRESSES, "http://a b"])
def test_invalid_address_is_rejected(address):
  with pytest.raises(ValueError, match="no address") as raised:
    JsonHttpClient(address, "a parrot")
  assert "secret" not in str(raised.value)
