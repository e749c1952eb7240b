r"""Finds the fastest matrix product of few rows on this CPU.

  python benchmarks/matmul.py [--layers=8] [--hidden=896] [--mlp=4864]

A chain of MLPs, by default in the shape of Qwen2.5-0.5B, runs in a loop, as
decoding runs them.  Printed are GB of weights (counted as float32) per second,
by number of rows:

  dot      x @ w, kernels [in, out], as training has them
  scan     the same in a scan over stacked layers
  rows     w [out, in] on the left of the product
  sum      multiplied and summed, w [out, in]
  sum_bf16, sum_int8   the same with weights of two bytes or one
  int8     products of integers: inputs, too, have one byte

`layers.matmul_few_rows` takes the best of them.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

REPEATS = 4  # Passes through all layers in one program.

ROWS = (1, 2, 4, 8, 16, 32, 64)


def multiply_dot(x, w):
  """Multiply by w [in, out]."""
  return x @ w


def multiply_rows(x, w):
  """Multiply by w [out, in] as the left operand."""
  return jax.lax.dot_general(w, x, (((1,), (1,)), ((), ()))).T


def multiply_sum(x, w):
  """Multiply by w [out, in] element by element, and sum."""
  # Without the barriers XLA fuses neighbouring operations into the loop, and
  # repeats them for each output.
  x = jax.lax.optimization_barrier(x)
  product = jnp.sum(w.astype(jnp.float32) * x[:, None], -1)
  return jax.lax.optimization_barrier(product)


def multiply_sum_int8(x, w):
  """Multiply by (integers [out, in], scales [out]) as `multiply_sum` does."""
  integers, scale = w
  return multiply_sum(x, integers) * scale


def quantize_int8(w):
  """Return w [out, in] as integers and a scale of each row."""
  scale = jnp.abs(w).max(1) / 127
  return jnp.round(w / scale[:, None]).astype(jnp.int8), scale


def multiply_int8(x, w):
  """Multiply by (integers [out, in], scales [out]) as integers."""
  integers, scale = quantize_int8(x)
  # A single row takes twenty times as long as two.
  padded = jnp.pad(integers, ((0, len(x) == 1), (0, 0)))
  product = jax.lax.dot_general(
    padded,
    w[0],
    (((1,), (1,)), ((), ())),
    preferred_element_type=jnp.int32,
  )
  return product[: len(x)] * scale[:, None] * w[1]


# By name: the product, and the function that lays out weights [out, in] for it.
PRODUCTS = dict(
  dot=(multiply_dot, lambda w: jnp.asarray(w.T.copy())),
  rows=(multiply_rows, jnp.asarray),
  sum=(multiply_sum, jnp.asarray),
  sum_bf16=(multiply_sum, lambda w: jnp.asarray(w, jnp.bfloat16)),
  sum_int8=(multiply_sum_int8, quantize_int8),
  int8=(multiply_int8, quantize_int8),
)


def apply_mlp(product, x, w):
  """Apply one gated MLP with its residual connection."""
  # Gate and input projection are joined into one matrix, read in one go.
  gate, up = jnp.split(product(x, w[0]), 2, 1)
  return x + product(jax.nn.silu(gate) * up, w[1])


def run_unrolled(product, x, weights):
  """Run a list of layers, `REPEATS` times."""

  def run_layers(_, x):
    for w in weights:
      x = apply_mlp(product, x, w)
    return x

  return jax.lax.fori_loop(0, REPEATS, run_layers, x)


def run_scanned(product, x, weights):
  """Run stacked layers in a scan, `REPEATS` times."""

  def run_layer(x, w):
    return apply_mlp(product, x, w), None

  def run_layers(_, x):
    return jax.lax.scan(run_layer, x, weights)[0]

  return jax.lax.fori_loop(0, REPEATS, run_layers, x)


def best_seconds(function: Callable, *args) -> float:
  """Return the least seconds of one pass through all layers."""
  # The first call compiles.
  jax.block_until_ready(function(*args))
  times = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    times.append(time.perf_counter() - start)
  return min(times) / REPEATS


def print_speeds(
  name: str,
  run: Callable,
  product: Callable,
  weights: list,
  hidden: int,
  gigabytes: float,
) -> None:
  """Print a line of GB per second, one for each number of rows."""
  # Random rows: XLA has a shortcut for rows that are all equal.
  rng = np.random.default_rng(0)
  speeds = []
  for rows in ROWS:
    x = jnp.asarray(0.02 * rng.standard_normal((rows, hidden), np.float32))
    program = jax.jit(lambda x, w: run(product, x, w))
    speeds.append(gigabytes / best_seconds(program, x, weights))
  print(f"{name:8}", *(f"{speed:6.1f}" for speed in speeds), flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--layers", type=int, default=8)
  parser.add_argument("--hidden", type=int, default=896)
  parser.add_argument("--mlp", type=int, default=4864)
  args = parser.parse_args()

  # More weights than caches hold, as in decoding.
  rng = np.random.default_rng(0)
  shapes = (2 * args.mlp, args.hidden), (args.hidden, args.mlp)
  layers = [
    [0.02 * rng.standard_normal(shape, np.float32) for shape in shapes]
    for _ in range(args.layers)
  ]
  gigabytes = sum(w.nbytes for layer in layers for w in layer) / 1e9
  sizes = args.hidden, gigabytes
  print("rows    ", *(f"{rows:6}" for rows in ROWS))
  for name, (product, lay_out) in PRODUCTS.items():
    weights = [tuple(lay_out(w) for w in layer) for layer in layers]
    print_speeds(name, run_unrolled, product, weights, *sizes)
    if name == "dot":
      stacked = jax.tree.map(lambda *each: jnp.stack(each), *weights)
      print_speeds("scan", run_scanned, product, stacked, *sizes)


if __name__ == "__main__":
  main()
