"""Times an engine on one case, and prints the result as JSON.

An engine is a script that calls one of two functions:

  time_sampler(make_generate), where `make_generate(case)` returns
    `generate(new)`, which samples `new` tokens of each response and waits for
    them;
  time_trainer(run_iterations), where `run_iterations(case, count)` runs that
    many iterations of rollout and update, and returns the seconds of the parts
    of each.

This module imports nothing but the standard library, so that it runs in every
engine's environment.
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Callable

REPEATS = 3


def time_sampler(
  make_generate: Callable[[dict], Callable[[int], None]],
) -> None:
  """Print the seconds of the prefill and of the tokens after the first."""

  def measure_sampler(case):
    generate = make_generate(case)
    # One token per response is the prefill; the rest is decoding.
    first = best_seconds(lambda: generate(1))
    total = best_seconds(lambda: generate(case["new"]))
    return dict(prefill_s=first, decode_s=total - first, total_s=total)

  print_measurement(measure_sampler)


def time_trainer(
  run_iterations: Callable[[dict, int], list[dict[str, float]]],
) -> None:
  """Print the seconds of the fastest iteration and of its parts."""

  def measure_trainer(case):
    iterations = [
      parts | dict(total_s=sum(parts.values()))
      for parts in run_iterations(case, 1 + REPEATS)
    ]
    # The first iteration compiles.
    return min(iterations[1:], key=lambda parts: parts["total_s"])

  print_measurement(measure_trainer)


def print_measurement(measure: Callable[[dict], dict[str, float]]) -> None:
  """Measure the case on the command line, and print what it took."""
  # Listen before anything is compiled.
  compiles = _record_compiles()
  found = measure(json.loads(sys.argv[1]))
  peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  print(json.dumps(found | dict(compiles=len(compiles), peak_mib=peak_mib)))


def best_seconds(function: Callable[[], None]) -> float:
  """Return the least seconds of a call, after one that compiles."""
  function()
  times = []
  for _ in range(REPEATS):
    # A collection must not fall into the call.
    gc.collect()
    start = time.perf_counter()
    function()
    times.append(time.perf_counter() - start)
  return min(times)


class LapTimer:
  """Seconds of the parts of an iteration, each from the end of the last.

  Attributes:
    parts: seconds by the name of the part.
  """

  def __init__(self):
    # Garbage of the iteration before is not part of this one.
    gc.collect()
    self.parts, self._last = {}, time.perf_counter()

  def end_part(self, name: str) -> None:
    """Record the seconds since the end of the part before."""
    now = time.perf_counter()
    self.parts[name], self._last = now - self._last, now


def _record_compiles() -> list[str]:
  """Return a list that grows with each program that XLA compiles.

  It stays empty in an environment without JAX.
  """
  events = []
  # PyTorch's environment has no JAX.
  try:
    import jax
  except ImportError:
    return events

  def record_event(name, *_, **__):
    if name == "/jax/core/compile/backend_compile_duration":
      events.append(name)

  jax.monitoring.register_event_duration_secs_listener(record_event)
  return events
