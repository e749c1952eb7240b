"""Published checkpoints of `qwen_vl`: config.json and tensors, both ways.

Three kinds are read, by `model_type`: qwen2_5_vl, qwen2, llama.  A config may
be flat, as on the hub, or nested, as transformers 5 writes it; tensors may
have the names of files, or those that models have in memory since transformers
4.52.  We write what is on the hub.

Source: transformers, models/qwen2_5_vl, qwen2 and llama (names of fields and
of tensors).
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import huggingface_hub

from r1router_jax.models import safetensors_io
from r1router_jax.models.layers import Llama3
from r1router_jax.models.qwen2_5_vl import Config, VisionConfig

CONFIG = "config.json"


_KINDS = {
  "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
  "qwen2": "Qwen2ForCausalLM",
  "llama": "LlamaForCausalLM",
}

# (field of ours, field of a published config)
_TEXT = (
  ("vocab", "vocab_size"),
  ("hidden", "hidden_size"),
  ("mlp", "intermediate_size"),
  ("layers", "num_hidden_layers"),
  ("heads", "num_attention_heads"),
  ("kv_heads", "num_key_value_heads"),
  ("eps", "rms_norm_eps"),
)

_VISION = (
  ("hidden", "hidden_size"),
  ("mlp", "intermediate_size"),
  ("layers", "depth"),
  ("heads", "num_heads"),
  ("patch", "patch_size"),
  ("temporal", "temporal_patch_size"),
  ("merge", "spatial_merge_size"),
  ("window", "window_size"),
  ("full_blocks", "fullatt_block_indexes"),
)

_LLAMA3 = (
  ("factor", "factor"),
  ("low", "low_freq_factor"),
  ("high", "high_freq_factor"),
  ("original", "original_max_position_embeddings"),
)

# What we have no code for, and what it must be.
_ONLY = dict(
  hidden_act="silu",
  use_sliding_window=False,
  attention_bias=False,
  mlp_bias=False,
)


def locate(name: str | os.PathLike) -> pathlib.Path:
  """The folder of a checkpoint: a path, or an id on the hub, "owner/model".

  From the hub come JSON and safetensors files, and nothing that could run.

  Raises:
    FileNotFoundError: where there is neither.
  """
  if os.path.isdir(name):
    return pathlib.Path(name)
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", os.fspath(name)):
    raise FileNotFoundError(f"There is no folder {name}.")
  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        os.fspath(name), allow_patterns=["*.json", "*.safetensors"]
      )
    )
  except (OSError, ValueError) as error:  # No network, no such model, no right.
    reason = str(error).partition("\n")[0]
    raise FileNotFoundError(
      f"There is no folder {name}, and the hub gives no such model ({reason})."
    ) from error


class BadConfig(ValueError):
  """A config.json that we cannot run; the message names the field."""


def read_config(folder: str | os.PathLike) -> Config:
  """The sizes of the checkpoint in `folder`.

  Raises:
    BadConfig: where the model is of another kind, or a field is missing.
  """
  path = os.path.join(folder, CONFIG)
  try:
    with open(path, encoding="utf-8") as file:
      return from_published(json.load(file))
  except (OSError, ValueError, TypeError, AttributeError) as error:
    raise BadConfig(
      f"{path}: {error}.  Give the folder of a Qwen2.5-VL, Qwen2 or Llama "
      "checkpoint."
    ) from error


def from_published(tree: Mapping[str, Any]) -> Config:
  """Reads a config.json; see `read_config`."""
  kind = tree.get("model_type")
  if kind not in _KINDS:
    raise BadConfig(f"model_type is {kind!r}, known: {', '.join(_KINDS)}")
  text = {**tree, **(tree.get("text_config") or {})}
  for name, value in _ONLY.items():
    if text.get(name, value) != value:
      raise BadConfig(f"{name} is {text[name]!r}, and only {value!r} is known")
  if missing := [theirs for _, theirs in _TEXT[:-2] if theirs not in text]:
    raise BadConfig(f"it lacks {missing}")
  text.setdefault("num_key_value_heads", text["num_attention_heads"])
  text.setdefault("rms_norm_eps", 1e-6)
  rope = {
    **(text.get("rope_scaling") or {}),
    **(text.get("rope_parameters") or {}),
  }
  head = text.get("head_dim") or (
    text["hidden_size"] // text["num_attention_heads"]
  )
  section = tuple(rope.get("mrope_section", (head // 2, 0, 0)))
  if 2 * sum(section) != head:
    raise BadConfig(
      f"mrope_section {section} does not add up to half of the head size {head}"
    )
  ties = [t.get("tie_word_embeddings") for t in (tree, text)]
  return Config(
    **{ours: text[theirs] for ours, theirs in _TEXT},
    mrope_section=section,
    tied=True in ties,
    theta=float(rope.get("rope_theta", text.get("rope_theta", 10_000.0))),
    qkv_bias=kind != "llama",
    rope_scaling=_scaling(rope),
    vision=_vision(tree.get("vision_config") or {}, text["hidden_size"])
    if kind == "qwen2_5_vl"
    else None,
  )


def _scaling(rope: Mapping[str, Any]) -> Llama3 | None:
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind in ("default", "mrope"):
    return None
  if kind != "llama3":
    raise BadConfig(f"rope_type is {kind!r}, known: default, mrope, llama3")
  return Llama3(**{ours: rope[theirs] for ours, theirs in _LLAMA3})


def _vision(tree: Mapping[str, Any], hidden: int) -> VisionConfig:
  if tree.get("out_hidden_size", hidden) != hidden:
    raise BadConfig(
      f"vision_config.out_hidden_size is "
      f"{tree['out_hidden_size']}, hidden_size {hidden}"
    )
  given = {ours: tree[theirs] for ours, theirs in _VISION if theirs in tree}
  if "full_blocks" in given:
    given["full_blocks"] = tuple(given["full_blocks"])
  return VisionConfig(**given)


def to_published(config: Config, tokens: Mapping[str, int]) -> dict[str, Any]:
  """The config.json of a model; `tokens` are its "..._token_id" fields."""
  kind = (
    "qwen2_5_vl" if config.vision else ("qwen2" if config.qkv_bias else "llama")
  )
  tree = dict(
    architectures=[_KINDS[kind]],
    model_type=kind,
    hidden_act="silu",
    **{theirs: getattr(config, ours) for ours, theirs in _TEXT},
    head_dim=config.head_size,
    rope_theta=config.theta,
    tie_word_embeddings=config.tied,
    use_sliding_window=False,
    **tokens,
  )
  if config.rope_scaling:
    tree["rope_scaling"] = dict(
      rope_type="llama3",
      **{
        theirs: getattr(config.rope_scaling, ours) for ours, theirs in _LLAMA3
      },
    )
  if config.vision:
    tree["rope_scaling"] = dict(
      type="mrope", mrope_section=list(config.mrope_section)
    )
    tree["vision_config"] = dict(
      {theirs: getattr(config.vision, ours) for ours, theirs in _VISION},
      out_hidden_size=config.hidden,
      hidden_act="silu",
    )
  return tree


def _linear(
  name: str, path: str, axes: str, bias: bool = True
) -> tuple[safetensors_io.Row, ...]:
  """Lines of a linear layer; `axes` are its layers, if stacked, in and out."""
  *stack, d, f = axes.split()
  stack = "".join(letter + " " for letter in stack)
  rows = (
    (name + ".weight", path + "/w", f"{stack}{f} {d} -> {stack}{d} {f}"),
    (name + ".bias", path + "/b", f"{stack}{f} -> {stack}{f}"),
  )
  return rows if bias else rows[:1]


_LAYER, _BLOCK = "model.layers.{}.", "visual.blocks.{}."

# The sizes of the letters are those of `axes`.
_TOWER = (
  (
    "visual.patch_embed.proj.weight",
    "vision/patch/w",
    "E C T Y X -> (C T Y X) E",
  ),
  (_BLOCK + "norm1.weight", "vision/blocks/ln1/scale", "B E -> B E"),
  (_BLOCK + "norm2.weight", "vision/blocks/ln2/scale", "B E -> B E"),
  *_linear(_BLOCK + "attn.qkv", "vision/blocks/qkv", "B E QKV"),
  *_linear(_BLOCK + "attn.proj", "vision/blocks/o", "B N E"),
  *_linear(_BLOCK + "mlp.gate_proj", "vision/blocks/mlp/gate", "B E G"),
  *_linear(_BLOCK + "mlp.up_proj", "vision/blocks/mlp/up", "B E G"),
  *_linear(_BLOCK + "mlp.down_proj", "vision/blocks/mlp/down", "B G E"),
  ("visual.merger.ln_q.weight", "vision/ln_q/scale", "E -> E"),
  *_linear("visual.merger.mlp.0", "vision/merge1", "M O"),
  *_linear("visual.merger.mlp.2", "vision/merge2", "O D"),
)


def table(config: Config) -> tuple[safetensors_io.Row, ...]:
  """A line per kind of tensor.

  A head that is the embedding may stand in a file, unread, and so may the
  rotary frequencies that old Llama files hold.
  """
  qkv = config.qkv_bias
  return (
    ("model.embed_tokens.weight", "embed", "V D -> V D"),
    ("lm_head.weight", *(("", "") if config.tied else ("head", "V D -> V D"))),
    (_LAYER + "self_attn.rotary_emb.inv_freq", "", ""),
    ("model.norm.weight", "norm/scale", "D -> D"),
    (_LAYER + "input_layernorm.weight", "layers/ln1/scale", "L D -> L D"),
    (
      _LAYER + "post_attention_layernorm.weight",
      "layers/ln2/scale",
      "L D -> L D",
    ),
    *_linear(_LAYER + "self_attn.q_proj", "layers/q", "L D Q", qkv),
    *_linear(_LAYER + "self_attn.k_proj", "layers/k", "L D K", qkv),
    *_linear(_LAYER + "self_attn.v_proj", "layers/v", "L D K", qkv),
    *_linear(_LAYER + "self_attn.o_proj", "layers/o", "L Q D", False),
    *_linear(_LAYER + "mlp.gate_proj", "layers/mlp/gate", "L D F", False),
    *_linear(_LAYER + "mlp.up_proj", "layers/mlp/up", "L D F", False),
    *_linear(_LAYER + "mlp.down_proj", "layers/mlp/down", "L F D", False),
    *(_TOWER if config.vision else ()),
  )


def axes(config: Config) -> dict[str, int]:
  """The size of each letter of `table`."""
  sizes = dict(
    V=config.vocab,
    D=config.hidden,
    F=config.mlp,
    L=config.layers,
    Q=config.heads * config.head_size,
    K=config.kv_heads * config.head_size,
  )
  if v := config.vision:
    merged = v.hidden * v.merge**2
    sizes |= dict(
      C=3,
      T=v.temporal,
      Y=v.patch,
      X=v.patch,
      B=v.layers,
      E=v.hidden,
      N=v.hidden,
      QKV=3 * v.hidden,
      G=v.mlp,
      M=merged,
      O=merged,
    )
  return sizes


_RENAME = (("model.visual.", "visual."), ("model.language_model.", "model."))


def load(path: str | os.PathLike, config: Config, **options: Any) -> dict:
  """Parameters of a checkpoint; `options` are those of `hf.load`."""
  return safetensors_io.load(
    os.fspath(path), table(config), axes(config), rename=_RENAME, **options
  )


def copy(
  source: str | os.PathLike,
  target: str | os.PathLike,
  config: Config,
  **options: Any,
) -> None:
  """Writes a checkpoint anew; `options` are those of `hf.copy`."""
  safetensors_io.copy(
    os.fspath(source),
    os.fspath(target),
    table(config),
    axes(config),
    rename=_RENAME,
    **options,
  )


def save(
  path: str | os.PathLike, params: dict, config: Config, **options: Any
) -> None:
  """Writes `params` under the names of published files; see `hf.save`."""
  safetensors_io.save(
    os.fspath(path), params, table(config), axes(config), **options
  )
