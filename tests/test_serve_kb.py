"""The server of a knowledge base, and requests of all kinds."""

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
from tests.retrieval.fakes import Words


def test_pictures_go_with_queries(tmp_path):
  seen = []

  class Looks(Words):
    def __call__(self, items):
      seen.extend(
        np.asarray(images.load(i.image))[0, 0].tolist()
        for i in items
        if isinstance(i, Query) and i.image
      )
      return super().__call__(items)

  home = kb_servers.at_home("image")
  home.content = home.content._replace(embedder=Looks())
  paths = []
  for colour in ((200, 0, 0), (0, 200, 0)):
    paths.append(str(tmp_path / f"{colour[0]}.png"))
    Image.new("RGB", (8, 8), colour).save(paths[-1])
  with kb_servers.served(home) as server:
    away = remote_kb.RemoteKB("image", server.address)
    found = away.search(
      [
        Query("flag", paths[0]),
        Query("flag", paths[1]),
        Query("flag"),
        Query("flag", paths[0]),
      ],
      1,
    )
    assert seen == [[200, 0, 0], [0, 200, 0]]
    assert found[0] == found[3]
    status, said = kb_servers.post(
      server,
      json.dumps(
        dict(queries=["a"], images=[base64.b64encode(b"no picture").decode()])
      ),
    )
    assert status == 400 and '"images"' in said["error"]
    assert str(tmp_path) not in said["error"]  # It says nothing of its disk.
  with kb_servers.served(kb_servers.at_home("text")) as server:
    status, said = kb_servers.post(
      server, json.dumps(dict(queries=["a"], images=["YQ=="]))
    )
    assert status == 400 and "no use for pictures" in said["error"]


BAD = [
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


def test_bad_requests_are_refused_and_the_next_is_answered():
  with kb_servers.served(kb_servers.at_home()) as server:
    for body, word in BAD:
      status, said = kb_servers.post(server, body)
      assert (status, word in said["error"]) == (400, True), (body, said)
    assert kb_servers.post(server, b"{}", path="/other")[0] == 404
    long = {"Content-Length": str(1 << 40)}
    assert kb_servers.post(server, None, long)[0] == 413
    chunked = {"Transfer-Encoding": "chunked"}  # It says no length.
    assert kb_servers.post(server, None, chunked)[0] == 411
    status, said = kb_servers.post(server, b'{"queries": ["capital of chad"]}')
    assert status == 200
    (found,) = said["result"]  # Bare documents, as Search-R1 gives them.
    assert [d["id"] for d in found] == ["text/0", "text/2", "text/1"]
    assert found[0]["contents"] == f'""\n{kb_servers.TEXTS[0]}'


def test_who_finds_no_place_asks_again(monkeypatch):
  monkeypatch.setattr(serve_kb, "SEARCHES", 1)
  monkeypatch.setattr(serve_kb, "PATIENCE", 0.01)
  monkeypatch.setattr(http_client, "PAUSES", (0.01, 0.05))
  home, hold = kb_servers.at_home(), threading.Event()
  inner = home.content.embedder

  class Waits(Words):
    def __call__(self, items):
      hold.wait(5)
      return inner(items)

  home.content = home.content._replace(embedder=Waits())
  with kb_servers.served(home) as server:
    first = threading.Thread(
      target=kb_servers.post, args=(server, b'{"queries": ["red"]}')
    )
    first.start()
    while server._searches._value:
      time.sleep(0.01)
    assert kb_servers.post(server, b'{"queries": ["rome"]}')[0] == 503
    threading.Timer(0.3, hold.set).start()
    away = remote_kb.RemoteKB("text", server.address)
    (found,) = away.search([Query("rome")], 1)
    assert found[0].id == "text/2"
    first.join()


def test_pictures_are_named_below_their_folder():
  folder = pathlib.Path(sources.world_folder())
  path = next((folder / "pictures").rglob("*.png"))

  for source, wanted in ((sources.WORLD, str(path)), ("/my.jsonl", "")):
    base = kb_servers.at_home("image", ["a flag"], source)
    base.content = base.content._replace(
      passages=kb_servers.InWorld([Passage("a", "image", "a flag", str(path))])
    )
    with kb_servers.served(base) as server:
      _, said = kb_servers.post(server, b'{"queries": ["flag"]}')
      assert said["result"][0][0]["image"] == str(path.relative_to(folder))
      away = remote_kb.RemoteKB("image", server.address)
      (found,) = away.search([Query("flag")], 1)
      assert found[0].image == wanted  # Others' pictures do not lie here.


@pytest.mark.slow
def test_the_command_serves_opens_anew_and_ends(tmp_path):
  source, folder = tmp_path / "rows.jsonl", tmp_path / "kb" / "text"

  def build(rows):
    source.write_text(
      "".join(
        json.dumps(dict(id=f"r{i}", text=f"{name} is a colour")) + "\n"
        for i, name in enumerate(rows)
      )
    )
    build_kb.build(str(folder), "text", str(source))

  build(["red", "green"])
  child = subprocess.Popen(
    [
      sys.executable,
      "-m",
      "r1router_jax.serve_kb",
      f"--kb={folder}",
      "--port=0",
    ],
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    said = child.stdout.readline().split()
    assert said[:4] == ["Serving", "text", "(2", "passages)"]
    away = remote_kb.RemoteKB("text", said[-1])
    here = local_kb.open_kb(str(folder))
    asked = [Query("is it red?"), Query("what is green?")]
    assert away.search(asked, 2) == here.search(asked, 2)
    build(["red", "green", "blue"])
    child.send_signal(signal.SIGHUP)
    end = time.monotonic() + 60
    while len(remote_kb.RemoteKB("text", said[-1])) != 3:
      assert time.monotonic() < end
      time.sleep(0.1)
    (found,) = remote_kb.RemoteKB("text", said[-1]).search([Query("blue")], 1)
    assert found[0].id == "r2"
    child.terminate()
    assert child.wait(timeout=30) == 0
  finally:
    child.kill()
