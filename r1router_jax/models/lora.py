"""Adapters: two thin matrices beside a linear layer's own (LoRA).

  y = x w + (x a) b,   a [D R], b [R F],   b = 0 at first

`add` puts them into the parameters, where `layers.Linear` finds them, `merge`
adds a b to w and takes them out again.  The usual factor alpha / R is part of
the initial `a`.  Which parameters learn is `config.trainable`'s business, e.g.
"lora_".

Source: arxiv.org/abs/2106.09685.
"""

import re

import jax
import jax.numpy as jnp
from flax import traverse_util

ADAPTER = ("lora_a", "lora_b")


def add(
  params: dict, match: str, *, rank: int, alpha: float, key: jax.Array
) -> dict:
  """Parameters with adapters beside each linear layer whose path fits `match`.

  Args:
    params: nested dicts; kernels are `.../w`, [layers, D, F] where stacked.
    match: a regular expression, searched for in paths such as "layers/q".
    rank: R.
    alpha: of the initial `a`; its product with b is alpha / R times a usual
      random projection's.
    key: of `a`.

  Raises:
    ValueError: where no linear layer fits.
  """
  flat = traverse_util.flatten_dict(params, sep="/")
  layers = sorted(
    path.removesuffix("/w") for path in flat if path.endswith("/w")
  )
  chosen = [layer for layer in layers if re.search(match, layer)]
  if not chosen:
    raise ValueError(
      f"config.policy.lora.match {match!r} fits none of the "
      f"linear layers {layers}."
    )
  for layer, each in zip(
    chosen, jax.random.split(key, len(chosen)), strict=True
  ):
    w = flat[layer + "/w"]
    *stack, d, f = w.shape
    a = jax.random.normal(each, (*stack, d, rank), w.dtype)
    flat[layer + "/lora_a"] = a * (alpha / rank * d**-0.5)
    flat[layer + "/lora_b"] = jnp.zeros((*stack, rank, f), w.dtype)
  return traverse_util.unflatten_dict(flat, sep="/")


def merge(params: dict) -> dict:
  """The same function without adapters."""
  flat = traverse_util.flatten_dict(params, sep="/")
  for path in [p for p in flat if p.endswith("/lora_a")]:
    layer = path.removesuffix("/lora_a")
    a, b = (flat.pop(f"{layer}/{name}") for name in ADAPTER)
    flat[layer + "/w"] = flat[layer + "/w"] + a @ b
  return traverse_util.unflatten_dict(flat, sep="/")
