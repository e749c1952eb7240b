"""Trains the byte-level BPE of the tiny policy, made for copying names.

A policy that learns to copy needs a name to have the same ids in all places:
" Iran" in a question, "[sep]Iran" in a table, "<answer>Iran".  So every
section between control tokens, and every line, begins with a space (unless
white space opens it already), numbers are cut as they are written,
"11,631,456" into 11 , 631 , 456, never with a space before them, and
punctuation stands alone.  Decoding gives the text back, but for those leading
spaces.
"""

import re

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

VOCABULARY_SIZE = 4096

# Control tokens have the first ids; padding is 0.
CONTROL_TOKENS = (
  "<|endoftext|>",
  "<|im_start|>",
  "<|im_end|>",
  "<|vision_start|>",
  "<|vision_end|>",
  "<|image_pad|>",
  "<|plan|>",
  "<|answer|>",
  "<|final|>",
  "<think>",
  "</think>",
  "<sub-question>",
  "</sub-question>",
  "<ret>",
  "</ret>",
  "<answer>",
  "</answer>",
)

# Marks of a flattened table (Open-WikiTable) have the last ids.
TABLE_MARKERS = (
  "[Title]",
  "[Section title]",
  "[Caption]",
  "[Table name]",
  "[Header]",
  "[Rows]",
  "[Row]",
  "[sep]",
)

# A word with the space before it, one to three digits, or punctuation alone.
_PIECES = (
  r" ?[\p{L}\p{M}]+|\p{N}{1,3}|\n| ?[^\s\p{L}\p{M}\p{N}]|[^\S\n]+(?!\S)|"
  r"[^\S\n]+"
)


def train_tokenizer(texts: list[str]) -> tokenizers.Tokenizer:
  """Train a tokenizer of `VOCABULARY_SIZE` ids; equal texts give equal ids."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.normalizer = normalizers.Sequence(
    [
      normalizers.Prepend(" "),
      normalizers.Replace(tokenizers.Regex(r"\A (?=\s)"), ""),
      normalizers.Replace(tokenizers.Regex(r"\n(?=\S)"), "\n "),
    ]
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(_PIECES), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=VOCABULARY_SIZE - len(TABLE_MARKERS),
    special_tokens=[
      tokenizers.AddedToken(token, special=True, normalized=False)
      for token in CONTROL_TOKENS
    ],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  split = re.compile(
    "|".join(map(re.escape, (*CONTROL_TOKENS, *TABLE_MARKERS)))
  )
  sections = [s for text in texts for s in split.split(text) if s]
  tokenizer.train_from_iterator(sections, trainer)
  tokenizer.add_tokens(
    [
      tokenizers.AddedToken(token, special=False, normalized=False)
      for token in TABLE_MARKERS
    ]
  )
  return tokenizer
