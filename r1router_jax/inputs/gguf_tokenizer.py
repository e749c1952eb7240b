"""The tokenizer of a GGUF file, in the formats of Hugging Face.

Tokenizers of byte-level BPE are read, whose tokens are spelt in letters that
stand for bytes.  How text is split into words before that, a file only names;
so the rules that are known stand here.

Source: github.com/ggml-org/llama.cpp, src/llama-vocab.cpp (the rules by name).
"""

import functools
import json
import os
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from r1router_jax.common.errors import UserError
from r1router_jax.models import gguf_file
from r1router_jax.models.gguf_file import GgufFile

# How words are found: by a rule of pre_tokenizers, after a normalisation.
_LETTERS = functools.partial(pre_tokenizers.ByteLevel, add_prefix_space=False)
_QWEN2_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
  r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Kinds of tokens, of tokenizer.ggml.token_type.
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5

# Fields of tokenizer_config.json: keys of the ids behind "tokenizer.ggml.".
_SPECIAL_TOKENS = dict(
  bos_token="bos_token_id",
  eos_token="eos_token_id",
  pad_token="padding_token_id",
  unk_token="unknown_token_id",
)


def read_tokenizer_files(path: str | os.PathLike) -> dict[str, str]:
  """Return the files that stand for a GGUF file's tokenizer, by name.

  These are tokenizer.json and tokenizer_config.json, as texts.

  Raises:
    BadWeights: the file is missing or damaged.
    UserError: the tokenizer is of another kind, or broken.
  """
  file = gguf_file.open_gguf(path)
  tokenizer = _make_tokenizer(file)
  config = _make_tokenizer_config(file)
  return {
    "tokenizer.json": tokenizer.to_str(),
    "tokenizer_config.json": json.dumps(config, indent=1) + "\n",
  }


def _make_tokenizer(file: GgufFile) -> tokenizers.Tokenizer:
  # 1. Tokens, without those that only pad the embedding.
  kind = str(file.metadata.get("tokenizer.ggml.model"))
  if kind != "gpt2":
    raise _misfit(file, f"tokenizer.ggml.model is {kind!r}, known: gpt2")
  tokens = _read_strings(file, "tokenizer.ggml.tokens")
  # Flat, so that a number in the place of an array has a length, too.
  types = file.metadata.get("tokenizer.ggml.token_type", ())
  types = np.ravel(types).tolist()
  if len(types) != len(tokens):
    raise _misfit(file, f"{len(tokens)} tokens have {len(types)} types")
  embeddings = file.tensors.get(gguf_file.EMBEDDING)
  if not embeddings or embeddings.shape[0] != len(tokens):
    raise _misfit(file, f"{len(tokens)} tokens are not one for each embedding")
  while types and types[-1] == _UNUSED:
    types.pop()
  vocabulary = {token: i for i, token in enumerate(tokens[: len(types)])}
  if len(vocabulary) < len(types):
    raise _misfit(file, "a token occurs twice")

  # 2. The model, and what comes before and after it.
  pairs = []
  for merge in _read_strings(file, "tokenizer.ggml.merges"):
    left, _, right = merge.partition(" ")
    if not {left, right, left + right} <= vocabulary.keys():
      raise _misfit(file, f"the merge {merge!r} is not one of its tokens")
    pairs.append((left, right))
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
  _add_rules(tokenizer, file)

  # 3. Tokens that text is searched for before it is split into words; at once,
  # since each addition makes the search anew.
  added = []
  for token, token_type in zip(vocabulary, types, strict=True):
    if token_type in (_CONTROL, _USER_DEFINED):
      options = dict(normalized=False, special=token_type == _CONTROL)
      added.append(tokenizers.AddedToken(token, **options))
    elif not _ALPHABET.issuperset(token):
      raise _misfit(file, f"the token {token!r} is not spelt in bytes")
  tokenizer.add_tokens(added)
  return tokenizer


_ALPHABET = frozenset(pre_tokenizers.ByteLevel.alphabet())


def _add_rules(tokenizer: tokenizers.Tokenizer, file: GgufFile) -> None:
  """Set how text is normalised and split, by the name that a file gives."""
  rule = str(file.metadata.get("tokenizer.ggml.pre"))
  if rule == "smollm":
    # Each digit on its own, then the words of GPT-2.
    parts = pre_tokenizers.Digits(individual_digits=True), _LETTERS()
  elif rule == "qwen2":
    tokenizer.normalizer = normalizers.NFC()
    words = tokenizers.Regex(_QWEN2_WORDS)
    words = pre_tokenizers.Split(words, "isolated")
    parts = words, _LETTERS(use_regex=False)
  else:
    known = "smollm, qwen2"
    raise _misfit(file, f"tokenizer.ggml.pre is {rule!r}, known: {known}")
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(parts))
  tokenizer.decoder = decoders.ByteLevel()


def _make_tokenizer_config(file: GgufFile) -> dict[str, Any]:
  """Return what transformers wants to know beside a tokenizer.json."""
  # Without a class, that of the model would put its own rules in their place.
  config = dict(
    tokenizer_class="PreTrainedTokenizerFast",
    clean_up_tokenization_spaces=False,
  )
  tokens = file.metadata["tokenizer.ggml.tokens"]
  for name, key in _SPECIAL_TOKENS.items():
    number = file.metadata.get(f"tokenizer.ggml.{key}")
    if isinstance(number, int) and 0 <= number < len(tokens):
      config[name] = tokens[number]
  template = file.metadata.get("tokenizer.chat_template")
  if isinstance(template, str):
    config["chat_template"] = template
  return config


def _read_strings(file: GgufFile, key: str) -> list[str]:
  values = file.metadata.get(key)
  # Arrays of numbers are no lists.
  if not isinstance(values, list):
    raise _misfit(file, f"it has no strings {key}")
  return values


def _misfit(file: GgufFile, reason: str) -> UserError:
  """Return the error that says why a file's tokenizer cannot be used."""
  return UserError(
    f"{file.path}: {reason}.  Give the GGUF file of a model with the tokenizer "
    "of SmolLM2 or Qwen2, or convert its original checkpoint."
  )
