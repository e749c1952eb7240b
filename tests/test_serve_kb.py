"""The server of a knowledge base: images, invalid requests, load, signals."""

import base64
import json
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from r1router_jax import build_kb, serve_kb
from r1router_jax.common import http_client, images
from r1router_jax.common.records import Passage, Query
from r1router_jax.retrieval import local_kb, remote_kb
from r1router_jax.retrieval.corpora import sources
from tests.retrieval import kb_servers
from tests.retrieval.fakes import WordEmbedder


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


def make_image_kb():
  kb = kb_servers.make_kb("image")
  kb.stack = kb.stack._replace(embedder=ColourEmbedder())
  return kb


def test_images_are_sent_with_queries(tmp_path):
  kb = make_image_kb()
  red, green = str(tmp_path / "red.png"), str(tmp_path / "green.png")
  Image.new("RGB", (8, 8), (200, 0, 0)).save(red)
  Image.new("RGB", (8, 8), (0, 200, 0)).save(green)
  with kb_servers.serve_kb_locally(kb) as server:
    remote = remote_kb.RemoteKB("image", server.address)
    queries = [Query("flag", image) for image in (red, green, "", red)]
    found = remote.search(queries, 1)
    assert kb.stack.embedder.colours == [[200, 0, 0], [0, 200, 0]]
    # The same image makes the same query, which the cache answers.
    assert found[0] == found[3]


def test_invalid_images_are_rejected():
  encoded = base64.b64encode(b"no image").decode()
  request = json.dumps({"queries": ["a"], "images": [encoded]})
  with kb_servers.serve_kb_locally(make_image_kb()) as server:
    status, response = kb_servers.post_request(server, request)
    assert status == 400 and '"images"' in response["error"]
    # The error does not reveal a path of the server.
    assert server._image_folder.name not in response["error"]
  with kb_servers.serve_kb_locally(kb_servers.make_kb("text")) as server:
    status, response = kb_servers.post_request(server, request)
    assert status == 400 and "no use for images" in response["error"]


INVALID_REQUESTS = [
  (b"{", "JSON"),
  (b"[1]", "object"),
  (b'{"queries": "a"}', '"queries"'),
  (b'{"queries": [1]}', '"queries"'),
  (b'{"queries": ["a"], "topk": 0}', "topk"),
  (b'{"queries": ["a"], "topk": true}', "topk"),
  (b'{"queries": ["a"], "topk": 5000}', "topk"),
  (b'{"queries": ["a"], "return_scores": 1}', "return_scores"),
  (b'{"queries": ["\\ud800"]}', "whole characters"),
  (b'{"queries": ["' + b"a" * 9000 + b'"]}', "8192"),
  (b'{"queries": ["a"], "images": []}', "images"),
  (b'{"queries": [NaN]}', "NaN"),
]


def test_invalid_requests_are_rejected_and_the_next_is_answered():
  with kb_servers.serve_kb_locally(kb_servers.make_kb()) as server:
    for body, word in INVALID_REQUESTS:
      status, response = kb_servers.post_request(server, body)
      assert status == 400, body
      assert word in response["error"], body
    assert kb_servers.post_request(server, b"{}", path="/other")[0] == 404
    too_long = {"Content-Length": str(1 << 40)}
    assert kb_servers.post_request(server, None, too_long)[0] == 413
    # A chunked body declares no length.
    chunked = {"Transfer-Encoding": "chunked"}
    assert kb_servers.post_request(server, None, chunked)[0] == 411
    status, response = kb_servers.post_request(
      server, b'{"queries": ["capital of chad"]}'
    )
    assert status == 200
    # Without "return_scores" documents are bare, as Search-R1 sends them.
    (found,) = response["result"]
    assert [d["id"] for d in found] == ["text/0", "text/2", "text/1"]
    assert found[0]["contents"] == f'""\n{kb_servers.TEXTS[0]}'


def test_client_retries_when_the_server_is_busy(monkeypatch):
  monkeypatch.setattr(serve_kb, "MAX_SEARCHES", 1)
  monkeypatch.setattr(serve_kb, "QUEUE_SECONDS", 0.01)
  monkeypatch.setattr(http_client, "RETRY_PAUSES", (0.01, 0.05))
  kb, release = kb_servers.make_kb(), threading.Event()
  embed = kb.stack.embedder

  class BlockedEmbedder(WordEmbedder):
    def __call__(self, items):
      release.wait(5)
      return embed(items)

  kb.stack = kb.stack._replace(embedder=BlockedEmbedder())
  with kb_servers.serve_kb_locally(kb) as server:
    # The first request holds the only slot.
    first = threading.Thread(
      target=kb_servers.post_request, args=(server, b'{"queries": ["red"]}')
    )
    first.start()
    while server._searches._value:
      time.sleep(0.01)
    status, _ = kb_servers.post_request(server, b'{"queries": ["rome"]}')
    assert status == 503
    threading.Timer(0.3, release.set).start()
    remote = remote_kb.RemoteKB("text", server.address)
    (found,) = remote.search([Query("rome")], 1)
    assert found[0].id == "text/2"
    first.join()


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
