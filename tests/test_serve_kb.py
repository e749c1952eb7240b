"""The server of a knowledge base: hostile requests, load, reloads, signals."""

import asyncio
import base64
import collections
import concurrent.futures
import contextlib
import json
import pathlib
import resource
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
from r1router_jax.retrieval import local_kb, remote_kb, search_api, search_queue
from r1router_jax.retrieval.corpora import sources
from r1router_jax.retrieval.encoders import registry
from tests.retrieval import kb_servers
from tests.retrieval.fakes import WordEmbedder
from tests.retrieval.kb_servers import make_kb, post_request, serve_kb_locally

GOOD_BODY = b'{"queries": ["capital of chad"], "topk": 1}'
RED = {"queries": ["red"]}


class NotingEmbedder(WordEmbedder):
  """An embedder that notes the size of each batch and its images' colours.

  It waits while `release` is unset.  A text that holds "poison" makes it fail.
  """

  def __init__(self):
    super().__init__()
    self.entered, self.release = threading.Event(), threading.Event()
    self.release.set()
    self.sizes, self.colours = [], []

  def __call__(self, items):
    self.sizes.append(len(items))
    self.entered.set()
    assert self.release.wait(10)
    for item in items:
      if "poison" in item.text:
        raise RuntimeError("/secret/path")
      if isinstance(item, Query) and item.image:
        pixels = np.asarray(images.load_image(item.image))
        self.colours.append(pixels[0, 0].tolist())
    return super().__call__(items)


def serve_with(embedder, kind="text"):
  """Serve a knowledge base that embeds queries in this way."""
  kb = make_kb(kind)
  kb.stack = kb.stack._replace(embedder=embedder)
  return serve_kb_locally(kb)


@pytest.fixture(scope="module")
def server():
  with serve_kb_locally(make_kb()) as server:
    yield server


@pytest.fixture
def embedder():
  return NotingEmbedder()


@pytest.fixture
def blocked(embedder):
  """A server whose searches `embedder` can hold."""
  with serve_with(embedder) as server:
    yield server


def connect(server):
  port = int(server.address.rpartition(":")[2])
  return socket.create_connection(("127.0.0.1", port), timeout=10)


HOST, CLOSE = b"Host: 127.0.0.1", b"Connection: close"
POST, GET = b"POST /retrieve HTTP/1.1", b"GET /health HTTP/1.1"


def make_message(*lines, body=b""):
  return b"\r\n".join([*lines, b"", body])


def make_post(*headers, body=GOOD_BODY):
  """Return a whole request for a search."""
  length = b"Content-Length: %d" % len(body)
  return make_message(POST, HOST, length, *headers, body=body)


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
def start_posts(server, *bodies):
  """Post bodies from threads; yields the futures of their answers."""
  with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
    yield [pool.submit(post_request, server, body) for body in bodies]


@contextlib.contextmanager
def hold_search(server, embedder):
  """Post a request whose search lasts until the embedder is released."""
  embedder.entered.clear()
  embedder.release.clear()
  with start_posts(server, {"queries": ["held"]}) as (post,):
    assert embedder.entered.wait(10)
    try:
      yield
    finally:
      embedder.release.set()
  assert post.result()[0] == 200


def answer_together(server, embedder, bodies):
  """Return the answers to requests that all wait for a search that is held."""
  with hold_search(server, embedder), start_posts(server, *bodies) as posts:
    wait_for_waiting(server, len(bodies))
    embedder.release.set()
    return [post.result() for post in posts]


def wait_until(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def wait_for_waiting(server, count):
  wait_until(lambda: len(server._queue._waiting) == count)


# --- One request --------------------------------------------------------------


def test_images_are_sent_with_queries(embedder, tmp_path):
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


def test_invalid_images_are_rejected(server, embedder):
  encoded = base64.b64encode(b"no image").decode()
  request = {"queries": ["a"], "images": [encoded]}
  with serve_with(embedder, "image") as image_server:
    status, response = post_request(image_server, request)
    assert status == 400 and '"images"' in response["error"]
    # The error does not reveal a path of the server.
    assert tempfile.gettempdir() not in response["error"]
  status, response = post_request(server, request)
  assert status == 400 and "no use for images" in response["error"]


def query_a(more):
  return b'{"queries": ["a"], %b}' % more


# What the error names, and bodies that it is about.
INVALID = {
  "JSON": [b"{", query_a(b'"topk": ' + b"9" * 9000)],
  "UTF-8": [b"\xff\xfe"],
  "object": [b"[1]"],
  "nested": [b"[" * 100_000],
  "NaN": [b'{"queries": [NaN]}'],
  "queries": [b"{}", b'{"queries": "a"}', b'{"queries": [1]}'],
  "twice": [query_a(b'"queries": ["b"]')],
  "topk": [query_a(b'"topk": ' + k) for k in b"0 1.0 true 5000".split()],
  "return_scores": [query_a(b'"return_scores": 1')],
  "images": [query_a(b'"images": []'), query_a(b'"images": ["/etc/passwd"]')],
  "8192": [{"queries": ["a" * 9000]}],
  "4096": [{"queries": ["a"] * 4097}],
  "131072": [{"queries": ["a"] * 200, "topk": 1000}],
}


@pytest.mark.parametrize("word", INVALID)
def test_invalid_body_is_one_clear_line(server, word):
  for body in INVALID[word]:
    status, response = post_request(server, body)
    assert status == 400 and word in response["error"], body
    assert "\n" not in response["error"]


def test_unusual_bodies_are_answered(server):
  for body, num_found in (
    ({"queries": []}, []),
    ({"queries": ["a", ""], "other": {"a": [1]}}, [3, 3]),
    ({"queries": ["a"], "topk": None}, [3]),
    ({"queries": ["a"], "topk": 1000}, [4]),
  ):
    status, response = post_request(server, body)
    assert status == 200 and response["version"] == server.health["version"]
    assert [len(documents) for documents in response["result"]] == num_found


def test_documents_are_bare_unless_scores_are_wanted(server):
  body = {"queries": ["capital of chad"]}
  (found,) = post_request(server, body)[1]["result"]
  assert [d["id"] for d in found] == ["text/0", "text/2", "text/1"]
  assert found[0]["contents"] == f'""\n{kb_servers.TEXTS[0]}'
  body["return_scores"] = True
  (rows,) = post_request(server, body)[1]["result"]
  assert [row["document"] for row in rows] == found
  assert rows[0]["score"] > rows[1]["score"]


LENGTH = b"Content-Length: %d" % len(GOOD_BODY)
CHUNKED = b"Transfer-Encoding: chunked"
LONG_HEADERS = [b"X%d: %b" % (i, b"a" * 60_000) for i in range(9)]


@pytest.mark.parametrize(
  ("lines", "status"),
  [
    ([b"\x16\x03\x01 TLS?"], 400),
    ([POST, HOST], 411),
    ([POST, HOST, CHUNKED], 411),
    # The one says that the body ends where another request begins.
    ([POST, HOST, LENGTH, CHUNKED], 400),
    ([POST, HOST, LENGTH, b"Content-Length: 2"], 400),
    ([POST, HOST, b"Content-Length: -5"], 400),
    ([POST, HOST, b"Content-Length: 5000000"], 413),
    ([POST, HOST, b"Content-Length: 1" + b"0" * 30], 400),
    # A page makes the browser look up its own name as 127.0.0.1.
    ([POST, b"Host: evil.test", LENGTH], 421),
    ([POST, b"Host: 127.0.0.1.evil.test:80", LENGTH], 421),
    ([POST, b"Host: [", LENGTH], 421),
    ([GET, b"Host: evil.test"], 421),
    # Also for what needs no body, or is not there.
    ([GET, HOST, LENGTH, CHUNKED], 400),
    ([b"GET /nothing HTTP/1.1", HOST, LENGTH, CHUNKED], 400),
    ([b"GET http://evil.test/health HTTP/1.1", HOST, LENGTH, CHUNKED], 400),
    ([b"OPTIONS * HTTP/1.1", b"Host: evil.test"], 421),
    ([b"GET /nothing HTTP/1.1", b"Host: 0.0.0.0:80"], 421),
    ([POST, HOST, b"Origin: http://evil", LENGTH], 403),
    ([b"GET /../etc/passwd HTTP/1.1", HOST], 404),
    ([b"GET /health/ HTTP/1.1", HOST], 404),
    ([b"PUT /retrieve HTTP/1.1", HOST], 405),
    ([GET, HOST, *LONG_HEADERS], None),
    ([POST, b"Host: localhost:1", LENGTH], 200),
    ([b"POST /retrieve HTTP/1.0", LENGTH], 200),
  ],
)
def test_hostile_message_has_one_answer(server, lines, status):
  body = GOOD_BODY if status == 200 else b""
  # After what is no HTTP the server ends the connection itself.
  lines = lines if status in (400, None) else [*lines, CLOSE]
  received = send_bytes(server, make_message(*lines, body=body))
  assert received.count(b"HTTP/1.1 ") <= 1
  if status:
    head, _, body = received.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert ("error" if status != 200 else "result") in json.loads(body)
  # The server lives.
  assert post_request(server, GOOD_BODY)[0] == 200


def test_body_of_a_get_is_no_request(server):
  outer = make_post(CLOSE, body=make_post()).replace(POST, GET, 1)
  received = send_bytes(server, outer)
  assert received.count(b"HTTP/1.1 ") == 1 and b'"kb"' in received


# --- Slow peers and many of them ----------------------------------------------


@pytest.mark.parametrize(
  ("message", "answer"),
  [(b"", b""), (POST + b"\r\nX: ", b""), (make_post()[:-9], b"408")],
)
def test_slow_peer_is_not_waited_for(server, monkeypatch, message, answer):
  monkeypatch.setattr(serve_kb, "IDLE_SECONDS", 0.2)
  monkeypatch.setattr(serve_kb, "BODY_SECONDS", 0.2)
  # Returns only when the server ends the connection.
  assert send_bytes(server, message)[9:12] == answer


def test_peer_that_does_not_read_is_cut_off(monkeypatch):
  monkeypatch.setattr(serve_kb, "BODY_SECONDS", 0.2)
  kb = make_kb(texts=["x" * 200_000] * 40)
  with serve_kb_locally(kb) as server, connect(server) as client:
    client.sendall(make_post(body=b'{"queries": ["x"], "topk": 40}'))
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
    assert post_request(server, GOOD_BODY)[0] == 200
    # The first one ended, the others did not.
    assert clients[0].recv(1) == b""
    clients[1].sendall(make_message(GET, HOST))
    assert clients[1].recv(12) == b"HTTP/1.1 200"


def test_waiting_requests_are_joined(blocked, embedder):
  bodies = [
    {"queries": [f"chad {i}", f"rome flag {i}"], "return_scores": True}
    for i in range(40)
  ]
  answers = answer_together(blocked, embedder, bodies)
  assert [status for status, _ in answers] == [200] * 40
  assert embedder.sizes == [1, 80]
  # Each answer is that of its own queries, searched alone.
  alone = make_kb()
  for body, (_, response) in zip(bodies, answers, strict=True):
    for text, rows in zip(body["queries"], response["result"], strict=True):
      (expected,) = alone.search([Query(text)], 3)
      assert [row["document"]["id"] for row in rows] == [p.id for p in expected]
      scores = [passage.score for passage in expected]
      assert [row["score"] for row in rows] == pytest.approx(scores, abs=1e-6)


def test_fault_concerns_its_own_request_alone(blocked, embedder, caplog):
  texts = ["chad", "rome", "poison", "flag", "people"]
  bodies = [{"queries": [text]} for text in texts]
  answers = answer_together(blocked, embedder, bodies)
  assert [status for status, _ in answers] == [200, 200, 500, 200, 200]
  assert "secret" not in answers[2][1]["error"]
  assert "/secret/path" in caplog.text


def test_large_request_does_not_hold_up_a_small_one(
  blocked, embedder, monkeypatch
):
  monkeypatch.setattr(search_queue, "MAX_SEARCH_QUERIES", 2)
  large = {"queries": [f"word{i}" for i in range(9)], "topk": 1}
  with hold_search(blocked, embedder), start_posts(blocked, large) as (first,):
    wait_for_waiting(blocked, 1)
    with start_posts(blocked, {"queries": ["rome"], "topk": 1}) as (post,):
      wait_for_waiting(blocked, 2)
      embedder.release.set()
      assert post.result()[0] == 200
    assert len(first.result()[1]["result"]) == 9
  # Two of the large one's queries come first, and one more beside "rome".
  assert embedder.embedded[1:5] == ["word0", "word1", "rome", "word2"]


def test_client_that_has_gone_is_not_searched_for(blocked, embedder):
  with hold_search(blocked, embedder):
    with connect(blocked) as client:
      client.sendall(make_post())
      wait_for_waiting(blocked, 1)
    wait_for_waiting(blocked, 0)
  assert post_request(blocked, RED)[0] == 200
  assert embedder.embedded == ["held", "red"]


def test_full_queue_answers_at_once(blocked, embedder, monkeypatch):
  # A first search tells how long one takes; one runs, and another waits.
  assert post_request(blocked, GOOD_BODY)[0] == 200
  with hold_search(blocked, embedder), start_posts(blocked, RED) as (post,):
    wait_for_waiting(blocked, 1)
    for module, name in (
      (search_queue, "MAX_WAITING"),
      (search_queue, "MAX_WAIT_SECONDS"),
      (serve_kb, "MAX_HELD_BYTES"),
    ):
      with monkeypatch.context() as patch:
        patch.setattr(module, name, 0)
        received = send_bytes(blocked, make_post(CLOSE))
      assert received.startswith(b"HTTP/1.1 503"), name
      assert b"\r\nretry-after: 1\r\n" in received.lower()
    embedder.release.set()
    assert post.result()[0] == 200


@pytest.fixture
def many_files():
  """Allow this process the open files of 500 clients and their server."""
  old, most = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, most), most))
  yield
  resource.setrlimit(resource.RLIMIT_NOFILE, (old, most))


async def post_from_clients(server, bodies):
  """Return what a client of its own receives for each body, to its end."""

  async def post(body):
    port = int(server.address.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(make_post(CLOSE, body=body))
    received = await reader.read()
    writer.close()
    return received

  return await asyncio.gather(*map(post, bodies))


@pytest.mark.parametrize(
  "count, room", [(40, 30), pytest.param(500, 400, marks=pytest.mark.long)]
)
def test_each_of_many_clients_is_answered_or_told_to_wait(
  blocked, embedder, monkeypatch, many_files, count, room
):
  monkeypatch.setattr(search_queue, "MAX_WAITING", room)
  bodies = [b'{"queries": ["chad %d"], "topk": 1}' % i for i in range(count)]
  posts = post_from_clients(blocked, bodies)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    with hold_search(blocked, embedder):
      answers = pool.submit(asyncio.run, posts)
      # All are there at once: those beyond the room are refused meanwhile.
      wait_for_waiting(blocked, room)
      connections = blocked._server.server_state.connections
      wait_until(lambda: len(connections) == room + 1)
    codes = collections.Counter()
    for answer in answers.result():
      head, _, body = answer.partition(b"\r\n\r\n")
      code = int(head.split()[1])
      codes[code] += 1
      assert ("result" if code == 200 else "error") in json.loads(body)
      assert (b"\r\nretry-after: 1" in head.lower()) == (code == 503)
  assert codes == {200: room, 503: count - room}


def test_answer_that_would_be_too_long_is_refused(server, monkeypatch):
  monkeypatch.setattr(http_client, "MAX_ANSWER_BYTES", 300)
  assert post_request(server, GOOD_BODY)[0] == 200
  body = {"queries": ["chad", "rome"], "topk": 4}
  status, response = post_request(server, body)
  assert status == 413 and '"topk"' in response["error"]


def test_server_ends_after_the_searches_under_way(blocked, embedder):
  # The held request is answered although the server is told to stop.
  with hold_search(blocked, embedder):
    blocked.stop()
    wait_until(lambda: not blocked._server.servers[0].is_serving())


# --- What is served -----------------------------------------------------------


def test_image_paths_are_relative_to_the_image_folder():
  folder = pathlib.Path(sources.georouter_folder())
  path = next((folder / "pictures").rglob("*.png"))
  flag = Passage("a", "image", "a flag", str(path))
  passages = kb_servers.GeorouterPassages([flag])
  # Only images of GeoRouter are on the client's machine, too.
  for source, expected in ((sources.GEOROUTER, str(path)), ("/my.jsonl", "")):
    kb = make_kb("image", ["a flag"], source)
    kb.stack = kb.stack._replace(passages=passages)
    with serve_kb_locally(kb) as server:
      _, response = post_request(server, {"queries": ["flag"]})
      (found,) = response["result"]
      assert found[0]["image"] == str(path.relative_to(folder))
      remote = remote_kb.RemoteKB("image", server.address)
      (found,) = remote.search([Query("flag")], 1)
      assert found[0].image == expected


def test_version_covers_all_that_answers_depend_on():
  meta = make_kb().meta

  def version(index_name="ExactIndex", **changes):
    return search_api.describe_kb(meta | changes, index_name)["version"]

  changes = dict(passages="x", fingerprint="x", embedder="x", hybrid=True)
  changes |= dict(words=2)
  changes |= dict(rerank_fingerprint="a", shards=2, index_name="ScannIndex")
  versions = {version(**{name: value}) for name, value in changes.items()}
  versions |= {version(), version(rerank_fingerprint="b")}
  assert len(versions) == len(changes) + 2
  # Where files lie is of no importance.
  assert version(source="/elsewhere.jsonl", rerank="/moved") == version()


def test_folder_is_found_with_and_without_kind(tmp_path):
  kb_dir, folder = str(tmp_path), str(tmp_path / "text")
  find = serve_kb.find_kb_folder
  with pytest.raises(ValueError, match="no finished knowledge base"):
    find(kb_dir, None)
  (tmp_path / "text").mkdir()
  meta = dict(format=2, kb="text", rows=1, width=1, embedder="minilm")
  meta |= dict.fromkeys(("weights", "fingerprint", "index", "source"), "")
  text = json.dumps(meta | dict(passages=""))
  (tmp_path / "text/meta.json").write_text(text)
  assert find(kb_dir, "text") == find(folder, None) == folder
  with pytest.raises(ValueError, match="Say which, as in --kind=text"):
    find(kb_dir, None)
  with pytest.raises(ValueError, match="image holds no finished"):
    find(kb_dir, "image")


def build(folder, texts, **options):
  """Build a knowledge base of texts, with the ids r0, r1, ..."""
  source = folder.with_suffix(".jsonl")
  rows = [{"id": f"r{i}", "text": text} for i, text in enumerate(texts)]
  source.write_text("".join(json.dumps(row) + "\n" for row in rows))
  spec = build_kb.KbSpec(
    str(folder), "text", str(source), hybrid=False, **options
  )
  build_kb.build(spec)


@pytest.fixture
def built(tmp_path, monkeypatch):
  """Build a knowledge base with weights that are a file beside it."""

  def load_embedder(path):
    embedder = WordEmbedder()
    embedder.fingerprint = pathlib.Path(path).read_text()
    return embedder

  monkeypatch.setitem(registry.EMBEDDERS, "minilm", load_embedder)
  (tmp_path / "weights").write_text("first")
  folder = tmp_path / "text"
  build(folder, ["red", "green"], weights=str(tmp_path / "weights"))
  return folder


def cut_half(content):
  return content[: len(content) // 2]


# Other bytes of a file, a function that makes them, or changes of meta.json.
OTHER_META = dict(rows="2"), dict(kb="table"), dict(fingerprint="other")
DAMAGES = {
  "meta.json": [cut_half, b"[1]", b"{}", *OTHER_META, dict(weights="/nowhere")],
  "passages.jsonl": [cut_half, b"", lambda x: bytes(len(x))],
  "offsets.npy": [cut_half, lambda x: bytes(len(x))],
  "vectors.npy": [cut_half, b"", lambda x: x.replace(b"<f4", b"<i4")],
  "index.json": [cut_half, b"[]", b"{}"],
  "files.json": [cut_half, b"[]", b'{"gone": [1, ""]}'],
  "../current": [b"", b"version-9\n", b"version-0\n", b"/etc\n"],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_folder_is_not_served(built, caplog, name):
  path = built / "version-1" / name
  content = path.read_bytes()
  with serve_kb_locally(local_kb.open_kb(str(built))) as server:
    before = post_request(server, RED)
    for damage in DAMAGES[name]:
      data = damage(content) if callable(damage) else damage
      if isinstance(damage, dict):
        data = json.dumps(json.loads(content) | damage).encode()
      # Replaced, as a build does; the files that are served are still open.
      path.unlink()
      path.write_bytes(data)
      caplog.clear()
      serve_kb.reload_kb(server, str(built))
      assert "The former passages are served on." in caplog.text, damage
      assert post_request(server, RED) == before


def test_reload_serves_new_passages_and_weights(built):
  weights = built.with_name("weights")
  with serve_kb_locally(local_kb.open_kb(str(built))) as server:
    version = server.health["version"]
    weights.write_text("other weights")
    build(built, ["red", "green", "blue"], weights=str(weights))
    serve_kb.reload_kb(server, str(built))
    assert server.health["fingerprint"] == "other weights"
    assert server.health["rows"] == 3 and server.health["version"] != version
    _, response = post_request(server, {"queries": ["blue"]})
    assert response["result"][0][0]["id"] == "r2"


@pytest.mark.slow
def test_command_serves_reloads_and_ends(tmp_path):
  folder = tmp_path / "text"
  build(folder, ["red", "green"])
  command = [sys.executable, "-m", "r1router_jax.serve_kb", "--port=0"]
  flags = [f"--kb_dir={tmp_path}", "--kind=text"]
  child = subprocess.Popen(command + flags, stdout=subprocess.PIPE, text=True)
  try:
    *words, address = child.stdout.readline().split()
    assert words[:4] == ["Serving", "text", "(2", "passages)"]
    remote = remote_kb.RemoteKB("text", address)
    local = local_kb.open_kb(str(folder))
    queries = [Query("is it red?"), Query("what is green?")]
    assert remote.search(queries, 2) == local.search(queries, 2)
    # SIGHUP serves the new passages.
    build(folder, ["red", "green", "blue"])
    child.send_signal(signal.SIGHUP)
    wait_until(lambda: len(remote_kb.RemoteKB("text", address)) == 3)
    (found,) = remote_kb.RemoteKB("text", address).search([Query("blue")], 1)
    assert found[0].id == "r2"
    child.terminate()
    assert child.wait(timeout=30) == 0
  finally:
    child.kill()
