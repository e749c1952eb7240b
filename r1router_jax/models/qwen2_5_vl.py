"""Qwen2.5-VL: window vision tower, patch merger, m-rope decoder.

Decoder layer:  x += o(attention(rope(q(n(x))), rope(k(n(x))), v(n(x))))
                x += down(silu(gate(n(x))) * up(n(x))),   n = RMSNorm
Vision block:   the same without causality, with 2-d rotary angles and biases;
                most blocks attend within windows of 8 x 8 patches, those in
                `full_blocks` over the whole image.

Without a vision tower it is Qwen2 (biases on q, k, v) or Llama (none).

Images stay in *window layout* [I, W, S] through the whole tower: `plan_windows`
orders the patches once, on the host, so that windowed attention is a batched
matrix product over static shapes, and only the first and last step permute.

A prompt is computed once per group: `prefill` returns its keys and values;
`extend` runs whole responses after it (training), and `decode_step` one token
of each (sampling).

Parameters keep the dtype that they are given in (float32 in training);
`RuntimeConfig.dtype` is the dtype of products, while norms, softmax and
log-probabilities are computed in float32.

Axes:  B prompts   G responses per prompt   N = B G   L prompt tokens
  T response tokens   D hidden   V vocabulary   I images   W windows
  S = 64 patch slots of a window   M merged image tokens
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

from r1router_jax.common import schema
from r1router_jax.common.schema import Layers, Size, one_of
from r1router_jax.models import attention as attention_lib
from r1router_jax.models import layers as layers_lib
from r1router_jax.models.attention import Cache, Caches, make_cache
from r1router_jax.models.layers import Linear, RMSNorm, SwiGLU

REMAT = {  # Which results the backward pass keeps instead of recomputing.
  "none": jax.checkpoint_policies.everything_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


_Side = schema.int_range(1, 1 << 12)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """The vision tower; field meanings as in a published `vision_config`."""

  hidden: Size = 1280
  mlp: Size = 3420
  layers: Layers = 32
  heads: Size = 16
  patch: _Side = 14  # Pixels per side.
  temporal: _Side = 2  # Frames in a patch; a still image repeats.
  merge: _Side = 2  # Patches per side of the block that becomes one token.
  window: _Side = 112  # Pixels per side.
  full_blocks: tuple[schema.Count, ...] = (7, 15, 23, 31)


@dataclasses.dataclass(frozen=True)
class Config:
  """The decoder and its vision tower; the defaults are Qwen2.5-VL-7B.

  A model without images has `vision` None, and an `mrope_section` that is all
  temporal.
  """

  vocab: Size = 152064
  hidden: Size = 3584
  mlp: Size = 18944
  layers: Layers = 28
  heads: Size = 28
  kv_heads: Size = 4
  mrope_section: tuple[schema.Count, schema.Count, schema.Count] = (16, 24, 24)
  theta: schema.Positive = 1e6
  eps: schema.PositiveShare = 1e-6
  tied: bool = False  # Whether the output embedding is the input embedding.
  qkv_bias: bool = True
  qk_norm: bool = False  # Whether queries and keys are normed, as in Qwen3.
  rope_scaling: layers_lib.Llama3RopeScaling | None = None
  vision: VisionConfig | None = VisionConfig()

  @property
  def head_size(self) -> int:
    """Return the number of features of a head."""
    return 2 * sum(self.mrope_section)


# Published sizes; vocab, hidden, mlp, layers, heads, kv_heads.
SIZES = {
  "3b": Config(151936, 2048, 11008, 36, 16, 2, tied=True),
  "7b": Config(),
}


@dataclasses.dataclass(frozen=True)
class RuntimeConfig:
  """Options of running the model, which do not change its parameters."""

  dtype: one_of("float32", "bfloat16", "float16") = "float32"  # Of products.
  remat: one_of(*REMAT) = "full"  # What the backward pass recomputes.
  attention: one_of(*attention_lib.KERNELS) = "auto"


class PromptBatch(NamedTuple):
  """Padded prompts: everything that the model reads before a response.

  `image_token` is, for each token, the index of the merged image token that
  replaces it, counted over the I / B images that the prompt has room for (M
  tokens each); -1 on text.
  """

  tokens: Int[Array, "B L"]  # Right-padded.
  mask: Bool[Array, "B L"]  # True on real tokens.
  positions: Int[Array, "B 3 L"]  # Temporal, vertical, horizontal, for m-rope.
  next_position: Int[Array, " B"]  # Position of the first response token.
  image_token: Int[Array, "B L"]
  patches: Float[Array, "I N C"]  # In the processor's merge-block order.
  gather: Int[Array, "I W S"]  # The patch that fills each window slot.
  valid: Bool[Array, "I W S"]  # True on window slots that hold a patch.
  patch_position: Int[Array, "I W S 2"]  # (row, column) of the slot's patch.
  inverse: Int[Array, "I M"]  # Index of each merged token in window layout.


class WindowPlan(NamedTuple):
  """Window layout of one image; fields are those of `PromptBatch`."""

  gather: Int[np.ndarray, "W S"]
  valid: Bool[np.ndarray, "W S"]
  patch_position: Int[np.ndarray, "W S 2"]
  inverse: Int[np.ndarray, " M"]


class PromptCache(NamedTuple):
  """Prefilled prompts: what tokens after them depend on."""

  cache: Caches  # [layers, B, K, L, H], or a tuple over layers.
  mask: Bool[Array, "B L"]  # True on real tokens.
  next_position: Int[Array, " B"]  # Position of the first response token.
  last_state: Float[Array, "B D"]  # Normalised; predicts the first token.


def empty_prompt_batch(
  rows: int,
  length: int,
  num_images: int,
  windows: int,
  vision: VisionConfig | None,
) -> PromptBatch:
  """Return an all-zero batch of prompts, to be filled on the host.

  The prompts together have room for `num_images` images of `windows` windows.
  """
  # Without a vision tower there are no images, but arrays still need a shape.
  v = vision or VisionConfig()
  slots = (v.window // v.patch) ** 2
  patch_values = 3 * v.temporal * v.patch**2

  def zeros(*shape, dtype=np.int32):
    return np.zeros(shape, dtype)

  return PromptBatch(
    tokens=zeros(rows, length),
    mask=zeros(rows, length, dtype=bool),
    positions=zeros(rows, 3, length),
    next_position=zeros(rows),
    image_token=zeros(rows, length) - 1,
    patches=zeros(num_images, windows * slots, patch_values, dtype=np.float32),
    gather=zeros(num_images, windows, slots),
    valid=zeros(num_images, windows, slots, dtype=bool),
    patch_position=zeros(num_images, windows, slots, 2),
    inverse=zeros(num_images, windows * slots // v.merge**2),
  )


def count_windows(rows: int, columns: int, config: VisionConfig) -> int:
  """Return the number of windows of an image of `rows` x `columns` patches."""
  side = config.window // config.patch
  return -(-rows // side) * -(-columns // side)


@functools.lru_cache(maxsize=256)
def plan_windows(
  rows: int, columns: int, config: VisionConfig, windows: int, tokens: int
) -> WindowPlan:
  """Lay out the `rows` x `columns` patches of one image in windows.

  The result is padded to W `windows` and M merged `tokens`.
  """
  unit = config.merge**2  # Patches of a merged token.
  side = config.window // config.merge // config.patch  # Tokens of a window.
  r, c = rows // config.merge, columns // config.merge

  # The window of each merged token (i, j).
  i, j = (a.ravel() for a in np.meshgrid(range(r), range(c), indexing="ij"))
  windows_across = -(-c // side)
  window = i // side * windows_across + j // side

  # Its slot in that window: tokens are row-major within row-major windows.
  # Windows at the edges may be smaller, so slots are counted, not computed.
  order = np.lexsort((j, i, window))
  first = np.searchsorted(window[order], window[order])
  slot = np.empty(r * c, int)
  slot[order] = np.arange(r * c) - first

  slots = side * side * unit
  gather = np.zeros((windows, slots), np.int32)
  valid = np.zeros((windows, slots), bool)
  patch_position = np.zeros((windows, slots, 2), np.int32)
  inverse = np.zeros(tokens, np.int32)
  inverse[: r * c] = window * (slots // unit) + slot
  # The processor's order has the `unit` patches of a token side by side.
  for u in range(unit):
    at = window, slot * unit + u
    gather[at] = np.arange(r * c) * unit + u
    valid[at] = True
    patch_position[(*at, 0)] = i * config.merge + u // config.merge
    patch_position[(*at, 1)] = j * config.merge + u % config.merge
  return WindowPlan(gather, valid, patch_position, inverse)


class VisionBlock(nn.Module):
  """A block of the vision tower, which attends in windows or everywhere."""

  config: VisionConfig
  kernel: str  # Of the blocks that attend over the whole image.

  @nn.compact
  def __call__(self, x, full, angles, valid):
    """Apply the block to patches in window layout [I, W, S, D].

    It is a step of `nn.scan`.  `full` is a scalar, whether to attend over the
    whole image; rotary angles are [I, W, S, F], and `valid` is true on slots
    that hold a patch.
    """
    c = self.config
    images, windows = x.shape[:2]
    h = RMSNorm(name="ln1")(x)
    # One product for queries, keys and values, as in published weights.
    qkv = Linear(3 * c.hidden, True, name="qkv")(h)
    q, k, v = einops.rearrange(
      qkv, "I W S (three N H) -> three I W S N H", three=3, N=c.heads
    )
    q, k = layers_lib.apply_rope(q, angles), layers_lib.apply_rope(k, angles)

    def attend(rows, kernel, q, k, v):
      # [I, W, S, N, H] -> [rows, patches, N, H]: a row is an image or a window.
      q, k, v = (a.reshape(rows, -1, *a.shape[3:]) for a in (q, k, v))
      keys, mask = make_cache(k, v), valid.reshape(rows, -1)
      if kernel == "xla":
        out = attention_lib.attention(q, keys, mask[:, None])
      else:
        out = attention_lib.fused_attention(q, keys, mask, None, kernel=kernel)
      return out.reshape(x.shape)

    attend_image = functools.partial(attend, images, self.kernel)
    # Windows are short: scores of 64 x 64 need no fused kernel.
    attend_windows = functools.partial(attend, images * windows, "xla")
    # Both kinds of block have the same parameters and shapes, and only the one
    # that is needed runs.
    out = jax.lax.cond(full, attend_image, attend_windows, q, k, v)
    x = x + Linear(c.hidden, True, name="o")(out)
    return x + SwiGLU(c.mlp, True, name="mlp")(RMSNorm(name="ln2")(x)), None


class Vision(nn.Module):
  """Vision tower and merger: patches -> one vector per 2 x 2 patches."""

  config: VisionConfig
  compute: RuntimeConfig
  out: int  # D, width of the vectors.

  @nn.compact
  def __call__(self, prompt: PromptBatch) -> Float[Array, "I M D"]:
    """Compute the merged tokens of all images of a batch."""
    c = self.config
    # Patches into window layout; empty slots repeat the first patch.
    arrange = jax.vmap(lambda patches, rows: patches[rows])
    x = arrange(prompt.patches, prompt.gather)
    x = Linear(c.hidden, name="patch")(x.astype(self.compute.dtype))

    # Half of the frequencies turn with the row, half with the column.
    quarter = c.hidden // c.heads // 4
    rate = 10000.0 ** (-jnp.arange(quarter) / quarter)
    angles = prompt.patch_position[..., None].astype(jnp.float32) * rate
    angles = einops.rearrange(angles, "I W S two F -> I W S (two F)")

    # A scan runs one program for all blocks: which kind each is, is data.
    full = np.isin(np.arange(c.layers), c.full_blocks)
    in_axes = (0, nn.broadcast, nn.broadcast)
    blocks = _scan_layers(VisionBlock, c.layers, in_axes, self.compute)
    blocks = blocks(c, _resolve_kernel(self.compute), name="blocks")
    x, _ = blocks(x, jnp.asarray(full), angles, prompt.valid)

    # Merge 2 x 2 patches, which stand side by side, into a token.
    x = RMSNorm(name="ln_q")(x)
    unit = c.merge**2
    x = einops.rearrange(x, "I W (M U) D -> I (W M) (U D)", U=unit)
    x = nn.gelu(Linear(x.shape[-1], True, name="merge1")(x), approximate=False)
    x = Linear(self.out, True, name="merge2")(x)
    # And back from window layout to the order of the prompt's placeholders.
    return jnp.take_along_axis(x, prompt.inverse[..., None], 1)


class DecoderLayer(nn.Module):
  """A layer of the decoder."""

  config: Config
  kernel: str  # Attention kernel of passes over many tokens.
  fused_qkv: bool = False  # One product for q, k, v: see `to_inference_params`.

  @nn.compact
  def __call__(
    self, x, caches, angles, own_mask, prompt_mask, layout, column, segments
  ):
    """Apply the layer to states [N, T, D], as a step of `nn.scan`.

    `caches` are keys and values of the prompts and of the ring buffer, of which
    `column` is written; `own_mask` is true where a query attends to a key of
    its own row, `prompt_mask` on real tokens of the prompts.  `layout` tells
    which row holds which group member, `segments` the segment of each token in
    packed rows.  All but x, angles and the own mask may be None.

    Returns the states after the layer, and the rows' keys and values.
    """
    c = self.config
    prompt, own = caches
    # The residual stream starts as the embedding: layers add little at first.
    output_scale = 0.1 * (2 * c.layers) ** -0.5
    h = RMSNorm(c.eps, name="ln1")(x)

    def project_heads(name, count):
      y = Linear(count * c.head_size, c.qkv_bias, name=name)(h)
      return einops.rearrange(y, "N T (Q H) -> N T Q H", Q=count)

    if self.fused_qkv:
      qkv = project_heads("qkv", c.heads + 2 * c.kv_heads)
      q, k, v = jnp.split(qkv, (c.heads, c.heads + c.kv_heads), 2)
    else:
      q = project_heads("q", c.heads)
      k, v = (project_heads(name, c.kv_heads) for name in "kv")
    if c.qk_norm:  # Each head by itself.
      q, k = RMSNorm(c.eps, name="q_norm")(q), RMSNorm(c.eps, name="k_norm")(k)
    # Keys are cached rotated, at positions that never change.
    q, k = layers_lib.apply_rope(q, angles), layers_lib.apply_rope(k, angles)
    new = make_cache(k, v)
    # Decoding: the new keys go into the ring, and all of it is attended to.
    if own is not None:
      update = jax.lax.dynamic_update_slice_in_dim
      new = jax.tree.map(
        lambda ring, x: update(ring, x.astype(ring.dtype), column, 2), own, new
      )
    # Decoding is dense, other passes take the kernel.
    if self.kernel == "xla" or own is not None:
      keys = new, own_mask, prompt, prompt_mask, layout
      out = attention_lib.attention(q, *keys)
    elif prompt is not None:
      keys = new, prompt, prompt_mask
      out = attention_lib.fused_group_attention(q, *keys, kernel=self.kernel)
    else:
      # Padding is on the right, where no real token looks.
      everywhere = jnp.ones(q.shape[:2], bool)
      keys = new, everywhere if segments is None else segments
      options = dict(kernel=self.kernel, query_segments=segments)
      causal = attention_lib.causal_mask
      out = attention_lib.fused_attention(q, *keys, causal, **options)
    out = einops.rearrange(out, "N T Q H -> N T (Q H)")
    x = x + Linear(c.hidden, False, output_scale, name="o")(out)
    # Pre-norm: the residual stream itself is never normed.
    h = RMSNorm(c.eps, name="ln2")(x)
    return x + SwiGLU(c.mlp, False, output_scale, name="mlp")(h), new


class QwenVL(nn.Module):
  """The whole model; see the module's docstring for its three uses.

  If it is unrolled, each decoder layer has parameters of its own, as
  `to_inference_params` makes them; if not, all are stacked for a scan.
  """

  config: Config
  compute: RuntimeConfig = RuntimeConfig()
  unrolled: bool = False

  def setup(self):
    """Make the submodules; their names are those of the parameter tree."""
    c = self.config
    kernel = _resolve_kernel(self.compute)
    init = nn.initializers.normal(c.hidden**-0.5)
    self.embed = self.param("embed", init, (c.vocab, c.hidden))
    if not c.tied:
      self.head = self.param("head", init, (c.vocab, c.hidden))
    if c.vision is not None:
      self.vision = Vision(c.vision, self.compute, c.hidden)
    if not self.unrolled:
      # Each layer has caches of its own; the other six arguments are shared.
      in_axes = (0, *(nn.broadcast,) * 6)
      layers = _scan_layers(DecoderLayer, c.layers, in_axes, self.compute)
      self.layers = layers(c, kernel)
    self.norm = RMSNorm(c.eps)

  def __call__(self, prompt: PromptBatch, response: Int[Array, "B G T"]):
    """Compute the states that predict each token of `response`."""
    return self.extend(self.prefill(prompt), response)

  def output_embedding(self) -> Float[Array, "V D"]:
    """Return the rows whose products with a state are the logits."""
    rows = self.embed if self.config.tied else self.head
    return rows.astype(self.compute.dtype)

  def embed_tokens(self, tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
    """Look up the input embeddings of tokens."""
    return self.embed[tokens].astype(self.compute.dtype)

  def prefill(self, prompt: PromptBatch) -> PromptCache:
    """Run the prompts."""
    x, cache = self._run_prompts(prompt, prompt.mask[:, None])
    # Prompts are right-padded: the last real token differs from row to row.
    last = jnp.sum(prompt.mask, 1) - 1
    last = self.norm(jnp.take_along_axis(x, last[:, None, None], 1)[:, 0])
    return PromptCache(cache, prompt.mask, prompt.next_position, last)

  def packed_states(
    self, prompt: PromptBatch, segments: Int[Array, "B L"]
  ) -> Float[Array, "B L D"]:
    """Compute the states after each token of rows that hold several texts.

    A token attends to those of its own text: its segment, from 1 on; 0 is
    padding.
    """
    mask = segments[:, None] == segments[..., None]
    x, _ = self._run_prompts(prompt, mask, segments)
    return self.norm(x)

  def _run_prompts(self, prompt, mask, segments=None):
    """Run all layers; image tokens replace their placeholders."""
    # Placeholders have an embedding as well, which images overwrite.
    x = self.embed_tokens(prompt.tokens)
    if len(prompt.patches):  # A batch without images skips the tower.
      # [I, M, D] -> [B, I / B M, D]: the images of a prompt side by side.
      images = self.vision(prompt).reshape(len(x), -1, x.shape[-1])
      index = prompt.image_token[..., None]
      tokens = jnp.take_along_axis(images, jnp.maximum(index, 0), 1)
      x = jnp.where(index >= 0, tokens.astype(x.dtype), x)
    # Causal within each row; images attend causally too, as in the original.
    mask &= jnp.tril(jnp.ones((x.shape[1],) * 2, bool))
    # [B, 3, L] -> [3, B, L]: batches have the batch axis first, angles want the
    # three kinds of positions first.
    angles = self._rope_angles(jnp.moveaxis(prompt.positions, 1, 0))
    unused = (None,) * 3  # No prompt before this one, no layout, no ring.
    return self._run_layers(x, None, None, angles, mask, *unused, segments)

  def extend(
    self, prefix: PromptCache, response: Int[Array, "B G T"]
  ) -> Float[Array, "B G T D"]:
    """Compute the normalised states that predict each response token.

    The state before token 0 is the prompt's last; token T - 1 itself is never
    an input, so the pass runs T - 1 tokens.
    """
    groups, members, tokens = response.shape
    rows = response.reshape(groups * members, tokens)[:, :-1]
    offset = jnp.arange(tokens - 1)
    causal = jnp.tril(jnp.ones((tokens - 1, tokens - 1), bool))
    mask = jnp.broadcast_to(causal, (len(rows), *causal.shape))
    # No cache: all tokens of a response are known.
    x, _ = self._run_responses(prefix, rows, offset, None, mask)
    # Members of a group share the state before their first token.
    first = jnp.repeat(prefix.last_state, members, axis=0)[:, None]
    x = jnp.concatenate([first.astype(x.dtype), x], 1)
    return x.reshape(groups, members, tokens, -1)

  def decode_step(
    self,
    prefix: PromptCache,
    own: Caches,
    token: Int[Array, " N"],
    offset: Int[Array, " N"],
    column: Int[Array, ""],
    layout: attention_lib.GroupLayout,
  ) -> tuple[Float[Array, "N D"], Caches]:
    """Run one token of each row, the one at `offset` in the row's response.

    It is written to `column` of the ring buffer `own`: a row's last token
    stands in the position before, the one before it one further back, and so
    on.  Returns the states that predict the next tokens, and the ring buffer.
    """
    room = (own[0] if self.unrolled else own).k.shape[-2]
    # A row sees the positions of its own tokens, `offset` back; what is older
    # was written for the row's previous response.
    back = (column - jnp.arange(room)) % room
    mask = back <= offset[:, None, None]
    x, own = self._run_responses(
      prefix, token[:, None], offset[:, None], own, mask, layout, column
    )
    return x[:, 0], own

  def _run_responses(
    self, prefix, rows, offset, own, mask, layout=None, column=None
  ):
    """Run tokens [N, T] that stand `offset` tokens after their prompts."""
    prompts = len(prefix.next_position)
    if layout is None:
      start = jnp.repeat(prefix.next_position, len(rows) // prompts)
    else:
      group_size = len(layout.row_of_slot) // prompts
      start = prefix.next_position[layout.slot_of_row // group_size]
    # Text: the three rotary positions are equal.
    positions = jnp.broadcast_to(start[:, None] + offset, (3, *rows.shape))
    x, angles = self.embed_tokens(rows), self._rope_angles(positions)
    rest = angles, mask, prefix.mask, layout, column, None
    x, own = self._run_layers(x, prefix.cache, own, *rest)
    return self.norm(x), own

  def _run_layers(self, x, prompt, own, *rest):
    """Run all layers; caches are stacked over layers, or a tuple of them."""
    if not self.unrolled:
      return self.layers(x, (prompt, own), *rest)
    # Unrolled: each layer is called with its own parameters and caches.
    layer = DecoderLayer(
      self.config, _resolve_kernel(self.compute), fused_qkv=True, parent=None
    )
    none, caches = (None,) * self.config.layers, []
    old_caches = zip(prompt or none, own or none, strict=True)
    for i, old in enumerate(old_caches):
      params = self.variables["params"][f"layers_{i}"]
      x, new = _apply_layer(layer, params, x, old, *rest)
      caches.append(new)
    return x, tuple(caches)

  def _rope_angles(self, positions):
    c = self.config
    options = c.mrope_section, c.theta, c.rope_scaling
    return layers_lib.mrope_angles(positions, *options)


@functools.partial(jax.jit, static_argnums=0)
def _apply_layer(layer: DecoderLayer, params: dict, *args):
  """Apply a layer; those of one shape are traced once for all programs."""
  # Each process traces anew, while compiled programs are kept on disk: with 30
  # layers it would wait longer for that than for its first response.
  return layer.apply({"params": params}, *args)


def _resolve_kernel(compute: RuntimeConfig) -> str:
  return attention_lib.resolve_kernel(compute.attention, compute.dtype)


def _scan_layers(
  layer: type[nn.Module], length: int, in_axes: tuple, compute: RuntimeConfig
) -> Any:
  """Repeat a layer: its parameters get a leading axis of `length`."""
  # Within a scan XLA cannot merge the recomputation with the forward pass, so
  # the barriers of prevent_cse would only cost time.
  layer = nn.remat(layer, prevent_cse=False, policy=REMAT[compute.remat])
  axes = dict(variable_axes={"params": 0}, split_rngs={"params": True})
  return nn.scan(layer, in_axes=in_axes, length=length, **axes)


def empty_cache(
  config: Config, rows: int, room: int, dtype: Any, *, unrolled: bool = False
) -> Caches:
  """Return zeros for keys and values of `rows` rows of at most `room` tokens.

  They are stacked over layers or, unrolled, a tuple.
  """
  # Room for all tokens from the start: a cache that grows would compile anew at
  # each step.
  shape = rows, config.kv_heads, room, config.head_size

  def zeros(*lead):
    return Cache(*(jnp.zeros((*lead, *shape), dtype) for _ in Cache._fields))

  if not unrolled:
    return zeros(config.layers)
  return tuple(zeros() for _ in range(config.layers))
