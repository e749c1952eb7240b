"""Qwen3 as an encoder of texts (Qwen3-Embedding): the decoder without a head.

It is the decoder of `qwen2_5_vl` with an RMSNorm on each head's queries and
keys, and without biases.  Attention is causal, so padding on the right changes
no state, and positions count from the first token: on which side the original
pads makes no difference.

Axes:  B texts   L tokens   D hidden size
Sources: arxiv.org/abs/2505.09388 (Qwen3), arxiv.org/abs/2506.05176
  (Qwen3-Embedding); transformers, models/qwen3 (mathematics, names of weights).
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from r1router_jax.common import schema
from r1router_jax.common.errors import UserError
from r1router_jax.models import hf_checkpoint, pooling, safetensors_io
from r1router_jax.models.qwen2_5_vl import (
  Config,
  QwenVL,
  RuntimeConfig,
  empty_prompt_batch,
)

# Published files hold the names of `Qwen3Model`, or of the whole decoder.
_PREFIXES = (("model.", "model."), ("lm_head.", "lm_head."), ("", "model."))

_NORM = "model.layers.{}.self_attn."


def read_config(folder: str) -> Config:
  """Read the sizes of the Qwen3 in `folder`, or raise BadWeights."""
  return schema.read_json(
    os.path.join(folder, hf_checkpoint.CONFIG_FILE),
    _parse_config,
    "Give the folder of a Qwen3-Embedding.",
    error=safetensors_io.BadWeights,
  )


def _parse_config(tree: Mapping[str, Any]) -> Config:
  if tree.get("model_type") != "qwen3":
    raise UserError(f"model_type is {tree.get('model_type')!r:.80}, not qwen3")
  if set(tree.get("layer_types") or ()) - {"full_attention"}:
    raise UserError("layer_types has others than full_attention")
  # All other fields are Qwen2's; 128 is what transformers fills in.
  fields = {"head_dim": 128} | dict(tree, model_type="qwen2")
  config = hf_checkpoint.parse_config(fields)
  return dataclasses.replace(config, qkv_bias=False, qk_norm=True, tied=True)


def encode(
  config: Config,
  compute: RuntimeConfig,
  pooled: str,
  params: Mapping[str, Any],
  tokens: Int[Array, "B L"],
  mask: Bool[Array, "B L"],
) -> Float[Array, "B D"]:
  """Return the vectors of texts, padded on the right where the mask is false.

  `pooled` is one of `pooling.POOLINGS`.
  """
  rows, length = tokens.shape
  # Of text, the three rotary positions are equal.
  positions = jnp.broadcast_to(jnp.arange(length), (rows, 3, length))
  prompt = empty_prompt_batch(rows, length, 0, 0, None)
  prompt = prompt._replace(tokens=tokens, mask=mask, positions=positions)
  # Each row holds one text.
  states = QwenVL(config, compute).apply(
    params, prompt, mask.astype(jnp.int32), method="packed_states"
  )
  return pooling.pool_states(states.astype(jnp.float32), mask, pooled)


def weight_map(config: Config) -> safetensors_io.WeightMap:
  """Return the weight rules of a model; a head that a file holds is skipped."""
  head = "lm_head.weight"
  rules = hf_checkpoint.weight_map(config)
  norms = ("q_norm", "k_norm")
  return (
    *(rule for rule in rules if rule[0] != head),
    (head, "", ""),
    *((f"{_NORM}{x}.weight", f"layers/{x}/scale", "L H -> L H") for x in norms),
  )


def axis_sizes(config: Config) -> dict[str, int]:
  """Return the size of each letter in the patterns of `weight_map`."""
  return hf_checkpoint.axis_sizes(config) | dict(H=config.head_size)


def load_params(path: str, config: Config) -> dict:
  """Load the parameters of a checkpoint, as `safetensors_io.load_params`."""
  rules = weight_map(config), axis_sizes(config)
  options = dict(dtype=jnp.float32, prefixes=_PREFIXES)
  return safetensors_io.load_params(path, *rules, **options)
