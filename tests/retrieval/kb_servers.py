"""Servers of knowledge bases for tests, ours and others'."""

import contextlib
import hashlib
import http.server
import json
import pathlib
import signal
import subprocess
import sys
import threading
import urllib.parse

from r1router_jax import serve_kb
from r1router_jax.common.records import Passage
from r1router_jax.data import georouter
from r1router_jax.retrieval import kb_meta, local_kb
from r1router_jax.retrieval.corpora import sources
from r1router_jax.retrieval.index import exact
from r1router_jax.retrieval.retriever import KINDS
from tests.retrieval.fakes import Words

TEXTS = [
  "the capital of chad is ndjamena",
  "chad has many people",
  "rome is the capital of italy",
  "a flag is red",
]


def at_home(kb="text", texts=TEXTS, source="/somewhere.jsonl"):
  passages = [Passage(f"{kb}/{i}", kb, text) for i, text in enumerate(texts)]
  return local_kb.LocalKB(
    local_kb.Content(passages, Words(), exact.ExactIndex(Words()(passages))),
    dict(
      kb=kb,
      rows=len(texts),
      embedder="words",
      fingerprint="words-1",
      format=kb_meta.FORMAT,
      source=source,
      passages=hashlib.sha256(repr(texts).encode()).hexdigest(),
    ),
  )


@contextlib.contextmanager
def served(base, port=0):
  server = serve_kb.Server(base, "127.0.0.1", port)
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    thread.join()
    server.end()


@contextlib.contextmanager
def answering(answer):
  """Another's server: `answer(path, body)` gives status and JSON or bytes."""

  class Other(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      length = int(self.headers.get("Content-Length", 0))
      body = json.loads(self.rfile.read(length)) if length else None
      status, said = answer(self.path, body)
      said = said if isinstance(said, bytes) else json.dumps(said).encode()
      self.send_response(status)
      self.send_header("Content-Length", str(len(said)))
      self.end_headers()
      self.wfile.write(said)

    do_GET = do_POST

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other)
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  try:
    yield f"http://127.0.0.1:{server.server_address[1]}"
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def post(server, body, headers=None, path="/retrieve"):
  """Status and JSON that a plain client gets."""
  place = urllib.parse.urlsplit(server.address)
  client = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
  client.request("POST", path, body, headers or {})
  answer = client.getresponse()
  return answer.status, json.loads(answer.read())


class InWorld(list):
  """Passages whose pictures lie in the world's folder."""

  pictures = sources.world_folder()


def world(kb):
  """A knowledge base of some of the world, whose embedder needs no JAX."""
  some = InWorld([*georouter.passages(kb)][:80])
  return local_kb.LocalKB(
    local_kb.Content(some, Words(), exact.ExactIndex(Words()(some))),
    dict(at_home(kb).meta, rows=len(some)),
  )


def _main(names, ports):
  """Serves `at_home` or parts of the world until SIGTERM comes."""
  bases = [world(name) if name in KINDS else at_home() for name in names]
  servers = [
    serve_kb.Server(base, "127.0.0.1", port)
    for base, port in zip(bases, ports, strict=True)
  ]
  threads = [
    threading.Thread(target=server.serve_forever, args=(0.05,))
    for server in servers
  ]
  signal.signal(
    signal.SIGTERM,
    lambda *_: [
      threading.Thread(target=server.shutdown).start() for server in servers
    ],
  )
  for thread in threads:
    thread.start()
  print(*(server.address for server in servers), flush=True)
  for server, thread in zip(servers, threads, strict=True):
    thread.join()
    server.end()
  print("ended", flush=True)


def process(names=("home",), ports=None):
  """Another process that serves these, and their addresses."""
  root = str(pathlib.Path(__file__).parents[2])
  ports = ports or [0] * len(names)
  child = subprocess.Popen(
    [
      sys.executable,
      "-c",
      "from tests.retrieval import serving;"
      f"serving._main({list(names)}, {list(ports)})",
    ],
    stdout=subprocess.PIPE,
    text=True,
    cwd=root,
  )
  return child, child.stdout.readline().split()
