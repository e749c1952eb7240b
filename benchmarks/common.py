"""Shapes of models, limits of this machine, processes of engines, clocks.

`sampling.py` and `train_step.py` compare engines: each engine is a script that
runs one case in a process of its own, in its own Python environment.
"""

import contextlib
import functools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

HERE = pathlib.Path(__file__).parent

# Sizes of the models: one that fits any test, and Qwen2.5-0.5B.
SHAPES = {
  "tiny": dict(
    vocab=4096, hidden=256, mlp=688, layers=4, heads=4, kv_heads=2, head_size=64
  ),
  "0.5b": dict(
    vocab=151936,
    hidden=896,
    mlp=4864,
    layers=24,
    heads=14,
    kv_heads=2,
    head_size=64,
  ),
}

# Runs in a process of its own, so that the memory and the threads of JAX are
# given back before an engine starts.
_LIMITS_SCRIPT = """
import json
import time

import jax
import jax.numpy as jnp


def best_seconds(function, *args):
  function(*args).block_until_ready()  # Compiles.
  times = []
  for _ in range(5):
    start = time.perf_counter()
    function(*args).block_until_ready()
    times.append(time.perf_counter() - start)
  return min(times)


matrix, vector = jnp.ones((4096, 4096)), jnp.ones((2**28,))
gflops = 2 * 4096**3 / best_seconds(jax.jit(jnp.dot), matrix, matrix) / 1e9
gb_s = 2**30 / best_seconds(jax.jit(jnp.sum), vector) / 1e9
print(json.dumps(dict(gflops=gflops, gb_s=gb_s)))
"""


class PhaseClock:
  """Measures how long functions run, in any thread.

  Attributes:
    seconds: time in each phase; only if no phase named before it runs.
  """

  def __init__(self, *phases: str):
    self.seconds = dict.fromkeys(phases, 0.0)
    self._running = dict.fromkeys(phases, 0)
    self._lock, self._since = threading.Lock(), time.perf_counter()

  @contextlib.contextmanager
  def time_phase(self, phase: str) -> Iterator[None]:
    """Count the time in the context for a phase."""
    self._switch(phase, 1)
    try:
      yield
    finally:
      self._switch(phase, -1)

  def _switch(self, phase: str, change: int) -> None:
    with self._lock:
      now = time.perf_counter()
      # Of phases that run side by side the first one counts.
      running = [name for name, count in self._running.items() if count]
      if running:
        self.seconds[running[0]] += now - self._since
      self._since = now
      self._running[phase] += change

  def wrap(self, phase: str, function: Callable) -> Callable:
    """Return the function with its time counted for a phase."""

    @functools.wraps(function)
    def timed(*args, **options):
      with self.time_phase(phase):
        return function(*args, **options)

    return timed


def measure_limits() -> dict[str, float]:
  """Measure this machine: GFLOP/s of a matrix product, GB/s of a sum."""
  done = subprocess.run(
    [sys.executable, "-c", _LIMITS_SCRIPT],
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(done.stdout)


def run_engine(script: str, case: dict) -> dict:
  """Run an engine on a case, and return what it measured.

  Args:
    script: name of the engine's script, without ".py".  Scripts whose names end
      with "tunix" or "transformers" run in the interpreter that TUNIX_PYTHON or
      TRANSFORMERS_PYTHON names, if it is set; others in this one.
    case: sizes of the model and of the batch.

  Raises:
    RuntimeError: if the engine fails; holds the end of its standard error.
  """
  variable = f"{script.rpartition('_')[2].upper()}_PYTHON"
  python = os.environ.get(variable, sys.executable)
  done = subprocess.run(
    [python, HERE / f"{script}.py", json.dumps(case)],
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    raise RuntimeError(f"{script} failed on {case}:\n{done.stderr[-2000:]}")
  # Libraries may print, too; the result is the last line.
  return json.loads(done.stdout.splitlines()[-1])


def count_layer_weights(case: dict) -> int:
  """Return how many numbers the matrices of one layer hold."""
  d, kv = case["hidden"], case["kv_heads"] * case["head_size"]
  # Queries and output, keys and values, and the three matrices of the MLP.
  return d * (2 * d + 2 * kv) + 3 * d * case["mlp"]


def print_row(**values: object) -> None:
  """Print one JSON line at once, since the next one may take minutes."""
  print(json.dumps(values), flush=True)


def split_names(text: str) -> list[str]:
  """Return the names in a list with commas; none of an empty text."""
  return [name for name in text.split(",") if name]


def split_numbers(text: str) -> list[int]:
  """Return the numbers in a list with commas."""
  return [int(number) for number in split_names(text)]
