"""What the samplers under test have in common: one case, timed, as JSON.

An engine is a script that says `engine.main(make)`, where `make(case)` returns
`generate(new)`, which draws `new` tokens of each response and waits for them.

This file imports nothing but the standard library, so that it runs in every
engine's environment.
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Callable

REPEATS = 3


def main(make: Callable[[dict], Callable[[int], None]]) -> None:
  case = json.loads(sys.argv[1])
  compiles = _count_compiles()
  generate = make(case)

  def seconds(new):
    generate(new)  # Compiles, and fills caches.
    times = []
    for _ in range(REPEATS):
      gc.collect()
      start = time.perf_counter()
      generate(new)
      times.append(time.perf_counter() - start)
    return min(times)

  first, whole = seconds(1), seconds(case["new"])
  print(json.dumps(dict(
      prefill_s=first, decode_s=whole - first, total_s=whole,
      compiles=len(compiles),
      peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)))


def _count_compiles() -> list:
  """Grows with each program that XLA compiles; empty where there is no JAX."""
  seen = []
  try:
    import jax
  except ImportError:
    return seen
  jax.monitoring.register_event_duration_secs_listener(
      lambda name, *_, **__: seen.append(name)
      if name == "/jax/core/compile/backend_compile_duration" else None)
  return seen
