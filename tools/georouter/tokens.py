"""The byte-level BPE of the tiny policy, made so that names can be copied.

A policy that learns to copy needs the same name to be the same ids wherever it
stands: " Iran" in a question, "[sep]Iran" in a table, "<answer>Iran".  So every
section between control tokens, and every line, begins with a space (unless
white space opens it already), numbers are cut as they are written,
"11,631,456" into 11 , 631 , 456, never with a space before them, and
punctuation stands alone.  Decoding gives the text back, but for those leading
spaces.
"""

import pathlib
import re

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

VOCABULARY = 4096

# Control tokens have the first ids; padding is 0.
CONTROL = (
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

# Markers of a flattened table (Open-WikiTable) have the last ids.
MARKERS = (
  "[Title]",
  "[Section title]",
  "[Caption]",
  "[Table name]",
  "[Header]",
  "[Rows]",
  "[Row]",
  "[sep]",
)

_PIECES = (
  r" ?[\p{L}\p{M}]+|\p{N}{1,3}|\n| ?[^\s\p{L}\p{M}\p{N}]|[^\S\n]+(?!\S)|"
  r"[^\S\n]+"
)


def train(texts: list[str]) -> tokenizers.Tokenizer:
  """A tokenizer of `VOCABULARY` ids, the same for the same texts."""
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
    vocab_size=VOCABULARY - len(MARKERS),
    special_tokens=[
      tokenizers.AddedToken(token, special=True, normalized=False)
      for token in CONTROL
    ],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  split = re.compile("|".join(map(re.escape, (*CONTROL, *MARKERS))))
  sections = [s for text in texts for s in split.split(text) if s]
  tokenizer.train_from_iterator(sections, trainer)
  tokenizer.add_tokens(
    [
      tokenizers.AddedToken(token, special=False, normalized=False)
      for token in MARKERS
    ]
  )
  return tokenizer


def save(tokenizer: tokenizers.Tokenizer, path: pathlib.Path):
  tokenizer.save(str(path), pretty=False)
