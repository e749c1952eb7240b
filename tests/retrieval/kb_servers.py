"""Servers of knowledge bases for tests: serve_kb's, and other programs'."""

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
from r1router_jax.common.records import KBS, Passage
from r1router_jax.data import georouter
from r1router_jax.retrieval import kb_meta, local_kb
from r1router_jax.retrieval.corpora import sources
from r1router_jax.retrieval.index import exact
from tests.retrieval.fakes import WordEmbedder

TEXTS = [
  "the capital of chad is ndjamena",
  "chad has many people",
  "rome is the capital of italy",
  "a flag is red",
]


def make_passages(kind="text", texts=TEXTS):
  """Return passages with these texts and the ids <kind>/0, <kind>/1, ..."""
  return [Passage(f"{kind}/{i}", kind, text) for i, text in enumerate(texts)]


def make_stack(passages, **options):
  """Return exact search over passages by a fake embedder."""
  embedder = WordEmbedder()
  index = exact.ExactIndex(WordEmbedder()(passages))
  return local_kb.SearchStack(passages, embedder, index, **options)


def make_kb(kind="text", texts=TEXTS, source="/somewhere.jsonl"):
  """Return a knowledge base with the meta.json of a built one."""
  meta = {
    "kb": kind,
    "rows": len(texts),
    "embedder": "words",
    "fingerprint": "words-1",
    "format": kb_meta.FORMAT_VERSION,
    "source": source,
    "passages": hashlib.sha256(repr(texts).encode()).hexdigest(),
  }
  return local_kb.LocalKB(make_stack(make_passages(kind, texts)), meta)


@contextlib.contextmanager
def serve_kb_locally(kb, port=0):
  """Serve a knowledge base from a thread; yields the server."""
  server = serve_kb.SearchServer(kb, "127.0.0.1", port)
  thread = threading.Thread(target=server.run)
  thread.start()
  try:
    yield server
  finally:
    server.stop()
    thread.join()


@contextlib.contextmanager
def serve_answers(answer):
  """Serve what a function answers from a thread; yields the address.

  Args:
    answer: (path, decoded body or None) -> status, and bytes or a JSON value.
  """

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      length = int(self.headers.get("Content-Length", 0))
      body = json.loads(self.rfile.read(length)) if length else None
      status, found = answer(self.path, body)
      found = found if isinstance(found, bytes) else json.dumps(found).encode()
      self.send_response(status)
      self.send_header("Content-Length", str(len(found)))
      self.end_headers()
      self.wfile.write(found)

    do_GET = do_POST

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  try:
    yield f"http://127.0.0.1:{server.server_address[1]}"
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def post_request(server, body):
  """Send bytes or JSON; return the status and the JSON of the response."""
  place = urllib.parse.urlsplit(server.address)
  client = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
  body = body if isinstance(body, bytes) else json.dumps(body)
  client.request("POST", "/retrieve", body)
  response = client.getresponse()
  return response.status, json.loads(response.read())


class GeorouterPassages(list):
  """Passages whose images are in the folder of the GeoRouter corpus."""

  image_folder = sources.georouter_folder()


def make_georouter_kb(kind):
  """Return a knowledge base of 80 passages of GeoRouter."""
  passages = GeorouterPassages([*georouter.load_passages(kind)][:80])
  meta = make_kb(kind).meta | {"rows": len(passages)}
  return local_kb.LocalKB(make_stack(passages), meta)


def serve_until_sigterm(names, ports):
  """Serve a knowledge base per port, print the addresses, wait for SIGTERM.

  Args:
    names: a kind for passages of GeoRouter, anything else for `make_kb()`.
    ports: ports to listen at; 0 takes a free one.
  """
  servers = []
  for name, port in zip(names, ports, strict=True):
    kb = make_georouter_kb(name) if name in KBS else make_kb()
    servers.append(serve_kb.SearchServer(kb, "127.0.0.1", port))
  threads = [threading.Thread(target=server.run) for server in servers]

  def stop_all(*_):
    for server in servers:
      server.stop()

  signal.signal(signal.SIGTERM, stop_all)
  for thread in threads:
    thread.start()
  print(*(server.address for server in servers), flush=True)
  for thread in threads:
    thread.join()
  print("ended", flush=True)


def start_process(names=("home",), ports=None):
  """Run `serve_until_sigterm` in a process; return it and the addresses."""
  ports = ports or [0] * len(names)
  code = (
    "from tests.retrieval import kb_servers;"
    f"kb_servers.serve_until_sigterm({list(names)}, {list(ports)})"
  )
  command, root = (
    [sys.executable, "-c", code],
    pathlib.Path(__file__).parents[2],
  )
  child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
  return child, child.stdout.readline().split()
