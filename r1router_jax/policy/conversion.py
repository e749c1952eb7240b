"""Writes policies and published checkpoints anew, in another precision."""

import pathlib
from typing import Any

import jax.numpy as jnp

from r1router_jax.common.checkpoint_folder import is_gguf, locate_checkpoint
from r1router_jax.common.errors import UserError
from r1router_jax.inputs.tokenizer import Tokenizer
from r1router_jax.models import adapter_files, hf_checkpoint, peft_adapter
from r1router_jax.policy import config as config_lib
from r1router_jax.policy.config import PolicyConfig


def convert_policy(
  name: str, target: pathlib.Path, dtype: Any = None, merge: bool = True
) -> None:
  """Write the policy or checkpoint `name` to `target`, in another precision.

  An adapter becomes part of its base's weights; with `merge` false it is
  written alone.  The default precision is float32 for what comes from a GGUF
  file, whose numbers would change else, float16 for an adapter alone, and
  bfloat16 for all others.  Errors are those of `load`; a whole model that is
  not to be merged raises UserError.
  """
  folder = locate_checkpoint(name)
  config = config_lib.read_config(folder)
  if not merge:
    _convert_adapter(folder, target, config, jnp.dtype(dtype or "float16"))
    return
  base = hf_checkpoint.list_weight_files(folder)[0]
  dtype = jnp.dtype(dtype or ("float32" if is_gguf(base) else "bfloat16"))
  # A tokenizer that does not fit is told before the weights are copied.
  path = config_lib.find_tokenizer(folder)
  tokenizer = Tokenizer(path, config.style, config.model.vocab)
  files = config, path, tokenizer.special_token_ids(), dtype, folder
  hf_checkpoint.copy_checkpoint(folder, target, config.model, dtype=dtype)
  config_lib.write_policy_files(target, *files)


def _convert_adapter(
  folder: pathlib.Path, target: pathlib.Path, config: PolicyConfig, dtype: Any
) -> None:
  """Write the adapter in a folder to `target`, without its base."""
  adapters, _ = peft_adapter.read_chain(folder)
  if not adapters:
    raise UserError(
      f"{folder} is no adapter, so there is nothing that could stay apart from "
      "its base.  Leave out --nomerge."
    )
  adapter_files.copy_adapter(adapters[-1], target, dtype)
  config_lib.write_options(target, config)
  # Only a tokenizer that is not the base's.
  own = adapters[-1].folder / config_lib.TOKENIZER_FILE
  config_lib.copy_tokenizer(own, target)
