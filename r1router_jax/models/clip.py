"""CLIP: encode texts and images as vectors of one space.

Both towers are transformers that normalize before each residual sum (pre-LN),
with QuickGELU, y sigmoid(1.702 y):

  x <- x + attention(LN x),   x <- x + W2 quickgelu(W1 LN x)

The vector of an image is the state of a class token in front of its patches.
The vector of a text is the state of its end token, which has the highest id;
text attention is causal.  UniIR's score fusion adds both vectors of an item,
neither normalized, and leaves out what the item lacks.

Axes:  B items   E width of the vectors   V vocabulary
       images  A pixels a side   T patches and the class token   W hidden size
               M layers   N heads   H = W / N   F = 4 W   P Q sides of a patch
               R colours
       texts   L tokens   D hidden size   Y layers   O heads   K = D / O
               G = 4 D
       both    C = 3, the query, key and value of an attention head
Sources: arxiv.org/abs/2103.00020 (CLIP), arxiv.org/abs/2311.17136 (UniIR);
names of weights are OpenAI's, github.com/openai/CLIP.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from r1router_jax.models import safetensors_io
from r1router_jax.models.safetensors_io import linear_rules, norm_rules


@dataclasses.dataclass(frozen=True)
class TowerConfig:
  """Sizes of a transformer; its feed-forward size is four times `hidden`."""

  hidden: int
  layers: int
  heads: int


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """Sizes of both towers."""

  image: TowerConfig
  text: TowerConfig
  image_size: int  # A, in pixels.
  patch_size: int  # P, in pixels.
  vocab: int  # V
  max_tokens: int  # Longer texts are truncated.
  width: int  # E

  @property
  def num_patches(self) -> int:
    """Number of patches of an image, without the class token."""
    return (self.image_size // self.patch_size) ** 2


# ViT-L/14, the CLIP that UniIR fine-tuned.
VIT_L_14 = ClipConfig(
  image=TowerConfig(1024, 24, 16),
  text=TowerConfig(768, 12, 12),
  image_size=224,
  patch_size=14,
  vocab=49_408,
  max_tokens=77,
  width=768,
)


class Block(nn.Module):
  """One pre-LN layer of a tower, in the carry form that `nn.scan` wants."""

  tower: TowerConfig
  causal: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"], _):
    """Return (new states, None)."""
    hidden, heads = self.tower.hidden, self.tower.heads
    # Self-attention; scores and softmax stay in float32 for any `dtype`.
    y = nn.LayerNorm(1e-5, name="norm_1")(x)
    size = hidden // heads
    qkv = nn.DenseGeneral((3, heads, size), dtype=self.dtype, name="qkv")(y)
    # [B L 3 N H] -> three of [B L N H].
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    q *= size**-0.5
    scores = jnp.einsum(
      "BSNH,BTNH->BNST", q, k, preferred_element_type=jnp.float32
    )
    # A query may see keys up to its own position.
    if self.causal:
      scores = jnp.where(jnp.tri(x.shape[1], dtype=bool), scores, -jnp.inf)
    probs = jax.nn.softmax(scores).astype(self.dtype)
    y = jnp.einsum("BNST,BTNH->BSNH", probs, v)
    x += nn.DenseGeneral(hidden, axis=(-2, -1), dtype=self.dtype, name="o")(y)

    # Feed-forward layer with QuickGELU.
    y = nn.LayerNorm(1e-5, name="norm_2")(x)
    y = nn.Dense(4 * hidden, dtype=self.dtype, name="up")(y)
    y *= jax.nn.sigmoid(1.702 * y)
    return x + nn.Dense(hidden, dtype=self.dtype, name="down")(y), None


def _make_tower(tower: TowerConfig, causal: bool, dtype: Any) -> nn.Module:
  """Return the layers of a tower, with their parameters stacked."""
  stacked = dict(variable_axes={"params": 0}, split_rngs={"params": True})
  blocks = nn.scan(Block, length=tower.layers, in_axes=nn.broadcast, **stacked)
  return blocks(tower, causal, dtype)


class Clip(nn.Module):
  """An encoder of images and texts."""

  config: ClipConfig
  dtype: Any = jnp.float32  # Of matrix products; everything else is float32.

  def setup(self):
    """Create the parameters and layers of both towers."""
    c = self.config
    image, text, normal = c.image, c.text, nn.initializers.normal(0.02)
    patch = (c.patch_size, c.patch_size)

    # Image tower: patches, a class token, learned positions.
    self.patches = nn.Conv(
      image.hidden, patch, patch, use_bias=False, dtype=self.dtype
    )
    self.class_token = self.param("class_token", normal, (image.hidden,))
    self.image_positions = self.param(
      "image_positions", normal, (c.num_patches + 1, image.hidden)
    )
    self.image_norms = [nn.LayerNorm(1e-5) for _ in range(2)]
    self.image_layers = _make_tower(image, causal=False, dtype=self.dtype)
    self.image_out = self.param("image_out", normal, (image.hidden, c.width))

    # Text tower: words and learned positions.
    self.words = nn.Embed(c.vocab, text.hidden)
    self.text_positions = self.param(
      "text_positions", normal, (c.max_tokens, text.hidden)
    )
    self.text_norm = nn.LayerNorm(1e-5)
    self.text_layers = _make_tower(text, causal=True, dtype=self.dtype)
    self.text_out = self.param("text_out", normal, (text.hidden, c.width))

  def encode_image(
    self, pixels: Float[Array, "B A A 3"]
  ) -> Float[Array, "B E"]:
    """Return the vectors of images; see `common.images.normalize_pixels`."""
    hidden = self.config.image.hidden
    # [B A A 3] -> [B T-1 W], row by row of the image.
    x = self.patches(pixels).reshape(len(pixels), -1, hidden)
    first = jnp.broadcast_to(self.class_token, (len(x), 1, hidden))
    # The class token is the first of the T states.
    x = jnp.concatenate([first, x], axis=1) + self.image_positions
    x, _ = self.image_layers(self.image_norms[0](x), None)
    return self.image_norms[1](x[:, 0]) @ self.image_out

  def encode_text(self, tokens: Int[Array, "B L"]) -> Float[Array, "B E"]:
    """Return the vectors of texts; `tokens` are padded on the right with 0."""
    # Texts of a batch may be shorter than the position table.
    positions = self.text_positions[: tokens.shape[1]]
    x, _ = self.text_layers(self.words(tokens) + positions, None)
    # The end token has the highest id.  Attention is causal, so the padding
    # behind the end token cannot change its state and needs no mask.
    end = jnp.argmax(tokens, axis=1)[:, None, None]
    last = jnp.take_along_axis(self.text_norm(x), end, axis=1)[:, 0]
    return last @ self.text_out

  def __call__(
    self, pixels: Float[Array, "B A A 3"], tokens: Int[Array, "B L"]
  ) -> Float[Array, "B E"]:
    """Return the score fusion of items that have both an image and a text."""
    return self.encode_image(pixels) + self.encode_text(tokens)


def _tower_rules(prefix: str, path: str, axes: str) -> safetensors_io.WeightMap:
  """Return the weight rules of a tower's layers.

  OpenAI's names of the tower start with `prefix`, its parameters stand below
  `path`; `axes` are the letters of layers, hidden size, heads, size of a head
  and feed-forward size.
  """
  # Query, key and value are stacked along the first axis of in_proj.
  rules = (
    *norm_rules("ln_1", "norm_1", "L D -> L D"),
    ("attn.in_proj_weight", "qkv/kernel", "L (C N H) D -> L D C N H"),
    ("attn.in_proj_bias", "qkv/bias", "L (C N H) -> L C N H"),
    *linear_rules("attn.out_proj", "o", "L D (N H) -> L N H D", "L D -> L D"),
    *norm_rules("ln_2", "norm_2", "L D -> L D"),
    *linear_rules("mlp.c_fc", "up", "L F D -> L D F", "L F -> L F"),
    *linear_rules("mlp.c_proj", "down", "L D F -> L F D", "L D -> L D"),
  )
  layer = prefix + "transformer.resblocks.{}."
  table = str.maketrans("LDNHF", axes)
  return tuple(
    (layer + name, f"{path}/{leaf}", pattern.translate(table))
    for name, leaf, pattern in rules
  )


# (OpenAI's name, path of the parameter, einops pattern); see `safetensors_io`.
WEIGHT_MAP = (
  ("visual.conv1.weight", "patches/kernel", "W R P Q -> P Q R W"),
  ("visual.class_embedding", "class_token", "W -> W"),
  ("visual.positional_embedding", "image_positions", "T W -> T W"),
  *norm_rules("visual.ln_pre", "image_norms_0", "W -> W"),
  *_tower_rules("visual.", "image_layers", "MWNHF"),
  *norm_rules("visual.ln_post", "image_norms_1", "W -> W"),
  ("visual.proj", "image_out", "W E -> W E"),
  ("token_embedding.weight", "words/embedding", "V D -> V D"),
  ("positional_embedding", "text_positions", "L D -> L D"),
  *_tower_rules("", "text_layers", "YDOKG"),
  *norm_rules("ln_final", "text_norm", "D -> D"),
  ("text_projection", "text_out", "D E -> D E"),
  ("logit_scale", "", ""),  # Only training uses it.
)


def axis_sizes(config: ClipConfig) -> dict[str, int]:
  """Return the size of each letter in the patterns of `WEIGHT_MAP`."""
  c, towers = config, {}
  for letters, tower in (("WMNHF", c.image), ("DYOKG", c.text)):
    size, heads = tower.hidden, tower.heads
    sizes = (size, tower.layers, heads, size // heads, 4 * size)
    towers |= zip(letters, sizes, strict=True)
  patches = dict(R=3, P=c.patch_size, Q=c.patch_size, T=c.num_patches + 1)
  return dict(C=3, V=c.vocab, L=c.max_tokens, E=c.width, **patches, **towers)


def load_params(path: str, config: ClipConfig) -> dict:
  """Load the parameters of a checkpoint, as `safetensors_io.load_params`."""
  rules = WEIGHT_MAP, axis_sizes(config)
  options = dict(dtype=jnp.float32, prefixes=[("clip_model.", "")])
  return safetensors_io.load_params(path, *rules, **options)
