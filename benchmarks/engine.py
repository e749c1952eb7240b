"""What the engines under test have in common: one case, timed, as JSON.

An engine is a script that says `engine.sampler(make)`, where `make(case)`
returns `generate(new)`, which draws `new` tokens of each response and waits for
them; or `engine.trainer(run)`, where `run(case, turns)` takes so many turns of
rollout and update and returns the seconds of the parts of each.

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


def sampler(make: Callable[[dict], Callable[[int], None]]) -> None:
  def measure(case):
    generate = make(case)
    first, whole = (
      best(lambda new=new: generate(new)) for new in (1, case["new"])
    )
    return dict(prefill_s=first, decode_s=whole - first, total_s=whole)

  main(measure)


def trainer(run: Callable[[dict, int], list[dict[str, float]]]) -> None:
  def measure(case):
    turns = [
      parts | dict(total_s=sum(parts.values()))
      for parts in run(case, 1 + REPEATS)
    ]
    return min(turns[1:], key=lambda parts: parts["total_s"])

  main(measure)


def main(measure: Callable[[dict], dict[str, float]]) -> None:
  compiles = _count_compiles()
  found = measure(json.loads(sys.argv[1]))
  print(
    json.dumps(
      found
      | dict(
        compiles=len(compiles),
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
      )
    )
  )


def best(run: Callable[[], None]) -> float:
  """Seconds, without those of the first time, which compiles, fills caches."""
  run()
  times = []
  for _ in range(REPEATS):
    gc.collect()
    start = time.perf_counter()
    run()
    times.append(time.perf_counter() - start)
  return min(times)


class Laps:
  """Seconds of the parts of a turn, each from the end of the one before."""

  def __init__(self):
    gc.collect()
    self.parts, self._last = {}, time.perf_counter()

  def __call__(self, part: str) -> None:
    now = time.perf_counter()
    self.parts[part], self._last = now - self._last, now


def _count_compiles() -> list:
  """Grows with each program that XLA compiles; empty where there is no JAX."""
  seen = []
  try:
    import jax
  except ImportError:
    return seen
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: (
      seen.append(name)
      if name == "/jax/core/compile/backend_compile_duration"
      else None
    )
  )
  return seen
