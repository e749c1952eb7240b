r"""Loads serve_kb with many clients at once, or that of another checkout, too.

  bash launch/benchmark.sh serve [--other=CHECKOUT] [--clients=1,32,500]

The knowledge base is GeoRouter's text.  Each client asks for the three best
passages of one question after another, over one connection, and never asks for
the same twice; no client tries again.  The servers run one after the other,
round by round; figures are of all rounds.  There is a JSON line for each number
of clients and each server:

  per_s      answers per second
  p50_ms, p99_ms
             percentiles of the time from a request to its answer
  failed     requests without an answer of status 200
"""

import argparse
import asyncio
import collections
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import common
import numpy as np

from r1router_jax.data import georouter

ROUNDS = 3
# Requests of all clients together, in one round; each client sends some.
REQUESTS = 500
WARM_UP_REQUESTS = 60


async def post_query(reader, writer, text: str) -> bool:
  """Ask one question; return whether the status of the answer is 200."""
  body = json.dumps(dict(queries=[text], topk=3, return_scores=True)).encode()
  head = "POST /retrieve HTTP/1.1\r\nHost: localhost\r\n"
  length = f"Content-Length: {len(body)}\r\n\r\n"
  writer.write(head.encode() + length.encode() + body)
  answer = (await reader.readuntil(b"\r\n\r\n")).lower()
  _, _, size = answer.partition(b"content-length:")
  await reader.readexactly(int(size.split()[0]))
  return answer.split()[1] == b"200"


async def run_client(port: int, texts: list[str]) -> list[float]:
  """Ask one question after another; return the seconds of each answer."""
  seconds, writer = [], None
  for text in texts:
    start = time.perf_counter()
    try:
      if writer is None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
      is_answered = await post_query(reader, writer, text)
    except (OSError, EOFError):
      is_answered = False
    if is_answered:
      seconds.append(time.perf_counter() - start)
    elif writer:
      # A server that refuses may end the connection.
      writer.close()
      writer = None
  if writer:
    writer.close()
  return seconds


async def run_clients(
  port: int, texts: list[str], num_clients: int
) -> tuple[list[float], float]:
  """Share questions among clients; return seconds of answers and of all."""
  start = time.perf_counter()
  shares = [texts[i::num_clients] for i in range(num_clients)]
  found = await asyncio.gather(*(run_client(port, share) for share in shares))
  return sum(found, []), time.perf_counter() - start


def start_server(checkout: pathlib.Path, kb_dir: str) -> tuple:
  """Start serve_kb of a checkout; return its process and its port."""
  flags = [f"--kb_dir={kb_dir}", "--kind=text", "--port=0"]
  child = subprocess.Popen(
    [sys.executable, "-m", "r1router_jax.serve_kb", *flags],
    cwd=checkout,
    stdout=subprocess.PIPE,
    text=True,
  )
  return child, int(child.stdout.readline().rpartition(":")[2])


def make_texts(count: int, name: str) -> list[str]:
  """Return questions that no other name has."""
  questions = [question.text for question in georouter.load_questions("test")]
  return [f"{questions[i % len(questions)]} {name} {i}" for i in range(count)]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--other", type=pathlib.Path)
  parser.add_argument(
    "--clients", type=common.split_numbers, default=[1, 32, 500]
  )
  args = parser.parse_args()
  checkouts = {"ours": common.HERE.parent}
  if args.other:
    checkouts["other"] = args.other
  with tempfile.TemporaryDirectory() as kb_dir:
    build = [f"--kb_dir={kb_dir}", "--kind=text"]
    subprocess.run(
      [sys.executable, "-m", "r1router_jax.build_kb", *build], check=True
    )
    servers = {
      name: start_server(path, kb_dir) for name, path in checkouts.items()
    }
    try:
      compare_servers({name: port for name, (_, port) in servers.items()}, args)
    finally:
      for child, _ in servers.values():
        child.terminate()


def compare_servers(ports: dict[str, int], args: argparse.Namespace) -> None:
  """Load each server, and print a line for each number of clients."""
  for port in ports.values():
    texts = make_texts(WARM_UP_REQUESTS, "warm")
    asyncio.run(run_clients(port, texts, 1))
  for num_clients in args.clients:
    answers, seconds = collections.defaultdict(list), collections.Counter()
    for number in range(ROUNDS):
      texts = make_texts(REQUESTS, f"{num_clients} {number}")
      # In turn, so that a busy moment of the machine meets all of them.
      for name, port in ports.items():
        found, spent = asyncio.run(run_clients(port, texts, num_clients))
        answers[name] += found
        seconds[name] += spent
    for name, found in answers.items():
      p50, p99 = 1000 * np.percentile(found, (50, 99))
      common.print_row(
        clients=num_clients,
        server=name,
        per_s=round(len(found) / seconds[name]),
        p50_ms=round(p50, 1),
        p99_ms=round(p99, 1),
        failed=ROUNDS * REQUESTS - len(found),
      )


if __name__ == "__main__":
  main()
