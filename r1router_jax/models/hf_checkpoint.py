"""Hugging Face checkpoints of `qwen2_5_vl`: read and write config and weights.

Three values of `model_type` are read: qwen2_5_vl, qwen2, llama.  A config.json
may be flat, as on the hub, or nested, as transformers 5 writes it.  Tensors may
have the names that files on the hub have, or those that models have in memory
since transformers 4.52.  Both are written as they are on the hub.

Source: transformers, models/qwen2_5_vl, qwen2 and llama (names of fields and
of tensors).
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from r1router_jax.common import schema
from r1router_jax.common.checkpoint_folder import is_gguf
from r1router_jax.common.errors import UserError
from r1router_jax.models import gguf_checkpoint, peft_adapter, safetensors_io
from r1router_jax.models.layers import Llama3RopeScaling
from r1router_jax.models.qwen2_5_vl import Config, VisionConfig

CONFIG_FILE = "config.json"


# By model_type.
_ARCHITECTURES = {
  "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
  "qwen2": "Qwen2ForCausalLM",
  "llama": "LlamaForCausalLM",
}


# Field of `Config`: field of config.json.
_TEXT_FIELDS = dict(
  vocab="vocab_size",
  hidden="hidden_size",
  mlp="intermediate_size",
  layers="num_hidden_layers",
  heads="num_attention_heads",
  kv_heads="num_key_value_heads",
  eps="rms_norm_eps",
)

# Field of `VisionConfig`: field of "vision_config".
_VISION_FIELDS = dict(
  hidden="hidden_size",
  mlp="intermediate_size",
  layers="depth",
  heads="num_heads",
  patch="patch_size",
  temporal="temporal_patch_size",
  merge="spatial_merge_size",
  window="window_size",
  full_blocks="fullatt_block_indexes",
)

# Published fields of `Llama3RopeScaling`, in its order.
_ROPE_FIELDS = (
  "factor",
  "low_freq_factor",
  "high_freq_factor",
  "original_max_position_embeddings",
)


def _to_published(record: Any, names: Mapping[str, str]) -> dict[str, Any]:
  """Return the fields of a record under their published names."""
  return {published: getattr(record, ours) for ours, published in names.items()}


# Fields that choose variants of the model, and the only value implemented.
_IMPLEMENTED = dict(hidden_act="silu", use_sliding_window=False)
_IMPLEMENTED |= dict(attention_bias=False, mlp_bias=False, in_channels=3)

# What transformers fills in: fields that are younger than some models.
_DEFAULTS = dict(
  llama=dict(rope_theta=10_000.0, num_key_value_heads=None),
  qwen2=dict(rope_theta=10_000.0),
  qwen2_5_vl={},
)


class _Text(schema.under_names(Config, _TEXT_FIELDS)):
  head_dim: schema.Size | None = None
  tie_word_embeddings: bool | None = None
  rope_scaling: dict[str, Any] | None = None
  rope_parameters: dict[str, Any] | None = None


class _Llama3(msgspec.Struct):
  factor: schema.Positive
  low_freq_factor: schema.Positive
  high_freq_factor: schema.Positive
  original_max_position_embeddings: schema.Size

  def __post_init__(self):
    if self.high_freq_factor <= self.low_freq_factor:
      raise ValueError("high_freq_factor is not above low_freq_factor")


_Rope = schema.under_names(
  Config, dict(theta="rope_theta", mrope_section="mrope_section")
)
_Vision = schema.under_names(VisionConfig, _VISION_FIELDS)


class BadConfig(UserError):
  """A model that cannot be run; the message names the config.json field."""


def read_config(folder: str | os.PathLike) -> Config:
  """Read the config of the checkpoint in `folder`, or of a GGUF file.

  That of an adapter is its base's, see `peft_adapter.read_chain`.

  Raises:
    BadConfig: the model is of another kind, or a field is missing, of another
      type or out of its range.
    UserError: a GGUF file or an adapter is damaged, or of another kind.
  """
  _, base = peft_adapter.read_chain(folder)
  if is_gguf(base):
    return parse_config(gguf_checkpoint.read_hf_config(base))
  return schema.read_json(
    os.path.join(base, CONFIG_FILE),
    parse_config,
    "Give the folder of a Qwen2.5-VL, Qwen2 or Llama checkpoint.",
    error=BadConfig,
  )


def parse_config(tree: Mapping[str, Any]) -> Config:
  """Convert the contents of a config.json, with the errors of `read_config`."""
  # Check that the model is one that `qwen2_5_vl` implements.
  kind = tree.get("model_type")
  if str(kind) not in _ARCHITECTURES:
    known = ", ".join(_ARCHITECTURES)
    raise BadConfig(f"model_type is {kind!r:.80}, known: {known}")
  # The nested form keeps the fields of the language model in "text_config".
  nested = schema.convert(tree.get("text_config") or {}, dict, "text_config")
  text = _DEFAULTS[kind] | tree | nested
  _check_implemented(text)
  # Models of before grouped queries have a key for each query.
  if text.get("num_key_value_heads", 0) is None:
    text["num_key_value_heads"] = text.get("num_attention_heads")
  found = schema.convert(text, _Text)
  if found.heads % found.kv_heads:
    raise BadConfig("num_key_value_heads does not divide num_attention_heads")

  # Find the rotary embedding's fields, whose place depends on the version.
  rope = {name: text[name] for name in text.keys() & {"rope_theta"}}
  rope |= (found.rope_scaling or {}) | (found.rope_parameters or {})
  scaling = _parse_rope_scaling(rope, text.get("max_position_embeddings"))
  head = found.head_dim or found.hidden // found.heads
  # Models of text alone have no sections: all frequencies turn with the
  # position in the text.
  if kind != "qwen2_5_vl":
    rope.setdefault("mrope_section", (head // 2, 0, 0))
  rotary = schema.convert(rope, _Rope)
  section = rotary.mrope_section
  if not head or 2 * sum(section) != head:
    raise BadConfig(
      f"mrope_section {section} does not add up to half of the head size {head}"
    )

  # Only Qwen2.5-VL has a vision tower.
  vision = None
  if kind == "qwen2_5_vl":
    vision = _parse_vision(tree.get("vision_config") or {}, found.hidden)
  return Config(
    **{name: getattr(found, name) for name in _TEXT_FIELDS},
    mrope_section=section,
    tied=bool(tree.get("tie_word_embeddings") or found.tie_word_embeddings),
    theta=rotary.theta,
    qkv_bias=kind != "llama",
    rope_scaling=scaling,
    vision=vision,
  )


def _check_implemented(tree: Mapping[str, Any], place: str = "") -> None:
  """Raise BadConfig if a field chooses a variant that is not implemented."""
  for name, value in _IMPLEMENTED.items():
    # As for transformers, null is no choice.
    if (found := tree.get(name)) not in (None, value):
      fault = f"{place}{name} is {found!r:.80}"
      raise BadConfig(f"{fault}, and only {value!r} is known")


def _parse_rope_scaling(
  rope: Mapping[str, Any], length: Any
) -> Llama3RopeScaling | None:
  """Convert scaling; `length` is the model's own context."""
  kind = rope.get("rope_type", rope.get("type")) or "default"
  if kind in ("default", "mrope"):
    return None
  if kind != "llama3":
    raise BadConfig(f"rope_type is {kind!r:.80}, known: default, mrope, llama3")
  if length is not None:
    rope = {_ROPE_FIELDS[-1]: length} | rope
  found = schema.convert(rope, _Llama3, "rope")
  return Llama3RopeScaling(*msgspec.structs.astuple(found))


def _parse_vision(tree: Any, hidden: int) -> VisionConfig:
  """Convert "vision_config"; `hidden` is the language model's hidden size."""
  place = "vision_config"
  tree = schema.convert(tree, dict, place)
  if (size := tree.get("out_hidden_size", hidden)) != hidden:
    raise BadConfig(
      f"{place}.out_hidden_size is {size!r:.80}, hidden_size {hidden}"
    )
  _check_implemented(tree, f"{place}.")
  found = schema.convert(tree, _Vision, place)
  # Half of a head's frequencies turn with the row, half with the column.
  if found.hidden % (4 * found.heads):
    raise BadConfig(f"{place}: 4 num_heads do not divide hidden_size")
  if found.window < found.patch * found.merge:
    raise BadConfig(f"{place}: window_size is smaller than merged patches")
  return VisionConfig(**msgspec.structs.asdict(found))


def make_hf_config(
  config: Config, token_ids: Mapping[str, int]
) -> dict[str, Any]:
  """Return the contents of a model's config.json, in the flat form of the hub.

  `token_ids` are the "..._token_id" fields, such as "eos_token_id".
  """
  # The architecture follows from what the config has.
  kind = "qwen2" if config.qkv_bias else "llama"
  if config.vision:
    kind = "qwen2_5_vl"
  tree = dict(
    architectures=[_ARCHITECTURES[kind]],
    model_type=kind,
    hidden_act="silu",
    **_to_published(config, _TEXT_FIELDS),
    head_dim=config.head_size,
    rope_theta=config.theta,
    tie_word_embeddings=config.tied,
    use_sliding_window=False,
    **token_ids,
  )
  # Llama 3.1's scaling and m-rope exclude each other.
  if scaling := config.rope_scaling:
    fields = zip(_ROPE_FIELDS, scaling, strict=True)
    tree["rope_scaling"] = dict(rope_type="llama3") | dict(fields)
  if vision := config.vision:
    section = list(config.mrope_section)
    tree["rope_scaling"] = dict(type="mrope", mrope_section=section)
    fields = _to_published(vision, _VISION_FIELDS)
    fields |= dict(out_hidden_size=config.hidden, hidden_act="silu")
    tree["vision_config"] = fields
  return tree


def _linear_rules(
  name: str, path: str, axes: str, bias: bool = True
) -> safetensors_io.WeightMap:
  """Return the weight rules of a linear layer.

  `axes` are letters of the stacked layers (if they are stacked), the input and
  the output.
  """
  # Published kernels have the output axis first, those here the input axis.
  *stack, d, f = axes.split()
  stack = "".join(letter + " " for letter in stack)
  rules = (
    (name + ".weight", path + "/w", f"{stack}{f} {d} -> {stack}{d} {f}"),
    (name + ".bias", path + "/b", f"{stack}{f} -> {stack}{f}"),
  )
  return rules if bias else rules[:1]


_LAYER, _BLOCK = "model.layers.{}.", "visual.blocks.{}."
_PATCH, _AFTER = "visual.patch_embed.proj", _LAYER + "post_attention_layernorm"

# The letters are explained by `axis_sizes`.
_VISION_RULES = (
  # A 3-D convolution over whole patches is a product of flat patches.
  (_PATCH + ".weight", "vision/patch/w", "E C T Y X -> (C T Y X) E"),
  (_BLOCK + "norm1.weight", "vision/blocks/ln1/scale", "B E -> B E"),
  (_BLOCK + "norm2.weight", "vision/blocks/ln2/scale", "B E -> B E"),
  *_linear_rules(_BLOCK + "attn.qkv", "vision/blocks/qkv", "B E QKV"),
  *_linear_rules(_BLOCK + "attn.proj", "vision/blocks/o", "B N E"),
  *_linear_rules(_BLOCK + "mlp.gate_proj", "vision/blocks/mlp/gate", "B E G"),
  *_linear_rules(_BLOCK + "mlp.up_proj", "vision/blocks/mlp/up", "B E G"),
  *_linear_rules(_BLOCK + "mlp.down_proj", "vision/blocks/mlp/down", "B G E"),
  ("visual.merger.ln_q.weight", "vision/ln_q/scale", "E -> E"),
  *_linear_rules("visual.merger.mlp.0", "vision/merge1", "M O"),
  *_linear_rules("visual.merger.mlp.2", "vision/merge2", "O D"),
)


def weight_map(config: Config) -> safetensors_io.WeightMap:
  """Return the weight rules of a model, one per kind of tensor."""
  # Rules without a path name tensors that files may hold and that are skipped:
  # a head that is tied to the embedding, and the rotary frequencies that old
  # Llama files hold.
  embed = "model.embed_tokens.weight"
  head = ("", embed) if config.tied else ("head", "V D -> V D")
  qkv_bias = config.qkv_bias
  return (
    (embed, "embed", "V D -> V D"),
    ("lm_head.weight", *head),
    (_LAYER + "self_attn.rotary_emb.inv_freq", "", ""),
    ("model.norm.weight", "norm/scale", "D -> D"),
    (_LAYER + "input_layernorm.weight", "layers/ln1/scale", "L D -> L D"),
    (_AFTER + ".weight", "layers/ln2/scale", "L D -> L D"),
    *_linear_rules(_LAYER + "self_attn.q_proj", "layers/q", "L D Q", qkv_bias),
    *_linear_rules(_LAYER + "self_attn.k_proj", "layers/k", "L D K", qkv_bias),
    *_linear_rules(_LAYER + "self_attn.v_proj", "layers/v", "L D K", qkv_bias),
    *_linear_rules(_LAYER + "self_attn.o_proj", "layers/o", "L Q D", False),
    *_linear_rules(_LAYER + "mlp.gate_proj", "layers/mlp/gate", "L D F", False),
    *_linear_rules(_LAYER + "mlp.up_proj", "layers/mlp/up", "L D F", False),
    *_linear_rules(_LAYER + "mlp.down_proj", "layers/mlp/down", "L F D", False),
    *(_VISION_RULES if config.vision else ()),
  )


def axis_sizes(config: Config) -> dict[str, int]:
  """Return the size of each letter in the patterns of `weight_map`."""
  c, head = config, config.head_size
  sizes = dict(V=c.vocab, D=c.hidden, F=c.mlp, L=c.layers)
  sizes |= dict(Q=c.heads * head, K=c.kv_heads * head)
  if v := c.vision:
    # Three colours, and the sides of a patch.
    sizes |= dict(C=3, T=v.temporal, Y=v.patch, X=v.patch, B=v.layers)
    sizes |= dict(E=v.hidden, N=v.hidden, QKV=3 * v.hidden, G=v.mlp)
    # The merger reads the concatenated states of merge x merge patches.
    sizes |= dict.fromkeys("MO", v.hidden * v.merge**2)
  return sizes


# The names in memory since transformers 4.52, and those of files on the hub.
PREFIXES = (("model.visual.", "visual."), ("model.language_model.", "model."))


# The same of an adapter, whose names are those in memory.
_ADAPTER_PREFIXES = tuple(
  (peft_adapter.PREFIX + old, new) for old, new in (*PREFIXES, ("", ""))
)


@contextlib.contextmanager
def open_tensors(
  path: str | os.PathLike, prefixes: safetensors_io.Prefixes
) -> Iterator[Mapping[str, safetensors_io.StoredTensor]]:
  """Open a folder or a GGUF file, and yield its tensors by name, unread.

  Those of an adapter are its base's, with the adapter in them.
  """
  adapters, base = peft_adapter.read_chain(path)
  with contextlib.ExitStack() as stack:
    if is_gguf(base):
      tensors = gguf_checkpoint.open_tensors(base)
    else:
      opened = safetensors_io.open_tensors(os.fspath(base), prefixes)
      tensors = stack.enter_context(opened)
    for adapter in adapters:
      opened = safetensors_io.open_tensors(adapter.weights, _ADAPTER_PREFIXES)
      stored = stack.enter_context(opened)
      tensors = peft_adapter.merge_tensors(adapter, tensors, stored)
    yield tensors


def list_weight_files(path: str | os.PathLike) -> list[str]:
  """List the files that a checkpoint's weights come from, its base's first."""
  adapters, base = peft_adapter.read_chain(path)
  files = [os.fspath(base)]
  if not is_gguf(base):
    files = safetensors_io.checkpoint_files(os.fspath(base))
  for adapter in adapters:
    # The config says how the weights are scaled.
    files += [adapter.weights, str(adapter.folder / peft_adapter.CONFIG_FILE)]
  return files


# How tensors of this model's checkpoints are found.
_LOOKUP = dict(prefixes=PREFIXES, opener=open_tensors)


def load_params(
  path: str | os.PathLike, config: Config, **options: Any
) -> dict:
  """Load parameters; `options` are those of `safetensors_io.load_params`."""
  rules = weight_map(config), axis_sizes(config)
  options |= _LOOKUP
  return safetensors_io.load_params(os.fspath(path), *rules, **options)


def copy_checkpoint(
  source: str | os.PathLike,
  target: str | os.PathLike,
  config: Config,
  **options: Any,
) -> None:
  """Copy weights; `options` are those of `safetensors_io.copy_checkpoint`."""
  rules = weight_map(config), axis_sizes(config)
  paths, options = map(os.fspath, (source, target)), options | _LOOKUP
  safetensors_io.copy_checkpoint(*paths, *rules, **options)


def save_params(
  path: str | os.PathLike, params: dict, config: Config, **options: Any
) -> None:
  """Write parameters; `options` are those of `safetensors_io.save_params`."""
  rules = weight_map(config), axis_sizes(config)
  safetensors_io.save_params(os.fspath(path), params, *rules, **options)
