"""GGUF files as Hugging Face checkpoints: config and tensors under its names.

Two architectures are read, llama and qwen2.  llama.cpp keeps the two numbers
that a rotary angle turns side by side, Hugging Face half a head apart; so rows
of q and k of llama files change their order here.  Those of qwen2 files do not.

Source: github.com/ggml-org/llama.cpp, gguf-py/gguf/constants.py (keys, names)
  and convert_hf_to_gguf.py (the order of rows).
"""

import dataclasses
import os
import re
from typing import Any

import einops
import numpy as np

from r1router_jax.common.errors import UserError
from r1router_jax.models import gguf_file
from r1router_jax.models.gguf_file import EMBEDDING, GgufFile
from r1router_jax.models.safetensors_io import StoredTensor

# Of general.architecture; the same word is Hugging Face's model_type.
ARCHITECTURES = ("llama", "qwen2")

# Field of config.json: key behind the architecture's name.
_SIZES = dict(
  hidden_size="embedding_length",
  intermediate_size="feed_forward_length",
  num_hidden_layers="block_count",
  num_attention_heads="attention.head_count",
)

# Names in a GGUF file, and Hugging Face's.
_HEAD = "output.weight"
_ROPE_FACTORS = "rope_freqs.weight"
_TOP_NAMES = {
  EMBEDDING: "model.embed_tokens.weight",
  _HEAD: "lm_head.weight",
  "output_norm.weight": "model.norm.weight",
}
_LAYER_NAMES = dict(
  attn_norm="input_layernorm",
  ffn_norm="post_attention_layernorm",
  attn_q="self_attn.q_proj",
  attn_k="self_attn.k_proj",
  attn_v="self_attn.v_proj",
  attn_output="self_attn.o_proj",
  ffn_gate="mlp.gate_proj",
  ffn_up="mlp.up_proj",
  ffn_down="mlp.down_proj",
)


def read_hf_config(path: str | os.PathLike) -> dict[str, Any]:
  """Return what the config.json of a GGUF file's model would hold.

  Raises:
    BadWeights: the file is missing or damaged.
    UserError: the model is of another kind, or a value is missing or out of its
      range; or the `gguf` package is missing.
  """
  return _make_hf_config(gguf_file.open_gguf(path))


def open_tensors(path: str | os.PathLike) -> dict[str, StoredTensor]:
  """Return the tensors of a GGUF file by Hugging Face's names, unread.

  A tensor of another model keeps its name.  Errors are those of
  `read_hf_config`.
  """
  file = gguf_file.open_gguf(path)
  config = _make_hf_config(file)
  rows = dict(
    attn_q=config["num_attention_heads"], attn_k=config["num_key_value_heads"]
  )
  tensors = {}
  for name, tensor in file.tensors.items():
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if not match or match[2] not in _LAYER_NAMES:
      tensors[_TOP_NAMES.get(name, name)] = tensor
      continue
    layer, part, which = match.groups()
    if config["model_type"] == "llama" and part in rows:
      tensor = _order_rows(tensor, rows[part])
    tensors[f"model.layers.{layer}.{_LAYER_NAMES[part]}.{which}"] = tensor
  return tensors


def _make_hf_config(file: GgufFile) -> dict[str, Any]:
  # 1. Whether the model is one that we run.
  kind = str(file.metadata.get("general.architecture"))
  if kind not in ARCHITECTURES:
    known = ", ".join(ARCHITECTURES)
    raise _misfit(file, f"general.architecture is {kind!r}, known: {known}")
  scaling = str(file.metadata.get(f"{kind}.rope.scaling.type", "none"))
  if scaling != "none":
    raise _misfit(file, f"{kind}.rope.scaling.type is {scaling!r}, known: none")
  if _ROPE_FACTORS in file.tensors:
    fault = "scales rotary frequencies, which is not supported in GGUF files"
    raise _misfit(file, f"{_ROPE_FACTORS}, as in Llama 3.1, {fault}")
  if EMBEDDING not in file.tensors:
    raise _misfit(file, f"it has no tensor {EMBEDDING}")

  # 2. Its sizes.  Each layer has tensors: a larger number is not believed.
  tree = {
    field: _positive_int(file, f"{kind}.{key}") for field, key in _SIZES.items()
  }
  if tree["num_hidden_layers"] > len(file.tensors):
    raise _misfit(file, f"{kind}.block_count is more than its tensors")
  heads = tree["num_attention_heads"]
  optional = dict(
    num_key_value_heads=("attention.head_count_kv", heads),
    head_dim=("attention.key_length", tree["hidden_size"] // heads),
  )
  for field, (key, default) in optional.items():
    tree[field] = _positive_int(file, f"{kind}.{key}", default)
  if (size := tree["head_dim"]) % 2:
    raise _misfit(file, f"its head size is {size}, wanted an even number")

  # 3. The rest.
  epsilon = f"{kind}.attention.layer_norm_rms_epsilon"
  return tree | dict(
    model_type=kind,
    vocab_size=file.tensors[EMBEDDING].shape[0],
    rms_norm_eps=_positive_float(file, epsilon),
    rope_theta=_positive_float(file, f"{kind}.rope.freq_base", 10_000.0),
    tie_word_embeddings=_HEAD not in file.tensors,
  )


def _misfit(file: GgufFile, reason: str) -> UserError:
  """Return the error that says why a file's model cannot be run."""
  return UserError(
    f"{file.path}: {reason}.  Give the GGUF file of a model with the tokenizer "
    "of SmolLM2 or Qwen2, or the original checkpoint, a folder or an id on the "
    "Hugging Face hub."
  )


def _positive_int(file: GgufFile, key: str, default: int | None = None) -> int:
  """Return a size, which is at most as long as some axis of the tensors."""
  value = file.metadata.get(key, default)
  longest = max(max(tensor.shape) for tensor in file.tensors.values())
  if not isinstance(value, int) or not 1 <= value <= longest:
    wanted = f"wanted a whole number from 1 to {longest}, its longest axis"
    raise _misfit(file, f"{key} is {value!r}, {wanted}")
  return value


def _positive_float(
  file: GgufFile, key: str, default: float | None = None
) -> float:
  value = file.metadata.get(key, default)
  if not isinstance(value, float) or not 0 < value < np.inf:
    raise _misfit(file, f"{key} is {value!r}, wanted a positive number")
  # Of 32 bits, which make 1e-5 the number 9.999999747378752e-06.
  return float(str(np.float32(value)))


def _order_rows(tensor: StoredTensor, heads: int) -> StoredTensor:
  """Return a q or k tensor, the rows of which get Hugging Face's order."""

  def read() -> np.ndarray:
    # `two` are the numbers that one angle turns.
    order = "(heads angles two) ... -> (heads two angles) ..."
    return einops.rearrange(tensor.read_raw(), order, heads=heads, two=2)

  return dataclasses.replace(tensor, read_raw=read)
