"""Two processes with two CPU devices each that make one job, as hosts do."""

import os
import pathlib
import socket
import subprocess
import sys

from r1router_jax.parallel import multihost

ROOT = pathlib.Path(__file__).parents[1]


def run(script, tmp_path, *arguments, timeout=180):
  """What each prints that runs `script`; it calls `pods.join_pod`."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{s.getsockname()[1]}"
  env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()} | {
    "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=2"),
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    multihost.COORDINATOR: address,
    multihost.PROCESSES: "2",
  }
  logs = [tmp_path / f"{n}.log" for n in range(2)]
  children = [
    subprocess.Popen(
      [sys.executable, "-c", script, *arguments],
      stdout=log.open("w"),
      stderr=subprocess.STDOUT,
      env=env | {multihost.PROCESS: str(n)},
    )
    for n, log in enumerate(logs)
  ]
  try:
    codes = [child.wait(timeout=timeout) for child in children]
  finally:
    for child in children:
      child.kill()
  output = [log.read_text() for log in logs]
  assert codes == [0, 0], output
  return output
