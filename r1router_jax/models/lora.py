"""LoRA adapters: two thin matrices beside a linear layer's own.

  y = x w + (x a) b,   a [D R], b [R F],   b = 0 at first

`add_adapters` puts them into the parameters, where `layers.Linear` finds them;
`merge_adapters` adds a b to w and takes them out again.  The usual factor
alpha / R is part of the initial `a`.  Which parameters are trained is decided
by `config.trainable_regex`, e.g. "lora_".

Source: arxiv.org/abs/2106.09685.
"""

import re

import jax
import jax.numpy as jnp
from flax import traverse_util

from r1router_jax.common.errors import UserError


def add_adapters(
  params: dict, match: str, *, rank: int, alpha: float, key: jax.Array
) -> dict:
  """Add adapters beside each linear layer whose path, "layers/q", matches.

  Kernels are `.../w`, [D, F] or [layers, D, F].  The initial `a` is alpha / R
  times a usual random projection.  If no layer matches, it raises UserError.
  """
  flat = traverse_util.flatten_dict(params, sep="/")
  # Sorted, so that each layer's key does not depend on the order of the tree.
  layers = sorted(path[:-2] for path in flat if path.endswith("/w"))
  chosen = [layer for layer in layers if re.search(match, layer)]
  if not chosen:
    raise UserError(
      f"config.policy.lora.match {match!r} fits none of the linear layers "
      f"{layers}."
    )
  keys = jax.random.split(key, len(chosen))
  for layer, layer_key in zip(chosen, keys, strict=True):
    w = flat[layer + "/w"]
    *stack, d, f = w.shape
    # b is 0, so new adapters change nothing; a is not, or nothing would be
    # learnt.
    a = jax.random.normal(layer_key, (*stack, d, rank), w.dtype)
    flat[layer + "/lora_a"] = a * (alpha / rank * d**-0.5)
    flat[layer + "/lora_b"] = jnp.zeros((*stack, rank, f), w.dtype)
  return traverse_util.unflatten_dict(flat, sep="/")


def select_adapters(params: dict) -> dict:
  """Return the adapters of parameters, as a tree of their own."""
  flat = traverse_util.flatten_dict(params, sep="/")
  adapters = {path: x for path, x in flat.items() if is_adapter(path)}
  return traverse_util.unflatten_dict(adapters, sep="/")


def is_adapter(path: str) -> bool:
  """Return whether a parameter's path, "layers/q/lora_a", is an adapter's."""
  return path.endswith(("/lora_a", "/lora_b"))


def merge_adapters(params: dict) -> dict:
  """Return parameters of the same function without adapters."""
  flat = traverse_util.flatten_dict(params, sep="/")
  for path in [p for p in flat if p.endswith("/lora_a")]:
    layer = path.removesuffix("/lora_a")
    # Stacked layers merge at once: [layers, D, R] @ [layers, R, F].
    a, b = flat.pop(layer + "/lora_a"), flat.pop(layer + "/lora_b")
    w = flat[layer + "/w"]
    # In float32, so that the sum is rounded once.
    product = jnp.matmul(a, b, preferred_element_type=jnp.float32)
    flat[layer + "/w"] = (w + product).astype(w.dtype)
  return traverse_util.unflatten_dict(flat, sep="/")
