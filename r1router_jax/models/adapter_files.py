"""Write the LoRA adapters of `qwen2_5_vl` in the form of the library PEFT.

What `lora.add_adapters` puts beside a kernel w [D, F], with y = x w + (x a) b,
becomes lora_A = a^T and lora_B = b^T.  The usual factor alpha / r is part of a,
so that lora_alpha is r.  `peft_adapter` reads such a folder.
"""

import os
import re
import shutil
from typing import Any

from flax import traverse_util

from r1router_jax.common.errors import UserError
from r1router_jax.models import hf_checkpoint, peft_adapter, safetensors_io
from r1router_jax.models.peft_adapter import Adapter
from r1router_jax.models.qwen2_5_vl import Config

_ONE_FILE = 1 << 50  # Bytes; PEFT reads no adapter in several files.


def adapter_map(config: Config, adapters: dict) -> safetensors_io.WeightMap:
  """Return the weight rules of adapters, with the names that PEFT gives them.

  `adapters` are what `lora.select_adapters` returned; one of a layer that PEFT
  has no adapter for raises UserError.  The letter R stands for the rank.
  """
  leaves = traverse_util.flatten_dict(adapters, sep="/")
  rules, kernels = [], {path.rpartition("/")[0] + "/w" for path in leaves}
  for name, path, pattern in hf_checkpoint.weight_map(config):
    if path not in kernels:
      continue
    *stack, f, d = pattern.partition("->")[0].split()
    layer = path.removesuffix("/w")
    # A patch embedding is a convolution, whose kernel has more axes.
    if len(stack) > 1:
      raise UserError(
        f"PEFT has no adapter of {layer}.  Choose other layers in "
        "config.policy.lora.match."
      )
    stack = "".join(letter + " " for letter in stack)
    module = peft_adapter.PREFIX + _name_in_memory(name, config)
    module = module.removesuffix(".weight")
    a, b = f"{stack}R {d} -> {stack}{d} R", f"{stack}{f} R -> {stack}R {f}"
    rules.append((module + ".lora_A.weight", layer + "/lora_a", a))
    rules.append((module + ".lora_B.weight", layer + "/lora_b", b))
  return tuple(rules)


def _name_in_memory(name: str, config: Config) -> str:
  """Return the name that a published tensor has in transformers' model."""
  # Models of texts alone have one name for both.
  prefixes = hf_checkpoint.PREFIXES if config.vision else ()
  for memory, published in prefixes:
    if name.startswith(published):
      return memory + name.removeprefix(published)
  return name


def save_adapters(
  folder: str | os.PathLike, adapters: dict, config: Config, base: str
) -> None:
  """Write adapters, which `lora.select_adapters` returned, into a folder.

  `base` is the name or the place of the policy that they are for.
  """
  leaves = traverse_util.flatten_dict(adapters, sep="/")
  rules = adapter_map(config, adapters)
  rank = next(x.shape[-1] for path, x in leaves.items() if path.endswith("_a"))
  axes = hf_checkpoint.axis_sizes(config) | dict(R=rank)
  options = dict(stem=peft_adapter.STEM, shard_bytes=_ONE_FILE)
  safetensors_io.save_params(
    os.fspath(folder), adapters, rules, axes, **options
  )
  peft_adapter.write_config(folder, base, rank, _target_modules(rules, config))


def _target_modules(
  rules: safetensors_io.WeightMap, config: Config
) -> list[str] | str:
  """Return what PEFT finds the layers of adapters by: ends of names, or regex.

  Layers of a vision tower have the same ends as others, which a list of ends
  would take, too.
  """
  names = {name.rsplit(".lora_", 1)[0] for name, *_ in rules}
  if not config.vision:
    return sorted({name.rpartition(".")[2] for name in names})
  names = [name.removeprefix(peft_adapter.PREFIX) for name in sorted(names)]
  return "|".join(re.escape(n).replace(r"\{\}", r"\d+") for n in names)


def copy_adapter(
  adapter: Adapter, target: str | os.PathLike, dtype: Any
) -> None:
  """Check every tensor of an adapter, and cast it into the folder `target`."""
  # This compares names and shapes with the base's.
  with hf_checkpoint.open_tensors(adapter.folder, hf_checkpoint.PREFIXES):
    pass
  with safetensors_io.open_tensors(adapter.weights) as tensors:
    cast = {name: tensor.cast_to(dtype) for name, tensor in tensors.items()}
    options = dict(stem=peft_adapter.STEM, shard_bytes=_ONE_FILE)
    safetensors_io.write_checkpoint(os.fspath(target), cast, **options)
  shutil.copy(adapter.folder / peft_adapter.CONFIG_FILE, target)
