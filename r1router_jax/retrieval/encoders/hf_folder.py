"""Open the encoder in any folder of Hugging Face's form, by its own files.

  config.json                        which model, and its sizes
  tokenizer.json                     the tokenizer
  modules.json                       the modules that follow each other:
    Transformer                      with sentence_bert_config.json: the length,
                                     and whether texts are lower-cased
    Pooling, 1_Pooling/config.json   how states become a vector
    Dense, 2_Dense/config.json       layers behind it, and their weights
    Normalize                        vectors are scaled to length 1
  tokenizer_config.json              the length, if no other file says it
  config_sentence_transformers.json  "prompts" of queries and documents, and
                                     the similarity that vectors are made for

Only config.json and tokenizer.json have to be there.  Vectors are scaled to
length 1, also where no module says so, unless "similarity_fn_name" is "dot".
"truncate_dim" in config_sentence_transformers.json is a line of this package's:
how many numbers of a Matryoshka encoder's vectors are kept.

Source: github.com/huggingface/sentence-transformers (the files).
"""

import os
from typing import Annotated, Any

import msgspec
import numpy as np

from r1router_jax.common import files, schema
from r1router_jax.common.errors import UserError
from r1router_jax.models import safetensors_io
from r1router_jax.retrieval.encoders import image_encoders, text_encoders
from r1router_jax.retrieval.encoders.batched_encoder import Embedder
from r1router_jax.retrieval.encoders.text_encoders import Dense, TextEncoder

_CURE = "Copy that of the model again."

# Names of the poolings that there are, in new files and as flags of old ones.
_POOLINGS = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
_POOLING_FLAGS = dict(
  pooling_mode_cls_token="cls",
  pooling_mode_mean_tokens="mean",
  pooling_mode_lasttoken="lasttoken",
  pooling_mode_max_tokens="max",
  pooling_mode_mean_sqrt_len_tokens="mean_sqrt_len_tokens",
  pooling_mode_weightedmean_tokens="weightedmean",
)

_Name = Annotated[str, msgspec.Meta(max_length=1000)]
_MIN_TOKENS = 8  # Of a text: room for the special tokens, and for some words.


class _Module(msgspec.Struct):
  """An entry of modules.json."""

  type: _Name
  path: _Name

  @property
  def kind(self) -> str:
    """Name of its class, whose package differs between versions."""
    return self.type.rpartition(".")[2]

  def __post_init__(self):
    parts = self.path.replace("\\", "/").split("/")
    if os.path.isabs(self.path) or ".." in parts:
      raise ValueError(f"path {self.path!r} leads out of the folder")


class _Modules(msgspec.Struct):
  modules: Annotated[list[_Module], msgspec.Meta(min_length=1, max_length=32)]


class _Transformer(msgspec.Struct):
  max_seq_length: Annotated[int, msgspec.Meta(ge=_MIN_TOKENS)] | None = None
  do_lower_case: bool = False


class _Pooling(msgspec.Struct):
  pooling_mode: _Name | list[_Name] = ""
  include_prompt: bool = True


class _Dense(msgspec.Struct):
  in_features: schema.Size
  out_features: schema.Size
  activation_function: _Name
  bias: bool = True
  module_input_name: schema.one_of("sentence_embedding") = "sentence_embedding"
  use_residual: bool = False


class _Tokenizer(msgspec.Struct):
  # 1e30 stands for no limit.
  model_max_length: Annotated[float, msgspec.Meta(ge=_MIN_TOKENS)] | None = None


class _Options(msgspec.Struct):
  prompts: dict[str, str | None] = {}
  default_prompt_name: str | None = None
  similarity_fn_name: schema.one_of("cosine", "dot") | None = None
  truncate_dim: schema.Size | None = None


def load_encoder(folder: str) -> Embedder:
  """Load the encoder of a folder; see the head of this module.

  Raises:
    UserError: a file is absent or damaged, or asks for what is not there.
  """
  modules = read_modules(folder)
  place = os.path.join(folder, modules[0].path)
  known = *text_encoders.ARCHITECTURES, "siglip"
  if text_encoders.read_model_type(place, known) == "siglip":
    return image_encoders.load_siglip(place)
  encoder, dense = read_encoder(folder, modules)
  return text_encoders.load_text_encoder(encoder, place, dense)


def _read(path: str, kind: type) -> Any:
  """Return a JSON file as a record; one that is absent has the defaults."""
  if files.file_state(path) is None:
    return kind()
  return schema.read_json(path, lambda tree: schema.convert(tree, kind), _CURE)


def read_modules(folder: str) -> list[_Module]:
  """Return the modules of a folder; without a file, that is the model alone."""
  path = os.path.join(folder, "modules.json")
  if files.file_state(path) is None:
    return [_Module("Transformer", "")]

  def parse(tree: list) -> list[_Module]:
    found = schema.convert(dict(modules=tree), _Modules).modules
    kinds = [module.kind for module in found]
    # Layers follow the pooling, and nothing follows the scaling.
    order = ["Transformer", "Pooling", *["Dense"] * kinds.count("Dense")]
    if kinds not in (order[:1], order, [*order, "Normalize"]):
      wanted = "wanted Transformer, Pooling, Dense (any number), Normalize"
      raise UserError(f"it lists {', '.join(kinds):.200}, {wanted}")
    return found

  return schema.read_json(path, parse, "Take another encoder.", top=list)


def read_encoder(
  folder: str, modules: list[_Module]
) -> tuple[TextEncoder, list[Dense]]:
  """Return what the files of a folder say of reading texts."""
  place = os.path.join(folder, modules[0].path)
  read = _read(os.path.join(place, "sentence_bert_config.json"), _Transformer)
  path = os.path.join(folder, "config_sentence_transformers.json")
  options, limit = _read(path, _Options), read.max_seq_length
  if limit is None:
    named = _read(os.path.join(place, "tokenizer_config.json"), _Tokenizer)
    limit = named.model_max_length or text_encoders.MAX_TOKENS
  kinds = [module.kind for module in modules]
  paths = [os.path.join(folder, module.path) for module in modules]
  pooled = _read_pooling(paths[1]) if "Pooling" in kinds else "mean"
  encoder = TextEncoder(
    query_prefix=_find_prompt(options, "query"),
    passage_prefix=_find_prompt(options, "document", "passage", "corpus"),
    lowercase="all" if read.do_lower_case else "none",
    max_tokens=int(min(limit, text_encoders.MAX_TOKENS)),
    pooling=pooled,
    width=options.truncate_dim or 0,
    normalize="Normalize" in kinds or options.similarity_fn_name != "dot",
  )
  pairs = zip(kinds, paths, strict=True)
  return encoder, [_load_dense(p) for kind, p in pairs if kind == "Dense"]


def _find_prompt(options: _Options, *names: str) -> str:
  """Return the first prompt of these names, or the default one, or ""."""
  names = *names, options.default_prompt_name
  found = (options.prompts.get(name) for name in names)
  return next((prompt for prompt in found if prompt is not None), "")


def _read_pooling(folder: str) -> str:
  """Return the pooling of a folder, as one of `pooling.POOLINGS`."""

  def parse(tree: dict[str, Any]) -> str:
    found = schema.convert(tree, _Pooling)
    modes = found.pooling_mode or [
      mode for flag, mode in _POOLING_FLAGS.items() if tree.get(flag)
    ]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    known = ", ".join(_POOLINGS)
    if len(modes) > 1 or modes[0] not in _POOLINGS:
      raise UserError(f"its pooling is {'+'.join(modes)}, known: {known}")
    if not found.include_prompt:
      raise UserError("include_prompt is false, and only true is known")
    return _POOLINGS[modes[0]]

  path = os.path.join(folder, "config.json")
  return schema.read_json(path, parse, "Take another encoder.")


def _load_dense(folder: str) -> Dense:
  """Load a layer behind the pooling."""

  def parse(tree: dict[str, Any]) -> _Dense:
    found = schema.convert(tree, _Dense)
    name = found.activation_function.rpartition(".")[2]
    if name not in text_encoders.ACTIVATIONS or found.use_residual:
      known = ", ".join(text_encoders.ACTIVATIONS)
      fault = "use_residual is true" if found.use_residual else f"{name!r:.80}"
      raise UserError(f"its activation is {fault}, known: {known}, no residual")
    return msgspec.structs.replace(found, activation_function=name)

  path = os.path.join(folder, "config.json")
  layer = schema.read_json(path, parse, "Take another encoder.")
  rules = (
    ("linear.weight", "kernel", "O I -> I O"),
    ("linear.bias", "bias", "O -> O"),
  )
  params = safetensors_io.load_params(
    folder,
    rules if layer.bias else rules[:1],
    dict(I=layer.in_features, O=layer.out_features),
    dtype=np.float32,
  )
  bias = params.get("bias", np.zeros(layer.out_features, np.float32))
  return Dense(params["kernel"], bias, layer.activation_function)
