"""The server of a knowledge base: hostile requests, load, reloads, signals."""

import base64
import concurrent.futures
import contextlib
import json
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest
from PIL import Image

from r1router_jax import build_kb, serve_kb
from r1router_jax.common import http_client, images
from r1router_jax.common.records import Passage, Query
from r1router_jax.retrieval import (
  local_kb,
  remote_kb,
  search_api,
  search_queue,
)
from r1router_jax.retrieval.corpora import sources
from r1router_jax.retrieval.encoders import registry
from tests.retrieval import kb_servers
from tests.retrieval.fakes import WordEmbedder

GOOD_BODY = b'{"queries": ["capital of chad"], "topk": 1}'


class ColourEmbedder(WordEmbedder):
  """An embedder that notes the first pixel of each query's image."""

  def __init__(self):
    super().__init__()
    self.colours = []

  def __call__(self, items):
    for item in items:
      if isinstance(item, Query) and item.image:
        pixels = np.asarray(images.load_image(item.image))
        self.colours.append(pixels[0, 0].tolist())
    return super().__call__(items)


class BlockedEmbedder(WordEmbedder):
  """An embedder that waits for `release` and notes the size of each batch.

  A text that holds "poison" makes it fail.
  """

  def __init__(self):
    super().__init__()
    self.entered, self.release = threading.Event(), threading.Event()
    self.sizes = []

  def __call__(self, items):
    self.sizes.append(len(items))
    self.entered.set()
    assert self.release.wait(10)
    if any("poison" in item.text for item in items):
      raise RuntimeError("/secret/path")
    return super().__call__(items)


def serve_with(embedder, kind="text"):
  """Serve a knowledge base that embeds queries in this way."""
  kb = kb_servers.make_kb(kind)
  kb.stack = kb.stack._replace(embedder=embedder)
  return kb_servers.serve_kb_locally(kb)


@pytest.fixture(scope="module")
def server():
  with kb_servers.serve_kb_locally(kb_servers.make_kb()) as server:
    yield server


def connect(server):
  port = int(server.address.rpartition(":")[2])
  return socket.create_connection(("127.0.0.1", port), timeout=10)


def make_message(*lines, body=b""):
  return b"\r\n".join([*lines, b"", body])


def send_bytes(server, message):
  """Send bytes; return all that comes back until the connection ends."""
  with connect(server) as client:
    client.sendall(message)
    received = b""
    # A server that still has bytes to read may reset the connection.
    with contextlib.suppress(ConnectionError):
      while part := client.recv(1 << 16):
        received += part
  return received


@contextlib.contextmanager
def start_requests(server, bodies):
  """Post bodies from threads; yields the futures of their answers."""
  with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
    yield [
      pool.submit(kb_servers.post_request, server, json.dumps(body))
      for body in bodies
    ]


@contextlib.contextmanager
def hold_search(server, embedder):
  """Post a request whose search lasts until the embedder is released."""
  embedder.entered.clear()
  embedder.release.clear()
  with start_requests(server, [{"queries": ["held"]}]) as (post,):
    assert embedder.entered.wait(10)
    try:
      yield
    finally:
      embedder.release.set()
  assert post.result()[0] == 200


def wait_until(condition):
  for _ in range(1000):
    if condition():
      return
    time.sleep(0.01)
  raise AssertionError("it never came true")


# --- One request --------------------------------------------------------------


def test_images_are_sent_with_queries(tmp_path):
  embedder = ColourEmbedder()
  red, green = str(tmp_path / "red.png"), str(tmp_path / "green.png")
  Image.new("RGB", (8, 8), (200, 0, 0)).save(red)
  Image.new("RGB", (8, 8), (0, 200, 0)).save(green)
  with serve_with(embedder, "image") as server:
    remote = remote_kb.RemoteKB("image", server.address)
    queries = [Query("flag", image) for image in (red, green, "", red)]
    found = remote.search(queries, 1)
    assert embedder.colours == [[200, 0, 0], [0, 200, 0]]
    # The same image makes the same query, which the cache answers.
    assert found[0] == found[3]
    remote_kb.RemoteKB("image", server.address).search(queries, 1)
    assert len(embedder.colours) == 2


def test_invalid_images_are_rejected(server):
  encoded = base64.b64encode(b"no image").decode()
  request = json.dumps({"queries": ["a"], "images": [encoded]})
  with serve_with(ColourEmbedder(), "image") as image_server:
    status, response = kb_servers.post_request(image_server, request)
    assert status == 400 and '"images"' in response["error"]
    # The error does not reveal a path of the server.
    assert tempfile.gettempdir() not in response["error"]
  status, response = kb_servers.post_request(server, request)
  assert status == 400 and "no use for images" in response["error"]


@pytest.mark.parametrize(
  ("body", "word"),
  [
    (b"{", "JSON"),
    (b"\xff\xfe", "UTF-8"),
    (b"[1]", "object"),
    (b"{}", "queries"),
    (b'{"queries": "a"}', "queries"),
    (b'{"queries": [1]}', "queries"),
    (b'{"queries": ["a"], "queries": ["b"]}', "twice"),
    (b'{"queries": ["a"], "topk": 0}', "topk"),
    (b'{"queries": ["a"], "topk": 1.0}', "topk"),
    (b'{"queries": ["a"], "topk": true}', "topk"),
    (b'{"queries": ["a"], "topk": 5000}', "topk"),
    (b'{"queries": ["a"], "topk": ' + b"9" * 9000 + b"}", "JSON"),
    (b'{"queries": ["a"], "return_scores": 1}', "return_scores"),
    (b'{"queries": ["\\ud800"]}', "whole characters"),
    (b'{"queries": ["' + b"a" * 9000 + b'"]}', "8192"),
    (json.dumps({"queries": ["a"] * 4097}).encode(), "4096"),
    (json.dumps({"queries": ["a"] * 200, "topk": 1000}).encode(), "131072"),
    (b'{"queries": ["a"], "images": []}', "images"),
    (b'{"queries": ["a"], "images": ["/etc/passwd"]}', "images"),
    (b'{"queries": [NaN]}', "NaN"),
    (b"[" * 100_000, "nested"),
  ],
)
def test_invalid_body_is_one_clear_line(server, body, word):
  status, response = kb_servers.post_request(server, body)
  assert status == 400 and word in response["error"]
  assert "\n" not in response["error"]


@pytest.mark.parametrize(
  ("body", "num_found"),
  [
    (b'{"queries": []}', []),
    (b'{"queries": ["a", ""], "other": {"a": [1]}}', [3, 3]),
    (b'{"queries": ["a"], "topk": null}', [3]),
    (b'{"queries": ["a"], "topk": 1000}', [4]),
  ],
)
def test_unusual_bodies_are_answered(server, body, num_found):
  status, response = kb_servers.post_request(server, body)
  assert status == 200 and response["version"] == server.health["version"]
  assert [len(documents) for documents in response["result"]] == num_found


def test_documents_are_bare_unless_scores_are_wanted(server):
  body = {"queries": ["capital of chad"]}
  _, response = kb_servers.post_request(server, json.dumps(body))
  (found,) = response["result"]
  assert [d["id"] for d in found] == ["text/0", "text/2", "text/1"]
  assert found[0]["contents"] == f'""\n{kb_servers.TEXTS[0]}'
  _, response = kb_servers.post_request(
    server, json.dumps(body | {"return_scores": True})
  )
  assert [row["document"] for row in response["result"][0]] == found
  assert response["result"][0][0]["score"] > response["result"][0][1]["score"]


HOST, POST = b"Host: 127.0.0.1", b"POST /retrieve HTTP/1.1"
LENGTH = b"Content-Length: %d" % len(GOOD_BODY)
CLOSE = b"Connection: close"


@pytest.mark.parametrize(
  ("message", "status"),
  [
    (make_message(b"\x16\x03\x01 TLS?"), 400),
    (make_message(POST, HOST, CLOSE), 411),
    (make_message(POST, HOST, b"Transfer-Encoding: chunked", CLOSE), 411),
    # The one says that the body ends where another request begins.
    (
      make_message(POST, HOST, LENGTH, b"Transfer-Encoding: chunked", CLOSE),
      400,
    ),
    (make_message(POST, HOST, LENGTH, b"Content-Length: 2"), 400),
    (make_message(POST, HOST, b"Content-Length: -5"), 400),
    (make_message(POST, HOST, b"Content-Length: 5000000", CLOSE), 413),
    (make_message(POST, HOST, b"Content-Length: 1" + b"0" * 30), 400),
    # A page makes the browser look up its own name as 127.0.0.1.
    (make_message(POST, b"Host: evil.test", LENGTH, CLOSE), 421),
    (make_message(POST, b"Host: 127.0.0.1.evil.test:80", LENGTH, CLOSE), 421),
    (make_message(POST, b"Host: [", LENGTH, CLOSE), 421),
    (make_message(b"GET /health HTTP/1.1", b"Host: evil.test", CLOSE), 421),
    (make_message(POST, HOST, b"Origin: http://evil", LENGTH, CLOSE), 403),
    (make_message(b"GET /../etc/passwd HTTP/1.1", HOST, CLOSE), 404),
    (make_message(b"GET /health/ HTTP/1.1", HOST, CLOSE), 404),
    (make_message(b"PUT /retrieve HTTP/1.1", HOST, CLOSE), 405),
    (
      make_message(
        b"GET /health HTTP/1.1",
        HOST,
        *[b"X%d: %b" % (i, b"a" * 60_000) for i in range(9)],
      ),
      None,
    ),
    (
      make_message(POST, b"Host: localhost:1", LENGTH, CLOSE, body=GOOD_BODY),
      200,
    ),
    (make_message(POST.replace(b"1.1", b"1.0"), LENGTH, body=GOOD_BODY), 200),
  ],
)
def test_hostile_message_has_one_answer(server, message, status):
  received = send_bytes(server, message)
  assert received.count(b"HTTP/1.1 ") <= 1
  if status:
    head, _, body = received.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert ("error" if status != 200 else "result") in json.loads(body)
  # The server lives.
  assert kb_servers.post_request(server, GOOD_BODY)[0] == 200


def test_body_of_a_get_is_no_request(server):
  inner = make_message(POST, HOST, LENGTH, body=GOOD_BODY)
  length = b"Content-Length: %d" % len(inner)
  received = send_bytes(
    server,
    make_message(b"GET /health HTTP/1.1", HOST, length, CLOSE, body=inner),
  )
  assert received.count(b"HTTP/1.1 ") == 1 and b'"kb"' in received


# --- Slow peers and many of them ----------------------------------------------


@pytest.mark.parametrize(
  ("message", "answer"),
  [
    (b"", b""),
    (b"POST /retrieve HTTP/1.1\r\nX: ", b""),
    (make_message(POST, HOST, LENGTH, body=b"{"), b"408"),
  ],
)
def test_slow_peer_is_not_waited_for(server, monkeypatch, message, answer):
  monkeypatch.setattr(serve_kb, "IDLE_SECONDS", 0.2)
  monkeypatch.setattr(serve_kb, "BODY_SECONDS", 0.2)
  # Returns only when the server ends the connection.
  assert send_bytes(server, message)[9:12] == answer


def test_peer_that_does_not_read_is_cut_off(monkeypatch):
  monkeypatch.setattr(serve_kb, "BODY_SECONDS", 0.2)
  kb = kb_servers.make_kb(texts=["x" * 200_000] * 40)
  with kb_servers.serve_kb_locally(kb) as server, connect(server) as client:
    body = b'{"queries": ["x"], "topk": 40}'
    length = b"Content-Length: %d" % len(body)
    client.sendall(make_message(POST, HOST, length, body=body))
    connections = server._server.server_state.connections
    wait_until(lambda: connections)
    wait_until(lambda: not connections)


def test_longest_idle_connection_makes_room(server, monkeypatch):
  monkeypatch.setattr(serve_kb, "MAX_CONNECTIONS", 3)
  connections = server._server.server_state.connections
  wait_until(lambda: not connections)
  with contextlib.ExitStack() as stack:
    clients = []
    for number in range(3):
      clients.append(stack.enter_context(connect(server)))
      wait_until(lambda number=number: len(connections) == number + 1)
    assert kb_servers.post_request(server, GOOD_BODY)[0] == 200
    # The first one ended, the others did not.
    assert clients[0].recv(1) == b""
    clients[1].sendall(make_message(b"GET /health HTTP/1.1", HOST))
    assert clients[1].recv(12) == b"HTTP/1.1 200"


def test_waiting_requests_are_joined():
  embedder = BlockedEmbedder()
  bodies = [
    {"queries": [f"chad {i}", f"rome flag {i}"], "return_scores": True}
    for i in range(40)
  ]
  with (
    serve_with(embedder) as server,
    hold_search(server, embedder),
    start_requests(server, bodies) as posts,
  ):
    wait_until(lambda: len(server._queue._waiting) == 40)
    embedder.release.set()
    answers = [post.result() for post in posts]
  assert [status for status, _ in answers] == [200] * 40
  assert embedder.sizes == [1, 80]
  # Each answer is that of its own queries, searched alone.
  alone = kb_servers.make_kb()
  for body, (_, response) in zip(bodies, answers, strict=True):
    for text, rows in zip(body["queries"], response["result"], strict=True):
      (expected,) = alone.search([Query(text)], 3)
      assert [row["document"]["id"] for row in rows] == [p.id for p in expected]
      scores = [passage.score for passage in expected]
      assert [row["score"] for row in rows] == pytest.approx(scores, abs=1e-6)


def test_fault_concerns_its_own_request_alone(caplog):
  embedder = BlockedEmbedder()
  texts = ["chad", "rome", "poison", "flag", "people"]
  bodies = [{"queries": [text]} for text in texts]
  with (
    serve_with(embedder) as server,
    hold_search(server, embedder),
    start_requests(server, bodies) as posts,
  ):
    wait_until(lambda: len(server._queue._waiting) == 5)
    embedder.release.set()
    answers = [post.result() for post in posts]
  assert [status for status, _ in answers] == [200, 200, 500, 200, 200]
  assert "secret" not in answers[2][1]["error"]
  assert "/secret/path" in caplog.text


def test_large_request_does_not_hold_up_a_small_one(monkeypatch):
  monkeypatch.setattr(search_queue, "MAX_SEARCH_QUERIES", 2)
  embedder = BlockedEmbedder()
  large = {"queries": [f"word{i}" for i in range(9)], "topk": 1}
  with (
    serve_with(embedder) as server,
    hold_search(server, embedder),
    start_requests(server, [large]) as (first,),
  ):
    wait_until(lambda: server._queue._waiting)
    with start_requests(server, [{"queries": ["rome"], "topk": 1}]) as (post,):
      wait_until(lambda: len(server._queue._waiting) == 2)
      embedder.release.set()
      assert post.result()[0] == 200
    assert len(first.result()[1]["result"]) == 9
  # Two of the large one's queries come first, and one more beside "rome".
  assert embedder.embedded[1:5] == ["word0", "word1", "rome", "word2"]


def test_client_that_has_gone_is_not_searched_for():
  embedder = BlockedEmbedder()
  with serve_with(embedder) as server:
    with hold_search(server, embedder):
      with connect(server) as client:
        client.sendall(make_message(POST, HOST, LENGTH, body=GOOD_BODY))
        wait_until(lambda: server._queue._waiting)
      wait_until(lambda: not server._queue._waiting)
    assert kb_servers.post_request(server, b'{"queries": ["red"]}')[0] == 200
  assert embedder.embedded == ["held", "red"]


@pytest.mark.parametrize(
  ("module", "name"),
  [
    (search_queue, "MAX_WAITING"),
    (search_queue, "MAX_WAIT_SECONDS"),
    (serve_kb, "MAX_HELD_BYTES"),
  ],
)
def test_full_queue_answers_at_once(monkeypatch, module, name):
  embedder = BlockedEmbedder()
  embedder.release.set()
  with serve_with(embedder) as server:
    # A first search tells how long one takes; one runs, and another waits.
    assert kb_servers.post_request(server, GOOD_BODY)[0] == 200
    with (
      hold_search(server, embedder),
      start_requests(server, [{"queries": ["red"]}]) as (post,),
    ):
      wait_until(lambda: server._queue._waiting)
      with monkeypatch.context() as patch:
        patch.setattr(module, name, 0)
        received = send_bytes(
          server, make_message(POST, HOST, LENGTH, CLOSE, body=GOOD_BODY)
        )
      assert received.startswith(b"HTTP/1.1 503")
      assert b"\r\nretry-after: 1\r\n" in received.lower()
      embedder.release.set()
      assert post.result()[0] == 200


def test_answer_that_would_be_too_long_is_refused(server, monkeypatch):
  monkeypatch.setattr(http_client, "MAX_ANSWER_BYTES", 300)
  status, response = kb_servers.post_request(server, GOOD_BODY)
  assert status == 200
  body = b'{"queries": ["chad", "rome"], "topk": 4}'
  status, response = kb_servers.post_request(server, body)
  assert status == 413 and '"topk"' in response["error"]


def test_server_ends_after_the_searches_under_way():
  embedder = BlockedEmbedder()
  # The held request is answered although the server is told to stop.
  with serve_with(embedder) as server, hold_search(server, embedder):
    server.stop()
    wait_until(lambda: not server._server.servers[0].is_serving())


# --- What is served -----------------------------------------------------------


def test_image_paths_are_relative_to_the_image_folder():
  folder = pathlib.Path(sources.georouter_folder())
  path = next((folder / "pictures").rglob("*.png"))
  passages = kb_servers.GeorouterPassages(
    [Passage("a", "image", "a flag", str(path))]
  )
  # Only images of GeoRouter are on the client's machine, too.
  for source, expected in ((sources.GEOROUTER, str(path)), ("/my.jsonl", "")):
    kb = kb_servers.make_kb("image", ["a flag"], source)
    kb.stack = kb.stack._replace(passages=passages)
    with kb_servers.serve_kb_locally(kb) as server:
      _, response = kb_servers.post_request(server, b'{"queries": ["flag"]}')
      served = response["result"][0][0]["image"]
      assert served == str(path.relative_to(folder))
      remote = remote_kb.RemoteKB("image", server.address)
      (found,) = remote.search([Query("flag")], 1)
      assert found[0].image == expected


def test_version_covers_all_that_answers_depend_on():
  meta = kb_servers.make_kb().meta

  def version(index_name="ExactIndex", **changes):
    return search_api.describe_kb(meta | changes, index_name)["version"]

  changes = [
    {},
    {"passages": "others"},
    {"fingerprint": "other weights"},
    {"embedder": "other"},
    {"hybrid": True},
    {"rerank_fingerprint": "a"},
    {"rerank_fingerprint": "b"},
    {"shards": 2},
    {"index_name": "ScannIndex"},
  ]
  assert len({version(**change) for change in changes}) == len(changes)
  # Where files lie is of no importance.
  assert version(source="/elsewhere.jsonl", rerank="/moved") == version()


def test_folder_is_found_with_and_without_kind(tmp_path):
  kb_dir, folder = str(tmp_path), str(tmp_path / "text")
  with pytest.raises(ValueError, match="no finished knowledge base"):
    serve_kb.find_kb_folder(kb_dir, None)
  (tmp_path / "text").mkdir()
  (tmp_path / "text/meta.json").write_text('{"kb": "text"}')
  assert serve_kb.find_kb_folder(kb_dir, "text") == folder
  assert serve_kb.find_kb_folder(folder, None) == folder
  with pytest.raises(ValueError, match="Say which, as in --kind=text"):
    serve_kb.find_kb_folder(kb_dir, None)
  with pytest.raises(ValueError, match="image holds no finished"):
    serve_kb.find_kb_folder(kb_dir, "image")


class FileEmbedder(WordEmbedder):
  """An embedder whose weights are a file."""

  def __init__(self, path):
    super().__init__()
    self.fingerprint = pathlib.Path(path).read_text()


@pytest.fixture
def built(tmp_path, monkeypatch):
  """Return a function that builds a folder anew, and the folder."""
  monkeypatch.setitem(registry.EMBEDDERS, "minilm", FileEmbedder)
  monkeypatch.setattr(registry, "LOADED", {})
  source, weights = tmp_path / "rows.jsonl", tmp_path / "weights"

  def build(texts, fingerprint="first"):
    rows = [{"id": f"r{i}", "text": text} for i, text in enumerate(texts)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    weights.write_text(fingerprint)
    build_kb.build(
      build_kb.KbSpec(
        str(tmp_path / "text"), "text", str(source), weights=str(weights)
      )
    )

  build(["red", "green"])
  return build, tmp_path / "text"


def cut_half(content):
  return content[: len(content) // 2]


def change_meta(**changes):
  def change(content):
    return json.dumps(json.loads(content) | changes).encode()

  return change


@pytest.mark.parametrize(
  ("name", "damage"),
  [
    ("meta.json", cut_half),
    ("meta.json", lambda _: b"[1]"),
    ("meta.json", lambda _: b"{}"),
    ("meta.json", change_meta(rows="2")),
    ("meta.json", change_meta(kb="table")),
    ("meta.json", change_meta(fingerprint="other")),
    ("meta.json", change_meta(weights="/nowhere")),
    ("passages.jsonl", cut_half),
    ("passages.jsonl", lambda _: b""),
    ("passages.jsonl", lambda content: bytes(len(content))),
    ("offsets.npy", cut_half),
    ("offsets.npy", lambda content: bytes(len(content))),
    ("vectors.npy", cut_half),
    ("vectors.npy", lambda _: b""),
    ("vectors.npy", lambda content: content.replace(b"<f4", b"<i4")),
    ("index.json", cut_half),
    ("index.json", lambda _: b"[]"),
    ("index.json", lambda _: b"{}"),
  ],
)
def test_damaged_folder_is_not_served(built, caplog, name, damage):
  _, folder = built
  with kb_servers.serve_kb_locally(local_kb.open_kb(str(folder))) as server:
    before = kb_servers.post_request(server, b'{"queries": ["red"]}')
    content = (folder / name).read_bytes()
    # Replaced, as a build does; the files that are served are still open.
    (folder / name).unlink()
    (folder / name).write_bytes(damage(content))
    serve_kb.reload_kb(server, str(folder))
    assert "The former passages are served on." in caplog.text
    assert kb_servers.post_request(server, b'{"queries": ["red"]}') == before


def test_reload_serves_new_passages_and_weights(built):
  build, folder = built
  with kb_servers.serve_kb_locally(local_kb.open_kb(str(folder))) as server:
    version = server.health["version"]
    build(["red", "green", "blue"], "other weights")
    serve_kb.reload_kb(server, str(folder))
    assert server.health["fingerprint"] == "other weights"
    assert server.health["rows"] == 3 and server.health["version"] != version
    _, response = kb_servers.post_request(server, b'{"queries": ["blue"]}')
    assert response["result"][0][0]["id"] == "r2"


@pytest.mark.slow
def test_command_serves_reloads_and_ends(tmp_path):
  source, folder = tmp_path / "rows.jsonl", tmp_path / "kb/text"

  def build(colours):
    rows = [
      {"id": f"r{i}", "text": f"{colour} is a colour"}
      for i, colour in enumerate(colours)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_kb.build(build_kb.KbSpec(str(folder), "text", str(source)))

  build(["red", "green"])
  command = [sys.executable, "-m", "r1router_jax.serve_kb"]
  flags = [f"--kb_dir={tmp_path}/kb", "--kind=text", "--port=0"]
  child = subprocess.Popen(command + flags, stdout=subprocess.PIPE, text=True)
  try:
    *words, address = child.stdout.readline().split()
    assert words[:4] == ["Serving", "text", "(2", "passages)"]
    remote = remote_kb.RemoteKB("text", address)
    local = local_kb.open_kb(str(folder))
    queries = [Query("is it red?"), Query("what is green?")]
    assert remote.search(queries, 2) == local.search(queries, 2)
    # SIGHUP serves the new passages.
    build(["red", "green", "blue"])
    child.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 60
    while len(remote_kb.RemoteKB("text", address)) != 3:
      assert time.monotonic() < deadline
      time.sleep(0.1)
    (found,) = remote_kb.RemoteKB("text", address).search([Query("blue")], 1)
    assert found[0].id == "r2"
    child.terminate()
    assert child.wait(timeout=30) == 0
  finally:
    child.kill()
