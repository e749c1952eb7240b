"""Qwen2.5-VL: window vision tower, patch merger, m-rope decoder.

Decoder layer:  x += o(attention(rope(q(n(x))), rope(k(n(x))), v(n(x))))
                x += down(silu(gate(n(x))) * up(n(x))),   n = RMSNorm
Vision block:   the same without causality, with 2-d rotary angles and biases;
                most blocks attend within windows of 8 x 8 patches, the blocks
                named by `full_blocks` over the whole picture.

Pictures live in *window layout* [I, W, S] through the whole tower: `plan_image`
lays patches out once, on the host, so that windowed attention is a batched
matrix product over static shapes and only the first and last step permute.

A prompt is computed once per group: `prefill` returns its keys, `extend` runs
any tokens after it (sampled responses in training, one token in decoding).

Axes:  B prompts   G responses per prompt   N = B G   L prompt tokens
  T response tokens   D hidden   V vocabulary   I pictures   W windows
  S = 64 patch slots of a window   M merged picture tokens
Sources: transformers, models/qwen2_5_vl (mathematics, names of weights);
  arxiv.org/abs/2502.13923.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from r1router_jax.models import hf, layers
from r1router_jax.models.layers import Cache, Linear, RMSNorm, SwiGLU


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """The vision tower; field meanings as in a published `vision_config`."""

  hidden: int = 1280
  mlp: int = 3420
  layers: int = 32
  heads: int = 16
  patch: int = 14
  temporal: int = 2
  merge: int = 2
  window: int = 112  # Pixels.
  full_blocks: tuple[int, ...] = (7, 15, 23, 31)


@dataclasses.dataclass(frozen=True)
class Config:
  """The decoder and its vision tower; the defaults are the 7B model."""

  vocab: int = 152064
  hidden: int = 3584
  mlp: int = 18944
  layers: int = 28
  heads: int = 28
  kv_heads: int = 4
  mrope_section: tuple[int, int, int] = (16, 24, 24)
  theta: float = 1e6
  eps: float = 1e-6
  tied: bool = False
  vision: VisionConfig = VisionConfig()

  @property
  def head_size(self) -> int:
    return 2 * sum(self.mrope_section)


class Prompt(NamedTuple):
  """Packed prompts: everything that the model reads before a response.

  Attributes:
    tokens: ids, right-padded.
    mask: true on real tokens.
    positions: temporal, vertical and horizontal rotary positions.
    start: rotary position of the first response token.
    picture: row of the flattened picture tokens `I M` that stands here, or -1.
    patches: patches of each picture in the processor's merge-block order.
    gather, valid, place: `plan_image` of each picture: which patch fills a
      slot, whether it is real, and its (row, column).
    inverse: window-layout row of each merged token.
  """

  tokens: Int[Array, "B L"]
  mask: Bool[Array, "B L"]
  positions: Int[Array, "3 B L"]
  start: Int[Array, " B"]
  picture: Int[Array, "B L"]
  patches: Float[Array, "I N C"]
  gather: Int[Array, "I W S"]
  valid: Bool[Array, "I W S"]
  place: Int[Array, "I W S 2"]
  inverse: Int[Array, "I M"]


class Prefix(NamedTuple):
  """Prompts as a response sees them: keys, mask, next position, last state."""

  cache: Cache  # Leaves [layers, B, L, K, H].
  mask: Bool[Array, "B L"]
  start: Int[Array, " B"]
  last: Float[Array, "B D"]


@functools.lru_cache(maxsize=256)
def plan_image(
  rows: int, columns: int, config: VisionConfig, windows: int, tokens: int
) -> tuple[np.ndarray, ...]:
  """Window layout of one picture of `rows` x `columns` patches.

  Returns `gather`, `valid`, `place` and `inverse` of `Prompt` for this picture,
  padded to `windows` windows and `tokens` merged tokens.
  """
  unit = config.merge**2
  side = config.window // config.merge // config.patch
  r, c = rows // config.merge, columns // config.merge
  i, j = (a.ravel() for a in np.meshgrid(range(r), range(c), indexing="ij"))
  across = -(-c // side)
  window = i // side * across + j // side
  order = np.lexsort((j, i, window))  # Row-major within row-major windows.
  first = np.searchsorted(window[order], window[order])
  slot = np.empty(r * c, int)
  slot[order] = np.arange(r * c) - first
  slots = side * side * unit
  gather = np.zeros((windows, slots), np.int32)
  valid = np.zeros((windows, slots), bool)
  place = np.zeros((windows, slots, 2), np.int32)
  inverse = np.zeros(tokens, np.int32)
  inverse[: r * c] = window * (slots // unit) + slot
  for u in range(unit):
    at = window, slot * unit + u
    gather[at] = np.arange(r * c) * unit + u
    valid[at] = True
    place[(*at, 0)] = i * config.merge + u // config.merge
    place[(*at, 1)] = j * config.merge + u % config.merge
  return gather, valid, place, inverse


class VisionBlock(nn.Module):
  config: VisionConfig

  @nn.compact
  def __call__(self, x, full, angles, valid):
    c = self.config
    images, windows = x.shape[:2]
    h = RMSNorm(name="ln1")(x)
    qkv = Linear(3 * c.hidden, True, name="qkv")(h)
    q, k, v = einops.rearrange(
      qkv, "I W S (three N H) -> three I W S N H", three=3, N=c.heads)
    q, k = layers.rotate(q, angles), layers.rotate(k, angles)

    def attend(rows, q, k, v):
      q, k, v = (a.reshape(rows, -1, *a.shape[3:]) for a in (q, k, v))
      keys = valid.reshape(rows, 1, -1)
      mask = jnp.broadcast_to(keys, (rows, keys.shape[2], keys.shape[2]))
      out = layers.attention(q, Cache(k, v), mask)
      return out.reshape(x.shape)

    out = jax.lax.cond(
      full,
      functools.partial(attend, images),
      functools.partial(attend, images * windows),
      q, k, v)
    x = x + Linear(c.hidden, True, name="o")(out)
    return x + SwiGLU(c.mlp, True, name="mlp")(RMSNorm(name="ln2")(x)), None


class Vision(nn.Module):
  """Vision tower and merger: patches -> one vector per 2 x 2 patches."""

  config: VisionConfig
  out: int

  @nn.compact
  def __call__(self, prompt: Prompt) -> Float[Array, "I M D"]:
    c = self.config
    x = jax.vmap(lambda patches, rows: patches[rows])(
      prompt.patches, prompt.gather)
    x = Linear(c.hidden, name="patch")(x)
    quarter = c.hidden // c.heads // 4
    rate = 10000.0 ** (-jnp.arange(quarter) / quarter)
    angles = prompt.place[..., None].astype(jnp.float32) * rate
    angles = einops.rearrange(angles, "I W S two F -> I W S (two F)")
    full = np.isin(np.arange(c.layers), c.full_blocks)
    blocks = nn.scan(
      VisionBlock, variable_axes={"params": 0}, split_rngs={"params": True},
      in_axes=(0, nn.broadcast, nn.broadcast), length=c.layers)
    x, _ = blocks(c, name="blocks")(
      x, jnp.asarray(full), angles, prompt.valid)
    x = RMSNorm(name="ln_q")(x)
    x = einops.rearrange(
      x, "I W (M unit) D -> I (W M) (unit D)", unit=c.merge**2)
    x = nn.gelu(Linear(x.shape[-1], True, name="merge1")(x), approximate=False)
    x = Linear(self.out, True, name="merge2")(x)
    return jnp.take_along_axis(x, prompt.inverse[..., None], 1)


class DecoderLayer(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x, caches, angles, own_mask, prompt_mask, index):
    c = self.config
    prompt, own = caches
    deep = 0.1 * (2 * c.layers) ** -0.5  # The stream starts as the embedding.
    h = RMSNorm(c.eps, name="ln1")(x)

    def heads(name, count):
      y = Linear(count * c.head_size, True, name=name)(h)
      return einops.rearrange(y, "N T (Q H) -> N T Q H", Q=count)

    q, k, v = heads("q", c.heads), heads("k", c.kv_heads), heads(
      "v", c.kv_heads)
    q, k = layers.rotate(q, angles), layers.rotate(k, angles)
    new = Cache(k, v)
    if own is not None:
      new = jax.tree.map(
        lambda old, row: jax.lax.dynamic_update_slice_in_dim(
          old, row.astype(old.dtype), index, 1),
        own, new)
    out = layers.attention(q, new, own_mask, prompt, prompt_mask)
    out = einops.rearrange(out, "N T Q H -> N T (Q H)")
    x = x + Linear(c.hidden, False, deep, name="o")(out)
    h = RMSNorm(c.eps, name="ln2")(x)
    return x + SwiGLU(c.mlp, False, deep, name="mlp")(h), new


class QwenVL(nn.Module):
  """The whole model; see the module's docstring for its three uses."""

  config: Config
  remat: bool = True  # Recompute each layer in the backward pass.

  def setup(self):
    c = self.config
    layer = nn.remat(DecoderLayer, prevent_cse=False) if self.remat else (
      DecoderLayer)
    b = nn.broadcast
    self.embed = self.param(
      "embed", nn.initializers.normal(c.hidden**-0.5), (c.vocab, c.hidden))
    if not c.tied:
      self.head = self.param(
        "head", nn.initializers.normal(c.hidden**-0.5), (c.vocab, c.hidden))
    self.vision = Vision(c.vision, c.hidden)
    self.layers = nn.scan(
      layer, variable_axes={"params": 0}, split_rngs={"params": True},
      in_axes=(0, b, b, b, b), length=c.layers)(c)
    self.norm = RMSNorm(c.eps)

  def __call__(self, prompt: Prompt, response: Int[Array, "B G T"]):
    """States of the positions that predict `response`; used to initialise."""
    return self.extend(self.prefill(prompt), response)

  def vocabulary(self) -> Float[Array, "V D"]:
    """Rows whose product with a state are the logits."""
    return self.embed if self.config.tied else self.head

  def prefill(self, prompt: Prompt) -> Prefix:
    """Runs the prompts; pictures replace their placeholder tokens."""
    c = self.config
    x = self.embed[prompt.tokens]
    if len(prompt.patches):  # A batch without pictures skips the tower.
      pictures = self.vision(prompt).reshape(-1, c.hidden).astype(x.dtype)
      x = jnp.where(
        (prompt.picture >= 0)[..., None],
        pictures[jnp.maximum(prompt.picture, 0)], x)
    length = x.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    angles = layers.mrope_angles(prompt.positions, c.mrope_section, c.theta)
    x, cache = self.layers(
      x, (None, None), angles, causal & prompt.mask[:, None], None, None)
    last = jnp.sum(prompt.mask, 1) - 1
    last = jnp.take_along_axis(x, last[:, None, None], 1)[:, 0]
    return Prefix(cache, prompt.mask, prompt.start, self.norm(last))

  def extend(
    self, prefix: Prefix, response: Int[Array, "B G T"]
  ) -> Float[Array, "B G T D"]:
    """States that predict each response token, after the final norm.

    The state before token 0 is the prompt's last; token T - 1 itself is never
    an input, so the pass runs T - 1 tokens.
    """
    groups, members, tokens = response.shape
    rows = response.reshape(groups * members, tokens)[:, :-1]
    offset = jnp.arange(tokens - 1)
    mask = jnp.broadcast_to(
      jnp.tril(jnp.ones((tokens - 1, tokens - 1), bool)),
      (len(rows), tokens - 1, tokens - 1))
    x, _ = self._after(prefix, rows, offset, None, mask, None)
    first = jnp.repeat(prefix.last, members, axis=0)[:, None]
    x = jnp.concatenate([first.astype(x.dtype), x], 1)
    return x.reshape(groups, members, tokens, -1)

  def decode(
    self,
    prefix: Prefix,
    own: Cache,
    token: Int[Array, " N"],
    index: Int[Array, ""],
  ) -> tuple[Float[Array, "N D"], Cache]:
    """One more token of each row, the `index`-th of its response."""
    room = own.k.shape[2]
    mask = jnp.broadcast_to(jnp.arange(room) <= index, (len(token), 1, room))
    x, own = self._after(
      prefix, token[:, None], index[None], own, mask, index)
    return x[:, 0], own

  def _after(self, prefix, rows, offset, own, mask, index):
    """Runs `rows [N T]`, at `offset [T]` tokens after their shared prompts."""
    c = self.config
    members = len(rows) // len(prefix.start)
    start = jnp.repeat(prefix.start, members)
    at = jnp.broadcast_to(start[:, None] + offset, (3, *rows.shape))
    angles = layers.mrope_angles(at, c.mrope_section, c.theta)
    x, own = self.layers(
      self.embed[rows], (prefix.cache, own), angles, mask, prefix.mask, index)
    return self.norm(x), own


def empty_cache(config: Config, rows: int, room: int, dtype) -> Cache:
  """Own keys and values of `rows` responses of at most `room` tokens."""
  shape = (config.layers, rows, room, config.kv_heads, config.head_size)
  return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def _linear(
  name: str, path: str, axes: str, bias: bool = True
) -> tuple[hf.Row, ...]:
  """Lines of a linear layer; `axes` are its layers, if stacked, in and out."""
  *stack, d, f = axes.split()
  stack = "".join(letter + " " for letter in stack)
  rows = (
    (name + ".weight", path + "/w", f"{stack}{f} {d} -> {stack}{d} {f}"),
    (name + ".bias", path + "/b", f"{stack}{f} -> {stack}{f}"))
  return rows if bias else rows[:1]


_LAYER, _BLOCK = "model.layers.{}.", "visual.blocks.{}."
# The sizes of the letters are those of `hf_axes`.
HF_TABLE = (
  ("model.embed_tokens.weight", "embed", "V D -> V D"),
  ("lm_head.weight", "head", "V D -> V D"),
  ("model.norm.weight", "norm/scale", "D -> D"),
  (_LAYER + "input_layernorm.weight", "layers/ln1/scale", "L D -> L D"),
  (_LAYER + "post_attention_layernorm.weight", "layers/ln2/scale",
   "L D -> L D"),
  *_linear(_LAYER + "self_attn.q_proj", "layers/q", "L D Q"),
  *_linear(_LAYER + "self_attn.k_proj", "layers/k", "L D K"),
  *_linear(_LAYER + "self_attn.v_proj", "layers/v", "L D K"),
  *_linear(_LAYER + "self_attn.o_proj", "layers/o", "L Q D", False),
  *_linear(_LAYER + "mlp.gate_proj", "layers/mlp/gate", "L D F", False),
  *_linear(_LAYER + "mlp.up_proj", "layers/mlp/up", "L D F", False),
  *_linear(_LAYER + "mlp.down_proj", "layers/mlp/down", "L F D", False),
  ("visual.patch_embed.proj.weight", "vision/patch/w",
   "E C T Y X -> (C T Y X) E"),
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


def hf_table(config: Config) -> tuple[hf.Row, ...]:
  """`HF_TABLE`; a head that is the embedding may stand in a file, unread."""
  if not config.tied:
    return HF_TABLE
  return tuple(
    (name, "", "") if path == "head" else (name, path, pattern)
    for name, path, pattern in HF_TABLE)


def hf_axes(config: Config) -> dict[str, int]:
  v = config.vision
  merged = v.hidden * v.merge**2
  return dict(
    V=config.vocab, D=config.hidden, F=config.mlp, L=config.layers,
    Q=config.heads * config.head_size, K=config.kv_heads * config.head_size,
    C=3, T=v.temporal, Y=v.patch, X=v.patch, B=v.layers, E=v.hidden,
    N=v.hidden, QKV=3 * v.hidden, G=v.mlp, M=merged, O=merged)


def load(path: str, config: Config, dtype: Any = None, **options: Any) -> dict:
  """Parameters of a Hugging Face checkpoint; `options` are `hf.load`'s.

  Its tensors may have the names of published files, or those that the model
  has in memory since transformers 4.52.
  """
  return hf.load(
    path, hf_table(config), hf_axes(config), dtype=dtype,
    rename=(("model.visual.", "visual."), ("model.language_model.", "model.")),
    **options)


def save(path: str, params: dict, config: Config, **options: Any) -> None:
  """Writes `params` under the names of published files; see `hf.save`."""
  hf.save(path, params, hf_table(config), hf_axes(config), **options)
