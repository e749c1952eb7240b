"""Tiny GGUF files of either architecture, in any quantisation."""

import gguf
import numpy as np
from tokenizers import pre_tokenizers

LAYERS, HIDDEN, MLP, HEADS, KV_HEADS, HEAD_SIZE = 2, 64, 96, 4, 2, 16

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("Ġ t", "h e", "Ġt he", "Ã ©", "2 0", "Ġ Ġ", "r r")

# Rows of a blocked quantisation: 32 numbers each.
KINDS = dict(
  F32=gguf.GGMLQuantizationType.F32,
  F16=gguf.GGMLQuantizationType.F16,
  Q8_0=gguf.GGMLQuantizationType.Q8_0,
  Q4_1=gguf.GGMLQuantizationType.Q4_1,
)


def make_tokens():
  """Return control tokens, letters for all bytes, merged tokens, padding."""
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  merged = [merge.replace(" ", "") for merge in MERGES]
  return [*CONTROL, *letters, *merged, "[sep]", "[PAD0]", "[PAD1]"]


def token_types(tokens):
  """Return the types of `make_tokens`: control, normal, own, unused."""
  return [3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL) - 3) + [4, 5, 5]


def tensor_shapes(kind, tied):
  """Return the shapes of all tensors, the output axis first."""
  wide = HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE
  shapes = {"token_embd.weight": (len(make_tokens()), HIDDEN)}
  shapes["output_norm.weight"] = (HIDDEN,)
  if not tied:
    shapes["output.weight"] = shapes["token_embd.weight"]
  for layer in range(LAYERS):
    parts = dict(attn_norm=(HIDDEN,), ffn_norm=(HIDDEN,))
    parts |= dict(attn_q=(wide[0], HIDDEN), attn_output=(HIDDEN, wide[0]))
    parts |= dict(attn_k=(wide[1], HIDDEN), attn_v=(wide[1], HIDDEN))
    parts |= dict(ffn_gate=(MLP, HIDDEN), ffn_up=(MLP, HIDDEN))
    parts |= dict(ffn_down=(HIDDEN, MLP))
    for part, shape in parts.items():
      shapes[f"blk.{layer}.{part}.weight"] = shape
      if kind == "qwen2" and part in ("attn_q", "attn_k", "attn_v"):
        shapes[f"blk.{layer}.{part}.bias"] = shape[:1]
  return shapes


def write_gguf(
  path, kind="llama", quantisation="F32", tied=True, seed=0, keys=None
):
  """Write a file of random weights; return the tensors as it holds them.

  `keys` are values of metadata that replace the usual ones; None drops a key.
  """
  writer = gguf.GGUFWriter(str(path), kind)
  tokens = make_tokens()
  values = {
    f"{kind}.block_count": LAYERS,
    f"{kind}.context_length": 128,
    f"{kind}.embedding_length": HIDDEN,
    f"{kind}.feed_forward_length": MLP,
    f"{kind}.attention.head_count": HEADS,
    f"{kind}.attention.head_count_kv": KV_HEADS,
    f"{kind}.rope.freq_base": 1000.0,
    f"{kind}.rope.dimension_count": HEAD_SIZE,
    f"{kind}.attention.layer_norm_rms_epsilon": 1e-5,
    f"{kind}.vocab_size": len(tokens),
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm" if kind == "llama" else "qwen2",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": token_types(tokens),
    "tokenizer.ggml.merges": list(MERGES),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 0,
    "tokenizer.ggml.unknown_token_id": 0,
  }
  for key, value in (values | (keys or {})).items():
    if value is not None:
      add_value(writer, key, value)

  rng, stored = np.random.default_rng(seed), {}
  for name, shape in tensor_shapes(kind, tied).items():
    array = rng.normal(size=shape) * shape[-1] ** -0.5
    if "norm" in name:
      array = 1 + 0.2 * rng.normal(size=shape)
    # Vectors are never quantised, as in published files.
    form = KINDS[quantisation if len(shape) > 1 else "F32"]
    blocks = gguf.quants.quantize(array.astype(np.float32), form)
    writer.add_tensor(name, blocks, raw_dtype=form)
    stored[name] = gguf.quants.dequantize(blocks, form)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return stored


def add_value(writer, key, value):
  """Add a value of metadata, in the type of its Python value."""
  adders = {int: writer.add_uint32, float: writer.add_float32}
  adders |= {str: writer.add_string, list: writer.add_array}
  adders[type(value)](key, value)
