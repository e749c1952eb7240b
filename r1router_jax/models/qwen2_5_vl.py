"""Qwen2.5-VL: window vision tower, patch merger, m-rope decoder.

Decoder layer:  x += o(attention(rope(q(n(x))), rope(k(n(x))), v(n(x))))
                x += down(silu(gate(n(x))) * up(n(x))),   n = RMSNorm
Vision block:   the same without causality, with 2-d rotary angles and biases;
                most blocks attend within windows of 8 x 8 patches, the blocks
                named by `full_blocks` over the whole picture.

Without a vision tower it is Qwen2 (biases on q, k, v) or Llama (none).

Pictures live in *window layout* [I, W, S] through the whole tower: `plan_image`
lays patches out once, on the host, so that windowed attention is a batched
matrix product over static shapes and only the first and last step permute.

A prompt is computed once per group: `prefill` returns its keys, `extend` runs
any tokens after it (sampled responses in training, one token in decoding).

Parameters stay as they are given (float32 in training); `Compute.dtype` is what
products are made in, with norms, softmax and log-probabilities in float32.

Axes:  B prompts   G responses per prompt   N = B G   L prompt tokens
  T response tokens   D hidden   V vocabulary   I pictures   W windows
  S = 64 patch slots of a window   M merged picture tokens
Sources: transformers, models/qwen2_5_vl (mathematics);
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

from r1router_jax.models import attention as attention_lib
from r1router_jax.models import layers as layers_lib
from r1router_jax.models.attention import Cache, Caches
from r1router_jax.models.layers import Linear, Llama3, RMSNorm, SwiGLU

REMAT = {  # What the backward pass need not compute again.
  "none": jax.checkpoint_policies.everything_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


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
  """The decoder and its vision tower; the defaults are Qwen2.5-VL-7B.

  Text alone has `vision` None, and an `mrope_section` that is all temporal.
  """

  vocab: int = 152064
  hidden: int = 3584
  mlp: int = 18944
  layers: int = 28
  heads: int = 28
  kv_heads: int = 4
  mrope_section: tuple[int, int, int] = (16, 24, 24)
  theta: float = 1e6
  eps: float = 1e-6
  tied: bool = False  # The head is the embedding.
  qkv_bias: bool = True
  rope_scaling: Llama3 | None = None
  vision: VisionConfig | None = VisionConfig()

  @property
  def head_size(self) -> int:
    return 2 * sum(self.mrope_section)


SIZES = {  # The published ones.
  "3b": Config(
    vocab=151936,
    hidden=2048,
    mlp=11008,
    layers=36,
    heads=16,
    kv_heads=2,
    tied=True,
  ),
  "7b": Config(),
}


@dataclasses.dataclass(frozen=True)
class Compute:
  """How the model is run, which does not change what it is.

  Attributes:
    dtype: of products, "float32" or "bfloat16".
    remat: a key of `REMAT`.
    attention: one of `attention.KERNELS`.
  """

  dtype: str = "float32"
  remat: str = "full"
  attention: str = "auto"


class Prompt(NamedTuple):
  """Packed prompts: everything that the model reads before a response.

  Attributes:
    tokens: ids, right-padded.
    mask: true on real tokens.
    positions: temporal, vertical and horizontal rotary positions.
    start: rotary position of the first response token.
    picture: which of the tokens of the prompt's own pictures stands here, of
      the I / B M that there is room for, or -1.
    patches: patches of each picture in the processor's merge-block order.
    gather, valid, place: `plan_image` of each picture: which patch fills a
      slot, whether it is real, and its (row, column).
    inverse: window-layout row of each merged token.
  """

  tokens: Int[Array, "B L"]
  mask: Bool[Array, "B L"]
  positions: Int[Array, "B 3 L"]
  start: Int[Array, " B"]
  picture: Int[Array, "B L"]
  patches: Float[Array, "I N C"]
  gather: Int[Array, "I W S"]
  valid: Bool[Array, "I W S"]
  place: Int[Array, "I W S 2"]
  inverse: Int[Array, "I M"]


PLAN = ("gather", "valid", "place", "inverse")


class Prefix(NamedTuple):
  """Prompts as a response sees them: keys, mask, next position, last state."""

  cache: Caches  # Leaves [layers, B, K, L, H], or without the first axis.
  mask: Bool[Array, "B L"]
  start: Int[Array, " B"]
  last: Float[Array, "B D"]


def empty_prompt(
  rows: int,
  length: int,
  pictures: int,
  windows: int,
  vision: VisionConfig | None,
) -> Prompt:
  """Zeros for so many prompts with room for so many pictures in all."""
  v = vision or VisionConfig()
  slots = (v.window // v.patch) ** 2
  zeros = lambda *shape: np.zeros(shape, np.int32)
  return Prompt(
    tokens=zeros(rows, length),
    mask=np.zeros((rows, length), bool),
    positions=zeros(rows, 3, length),
    start=zeros(rows),
    picture=zeros(rows, length) - 1,
    patches=np.zeros(
      (pictures, windows * slots, 3 * v.temporal * v.patch**2), np.float32
    ),
    gather=zeros(pictures, windows, slots),
    valid=np.zeros((pictures, windows, slots), bool),
    place=zeros(pictures, windows, slots, 2),
    inverse=zeros(pictures, windows * slots // v.merge**2),
  )


def windows(rows: int, columns: int, config: VisionConfig) -> int:
  """Windows of a picture of so many patches."""
  side = config.window // config.patch
  return -(-rows // side) * -(-columns // side)


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
  kernel: str  # Of the blocks that attend over the whole picture.

  @nn.compact
  def __call__(self, x, full, angles, valid):
    c = self.config
    images = len(x)
    h = RMSNorm(name="ln1")(x)
    qkv = Linear(3 * c.hidden, True, name="qkv")(h)
    q, k, v = einops.rearrange(
      qkv, "I W S (three N H) -> three I W S N H", three=3, N=c.heads
    )
    q, k = layers_lib.rotate(q, angles), layers_lib.rotate(k, angles)

    def attend(rows, kernel, q, k, v):
      q, k, v = (a.reshape(rows, -1, *a.shape[3:]) for a in (q, k, v))
      keys = Cache(*(jnp.swapaxes(a, 1, 2) for a in (k, v)))
      seen = valid.reshape(rows, -1)
      if kernel == "xla":
        out = attention_lib.attention(q, keys, seen[:, None])
      else:
        out = attention_lib.fused(q, keys, seen, None, kernel=kernel)
      return out.reshape(x.shape)

    out = jax.lax.cond(
      full,
      functools.partial(attend, images, self.kernel),
      functools.partial(attend, images * x.shape[1], "xla"),
      q,
      k,
      v,
    )
    x = x + Linear(c.hidden, True, name="o")(out)
    return x + SwiGLU(c.mlp, True, name="mlp")(RMSNorm(name="ln2")(x)), None


class Vision(nn.Module):
  """Vision tower and merger: patches -> one vector per 2 x 2 patches."""

  config: VisionConfig
  compute: Compute
  out: int

  @nn.compact
  def __call__(self, prompt: Prompt) -> Float[Array, "I M D"]:
    c = self.config
    x = jax.vmap(lambda patches, rows: patches[rows])(
      prompt.patches, prompt.gather
    )
    x = Linear(c.hidden, name="patch")(x.astype(self.compute.dtype))
    quarter = c.hidden // c.heads // 4
    rate = 10000.0 ** (-jnp.arange(quarter) / quarter)
    angles = prompt.place[..., None].astype(jnp.float32) * rate
    angles = einops.rearrange(angles, "I W S two F -> I W S (two F)")
    full = np.isin(np.arange(c.layers), c.full_blocks)
    blocks = _stack(
      VisionBlock, c.layers, (0, nn.broadcast, nn.broadcast), self.compute
    )
    kernel = attention_lib.resolve(self.compute.attention, self.compute.dtype)
    x, _ = blocks(c, kernel, name="blocks")(
      x, jnp.asarray(full), angles, prompt.valid
    )
    x = RMSNorm(name="ln_q")(x)
    x = einops.rearrange(
      x, "I W (M unit) D -> I (W M) (unit D)", unit=c.merge**2
    )
    x = nn.gelu(Linear(x.shape[-1], True, name="merge1")(x), approximate=False)
    x = Linear(self.out, True, name="merge2")(x)
    return jnp.take_along_axis(x, prompt.inverse[..., None], 1)


class DecoderLayer(nn.Module):
  config: Config
  kernel: str
  joined: bool = False  # Are q, k and v one product, as `serving` joins them?

  @nn.compact
  def __call__(
    self, x, caches, angles, own_mask, prompt_mask, lanes, column, segments
  ):
    c = self.config
    prompt, own = caches
    deep = 0.1 * (2 * c.layers) ** -0.5  # The stream starts as the embedding.
    h = RMSNorm(c.eps, name="ln1")(x)

    def heads(name, count):
      y = Linear(count * c.head_size, c.qkv_bias, name=name)(h)
      return einops.rearrange(y, "N T (Q H) -> N T Q H", Q=count)

    if self.joined:
      q, k, v = jnp.split(
        heads("qkv", c.heads + 2 * c.kv_heads),
        (c.heads, c.heads + c.kv_heads),
        2,
      )
    else:
      q, k, v = (
        heads("q", c.heads),
        heads("k", c.kv_heads),
        heads("v", c.kv_heads),
      )
    q, k = layers_lib.rotate(q, angles), layers_lib.rotate(k, angles)
    new = Cache(*(jnp.swapaxes(a, 1, 2) for a in (k, v)))
    if own is not None:
      new = jax.tree.map(
        lambda old, row: jax.lax.dynamic_update_slice_in_dim(
          old, row.astype(old.dtype), column, 2
        ),
        own,
        new,
      )
    if self.kernel == "xla" or own is not None:
      out = attention_lib.attention(
        q, new, own_mask, prompt, prompt_mask, lanes
      )
    elif prompt is None:
      # Padding is on the right, where no real token looks.
      valid = jnp.ones(k.shape[:2], bool) if segments is None else segments
      out = attention_lib.fused(
        q, new, valid, attention_lib.causal, kernel=self.kernel, asks=segments
      )
    else:
      out = attention_lib.grouped(
        q, new, prompt, prompt_mask, kernel=self.kernel
      )
    out = einops.rearrange(out, "N T Q H -> N T (Q H)")
    x = x + Linear(c.hidden, False, deep, name="o")(out)
    h = RMSNorm(c.eps, name="ln2")(x)
    return x + SwiGLU(c.mlp, False, deep, name="mlp")(h), new


class QwenVL(nn.Module):
  """The whole model; see the module's docstring for its three uses.

  Attributes:
    config, compute: what it is, and how it is run.
    unrolled: whether the decoder's layers stand one by one, as `serving` lays
      their parameters out, and not in one array for a loop.
  """

  config: Config
  compute: Compute = Compute()
  unrolled: bool = False

  def setup(self):
    c, b = self.config, nn.broadcast
    kernel = attention_lib.resolve(self.compute.attention, self.compute.dtype)
    self.embed = self.param(
      "embed", nn.initializers.normal(c.hidden**-0.5), (c.vocab, c.hidden)
    )
    if not c.tied:
      self.head = self.param(
        "head", nn.initializers.normal(c.hidden**-0.5), (c.vocab, c.hidden)
      )
    if c.vision is not None:
      self.vision = Vision(c.vision, self.compute, c.hidden)
    if self.unrolled:
      self.layers = [
        DecoderLayer(c, kernel, joined=True) for _ in range(c.layers)
      ]
    else:
      self.layers = _stack(
        DecoderLayer, c.layers, (0, *(b,) * 6), self.compute
      )(c, kernel)
    self.norm = RMSNorm(c.eps)

  def __call__(self, prompt: Prompt, response: Int[Array, "B G T"]):
    """States of the positions that predict `response`; used to initialise."""
    return self.extend(self.prefill(prompt), response)

  def vocabulary(self) -> Float[Array, "V D"]:
    """Rows whose product with a state are the logits."""
    rows = self.embed if self.config.tied else self.head
    return rows.astype(self.compute.dtype)

  def embedded(self, tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
    return self.embed[tokens].astype(self.compute.dtype)

  def prefill(self, prompt: Prompt) -> Prefix:
    """Runs the prompts."""
    x, cache = self._prompts(prompt, prompt.mask[:, None])
    last = jnp.sum(prompt.mask, 1) - 1
    last = jnp.take_along_axis(x, last[:, None, None], 1)[:, 0]
    return Prefix(cache, prompt.mask, prompt.start, self.norm(last))

  def packed(
    self, prompt: Prompt, segments: Int[Array, "B L"]
  ) -> Float[Array, "B L D"]:
    """States after the tokens of rows in which several texts stand.

    A token sees those of its own segment; padding is segment 0.
    """
    x, _ = self._prompts(
      prompt, segments[:, None] == segments[..., None], segments
    )
    return self.norm(x)

  def _prompts(self, prompt, mask, segments=None):
    """All layers over prompts; pictures replace their placeholder tokens."""
    x = self.embedded(prompt.tokens)
    if len(prompt.patches):  # A batch without pictures skips the tower.
      pictures = self.vision(prompt).reshape(len(x), -1, x.shape[-1])
      here = prompt.picture[..., None]
      x = jnp.where(
        here >= 0,
        jnp.take_along_axis(pictures, jnp.maximum(here, 0), 1).astype(x.dtype),
        x,
      )
    mask &= jnp.tril(jnp.ones((x.shape[1],) * 2, bool))
    angles = self._angles(jnp.moveaxis(prompt.positions, 1, 0))
    return self._decoder(
      x, None, None, angles, mask, None, None, None, segments
    )

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
      (len(rows), tokens - 1, tokens - 1),
    )
    x, _ = self._after(prefix, rows, offset, None, mask)
    first = jnp.repeat(prefix.last, members, axis=0)[:, None]
    x = jnp.concatenate([first.astype(x.dtype), x], 1)
    return x.reshape(groups, members, tokens, -1)

  def decode(
    self,
    prefix: Prefix,
    own: Caches,
    token: Int[Array, " N"],
    age: Int[Array, " N"],
    column: Int[Array, ""],
    lanes: attention_lib.Lanes,
  ) -> tuple[Float[Array, "N D"], Caches]:
    """One more token of each row.

    Args:
      prefix: the prompts.
      own: keys of the responses so far, in a ring: those of a row's last token
        stand in the column before `column`, and so on backwards.
      token: the next input of each row.
      age: its place in the row's response.
      column: where its keys go, for all rows the same.
      lanes: whose prompt is whose.

    Returns:
      the state that predicts the token after it, and all keys.
    """
    leaf = own[0] if self.unrolled else own
    room = leaf.k.shape[-2]
    back = (column - jnp.arange(room)) % room
    x, own = self._after(
      prefix,
      token[:, None],
      age[:, None],
      own,
      back <= age[:, None, None],
      lanes,
      column,
    )
    return x[:, 0], own

  def _after(self, prefix, rows, offset, own, mask, lanes=None, column=None):
    """Runs `rows [N T]`, at `offset [T]` tokens after their shared prompts."""
    prompts = len(prefix.start)
    if lanes is None:
      start = jnp.repeat(prefix.start, len(rows) // prompts)
    else:
      start = prefix.start[lanes.of // (len(lanes.row) // prompts)]
    at = jnp.broadcast_to(start[:, None] + offset, (3, *rows.shape))
    x, own = self._decoder(
      self.embedded(rows),
      prefix.cache,
      own,
      self._angles(at),
      mask,
      prefix.mask,
      lanes,
      column,
      None,
    )
    return self.norm(x), own

  def _decoder(self, x, prompt, own, *rest):
    """All layers; keys have a leading axis for them, or are a tuple."""
    if not self.unrolled:
      return self.layers(x, (prompt, own), *rest)
    none, caches = (None,) * len(self.layers), []
    for layer, *old in zip(
      self.layers, prompt or none, own or none, strict=True
    ):
      x, new = layer(x, tuple(old), *rest)
      caches.append(new)
    return x, tuple(caches)

  def _angles(self, positions):
    c = self.config
    return layers_lib.mrope_angles(
      positions, c.mrope_section, c.theta, c.rope_scaling
    )


def _stack(
  layer: type[nn.Module], length: int, in_axes: tuple, compute: Compute
) -> Any:
  """A layer, repeated: parameters get a leading axis of `length`."""
  if compute.remat not in REMAT:
    raise ValueError(
      f"settings.compute.remat is {compute.remat!r}: take one "
      f"of {', '.join(REMAT)}."
    )
  layer = nn.remat(layer, prevent_cse=False, policy=REMAT[compute.remat])
  return nn.scan(
    layer,
    variable_axes={"params": 0},
    split_rngs={"params": True},
    in_axes=in_axes,
    length=length,
  )


def empty_cache(
  config: Config, rows: int, room: int, dtype: Any, *, unrolled: bool = False
) -> Caches:
  """Keys and values of `rows` rows of at most `room` tokens, as `QwenVL` has."""
  shape = rows, config.kv_heads, room, config.head_size
  zeros = lambda *lead: Cache(
    *(jnp.zeros((*lead, *shape), dtype) for _ in Cache._fields)
  )
  if not unrolled:
    return zeros(config.layers)
  return tuple(zeros() for _ in range(config.layers))
