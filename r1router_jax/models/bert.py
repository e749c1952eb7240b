"""BERT and XLM-RoBERTa: text to one vector, or a pair of texts to a score.

Blocks normalise after each sum (post-LN), positions are learned:

  x <- LN(x + attention(x)),   x <- LN(x + W2 gelu(W1 x))

and the vector is the first token's state ("cls"), the mean state ("mean"), or
tanh(W h_cls + b) ("pooler").  Of the last, a linear layer makes one number
("score"), for pairs of texts.  One config serves all encoders of the house;
they differ in sizes, in where positions start, and in this choice.

Axes:  B texts   L layers (L tokens in signatures)   D width   N heads   H D/N
       F inner width   V vocabulary   P positions   S segments   E width out
Sources: arxiv.org/abs/1810.04805 (BERT), arxiv.org/abs/1911.02116 (XLM-R),
arxiv.org/abs/2402.03216 (BGE-M3), arxiv.org/abs/2305.07288 (Open-WikiTable);
names of weights and of a config's fields are transformers'.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from r1router_jax.models import safetensors_io


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Sizes and habits of an encoder.

  Attributes:
    vocab: V, rows of the word table.
    layers: number of blocks.
    width: D.
    heads: N, of D / N dimensions each.
    inner: F, width of the feed-forward layer.
    positions: P, rows of the position table.
    first_position: position of the first token; 2 for XLM-R, which keeps 0 and
      1 for padding.
    segments: S, rows of the segment table; a lone text is segment 0.
    eps: of the layer norms.
    pool: "cls", "mean", "pooler" or "score".
    normalise: whether vectors have length 1.
    max_tokens: longer texts are cut.
  """

  vocab: int
  layers: int
  width: int
  heads: int
  inner: int
  positions: int = 512
  first_position: int = 0
  segments: int = 2
  eps: float = 1e-12
  pool: str = "mean"
  normalise: bool = True
  max_tokens: int = 256


MINILM = BertConfig(vocab=30_522, layers=6, width=384, heads=12, inner=1536)

BGE_M3 = BertConfig(
  vocab=250_002,
  layers=24,
  width=1024,
  heads=16,
  inner=4096,
  positions=8194,
  first_position=2,
  segments=1,
  eps=1e-5,
  pool="cls",
)

# Open-WikiTable's pair of encoders: raw inner products of pooled vectors.
QUESTION = BertConfig(
  vocab=30_522,
  layers=24,
  width=1024,
  heads=16,
  inner=4096,
  pool="pooler",
  normalise=False,
  max_tokens=64,
)

TABLE = dataclasses.replace(QUESTION, vocab=30_530, max_tokens=512)


class Block(nn.Module):
  """One layer; carries x and looks, through `mask`, at no padding."""

  config: BertConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"]):
    c = self.config
    heads = (c.heads, c.width // c.heads)
    q, k, v = (
      nn.DenseGeneral(heads, dtype=self.dtype, name=name)(x)
      for name in ("q", "k", "v")
    )
    scores = jnp.einsum(
      "BSNH,BTNH->BNST",
      q * heads[1] ** -0.5,
      k,
      preferred_element_type=jnp.float32,
    )
    # `where` gives a text without tokens zeros and not NaN.
    probs = jax.nn.softmax(scores, where=mask[:, None, None])
    y = jnp.einsum("BNST,BTNH->BSNH", probs.astype(self.dtype), v)
    y = nn.DenseGeneral(c.width, axis=(-2, -1), dtype=self.dtype, name="o")(y)
    x = nn.LayerNorm(c.eps, name="attention_norm")(x + y)
    y = nn.Dense(c.inner, dtype=self.dtype, name="up")(x)
    y = nn.Dense(c.width, dtype=self.dtype, name="down")(
      jax.nn.gelu(y, approximate=False)
    )
    return nn.LayerNorm(c.eps, name="inner_norm")(x + y), None


class Bert(nn.Module):
  """Texts to vectors; `dtype` is that of the matrix products alone."""

  config: BertConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    segments: Int[Array, "B L"] | None = None,
  ) -> Float[Array, "B E"]:
    """One vector per text, or a score of each, E = 1.

    Args:
      tokens: padded on the right.
      mask: true on tokens, false on padding.
      segments: which text of a pair a token is of; by default 0.
    """
    c = self.config
    if segments is None:
      segments = jnp.zeros_like(tokens)
    x = nn.Embed(c.vocab, c.width, name="words")(tokens)
    # Only padding can lie beyond the table.
    positions = jnp.minimum(
      c.first_position + jnp.arange(tokens.shape[1]), c.positions - 1
    )
    x += nn.Embed(c.positions, c.width, name="positions")(positions)
    x += nn.Embed(c.segments, c.width, name="segments")(segments)
    x = nn.LayerNorm(c.eps, name="norm")(x)
    blocks = nn.scan(
      Block,
      length=c.layers,
      in_axes=nn.broadcast,
      variable_axes={"params": 0},
      split_rngs={"params": True},
    )
    x, _ = blocks(c, self.dtype, name="layers")(x, mask)
    x = self.pool(x, mask)
    if c.normalise:
      x /= jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return x

  def pool(
    self,
    x: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
  ) -> Float[Array, "B E"]:
    if self.config.pool == "mean":
      total = jnp.sum(x, axis=1, where=mask[..., None])
      return total / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    if self.config.pool == "cls":
      return x[:, 0]
    if self.config.pool not in ("pooler", "score"):
      raise ValueError(
        f"config.pool is {self.config.pool!r}; choose cls, "
        "mean, pooler or score."
      )
    x = jnp.tanh(nn.Dense(self.config.width, name="pooler")(x[:, 0]))
    return nn.Dense(1, name="score")(x) if self.config.pool == "score" else x


_LAYER = "encoder.layer.{}."

_HEADS = ("L (N H) D -> L D N H", "L (N H) -> L N H")

_BODY = (
  ("embeddings.word_embeddings.weight", "words/embedding", "V D -> V D"),
  (
    "embeddings.position_embeddings.weight",
    "positions/embedding",
    "P D -> P D",
  ),
  (
    "embeddings.token_type_embeddings.weight",
    "segments/embedding",
    "S D -> S D",
  ),
  ("embeddings.position_ids", "", ""),
  *safetensors_io.norm("embeddings.LayerNorm", "norm", "D -> D"),
  *safetensors_io.linear(_LAYER + "attention.self.query", "layers/q", *_HEADS),
  *safetensors_io.linear(_LAYER + "attention.self.key", "layers/k", *_HEADS),
  *safetensors_io.linear(_LAYER + "attention.self.value", "layers/v", *_HEADS),
  *safetensors_io.linear(
    _LAYER + "attention.output.dense",
    "layers/o",
    "L D (N H) -> L N H D",
    "L D -> L D",
  ),
  *safetensors_io.norm(
    _LAYER + "attention.output.LayerNorm", "layers/attention_norm", "L D -> L D"
  ),
  *safetensors_io.linear(
    _LAYER + "intermediate.dense", "layers/up", "L F D -> L D F", "L F -> L F"
  ),
  *safetensors_io.linear(
    _LAYER + "output.dense", "layers/down", "L D F -> L F D", "L D -> L D"
  ),
  *safetensors_io.norm(
    _LAYER + "output.LayerNorm", "layers/inner_norm", "L D -> L D"
  ),
)

_POOLER = safetensors_io.linear(
  "pooler.dense", "pooler", "E D -> D E", "E -> E"
)

_SCORE = safetensors_io.linear("classifier", "score", "O E -> E O", "O -> O")

# XLM-R has its pooler in its classifier.
_RENAME = (
  ("bert.", ""),
  ("roberta.", ""),
  ("classifier.dense.", "pooler.dense."),
  ("classifier.out_proj.", "classifier."),
)


def hf_table(config: BertConfig) -> tuple[safetensors_io.Row, ...]:
  """The table of an encoder; a pooler that it does not use is passed over."""
  if config.pool in ("pooler", "score"):
    return _BODY + _POOLER + (_SCORE if config.pool == "score" else ())
  return _BODY + tuple((name, "", "") for name, _, _ in _POOLER)


def hf_axes(config: BertConfig) -> dict[str, int]:
  return dict(
    V=config.vocab,
    D=config.width,
    P=config.positions,
    S=config.segments,
    L=config.layers,
    N=config.heads,
    H=config.width // config.heads,
    F=config.inner,
    E=config.width,
    O=1,
  )


def read_config(folder: str, **habits: Any) -> BertConfig:
  """The sizes in a folder's config.json; `habits` are what it does not say.

  Raises:
    hf.BadWeights: where it is of another kind of model, or damaged.
  """
  path = os.path.join(folder, "config.json")
  try:
    with open(path, encoding="utf-8") as file:
      tree = json.load(file)
    kind = tree["model_type"]
    if kind not in ("bert", "roberta", "xlm-roberta"):
      raise ValueError(f"model_type is {kind!r}")
    for name, only in (
      ("hidden_act", "gelu"),
      ("position_embedding_type", "absolute"),
    ):
      if tree.get(name, only) != only:
        raise ValueError(f"{name} is {tree[name]!r}, known is {only!r}")
    first = 0 if kind == "bert" else tree["pad_token_id"] + 1
    sizes = {
      ours: int(tree[theirs])
      for ours, theirs in (
        ("vocab", "vocab_size"),
        ("layers", "num_hidden_layers"),
        ("width", "hidden_size"),
        ("heads", "num_attention_heads"),
        ("inner", "intermediate_size"),
        ("segments", "type_vocab_size"),
        ("positions", "max_position_embeddings"),
      )
    }
    return BertConfig(
      **sizes,
      first_position=first,
      eps=float(tree["layer_norm_eps"]),
      max_tokens=min(512, sizes["positions"] - first),
      **habits,
    )
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise safetensors_io.BadWeights(
      f"{path}: no config of a BERT or XLM-R ({error!r}).  Give the folder "
      "of one."
    ) from error


def load(
  path: str,
  config: BertConfig,
  rename: Sequence[tuple[str, str | None]] = _RENAME,
) -> dict:
  """Parameters of a Hugging Face checkpoint, in float32; see `hf.load`."""
  return safetensors_io.load(
    path, hf_table(config), hf_axes(config), dtype=jnp.float32, rename=rename
  )
