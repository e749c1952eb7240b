"""SigLIP 2 of a fixed resolution: texts and images as vectors of one space.

Both towers are transformers that normalize before each residual sum (pre-LN):

  x <- x + attention(LN x),   x <- x + W2 gelu(W1 LN x)

with gelu's tanh approximation and without a causal mask.  A learned query, the
probe, attends to the patches of an image; its result y gives the image's vector
y + W2 gelu(W1 LN y).  The vector of a text is a linear layer over the state of
its last position: texts are padded to the whole position table, and padding is
read like any other token.

Axes:  B items   E width of the vectors   V vocabulary
       images  A pixels a side   T patches   W hidden size (W = E)   M layers
               N heads   H = W / N   F feed-forward size   P Q sides of a patch
               R colours
       texts   L tokens   D hidden size   Y layers   O heads   K = D / O
               G feed-forward size
       both    C = 3, the query, key and value of the probe's attention
Sources: arxiv.org/abs/2303.15343 (SigLIP), arxiv.org/abs/2502.14786 (SigLIP 2);
names of weights and of the fields of config.json are those of transformers.
"""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from r1router_jax.common import schema
from r1router_jax.common.errors import UserError
from r1router_jax.common.schema import Layers, Size
from r1router_jax.models import safetensors_io
from r1router_jax.models.safetensors_io import linear_rules, norm_rules


@dataclasses.dataclass(frozen=True)
class TowerConfig:
  """Sizes of a transformer."""

  hidden: Size
  layers: Layers
  heads: Size
  mlp: Size
  eps: schema.PositiveShare  # Of the layer norms.


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
  """Sizes of both towers."""

  image: TowerConfig
  text: TowerConfig
  image_size: int  # A, in pixels.
  patch_size: int  # P, in pixels.
  vocab: int  # V
  max_tokens: int  # L; shorter texts are padded, longer ones truncated.
  width: int  # E

  @property
  def num_patches(self) -> int:
    """Number of patches of an image; pixels beyond whole ones are not read."""
    return (self.image_size // self.patch_size) ** 2


class Mlp(nn.Module):
  """A feed-forward layer."""

  tower: TowerConfig
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Apply the layer, with gelu's tanh approximation."""
    y = nn.Dense(self.tower.mlp, dtype=self.dtype, name="up")(x)
    y = jax.nn.gelu(y, approximate=True)
    return nn.Dense(self.tower.hidden, dtype=self.dtype, name="down")(y)


class Block(nn.Module):
  """One pre-LN layer of a tower, in the carry form that `nn.scan` wants."""

  tower: TowerConfig
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"], _):
    """Return (new states, None)."""
    c = self.tower
    y = nn.LayerNorm(c.eps, name="norm_1")(x)
    heads = (c.heads, c.hidden // c.heads)
    # [B L N H] each.
    q, k, v = (
      nn.DenseGeneral(heads, dtype=self.dtype, name=name)(y) for name in "qkv"
    )
    y = jax.nn.dot_product_attention(q, k, v)
    x += nn.DenseGeneral(c.hidden, (-2, -1), dtype=self.dtype, name="o")(y)
    y = nn.LayerNorm(c.eps, name="norm_2")(x)
    return x + Mlp(c, self.dtype, name="mlp")(y), None


class PoolingHead(nn.Module):
  """The attention of the probe to the patches of an image."""

  tower: TowerConfig
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, "B T W"]) -> Float[Array, "B W"]:
    """Reduce the states of an image's patches to its vector."""
    c, normal = self.tower, nn.initializers.normal(0.02)
    heads = (3, c.heads, c.hidden // c.heads)
    probe = self.param("probe", normal, (c.hidden,))
    kernel = self.param("kernel", normal, (c.hidden, *heads))
    bias = self.param("bias", normal, heads)
    kernel, bias, x = (a.astype(self.dtype) for a in (kernel, bias, x))
    # One query for all images, and keys and values of each.
    q = jnp.einsum("W,WNH->NH", probe.astype(self.dtype), kernel[:, 0])
    k, v = (
      jnp.einsum("BTW,WNH->BTNH", x, kernel[:, i]) + bias[i] for i in (1, 2)
    )
    q = jnp.broadcast_to(q + bias[0], (len(x), 1, *heads[1:]))
    y = jax.nn.dot_product_attention(q, k, v)[:, 0]
    y = nn.DenseGeneral(c.hidden, (-2, -1), dtype=self.dtype, name="o")(y)
    normed = nn.LayerNorm(c.eps, name="norm")(y)
    return y + Mlp(c, self.dtype, name="mlp")(normed)


def _make_tower(tower: TowerConfig, dtype: Any) -> nn.Module:
  """Return the layers of a tower, with their parameters stacked."""
  stacked = dict(variable_axes={"params": 0}, split_rngs={"params": True})
  blocks = nn.scan(Block, length=tower.layers, in_axes=nn.broadcast, **stacked)
  return blocks(tower, dtype)


class Siglip(nn.Module):
  """An encoder of images and texts."""

  config: SiglipConfig
  dtype: Any = jnp.float32  # Of matrix products; everything else is float32.

  def setup(self):
    """Create the parameters and layers of both towers."""
    c, normal = self.config, nn.initializers.normal(0.02)
    patch = (c.patch_size, c.patch_size)
    # Image tower.
    self.patches = nn.Conv(
      c.image.hidden, patch, patch, padding="VALID", dtype=self.dtype
    )
    self.image_positions = self.param(
      "image_positions", normal, (c.num_patches, c.image.hidden)
    )
    self.image_layers = _make_tower(c.image, self.dtype)
    self.image_norm = nn.LayerNorm(c.image.eps)
    self.head = PoolingHead(c.image, self.dtype)
    # Text tower.
    self.words = nn.Embed(c.vocab, c.text.hidden)
    self.text_positions = self.param(
      "text_positions", normal, (c.max_tokens, c.text.hidden)
    )
    self.text_layers = _make_tower(c.text, self.dtype)
    self.text_norm = nn.LayerNorm(c.text.eps)
    self.text_out = nn.Dense(c.width)

  def encode_image(
    self, pixels: Float[Array, "B A A 3"]
  ) -> Float[Array, "B E"]:
    """Return the vectors of images; see `common.images.normalize_pixels`."""
    # [B A A 3] -> [B T W], row by row of the image.
    x = self.patches(pixels).reshape(len(pixels), -1, self.config.image.hidden)
    x, _ = self.image_layers(x + self.image_positions, None)
    return self.head(self.image_norm(x))

  def encode_text(self, tokens: Int[Array, "B L"]) -> Float[Array, "B E"]:
    """Return the vectors of texts, padded to L tokens with the padding's id."""
    x, _ = self.text_layers(self.words(tokens) + self.text_positions, None)
    return self.text_out(self.text_norm(x)[:, -1])


def _tower_rules(prefix: str, path: str, axes: str) -> safetensors_io.WeightMap:
  """Return the weight rules of a tower's layers; `axes` replaces LDNHF."""
  heads = "L (N H) D -> L D N H", "L (N H) -> L N H"
  rules = (
    *norm_rules("layer_norm1", "norm_1", "L D -> L D"),
    *linear_rules("self_attn.q_proj", "q", *heads),
    *linear_rules("self_attn.k_proj", "k", *heads),
    *linear_rules("self_attn.v_proj", "v", *heads),
    *linear_rules(
      "self_attn.out_proj", "o", "L D (N H) -> L N H D", "L D -> L D"
    ),
    *norm_rules("layer_norm2", "norm_2", "L D -> L D"),
    *linear_rules("mlp.fc1", "mlp/up", "L F D -> L D F", "L F -> L F"),
    *linear_rules("mlp.fc2", "mlp/down", "L D F -> L F D", "L D -> L D"),
  )
  layer, table = prefix + "encoder.layers.{}.", str.maketrans("LDNHF", axes)
  return tuple(
    (layer + name, f"{path}/{leaf}", pattern.translate(table))
    for name, leaf, pattern in rules
  )


_IMAGE, _TEXT, _HEAD = "vision_model.", "text_model.", "vision_model.head."
_SEEN, _READ = (f"{tower}embeddings." for tower in (_IMAGE, _TEXT))

# (published name, path of the parameter, einops pattern); see `safetensors_io`.
WEIGHT_MAP = (
  *linear_rules(
    _SEEN + "patch_embedding", "patches", "W R P Q -> P Q R W", "W -> W"
  ),
  (_SEEN + "position_embedding.weight", "image_positions", "T W -> T W"),
  *_tower_rules(_IMAGE, "image_layers", "MWNHF"),
  *norm_rules(_IMAGE + "post_layernorm", "image_norm", "W -> W"),
  (_HEAD + "probe", "head/probe", "1 1 W -> W"),
  (_HEAD + "attention.in_proj_weight", "head/kernel", "(C N H) W -> W C N H"),
  (_HEAD + "attention.in_proj_bias", "head/bias", "(C N H) -> C N H"),
  *linear_rules(
    _HEAD + "attention.out_proj", "head/o", "W (N H) -> N H W", "W -> W"
  ),
  *norm_rules(_HEAD + "layernorm", "head/norm", "W -> W"),
  *linear_rules(_HEAD + "mlp.fc1", "head/mlp/up", "F W -> W F", "F -> F"),
  *linear_rules(_HEAD + "mlp.fc2", "head/mlp/down", "W F -> F W", "W -> W"),
  (_READ + "token_embedding.weight", "words/embedding", "V D -> V D"),
  (_READ + "position_embedding.weight", "text_positions", "L D -> L D"),
  *_tower_rules(_TEXT, "text_layers", "YDOKG"),
  *norm_rules(_TEXT + "final_layer_norm", "text_norm", "D -> D"),
  *linear_rules(_TEXT + "head", "text_out", "E D -> D E", "E -> E"),
  # Only training uses these; older files hold the positions' numbers.
  ("logit_scale", "", ""),
  ("logit_bias", "", ""),
  (_SEEN + "position_ids", "", ""),
  (_READ + "position_ids", "", ""),
)


def axis_sizes(config: SiglipConfig) -> dict[str, int]:
  """Return the size of each letter in the patterns of `WEIGHT_MAP`."""
  c, towers = config, {}
  for letters, tower in (("WMNHF", c.image), ("DYOKG", c.text)):
    size, heads = tower.hidden, tower.heads
    sizes = (size, tower.layers, heads, size // heads, tower.mlp)
    towers |= zip(letters, sizes, strict=True)
  patches = dict(R=3, P=c.patch_size, Q=c.patch_size, T=c.num_patches)
  return dict(C=3, V=c.vocab, L=c.max_tokens, E=c.width, **patches, **towers)


def load_params(path: str, config: SiglipConfig) -> dict:
  """Load the parameters of a checkpoint, as `safetensors_io.load_params`."""
  rules = WEIGHT_MAP, axis_sizes(config)
  return safetensors_io.load_params(path, *rules, dtype=jnp.float32)


# Field of `TowerConfig`: field of "text_config" and "vision_config".
_TOWER_FIELDS = dict(
  hidden="hidden_size",
  layers="num_hidden_layers",
  heads="num_attention_heads",
  mlp="intermediate_size",
  eps="layer_norm_eps",
)
# What transformers fills in.
_TOWER_DEFAULTS = dict(
  hidden_size=768,
  num_hidden_layers=12,
  num_attention_heads=12,
  intermediate_size=3072,
  layer_norm_eps=1e-6,
)


class _Tower(schema.under_names(TowerConfig, _TOWER_FIELDS)):
  hidden_act: schema.one_of("gelu_pytorch_tanh") = "gelu_pytorch_tanh"


class _Text(_Tower):
  vocab_size: Size = 32_000
  # Batches have no room for more.
  max_position_embeddings: schema.int_range(1, 512) = 64
  projection_size: Size | None = None


class _Image(_Tower):
  image_size: schema.int_range(1, 1 << 12) = 224
  patch_size: schema.int_range(1, 1 << 12) = 16


def read_config(folder: str) -> SiglipConfig:
  """Read the sizes of the SigLIP in `folder`, or raise BadWeights."""
  return schema.read_json(
    os.path.join(folder, "config.json"),
    _parse_config,
    "Give the folder of a SigLIP 2 of fixed resolution (model_type siglip).",
    error=safetensors_io.BadWeights,
  )


def _parse_config(tree: dict[str, Any]) -> SiglipConfig:
  if tree.get("model_type") != "siglip":
    raise UserError(f"model_type is {tree.get('model_type')!r:.80}, not siglip")
  found, towers = [], []
  for place, kind in (("vision_config", _Image), ("text_config", _Text)):
    part = schema.convert(tree.get(place) or {}, dict, place)
    part = schema.convert(_TOWER_DEFAULTS | part, kind, place)
    if part.hidden % part.heads:
      raise UserError(f"{place}: its heads do not fit its hidden size")
    found.append(part)
    towers.append(TowerConfig(*(getattr(part, x) for x in _TOWER_FIELDS)))
  image, text = found
  width = text.projection_size or text.hidden
  if width != image.hidden or image.image_size < image.patch_size:
    raise UserError("its sizes of text, image and patch do not fit")
  sizes = image.image_size, image.patch_size, text.vocab_size
  return SiglipConfig(*towers, *sizes, text.max_position_embeddings, width)
