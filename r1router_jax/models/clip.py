"""CLIP: texts and pictures to vectors of one space, for the picture KB.

Both towers are transformers that normalise before each sum (pre-LN), with
QuickGELU, y sigmoid(1.702 y):

  x <- x + attention(LN x),   x <- x + W2 quickgelu(W1 LN x)

The vector of a picture is the state of a class token that stands before its
patches; that of a text the state of its end token, whose id is the highest, and
each token sees only those before it.  UniIR's score fusion is the sum of both,
neither normalised, less what an item lacks.

Axes:  B items   E width of the vectors   V vocabulary
       pictures  A pixels a side   T patches and the class token   W width
                 M layers   N heads   H = W / N   F = 4 W   P Q sides of a patch
       texts     L tokens   D width   Y layers   O heads   K = D / O   G = 4 D
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


@dataclasses.dataclass(frozen=True)
class Tower:
  """Sizes of a transformer; its inner width is four times its width."""

  width: int
  layers: int
  heads: int


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """Sizes of both towers.

  Attributes:
    picture, text: the towers.
    side: of a picture, in pixels.
    patch: of a patch, in pixels.
    vocab: number of token ids.
    tokens: L, of every text.
    width: E.
  """

  picture: Tower
  text: Tower
  side: int
  patch: int
  vocab: int
  tokens: int
  width: int


VIT_L_14 = ClipConfig(
  picture=Tower(1024, 24, 16),
  text=Tower(768, 12, 12),
  side=224,
  patch=14,
  vocab=49_408,
  tokens=77,
  width=768,
)


class Block(nn.Module):
  """One layer of a tower."""

  tower: Tower
  causal: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"], _):
    width, heads = self.tower.width, self.tower.heads
    norm = lambda name: nn.LayerNorm(1e-5, name=name)
    y = norm("norm_1")(x)
    q, k, v = jnp.moveaxis(
      nn.DenseGeneral((3, heads, width // heads), dtype=self.dtype, name="qkv")(
        y
      ),
      2,
      0,
    )
    scores = jnp.einsum(
      "BSNH,BTNH->BNST",
      q * (width // heads) ** -0.5,
      k,
      preferred_element_type=jnp.float32,
    )
    if self.causal:
      scores = jnp.where(jnp.tri(x.shape[1], dtype=bool), scores, -jnp.inf)
    y = jnp.einsum(
      "BNST,BTNH->BSNH", jax.nn.softmax(scores).astype(self.dtype), v
    )
    x += nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, name="o")(y)
    y = nn.Dense(4 * width, dtype=self.dtype, name="up")(norm("norm_2")(x))
    y *= jax.nn.sigmoid(1.702 * y)
    return x + nn.Dense(width, dtype=self.dtype, name="down")(y), None


class Clip(nn.Module):
  """Pictures and texts to vectors; `dtype` is that of the products alone."""

  config: ClipConfig
  dtype: Any = jnp.float32

  def setup(self):
    c = self.config
    normal, grid = nn.initializers.normal(0.02), c.side // c.patch

    def tower(sizes, causal):
      return nn.scan(
        Block,
        length=sizes.layers,
        in_axes=nn.broadcast,
        variable_axes={"params": 0},
        split_rngs={"params": True},
      )(sizes, causal, self.dtype)

    def leaf(name, *shape):
      return self.param(name, normal, shape)

    self.patches = nn.Conv(
      c.picture.width,
      (c.patch, c.patch),
      (c.patch, c.patch),
      use_bias=False,
      dtype=self.dtype,
    )
    self.first = leaf("first", c.picture.width)
    self.places = leaf("places", grid**2 + 1, c.picture.width)
    self.picture_norms = [nn.LayerNorm(1e-5) for _ in range(2)]
    self.picture_layers = tower(c.picture, False)
    self.picture_out = leaf("picture_out", c.picture.width, c.width)
    self.words = nn.Embed(c.vocab, c.text.width)
    self.positions = leaf("positions", c.tokens, c.text.width)
    self.text_norm = nn.LayerNorm(1e-5)
    self.text_layers = tower(c.text, True)
    self.text_out = leaf("text_out", c.text.width, c.width)

  def picture(self, pixels: Float[Array, "B A A 3"]) -> Float[Array, "B E"]:
    """Vectors of normalised pixels; see `inputs.images.MEAN`."""
    x = self.patches(pixels).reshape(len(pixels), -1, self.first.size)
    first = jnp.broadcast_to(self.first, (len(x), 1, self.first.size))
    x = jnp.concatenate([first, x], axis=1) + self.places
    x, _ = self.picture_layers(self.picture_norms[0](x), None)
    return self.picture_norms[1](x[:, 0]) @ self.picture_out

  def text(self, tokens: Int[Array, "B L"]) -> Float[Array, "B E"]:
    """Vectors of texts of at most L tokens, padded with 0."""
    positions = self.positions[: tokens.shape[1]]
    x, _ = self.text_layers(self.words(tokens) + positions, None)
    end = jnp.argmax(tokens, axis=1)[:, None, None]
    last = jnp.take_along_axis(self.text_norm(x), end, axis=1)[:, 0]
    return last @ self.text_out

  def __call__(
    self, pixels: Float[Array, "B A A 3"], tokens: Int[Array, "B L"]
  ) -> Float[Array, "B E"]:
    """Score fusion of items that show and say something."""
    return self.picture(pixels) + self.text(tokens)


def _tower(
  name: str, path: str, l: str, d: str, n: str, h: str, f: str
) -> tuple[safetensors_io.Row, ...]:
  """The layers of a tower, of these letters."""
  layer, kept = name + "transformer.resblocks.{}.", f"{l} {d} -> {l} {d}"
  return (
    *safetensors_io.norm(layer + "ln_1", path + "/norm_1", kept),
    (
      layer + "attn.in_proj_weight",
      path + "/qkv/kernel",
      f"{l} (C {n} {h}) {d} -> {l} {d} C {n} {h}",
    ),
    (
      layer + "attn.in_proj_bias",
      path + "/qkv/bias",
      f"{l} (C {n} {h}) -> {l} C {n} {h}",
    ),
    *safetensors_io.linear(
      layer + "attn.out_proj",
      path + "/o",
      f"{l} {d} ({n} {h}) -> {l} {n} {h} {d}",
      kept,
    ),
    *safetensors_io.norm(layer + "ln_2", path + "/norm_2", kept),
    *safetensors_io.linear(
      layer + "mlp.c_fc",
      path + "/up",
      f"{l} {f} {d} -> {l} {d} {f}",
      f"{l} {f} -> {l} {f}",
    ),
    *safetensors_io.linear(
      layer + "mlp.c_proj", path + "/down", f"{l} {d} {f} -> {l} {f} {d}", kept
    ),
  )


TABLE = (
  ("visual.conv1.weight", "patches/kernel", "W R P Q -> P Q R W"),
  ("visual.class_embedding", "first", "W -> W"),
  ("visual.positional_embedding", "places", "T W -> T W"),
  *safetensors_io.norm("visual.ln_pre", "picture_norms_0", "W -> W"),
  *_tower("visual.", "picture_layers", "M", "W", "N", "H", "F"),
  *safetensors_io.norm("visual.ln_post", "picture_norms_1", "W -> W"),
  ("visual.proj", "picture_out", "W E -> W E"),
  ("token_embedding.weight", "words/embedding", "V D -> V D"),
  ("positional_embedding", "positions", "L D -> L D"),
  *_tower("", "text_layers", "Y", "D", "O", "K", "G"),
  *safetensors_io.norm("ln_final", "text_norm", "D -> D"),
  ("text_projection", "text_out", "D E -> D E"),
  ("logit_scale", "", ""),
)


def axes(config: ClipConfig) -> dict[str, int]:
  picture, text = config.picture, config.text
  return dict(
    W=picture.width,
    R=3,
    P=config.patch,
    Q=config.patch,
    T=(config.side // config.patch) ** 2 + 1,
    M=picture.layers,
    N=picture.heads,
    H=picture.width // picture.heads,
    F=4 * picture.width,
    C=3,
    V=config.vocab,
    D=text.width,
    L=config.tokens,
    Y=text.layers,
    O=text.heads,
    K=text.width // text.heads,
    G=4 * text.width,
    E=config.width,
  )


def load(path: str, config: ClipConfig) -> dict:
  """Parameters of a checkpoint, in float32; see `hf.load`."""
  return safetensors_io.load(
    path, TABLE, axes(config), dtype=jnp.float32, rename=[("clip_model.", "")]
  )
