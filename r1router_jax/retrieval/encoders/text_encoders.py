"""Encoders of texts: one model or another, and data that say how it is used.

A vector is made in five steps, each of which a `TextEncoder` describes:

  text     prefix + text, in lower case or as it is, cut to `max_tokens`
  states   of its tokens, by a BERT, an XLM-R or a Qwen3
  pooling  the states become one vector, see `models.pooling`
  layers   act(W x + b), of folders that sentence-transformers wrote
  vector   its first `width` numbers, scaled to length 1

`TEXT_ENCODERS` lists what was published; `hf_folder` makes such data of the
files of any folder.  Sizes are those of config.json.

Axes:  n items   B texts   L tokens   D hidden size   E width
Sources: public descriptions of e5-base-v2, bge-base-en-v1.5, gte-base,
contriever and Qwen3-Embedding-0.6B (docs/knowledge_bases.md says what of them
could not be confirmed); arxiv.org/abs/2205.13147 (Matryoshka: the first numbers
are a vector, too).
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Float32

from r1router_jax.common import schema
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Passage, Query
from r1router_jax.models import bert, qwen3, safetensors_io
from r1router_jax.models.qwen2_5_vl import RuntimeConfig
from r1router_jax.retrieval.encoders import batched_encoder
from r1router_jax.retrieval.encoders.batched_encoder import Items

MAX_TOKENS = batched_encoder.BUCKET_LENGTHS[-1]


@dataclasses.dataclass(frozen=True)
class TextEncoder:
  """Describes how an encoder reads texts, and makes vectors of their states.

  Attributes:
    query_prefix: what stands before a query.
    passage_prefix: what stands before a passage.
    lowercase: which texts are lower-cased, "none", "queries" or "all"; uncased
      tokenizers do that themselves.
    table_markers: whether it was trained on the markers of flattened tables;
      others read punctuation in their place, which finds far more.
    max_tokens: longer texts are cut.
    pooling: one of `models.pooling.POOLINGS`, or "pooler", BERT's own.
    width: numbers of a vector that are kept; 0 keeps all.
    normalize: whether vectors are scaled to length 1, so that their inner
      product is the cosine.
  """

  query_prefix: str = ""
  passage_prefix: str = ""
  lowercase: str = "none"
  table_markers: bool = False
  max_tokens: int = MAX_TOKENS
  pooling: str = "mean"
  width: int = 0
  normalize: bool = True

  def read_text(self, item: Query | Passage) -> str:
    """Return the text of an item that the encoder reads."""
    if isinstance(item, Query):
      text = self.query_prefix + item.text.strip()
      return text if self.lowercase == "none" else text.lower()
    text = item.text
    if item.kb == "table" and not self.table_markers:
      text = batched_encoder.replace_table_markers(text)
    text = self.passage_prefix + text
    return text.lower() if self.lowercase == "all" else text


MINILM = TextEncoder(max_tokens=256)
# R1-Router lower-cases its queries, and reads passages as they are.
BGE_M3 = TextEncoder(lowercase="queries", max_tokens=256, pooling="cls")
# Open-WikiTable scores a question and a table by the raw inner product.
_WIKITABLE = TextEncoder(
  lowercase="queries", table_markers=True, pooling="pooler", normalize=False
)
WIKITABLE_QUESTION = dataclasses.replace(_WIKITABLE, max_tokens=64)
WIKITABLE_TABLE = _WIKITABLE

# Published encoders by the names that --embedder takes.
TEXT_ENCODERS = {
  "e5": TextEncoder(query_prefix="query: ", passage_prefix="passage: "),
  "contriever": TextEncoder(normalize=False),
  "bge": TextEncoder(
    query_prefix="Represent this sentence for searching relevant passages: ",
    pooling="cls",
  ),
  "gte": TextEncoder(),
  "qwen3_embedding": TextEncoder(
    query_prefix="Instruct: Given a web search query, retrieve relevant "
    "passages that answer the query\nQuery:",
    pooling="last",
  ),
}


class TextModel(NamedTuple):
  """Holds a model that makes vectors of tokens, before any `Dense` layer.

  `apply` makes of ({"params": params}, tokens, mask) a vector for each text.
  """

  apply: Callable[..., jax.Array]
  params: dict
  width: int
  max_tokens: int


class Dense(NamedTuple):
  """A layer behind the pooling; `kernel` is [in, out]."""

  kernel: np.ndarray
  bias: np.ndarray
  activation: str  # A key of `ACTIVATIONS`.


# By the last part of the class's name in PyTorch.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "Identity": lambda x: x,
  "Tanh": jnp.tanh,
}


class TextEmbedder:
  """An embedder of the texts of items."""

  def __init__(
    self,
    encoder: TextEncoder,
    model: TextModel,
    tokenizer: tokenizers.Tokenizer,
    fingerprint: str,
    dense: Sequence[Dense] = (),
  ):
    full = dense[-1].kernel.shape[1] if dense else model.width
    if encoder.width > full:
      fault = f"vectors of {full} numbers cannot be cut to {encoder.width}"
      raise UserError(f"{fault}: choose a width of at most {full}.")
    self.width, self.fingerprint = encoder.width or full, fingerprint
    self._encoder, self._tokenizer = encoder, tokenizer
    # Batches are padded by `BatchedEncoder`, to fewer shapes.
    self._tokenizer.no_padding()
    length = min(encoder.max_tokens, model.max_tokens, MAX_TOKENS)
    self._tokenizer.enable_truncation(length)
    params = dict(model=model.params, dense=[layer[:2] for layer in dense])
    names = tuple(layer.activation for layer in dense)
    apply = functools.partial(_make_vectors, encoder, model.apply, names)
    self._encode = batched_encoder.BatchedEncoder(apply, params, self.width)
    self.devices = self._encode.devices

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]:
    """Return the vector of each item's text."""
    texts = [self._encoder.read_text(item) for item in items]
    tokens = batched_encoder.encode_tokens(self._tokenizer, items, texts)
    batch_sizes = batched_encoder.batch_sizes_for(items)
    return self._encode.encode_texts(tokens, batch_sizes)


def _make_vectors(encoder, apply, activations, variables, tokens, mask):
  """Return the vectors [B E] of tokens [B L], by all parameters."""
  params = variables["params"]
  x = apply({"params": params["model"]}, tokens, mask)
  for (kernel, bias), name in zip(params["dense"], activations, strict=True):
    x = ACTIVATIONS[name](x @ kernel + bias)
  if encoder.width:
    x = x[:, : encoder.width]
  if encoder.normalize:
    # The lower bound keeps the zero vector of an empty text zero.
    x /= jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
  return x


def bert_model(
  config: bert.BertConfig,
  weights: str,
  prefixes: safetensors_io.Prefixes = bert.PREFIXES,
) -> TextModel:
  """Load a BERT or XLM-R; see `bert.load_params`."""
  params = bert.load_params(weights, config, prefixes)
  apply = bert.Bert(config, batched_encoder.compute_dtype()).apply
  return TextModel(apply, params, config.hidden, config.max_tokens)


def _open_bert(weights: str, encoder: TextEncoder) -> TextModel:
  config = bert.read_config(weights, pooling=encoder.pooling)
  return bert_model(config, weights)


def _open_qwen3(weights: str, encoder: TextEncoder) -> TextModel:
  config = qwen3.read_config(weights)
  # Scores of texts this short need no fused kernel.
  dtype = jnp.dtype(batched_encoder.compute_dtype()).name
  compute = RuntimeConfig(dtype=dtype, attention="xla")
  apply = functools.partial(qwen3.encode, config, compute, encoder.pooling)
  params = qwen3.load_params(weights, config)
  return TextModel(apply, params, config.hidden, MAX_TOKENS)


# By the model_type of config.json.
ARCHITECTURES: dict[str, Callable[[str, TextEncoder], TextModel]] = {
  "bert": _open_bert,
  "roberta": _open_bert,
  "xlm-roberta": _open_bert,
  "qwen3": _open_qwen3,
}


def read_model_type(folder: str, known: Sequence[str]) -> str:
  """Return the model_type of the config.json in `folder`, one of `known`."""

  def parse(tree: dict[str, Any]) -> str:
    found = tree.get("model_type")
    if found not in known:
      raise UserError(f"model_type is {found!r:.80}, known: {', '.join(known)}")
    return found

  path = os.path.join(folder, "config.json")
  return schema.read_json(
    path, parse, "Give the folder of an encoder in Hugging Face's form."
  )


def load_text_encoder(
  encoder: TextEncoder,
  weights: str,
  dense: Sequence[Dense] = (),
) -> TextEmbedder:
  """Load the encoder in the folder `weights`, whose config.json has its sizes.

  Raises:
    UserError: one of its files is absent or does not fit.
  """
  kind = read_model_type(weights, tuple(ARCHITECTURES))
  tokenizer = batched_encoder.load_tokenizer(weights)
  model = ARCHITECTURES[kind](weights, encoder)
  layers = [
    (digest_bytes(kernel.tobytes(), bias.tobytes()), activation)
    for kernel, bias, activation in dense
  ]
  identity = digest_encoder(weights, changed_fields(encoder), layers)
  return TextEmbedder(encoder, model, tokenizer, identity, dense)


def changed_fields(encoder: TextEncoder) -> dict[str, Any]:
  """Return the data of an encoder that are not the default ones.

  A field that is added later then changes no fingerprint.
  """
  default = dataclasses.asdict(TextEncoder())
  found = dataclasses.asdict(encoder)
  return {name: x for name, x in found.items() if x != default[name]}


def digest_encoder(weights: str, *data: Any) -> str:
  """Return a digest of a folder's weights, sizes and tokenizer, and of data."""
  files = safetensors_io.checkpoint_files(weights)
  parts = [safetensors_io.fingerprint(file) for file in files]
  for name in ("config.json", "tokenizer.json"):
    parts.append(digest_bytes(pathlib.Path(weights, name).read_bytes()))
  return digest_bytes(json.dumps([parts, *data], sort_keys=True).encode())[:16]


def digest_bytes(*parts: bytes) -> str:
  """Return a digest of bytes."""
  digest = hashlib.sha256()
  for part in parts:
    digest.update(part)
  return digest.hexdigest()
