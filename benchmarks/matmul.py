r"""Which product of few rows is fastest on this CPU?

  python benchmarks/products.py

A chain of MLPs in the shape of Qwen2.5-0.5B, in a loop as decoding runs them,
by number of rows: GB of weights (counted as float32) a second.

  dot      x @ w, kernels [in, out], as training has them
  scan     the same over stacked layers
  rows     w [out, in] on the left of the product
  sum      multiplied and summed, w [out, in]
  sum_bf16, sum_int8   the same with weights of two bytes or one

`layers.product` takes the best of them.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

LAYERS, HIDDEN, MLP, TURNS = 8, 896, 4864, 4

apart = jax.lax.optimization_barrier


def dot(x, w):
  return x @ w


def rows(x, w):
  return jax.lax.dot_general(w, x, (((1,), (1,)), ((), ()))).T


def summed(x, w):
  x = apart(x)
  return apart(jnp.sum(w.astype(jnp.float32) * x[:, None], -1))


def summed_int8(x, w):
  return summed(x, w[0]) * w[1]


def int8(w):
  scale = np.abs(w).max(1) / 127
  return (
    jnp.asarray(np.round(w / scale[:, None]), jnp.int8),
    jnp.asarray(scale),
  )


PRODUCTS = dict(
  dot=(dot, lambda w: jnp.asarray(w.T.copy())),
  rows=(rows, jnp.asarray),
  sum=(summed, jnp.asarray),
  sum_bf16=(summed, lambda w: jnp.asarray(w, jnp.bfloat16)),
  sum_int8=(summed_int8, int8),
)


def layer(product, x, w):
  h = product(x, w[0])
  return x + product(jax.nn.silu(h[:, :MLP]) * h[:, MLP:], w[1])


def separate(product, x, weights):
  def turn(_, x):
    for w in weights:
      x = layer(product, x, w)
    return x

  return jax.lax.fori_loop(0, TURNS, turn, x)


def scanned(product, x, weights):
  def turn(_, x):
    return jax.lax.scan(lambda x, w: (layer(product, x, w), None), x, weights)[
      0
    ]

  return jax.lax.fori_loop(0, TURNS, turn, x)


def seconds(function, *of):
  jax.block_until_ready(function(*of))
  times = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready(function(*of))
    times.append(time.perf_counter() - start)
  return min(times) / TURNS


def main():
  rng = np.random.default_rng(0)
  normal = lambda *shape: 0.02 * rng.standard_normal(shape, np.float32)
  plain = [
    (normal(2 * MLP, HIDDEN), normal(HIDDEN, MLP)) for _ in range(LAYERS)
  ]
  size = sum(w.nbytes for pair in plain for w in pair) / 1e9
  counts = (1, 2, 4, 8, 16, 32, 64)
  print("rows    ", *(f"{n:6}" for n in counts))
  for name, (product, lay) in PRODUCTS.items():
    weights = [tuple(lay(w) for w in pair) for pair in plain]
    ways = {name: (separate, weights)}
    if name == "dot":
      ways["scan"] = (
        scanned,
        jax.tree.map(lambda *each: jnp.stack(each), *weights),
      )
    for way, (run, laid) in ways.items():
      speeds = []
      for n in counts:
        run_once = jax.jit(
          lambda x, w, run=run, product=product: run(product, x, w)
        )
        speeds.append(
          size / seconds(run_once, jnp.asarray(normal(n, HIDDEN)), laid)
        )
      print(f"{way:8}", *(f"{speed:6.1f}" for speed in speeds), flush=True)


if __name__ == "__main__":
  main()
