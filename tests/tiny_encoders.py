"""Tiny encoders, and random weights under their published names."""

import json
import re

import numpy as np
import tokenizers

from r1router_jax.models import bert, clip, safetensors_io
from r1router_jax.retrieval.encoders import text_encoders

BERT = bert.BertConfig(
  vocab=50,
  layers=2,
  hidden=12,
  heads=3,
  mlp=20,
  max_positions=24,
  num_segments=2,
)

CLIP = clip.ClipConfig(
  image=clip.TowerConfig(24, 3, 3),
  text=clip.TowerConfig(16, 2, 4),
  image_size=12,
  patch_size=4,
  vocab=40,
  max_tokens=7,
  width=10,
)

# The config.json of a Qwen3 whose heads are wider than hidden size / heads.
QWEN3 = dict(
  model_type="qwen3",
  vocab_size=50,
  hidden_size=12,
  intermediate_size=20,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  rope_theta=10_000.0,
  rms_norm_eps=1e-6,
  tie_word_embeddings=False,
)

_TOWER = dict(num_hidden_layers=2, num_attention_heads=3, intermediate_size=20)

# The config.json of a SigLIP; of an image, one row and column is not read.
SIGLIP = dict(
  model_type="siglip",
  text_config=dict(
    _TOWER,
    hidden_size=18,
    vocab_size=40,
    max_position_embeddings=9,
    projection_size=12,
  ),
  vision_config=dict(_TOWER, hidden_size=12, image_size=13, patch_size=4),
)


def random_tensors(weight_map, axes, prefix="", seed=0):
  """Return random tensors for weight rules by their published names."""
  rng = np.random.default_rng(seed)
  return {
    prefix + name: rng.normal(size=shape).astype(np.float32)
    for name, shape in tensor_shapes(weight_map, axes).items()
  }


def tensor_shapes(weight_map, axes):
  """Return the shapes of all tensors by their published names."""
  shapes = {}
  for name, leaf, pattern in weight_map:
    if leaf:
      shape = safetensors_io.tensor_shape(pattern, axes)
      if "{}" in name:  # The first axis is that of the layers.
        shapes |= {name.format(i): shape[1:] for i in range(shape[0])}
      else:
        shapes[name] = shape
  return shapes


def make_bert_embedder(folder, tokenizer):
  """Return an embedder by a BERT of random weights, written to a folder."""
  tensors = random_tensors(bert.weight_map(BERT), bert.axis_sizes(BERT))
  write_tensors(folder, tensors)
  model = text_encoders.bert_model(BERT, str(folder))
  encoder = text_encoders.TextEncoder()
  return text_encoders.TextEmbedder(encoder, model, tokenizer, "f")


def write_tensors(folder, arrays):
  """Write float32 arrays by name as a checkpoint."""
  tensors = {
    name: safetensors_io.StoredTensor("", name, x.shape, "F32", lambda x=x: x)
    for name, x in arrays.items()
  }
  safetensors_io.write_checkpoint(str(folder), tensors)


def make_word_tokenizer(family, texts):
  """Return a cased tokenizer of the words of texts, in the form of a family.

  "bert" has the padding first, "xlm-roberta" second, and "qwen3" no token but
  the last, which ends a text.
  """
  first = {
    "bert": ["[PAD]", "[CLS]", "[SEP]", "[UNK]"],
    "xlm-roberta": ["[CLS]", "[PAD]", "[SEP]", "[UNK]"],
    "qwen3": ["[PAD]", "[SEP]", "[UNK]"],
  }[family]
  found = {word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text)}
  numbers = {word: i for i, word in enumerate([*first, *sorted(found)])}
  coder = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, "[UNK]"))
  coder.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  coder.post_processor = tokenizers.processors.TemplateProcessing(
    single="$A [SEP]" if family == "qwen3" else "[CLS] $A [SEP]",
    special_tokens=[(x, numbers[x]) for x in first if x in ("[CLS]", "[SEP]")],
  )
  return coder


def write_bert_folder(folder, texts, seed=0):
  """Write a BERT of random weights that knows the words of texts."""
  folder.mkdir(parents=True, exist_ok=True)
  coder = make_word_tokenizer("bert", texts)
  coder.save(str(folder / "tokenizer.json"))
  fields = dict(model_type="bert", num_hidden_layers=2, hidden_size=12)
  fields |= dict(num_attention_heads=3, intermediate_size=20)
  fields |= dict(type_vocab_size=2, max_position_embeddings=64)
  fields |= dict(layer_norm_eps=1e-12, vocab_size=coder.get_vocab_size())
  (folder / "config.json").write_text(json.dumps(fields))
  config = bert.read_config(str(folder))
  rules, axes = bert.weight_map(config), bert.axis_sizes(config)
  write_tensors(folder, random_tensors(rules, axes, seed=seed))
