"""Parameters laid out for sampling.

They change once per update and are read once per token, so each iteration may
spend a copy on the order in which decoding reads them fastest: on TPU and GPU
the stacked layers of training in the precision of products, on CPUs (unrolled)
arrays of their own for each layer.

Measured on two cores of an AVX2 machine in the shape of Qwen2.5-0.5B
(`benchmarks/products.py`): a scan over stacked layers takes 1.5 to 2.4 times as
long.  Weights in bfloat16 or int8 do not pay there: converted on the fly they
take two to three times as long, so there is no such option.
"""

import jax
import jax.numpy as jnp
from flax import traverse_util

from r1router_jax.models.qwen2_5_vl import Compute


def served(params: dict, compute: Compute, *, unrolled: bool) -> dict:
  """Parameters as sampling wants them: in the precision of products.

  Unrolled, each layer has arrays of its own, and kernels lie [out, in], as
  `layers.product` reads them, those of q, k and v below each other: XLA's CPU
  compiler copies the weights of a layer out of a common array each time it runs
  it, which takes longer than to use them, and makes a detour for narrow ones.
  """
  params = jax.tree.map(lambda x: x.astype(compute.dtype), params)
  if not unrolled:
    return params
  stacked = traverse_util.flatten_dict(params.pop("layers"))
  count = len(next(iter(stacked.values())))
  stacked = {
    (*path[:-1], "rows") if path[-1] == "w" else path: jnp.swapaxes(x, 1, 2)
    if path[-1] == "w"
    else x
    for path, x in stacked.items()
  }
  for name in [path[1] for path in stacked if path[0] == "q"]:
    stacked["qkv", name] = jnp.concatenate(
      [stacked.pop((part, name)) for part in "qkv"], 1
    )
  for i in range(count):
    params[f"layers_{i}"] = traverse_util.unflatten_dict(
      {path: x[i] for path, x in stacked.items()}
    )
  return params
