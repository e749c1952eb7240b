"""Opens a tokenizer.json, the format of the library tokenizers, from outside.

The library cuts, pads and varies texts as the file likes, and panics at some
files: neither is left to it.
"""

import json
import os
from typing import Annotated, Any

import msgspec
import tokenizers

from r1router_jax.common import schema
from r1router_jax.common.errors import UserError

_MAX_BYTES = 1 << 26  # That of 260,000 tokens takes 33 MiB.


class _AddedToken(msgspec.Struct):
  id: schema.int_range(0, 1 << 24)
  content: Annotated[str, msgspec.Meta(min_length=1)]
  special: bool


class _Model(msgspec.Struct):
  merges: Any = None
  continuing_subword_prefix: str | None = None

  def __post_init__(self):
    if self.merges is not None and self.continuing_subword_prefix:  # A panic.
      raise ValueError("continuing_subword_prefix stands beside merges")


class _File(msgspec.Struct):
  added_tokens: list[_AddedToken]
  model: _Model


def read_tokenizer(
  path: str | os.PathLike,
) -> tuple[dict[str, Any], tokenizers.Tokenizer]:
  """Return the contents of a tokenizer.json, and the tokenizer.

  A damaged file raises UserError.
  """
  cure = "Copy that of the model again."
  return schema.read_json(path, _parse, cure, max_bytes=_MAX_BYTES)


def _parse(
  tree: dict[str, Any],
) -> tuple[dict[str, Any], tokenizers.Tokenizer]:
  schema.convert(tree, _File)
  tree |= dict(truncation=None, padding=None)
  if "dropout" in tree["model"]:
    tree["model"]["dropout"] = None
  try:
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(tree))
  except BaseException as error:  # A panic of the library is no `Exception`.
    if type(error).__name__ not in ("Exception", "PanicException"):
      raise
    raise UserError(f"no tokenizer ({str(error):.200})") from error
  return tree, tokenizer
