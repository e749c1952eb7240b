r"""The routing loop while searching is slow: one batch, or halves in flight.

  python benchmarks/routing.py --kb=runs/quickstart/kb [--questions=64]

The shipped policy answers questions of the test split; each search of a
knowledge base lasts --delay more.  One JSON line a loop and delay:

  per_s        questions a second, the best of three runs
  of_fast      share of the same loop's at no delay
"""

import argparse
import json
import time

import jax

from r1router_jax.data import georouter
from r1router_jax.policy import policy
from r1router_jax.retrieval import local_kb, retriever
from r1router_jax.routing import device_loop


class Slow(local_kb.LocalKB):
  """Waits before it searches."""

  delay = 0.0

  def _search_uncached(self, queries, k):
    time.sleep(self.delay)
    return super()._search_uncached(queries, k)


def seconds(
  loop: str, delay: float, asked: argparse.Namespace, of: policy.Policy
) -> float:
  """Of one run, whose knowledge bases remember nothing."""
  kbs = {
    kb: Slow(base.stack, base.meta)
    for kb, base in retriever.open_kbs(asked.kb).items()
  }
  for base in kbs.values():
    base.delay = delay
  questions = georouter.load_questions("test")[: asked.questions]
  start = time.perf_counter()
  device_loop.LOOPS[loop](of, kbs, questions, jax.random.key(0))
  return time.perf_counter() - start


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--kb", default="runs/quickstart/kb")
  parser.add_argument("--questions", type=int, default=64)
  parser.add_argument("--delay", type=float, default=0.05)
  asked = parser.parse_args()
  of = policy.load("warm_start")
  for loop in ("host", "halves"):
    fast = None
    for delay in (0.0, asked.delay):
      best = min(seconds(loop, delay, asked, of) for _ in range(4))
      fast = fast or best
      print(
        json.dumps(
          dict(
            loop=loop,
            delay=delay,
            questions=asked.questions,
            per_s=round(asked.questions / best, 2),
            of_fast=round(fast / best, 3),
          )
        ),
        flush=True,
      )


if __name__ == "__main__":
  main()
