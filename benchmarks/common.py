"""What the comparisons have in common: shapes, this machine's limits, runs."""

import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent

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


def limits() -> dict[str, float]:
  """What two cores can do: GFLOP/s of a large product, GB/s of a sum."""
  script = """
import time, jax, jax.numpy as jnp, json
def best(f, *x):
  f(*x).block_until_ready()
  return min(-(s := time.perf_counter()) + (f(*x).block_until_ready(),
             time.perf_counter())[1] for _ in range(5))
a, w = jnp.ones((4096, 4096)), jnp.ones((2**28,))
print(json.dumps(dict(gflops=2 * 4096**3 / best(jax.jit(jnp.dot), a, a) / 1e9,
                      gb_s=2**30 / best(jax.jit(jnp.sum), w) / 1e9)))
"""
  return json.loads(
    subprocess.run(
      [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
  )


def measured(script: str, case: dict) -> dict:
  """What the process of the engine `script` prints last.

  It runs in the environment of what its name ends with, by TUNIX_PYTHON,
  TRANSFORMERS_PYTHON, or in this one.
  """
  python = os.environ.get(
    f"{script.rpartition('_')[2].upper()}_PYTHON", sys.executable
  )
  done = subprocess.run(
    [python, HERE / f"{script}.py", json.dumps(case)],
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    raise RuntimeError(f"{script} failed on {case}:\n{done.stderr[-2000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def layer_weights(case: dict) -> int:
  """How many numbers the matrices of a layer have."""
  d, kv = case["hidden"], case["kv_heads"] * case["head_size"]
  return d * (2 * d + 2 * kv) + 3 * d * case["mlp"]


def words(text: str) -> list[str]:
  return [word for word in text.split(",") if word]


def numbers(text: str) -> list[int]:
  return [int(n) for n in words(text)]
