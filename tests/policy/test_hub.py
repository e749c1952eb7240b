"""Checkpoints by id, from a stand-in for the hub on this machine."""

import functools
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import urllib.parse

import huggingface_hub
import pytest

from r1router_jax.common.checkpoint_folder import locate_checkpoint
from r1router_jax.policy import policy
from tests import tiny_policy

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
  """Serves the files of `folder` as the model owner/tiny."""

  def __init__(self, folder, asked, *args):
    self.folder, self.asked = folder, asked
    super().__init__(*args)

  # Three kinds of requests: about the model, its list of files, a file.
  def do_GET(self):  # noqa: N802 (the name that http.server calls)
    path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
    files = sorted(self.folder.iterdir())
    answers = {
      "/api/models/owner/tiny": dict(
        id="owner/tiny",
        sha=COMMIT,
        siblings=[dict(rfilename=file.name) for file in files],
      ),
      f"/api/models/owner/tiny/tree/{COMMIT}": [
        dict(
          type="file", path=file.name, size=file.stat().st_size, oid=f"{n:040x}"
        )
        for n, file in enumerate(files)
      ],
    }
    answers["/api/models/owner/tiny/revision/main"] = answers[
      "/api/models/owner/tiny"
    ]
    name = path.removeprefix(f"/owner/tiny/resolve/{COMMIT}/")
    if path in answers:
      self._send(json.dumps(answers[path]).encode())
    elif name in {file.name for file in files}:
      self.asked.add(name)
      self._send((self.folder / name).read_bytes())
    else:
      self.send_error(404)

  do_HEAD = do_GET

  def _send(self, data):
    self.send_response(200)
    self.send_header("Content-Length", str(len(data)))
    self.send_header("ETag", f'"{hash(data)}"')
    self.send_header("X-Repo-Commit", COMMIT)
    self.end_headers()
    if self.command == "GET":
      self.wfile.write(data)

  def log_message(self, *args):
    pass


@pytest.fixture
def hub(tmp_path):
  """Serve a hub; yield its address, its folder, and the files it served."""
  folder, asked = tmp_path / "hub", set()
  policy.Policy(
    tiny_policy.POLICY_CONFIG,
    tiny_policy.TOKENIZER,
    tiny_policy.params(tiny_policy.FULL_VOCAB_CONFIG),
  ).save(folder)
  # Files that could run code, or that nobody needs.
  for name in ("pytorch_model.bin", "modeling_tiny.py", "README.md"):
    (folder / name).write_bytes(b"\x80\x04.")
  server = http.server.ThreadingHTTPServer(
    ("127.0.0.1", 0), functools.partial(Hub, folder, asked)
  )
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield f"http://127.0.0.1:{server.server_address[1]}", folder, asked
  server.shutdown()


def convert(address, source, tmp_path):
  env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
  env.pop("HF_HUB_OFFLINE", None)
  # The client library asks this hub, without the user's cache.
  env |= {
    "HF_ENDPOINT": address,
    "HF_HOME": str(tmp_path / "cache"),
    "HF_HUB_DISABLE_XET": "1",
  }
  return subprocess.run(
    [
      sys.executable,
      "-m",
      "r1router_jax.convert",
      f"--source={source}",
      f"--workdir={tmp_path / 'out'}",
      "--dtype=float32",
    ],
    capture_output=True,
    text=True,
    check=False,
    env=env,
    cwd=pathlib.Path(__file__).parents[2],
  )


def test_hub_model_is_fetched_without_code_or_pickles(hub, tmp_path):
  # In a process of its own, since the library reads its variables once.
  address, folder, asked = hub
  done = convert(address, "owner/tiny", tmp_path)
  assert done.returncode == 0, done.stderr
  # Nothing else was downloaded.
  assert asked == {
    "config.json",
    "model.safetensors",
    "policy.json",
    "tokenizer.json",
  }
  for name in sorted(asked):
    got = (tmp_path / "out" / name).read_bytes()
    assert got == (folder / name).read_bytes(), name


def test_unknown_hub_model_is_named(hub, tmp_path):
  done = convert(hub[0], "owner/other", tmp_path)
  # A mistake of the user, not of the program: one line, no traceback.
  assert done.returncode == 2 and "no folder owner/other" in done.stderr
  assert "Traceback" not in done.stderr


def test_hub_is_asked_once_for_a_model(tmp_path, monkeypatch):
  """So that its config, weights and tokenizer are of one commit."""
  answers = iter([OSError("no network"), str(tmp_path)])

  def download(name, allow_patterns):
    if isinstance(answer := next(answers), OSError):
      raise answer
    return answer

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  with pytest.raises(FileNotFoundError, match="no network"):
    locate_checkpoint("owner/asked-once")
  # A failure is not kept.
  for _ in range(3):
    assert locate_checkpoint("owner/asked-once") == tmp_path
