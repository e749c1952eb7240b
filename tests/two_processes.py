"""Runs of two processes with two CPU devices each, in place of two hosts."""

import os
import pathlib
import socket
import subprocess
import sys

from r1router_jax.parallel import multihost

ROOT = pathlib.Path(__file__).parents[1]


def run_two_processes(script, tmp_path, *arguments, timeout=180, fail=False):
  """Run a script in two processes of one job and return their outputs.

  Args:
    script: Python code, which calls `multihost.initialize_distributed`.
    tmp_path: the folder of the log files.
    *arguments: arguments of the script.
    timeout: seconds until a process is killed.
    fail: whether both processes should fail, rather than succeed.
  """
  # A free port; nothing keeps others from taking it, but that is rare.
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{s.getsockname()[1]}"
  # Proxies would catch the processes' connection to each other.
  env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()} | {
    "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=2"),
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    multihost.COORDINATOR_VAR: address,
    multihost.NUM_PROCESSES_VAR: "2",
  }
  # Files, since a full pipe would block a process that the other waits for.
  logs = [tmp_path / f"{n}.log" for n in range(2)]
  children = [
    subprocess.Popen(
      [sys.executable, "-c", script, *arguments],
      stdout=log.open("w"),
      stderr=subprocess.STDOUT,
      env=env | {multihost.PROCESS_ID_VAR: str(n)},
    )
    for n, log in enumerate(logs)
  ]
  try:
    codes = [child.wait(timeout=timeout) for child in children]
  finally:
    for child in children:
      child.kill()
  output = [log.read_text() for log in logs]
  # The output of both tells which one failed first.
  assert [code != 0 for code in codes] == [fail] * 2, (codes, output)
  return output
