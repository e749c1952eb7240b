"""BERT and XLM-RoBERTa: encode a text as one vector, or score a pair of texts.

A block normalizes after each residual sum (post-LN):

  x <- LN(x + attention(x)),   x <- LN(x + W2 gelu(W1 x))

and positions are learned.  `BertConfig.pooling` chooses the output, one of
`pooling.POOLINGS` or

  "pooler"  tanh(W h_cls + b)
  "score"   a linear layer over "pooler", one number per pair of texts

Axes:  B texts   L layers (L tokens in signatures)   D hidden size   N heads
       H D/N   F feed-forward size   V vocabulary   P positions   S segments
       E width of the output
Sources: arxiv.org/abs/1810.04805 (BERT), arxiv.org/abs/1911.02116 (XLM-R),
arxiv.org/abs/2402.03216 (BGE-M3), arxiv.org/abs/2305.07288 (Open-WikiTable);
names of weights and of the fields of config.json are those of transformers.
"""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from r1router_jax.common import schema
from r1router_jax.common.errors import UserError
from r1router_jax.common.schema import Layers, Size
from r1router_jax.models import safetensors_io
from r1router_jax.models.pooling import POOLINGS, pool_states
from r1router_jax.models.safetensors_io import linear_rules, norm_rules


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Sizes and variants of an encoder."""

  vocab: Size  # V
  layers: Layers
  hidden: Size  # D
  heads: Size  # N
  mlp: Size  # F
  max_positions: Size = 512  # P
  first_position: int = 0  # 2 for XLM-R, which reserves 0 and 1 for padding.
  num_segments: Size = 2  # S; a lone text is segment 0.
  eps: schema.PositiveShare = 1e-12  # Of the layer norms.
  pooling: str = "mean"  # See the top.

  @property
  def max_tokens(self) -> int:
    """Number of tokens that positions, and batches, have room for."""
    return min(512, self.max_positions - self.first_position)


# sentence-transformers/all-MiniLM-L6-v2.
MINILM_L6 = BertConfig(vocab=30_522, layers=6, hidden=384, heads=12, mlp=1536)

# facebook/contriever, whose config.json says the same.
CONTRIEVER = BertConfig(vocab=30_522, layers=12, hidden=768, heads=12, mlp=3072)

_LARGE = dict(layers=24, hidden=1024, heads=16, mlp=4096)
_XLM_R = dict(max_positions=8194, first_position=2, num_segments=1, eps=1e-5)

# BAAI/bge-m3, an XLM-R; only its dense vectors are used.
BGE_M3 = BertConfig(vocab=250_002, pooling="cls", **_LARGE, **_XLM_R)

# Both encoders of Open-WikiTable; that of tables has eight more words: the
# table markers.
WIKITABLE_QUESTION = BertConfig(vocab=30_522, pooling="pooler", **_LARGE)
WIKITABLE_TABLE = BertConfig(vocab=30_530, pooling="pooler", **_LARGE)


class Block(nn.Module):
  """One post-LN transformer layer, in the carry form that `nn.scan` wants."""

  config: BertConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"]):
    """Return (new states, None); keys where `mask` is false are ignored."""
    c = self.config
    # Self-attention; scores and softmax stay in float32 for any `dtype`.
    heads = (c.heads, c.hidden // c.heads)
    # [B L N H] each.
    q, k, v = (
      nn.DenseGeneral(heads, dtype=self.dtype, name=name)(x)
      for name in ("q", "k", "v")
    )
    q *= heads[1] ** -0.5
    scores = jnp.einsum(
      "BSNH,BTNH->BNST", q, k, preferred_element_type=jnp.float32
    )
    # `where` gives a text without tokens zeros and not NaN.
    probs = jax.nn.softmax(scores, where=mask[:, None, None])
    # [B L N H], then the heads are merged into [B L D].
    y = jnp.einsum("BNST,BTNH->BSNH", probs.astype(self.dtype), v)
    y = nn.DenseGeneral(c.hidden, axis=(-2, -1), dtype=self.dtype, name="o")(y)
    x = nn.LayerNorm(c.eps, name="attention_norm")(x + y)

    # Feed-forward layer with the exact gelu, not its tanh approximation.
    y = nn.Dense(c.mlp, dtype=self.dtype, name="up")(x)
    y = jax.nn.gelu(y, approximate=False)
    y = nn.Dense(c.hidden, dtype=self.dtype, name="down")(y)
    return nn.LayerNorm(c.eps, name="inner_norm")(x + y), None


class Bert(nn.Module):
  """A text encoder."""

  config: BertConfig
  dtype: Any = jnp.float32  # Of matrix products; everything else is float32.

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    segments: Int[Array, "B L"] | None = None,
  ) -> Float[Array, "B E"]:
    """Return one vector per text, or one score per pair of texts (E = 1).

    Tokens are padded on the right, where the mask is false.  `segments` are the
    number, by default 0, of the text in its pair that each token belongs to.
    """
    c = self.config
    # Sum the three embeddings.
    if segments is None:
      segments = jnp.zeros_like(tokens)
    x = nn.Embed(c.vocab, c.hidden, name="words")(tokens)
    # Texts are truncated to the table, so only padding is clipped here.
    positions = jnp.minimum(
      c.first_position + jnp.arange(tokens.shape[1]), c.max_positions - 1
    )
    x += nn.Embed(c.max_positions, c.hidden, name="positions")(positions)
    x += nn.Embed(c.num_segments, c.hidden, name="segments")(segments)
    x = nn.LayerNorm(c.eps, name="norm")(x)

    # Run the blocks; their parameters are stacked on a leading axis.
    stacked = dict(variable_axes={"params": 0}, split_rngs={"params": True})
    blocks = nn.scan(Block, length=c.layers, in_axes=nn.broadcast, **stacked)
    x, _ = blocks(c, self.dtype, name="layers")(x, mask)

    # Reduce token states to one vector, or one score, per text.
    if c.pooling in POOLINGS:
      return pool_states(x, mask, c.pooling)
    known = *POOLINGS, "pooler", "score"
    if c.pooling not in known:
      cure = f"choose one of {', '.join(known)}."
      raise UserError(f"config.pooling is {c.pooling!r}; {cure}")
    # Both remaining kinds read the pooler, a layer over the first token.
    x = jnp.tanh(nn.Dense(c.hidden, name="pooler")(x[:, 0]))
    return nn.Dense(1, name="score")(x) if c.pooling == "score" else x


# Published names of weights and where they go.
_EMBED, _LAYER = "embeddings.", "encoder.layer.{}."
_ATTENTION = _LAYER + "attention."

# Patterns of a kernel and a bias whose outputs are split into heads, and of
# others. Published kernels have the output axis first, Flax has it last.
_HEADS = "L (N H) D -> L D N H", "L (N H) -> L N H"
_MERGE = "L D (N H) -> L N H D", "L D -> L D"
_UP = "L F D -> L D F", "L F -> L F"
_DOWN = "L D F -> L F D", "L D -> L D"

# Rules (published name, path of the parameter, einops pattern) of the weights
# that every encoder has; see `safetensors_io`.
_ENCODER_RULES = (
  (_EMBED + "word_embeddings.weight", "words/embedding", "V D -> V D"),
  (_EMBED + "position_embeddings.weight", "positions/embedding", "P D -> P D"),
  (_EMBED + "token_type_embeddings.weight", "segments/embedding", "S D -> S D"),
  (_EMBED + "position_ids", "", ""),  # A buffer that old files hold.
  *norm_rules(_EMBED + "LayerNorm", "norm", "D -> D"),
  *linear_rules(_ATTENTION + "self.query", "layers/q", *_HEADS),
  *linear_rules(_ATTENTION + "self.key", "layers/k", *_HEADS),
  *linear_rules(_ATTENTION + "self.value", "layers/v", *_HEADS),
  *linear_rules(_ATTENTION + "output.dense", "layers/o", *_MERGE),
  *norm_rules(
    _ATTENTION + "output.LayerNorm", "layers/attention_norm", "L D -> L D"
  ),
  *linear_rules(_LAYER + "intermediate.dense", "layers/up", *_UP),
  *linear_rules(_LAYER + "output.dense", "layers/down", *_DOWN),
  *norm_rules(_LAYER + "output.LayerNorm", "layers/inner_norm", "L D -> L D"),
)

_POOLER_RULES = linear_rules("pooler.dense", "pooler", "E D -> D E", "E -> E")
_SCORE_RULES = linear_rules("classifier", "score", "O E -> E O", "O -> O")
# The first that fits a tensor's name is replaced.
PREFIXES = (
  ("bert.", ""),
  ("roberta.", ""),
  # The classifier of XLM-R contains its pooler.
  ("classifier.dense.", "pooler.dense."),
  ("classifier.out_proj.", "classifier."),
)


def weight_map(config: BertConfig) -> safetensors_io.WeightMap:
  """Return the weight rules of an encoder.

  Files may hold a pooler even where `config.pooling` does not use one: its
  rules then say that these tensors are skipped.
  """
  # The score is a layer on top of the pooler.
  if config.pooling == "score":
    return _ENCODER_RULES + _POOLER_RULES + _SCORE_RULES
  if config.pooling == "pooler":
    return _ENCODER_RULES + _POOLER_RULES
  return _ENCODER_RULES + tuple((name, "", "") for name, _, _ in _POOLER_RULES)


def axis_sizes(config: BertConfig) -> dict[str, int]:
  """Return the size of each letter in the patterns of `weight_map`."""
  c = config
  tables = dict(V=c.vocab, P=c.max_positions, S=c.num_segments)
  layers = dict(L=c.layers, N=c.heads, H=c.hidden // c.heads, F=c.mlp)
  return dict(D=c.hidden, E=c.hidden, O=1, **tables, **layers)


# Field of BertConfig: field of config.json.
_SIZE_FIELDS = dict(
  vocab="vocab_size",
  layers="num_hidden_layers",
  hidden="hidden_size",
  heads="num_attention_heads",
  mlp="intermediate_size",
  num_segments="type_vocab_size",
  max_positions="max_position_embeddings",
  eps="layer_norm_eps",
)


class _Json(schema.under_names(BertConfig, _SIZE_FIELDS)):
  """The schema of config.json; of variants, those that `Bert` implements."""

  model_type: schema.one_of("bert", "roberta", "xlm-roberta")
  pad_token_id: schema.int_range(0, 1 << 24) | None = None
  hidden_act: schema.one_of("gelu") = "gelu"
  position_embedding_type: schema.one_of("absolute") = "absolute"


def read_config(folder: str, **options: Any) -> BertConfig:
  """Read the sizes of an encoder from the config.json in `folder`.

  `options` are fields that config.json does not tell, such as `pooling`.  A
  file that is damaged, or of another kind of model, raises BadWeights.
  """

  def parse(tree: dict[str, Any]) -> BertConfig:
    found = schema.convert(tree, _Json)
    first = 0
    # RoBERTa counts positions from the id of the padding token plus one.
    if found.model_type != "bert":
      if found.pad_token_id is None:
        raise UserError("pad_token_id is missing")
      first = found.pad_token_id + 1
    if found.hidden % found.heads or found.max_positions <= first:
      raise UserError("its heads, or its positions, do not fit its sizes")
    sizes = {name: getattr(found, name) for name in _SIZE_FIELDS}
    return BertConfig(**sizes, first_position=first, **options)

  return schema.read_json(
    os.path.join(folder, "config.json"),
    parse,
    "Give the folder of a BERT or XLM-R.",
    error=safetensors_io.BadWeights,
  )


def load_params(
  path: str,
  config: BertConfig,
  prefixes: safetensors_io.Prefixes = PREFIXES,
) -> dict:
  """Load the parameters of a checkpoint, as `safetensors_io.load_params`."""
  rules, options = weight_map(config), dict(prefixes=prefixes)
  options["dtype"] = jnp.float32
  return safetensors_io.load_params(path, rules, axis_sizes(config), **options)
