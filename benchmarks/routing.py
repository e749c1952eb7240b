r"""Compares two routing loops while searches are slow.

  python benchmarks/routing.py --kb_dir=runs/quickstart/kb [--questions=64]

The policy that comes with the package answers questions of the test split.
Each search of a knowledge base takes --delay seconds longer.  The loop `host`
has all questions in one batch; `halves` generates for one half of them while
the other half searches.  There is one JSON line for each loop and delay:

  per_s         questions per second, the best of three runs after a first one
  of_no_delay   share of the same loop's speed without a delay
"""

import argparse
import time

import common
import jax

from r1router_jax.data import georouter
from r1router_jax.policy import policy
from r1router_jax.retrieval import local_kb, retriever
from r1router_jax.routing import device_loop

RUNS = 4


class SlowKB(local_kb.LocalKB):
  """A knowledge base that waits before it searches.

  Attributes:
    delay: seconds to wait.
  """

  delay = 0.0

  def _search_uncached(self, queries, k):
    time.sleep(self.delay)
    return super()._search_uncached(queries, k)


def time_routing(
  loop: str, delay: float, args: argparse.Namespace, router: policy.Policy
) -> float:
  """Return the seconds of one run."""
  # Opened anew for each run, so that no result is cached.
  kbs = {
    kind: SlowKB(kb.stack, kb.meta)
    for kind, kb in retriever.open_kbs(args.kb_dir).items()
  }
  for kb in kbs.values():
    kb.delay = delay
  questions = georouter.load_questions("test")[: args.questions]
  # Opening the knowledge bases is not part of the time.
  start = time.perf_counter()
  device_loop.ROUTING_LOOPS[loop](router, kbs, questions, jax.random.key(0))
  return time.perf_counter() - start


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--kb_dir", default="runs/quickstart/kb")
  parser.add_argument("--questions", type=int, default=64)
  parser.add_argument("--delay", type=float, default=0.05)
  args = parser.parse_args()
  router = policy.load("warm_start")
  for loop in ("host", "halves"):
    no_delay = None
    for delay in (0.0, args.delay):
      # The first run compiles, and so is never the best.
      best = min(time_routing(loop, delay, args, router) for _ in range(RUNS))
      no_delay = no_delay or best
      common.print_row(
        loop=loop,
        delay=delay,
        questions=args.questions,
        per_s=round(args.questions / best, 2),
        of_no_delay=round(no_delay / best, 3),
      )


if __name__ == "__main__":
  main()
