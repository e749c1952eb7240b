"""LoRA adapters in the form of the library PEFT: a folder that names its base.

  adapter_config.json        the base's name, the rank r and lora_alpha
  adapter_model.safetensors  lora_A [r, in] and lora_B [out, r] of each layer

The weight [out, in] of such a layer becomes W + lora_alpha / r * B A.  A base
may be an adapter itself, of another base.  Only plain LoRA is read: whatever a
config says beyond it is an error, never left out.

Source: github.com/huggingface/peft, src/peft/tuners/lora (fields and names).
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
from etils import epath

from r1router_jax.common import schema
from r1router_jax.common.checkpoint_folder import locate_checkpoint
from r1router_jax.common.errors import UserError
from r1router_jax.models.safetensors_io import BadWeights, StoredTensor

CONFIG_FILE = "adapter_config.json"
STEM = "adapter_model"  # The weights' file, without its ending.

# In front of the names that a model's own modules have.
PREFIX = "base_model.model."

MAX_CHAIN = 8  # Adapters on top of each other.

# Fields that say nothing of what is computed, or that are used below.
_FREE_FIELDS = frozenset(
  """auto_mapping base_model_name_or_path exclude_modules inference_mode
  layers_pattern layers_to_transform lora_alpha lora_dropout megatron_core
  peft_version qalora_group_size r target_modules task_type""".split()
)

# Fields that choose variants, and what they may hold.  All other fields must be
# empty: those of variants that are not known here, too.
_KNOWN_VALUES = dict(
  peft_type=("LORA",),
  bias=("none",),
  # How a new adapter is drawn; others change the base's weights.
  init_lora_weights=(True, False, "gaussian"),
)


class _Fields(msgspec.Struct):
  """Fields that are used."""

  base_model_name_or_path: Annotated[str, msgspec.Meta(min_length=1)]
  r: schema.int_range(1, 1 << 20)
  lora_alpha: schema.Finite


@dataclasses.dataclass(frozen=True)
class Adapter:
  """An adapter's folder whose config has been read.

  Attributes:
    folder: where it is.
    base: the name or place of its base, for `locate_checkpoint`.
    rank: r, the columns of B.
    scale: lora_alpha / r.
  """

  folder: pathlib.Path
  base: str
  rank: int
  scale: float

  @property
  def weights(self) -> str:
    """The path of its safetensors file."""
    return str(self.folder / f"{STEM}.safetensors")


def is_adapter(path: str | os.PathLike) -> bool:
  """Return whether a folder holds an adapter instead of a whole model."""
  return os.path.isfile(os.path.join(path, CONFIG_FILE))


def check_no_adapter(folder: epath.PathLike) -> None:
  """Raise FileExistsError if a folder, local or in a bucket, holds an adapter.

  What is written beside it would never be read.
  """
  if (epath.Path(folder) / CONFIG_FILE).exists():
    raise FileExistsError(
      f"{folder} holds {CONFIG_FILE}, and so is read as that adapter, whatever "
      "is beside it.  Name a new folder."
    )


def read_chain(
  path: str | os.PathLike,
) -> tuple[list[Adapter], pathlib.Path]:
  """Return the adapters of a checkpoint, innermost first, and its base.

  A whole model is its own base and has none.  Errors are those of
  `read_adapter`, and FileNotFoundError for a base that is not there.
  """
  adapters, place = [], pathlib.Path(path)
  while is_adapter(place):
    # Two could name each other.
    if len(adapters) == MAX_CHAIN:
      raise UserError(
        f"{path}: more than {MAX_CHAIN} adapters are on top of each other.  "
        "Merge some with the command convert."
      )
    adapters.append(read_adapter(place))
    try:
      place = locate_checkpoint(adapters[-1].base)
    except FileNotFoundError as error:
      raise FileNotFoundError(
        f"{place / CONFIG_FILE}: {error}  Put the place of its base into "
        "base_model_name_or_path."
      ) from error
  return adapters[::-1], place


def read_adapter(folder: str | os.PathLike) -> Adapter:
  """Read an adapter's config; if it is no plain LoRA, raise UserError."""
  path = pathlib.Path(folder, CONFIG_FILE)
  return schema.read_json(
    path,
    functools.partial(_parse_config, path.parent),
    "Give a plain LoRA adapter that PEFT or `train` saved.",
  )


def _parse_config(folder: pathlib.Path, tree: dict[str, Any]) -> Adapter:
  for name, values in _KNOWN_VALUES.items():
    if (value := tree.get(name, values[0])) not in values:
      raise UserError(f"{name} is {value!r}, known: {values}")
  others = tree.keys() - _KNOWN_VALUES.keys() - _FREE_FIELDS
  for name in sorted(others):
    if tree[name]:
      raise UserError(f"{name} is {tree[name]!r}, and it must be empty")
  found = schema.convert(tree, _Fields)
  base, rank = found.base_model_name_or_path, found.r
  return Adapter(folder, base, rank, found.lora_alpha / rank)


def merge_tensors(
  adapter: Adapter,
  base: Mapping[str, StoredTensor],
  stored: Mapping[str, StoredTensor],
) -> dict[str, StoredTensor]:
  """Return the tensors of a base with an adapter in them, unread.

  Args:
    adapter: says how the tensors of `stored` are to be scaled.
    base: the base's tensors by their published names.
    stored: the adapter's, by the same names without `PREFIX`.

  Raises:
    BadWeights: a tensor is no part of an adapter, or does not fit the base.
  """
  pairs = {}
  for name, tensor in stored.items():
    match = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name)
    if not match or match[1] + ".weight" not in base:
      raise _misfit(adapter, f"tensor {name} adapts no layer of its base")
    pairs.setdefault(match[1] + ".weight", {})[match[2]] = tensor
  merged = dict(base)
  for name, pair in pairs.items():
    if len(pair) != 2:
      raise _misfit(adapter, f"{name} has no pair of lora_A and lora_B")
    shape, rank = base[name].shape, adapter.rank
    wanted = [(rank, *shape[1:]), (*shape[:1], rank)]
    found = [pair["A"].shape, pair["B"].shape]
    if len(shape) != 2 or found != wanted:
      fault = f"lora_A and lora_B of {name} have shapes {found}"
      raise _misfit(adapter, f"{fault}, wanted {wanted}")
    merged[name] = _add_product(adapter, base[name], pair["A"], pair["B"])
  return merged


def _misfit(adapter: Adapter, reason: str) -> BadWeights:
  """Return the error that says why an adapter does not fit its base."""
  return BadWeights(
    f"{adapter.weights}: {reason}.  Check that {adapter.base} is its base."
  )


def _add_product(
  adapter: Adapter, base: StoredTensor, a: StoredTensor, b: StoredTensor
) -> StoredTensor:
  """Return a weight [out, in] of the base plus scale * b a, unread."""

  def read() -> np.ndarray:
    # In float32, of which less may be kept when the result is loaded.
    kernel, *thin = (x.read().astype(np.float32) for x in (base, a, b))
    # An overflow becomes infinity, which `StoredTensor.read` finds.
    with np.errstate(over="ignore", invalid="ignore"):
      return kernel + np.float32(adapter.scale) * (thin[1] @ thin[0])

  file = adapter.weights
  return dataclasses.replace(base, file=file, dtype="F32", read_raw=read)


def write_config(
  folder: str | os.PathLike, base: str, rank: int, modules: list[str] | str
) -> None:
  """Write the config of adapters whose scale is part of lora_A.

  `modules` are ends of the names of the layers that have one, or a regular
  expression of the whole names.
  """
  tree = dict(
    peft_type="LORA",
    task_type="CAUSAL_LM",
    base_model_name_or_path=base,
    r=rank,
    lora_alpha=rank,
    target_modules=modules,
    lora_dropout=0.0,
    bias="none",
    fan_in_fan_out=False,
    init_lora_weights=True,
    inference_mode=True,
  )
  path = pathlib.Path(folder, CONFIG_FILE)
  path.write_text(json.dumps(tree, indent=1) + "\n", "utf-8")
