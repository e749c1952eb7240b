"""Parameters in inference layout.

Parameters change once per update and are read once per sampled token, so each
iteration may spend a copy on the layout that decoding reads fastest: on TPU and
GPU the stacked layers of training in the dtype of products, on CPUs (unrolled)
separate arrays for each layer.

Measured on two cores of an AVX2 machine in the shape of Qwen2.5-0.5B
(`benchmarks/matmul.py`): a scan over stacked layers takes 1.5 to 2.4 times as
long.  Weights in bfloat16 or int8 do not pay off there: converted on the fly
they take two to three times as long.  With AVX-512, products of integers take
half as long, but answers at most a fifth less: see docs/performance.md.  So
there is no such option.
"""

import jax
import jax.numpy as jnp
from flax import traverse_util

from r1router_jax.models.qwen2_5_vl import RuntimeConfig


def to_inference_params(
  params: dict, compute: RuntimeConfig, *, unrolled: bool
) -> dict:
  """Convert parameters of training, without adapters, to those of sampling.

  Unrolled, each layer gets arrays of its own.  Kernels are then [out, in], as
  `matmul_few_rows` reads them, with those of q, k and v joined: XLA's CPU
  compiler copies the weights of a layer out of a stacked array each time it
  runs the layer, which takes longer than to use them, and is slow on narrow
  kernels.
  """
  # Products read weights in this dtype; a cast per token would cost more.
  params = jax.tree.map(lambda x: x.astype(compute.dtype), params)
  if not unrolled:
    return params
  stacked = traverse_util.flatten_dict(params.pop("layers"))
  layers = len(next(iter(stacked.values())))

  # Kernels: [layers, in, out] -> [layers, out, in], under the name that
  # `layers.Linear` takes them for.
  for path in [path for path in stacked if path[-1] == "w"]:
    stacked[*path[:-1], "rows"] = jnp.swapaxes(stacked.pop(path), 1, 2)
  # One product for queries, keys and values; biases are joined too.
  for name in [path[1] for path in stacked if path[0] == "q"]:
    parts = [stacked.pop((part, name)) for part in ("q", "k", "v")]
    stacked["qkv", name] = jnp.concatenate(parts, 1)

  for i in range(layers):
    layer = {path: x[i] for path, x in stacked.items()}
    params[f"layers_{i}"] = traverse_util.unflatten_dict(layer)
  return params
