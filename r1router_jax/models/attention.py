"""Attention over a shared prompt and own keys, dense or by a fused kernel.

Queries attend to up to two stretches of keys, those of the *prompt* and the
row's *own*, under one softmax:

  out = softmax([q k_prompt, q k_own] / sqrt(H)) [v_prompt, v_own]

It is computed from a partial result (m, t, o) for each stretch, with m the
largest score of that stretch (as in flash attention):

  m = max s,  t = sum exp(s - m),  o = sum exp(s - m) v,   s = q k / sqrt(H)
  out = sum over stretches of e^m o / sum over stretches of e^m t

Rows of one group share a prompt: its keys are stored and read once, and the
group is only a batch of queries against them.  Prefill has own keys alone;
decoding and the training pass over sampled responses have both.  While groups
decode, members finish and rows change places: `GroupLayout` then says which row
holds which member.

Kernels, by name, for passes over many tokens; decoding is always dense:

  xla     dense scores, on any backend
  splash  Pallas on TPU: blocks that are masked entirely cost nothing
  cudnn   on GPU, in 16 bits; the mask is an array, but the scores are not

A fused kernel sees a whole group as one row of G T queries over P + G T keys,
whose mask is a function of the two positions, such as `group_mask`.

Axes:  B prompts   G responses per prompt   N = B G rows   T queries of a row
  S own keys   P prompt keys   Q query heads   K key heads   R = Q / K
  H head size
Source: jax.experimental.pallas.ops.tpu.splash_attention.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel,
  splash_attention_mask,
)
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from r1router_jax.common.errors import UserError

KERNELS = ("auto", "xla", "splash", "cudnn")

# Score of a masked key.  It is finite, so that a row whose keys are all masked
# (padding) stays finite too.
MASKED_SCORE = -1e30

SPLASH_MAX_BLOCK = 512  # Largest number of positions in a block of the kernel.
SPLASH_BLOCK_UNIT = 128  # Blocks are multiples of this.

# (query positions, key positions) -> true where the query attends to the key.
MaskFn = Callable[[Any, Any], Any]


class Cache(NamedTuple):
  """Rotated keys, and values, of one layer, or of all with a leading axis.

  Heads stand before positions, the order in which products read them.
  """

  k: Float[Array, "*N K S H"]
  v: Float[Array, "*N K S H"]


def make_cache(k: Float[Array, "N S K H"], v: Float[Array, "N S K H"]) -> Cache:
  """Return keys and values with heads before positions."""
  return Cache(*(jnp.swapaxes(a, 1, 2) for a in (k, v)))


Caches = Cache | tuple[Cache, ...]  # All layers in one array, or one by one.


def resolve_kernel(kernel: str, dtype: str) -> str:
  """Return the kernel that "auto" stands for here; raise on unknown names."""
  if kernel not in KERNELS:
    raise UserError(f"compute.attention is {kernel!r}: take one of {KERNELS}.")
  if kernel != "auto":
    return kernel
  # CPUs have no fused kernel.
  best = {"tpu": "splash", "gpu": "cudnn"}.get(jax.default_backend(), "xla")
  # cuDNN has no attention in float32.
  return "xla" if best == "cudnn" and dtype == "float32" else best


def causal_mask(q, k):
  """Return true where position k is not after position q."""
  return q >= k


def group_mask(prompt_tokens: int, response_tokens: int) -> MaskFn:
  """Make the mask of a group in one row.

  Keys are the prompt, then the responses one after another; queries are the
  responses alone.  All members attend to the prompt, and each to its own
  tokens so far.
  """

  def attends(q, k):
    own = k - prompt_tokens  # Key position counted as queries are.
    same_member = own // response_tokens == q // response_tokens
    return (k < prompt_tokens) | (same_member & (own <= q))

  return attends


class GroupLayout(NamedTuple):
  """A map from decode rows to (prompt, member) and back.

  Group slot b G + g belongs to member g of prompt b.
  """

  row_of_slot: Int[Array, " BG"]  # Any row if the group slot is free.
  slot_of_row: Int[Array, " N"]  # Out of range if the row is free.


class _SoftmaxPartial(NamedTuple):
  """The share of one stretch of keys in a softmax, in float32 (see the top)."""

  peak: Float[Array, "N K R T"]
  total: Float[Array, "N K R T"]
  out: Float[Array, "N K R T H"]


def attention(
  q: Float[Array, "N T Q H"],
  own: Cache,
  own_mask: Bool[Array, " N #T S"],
  prompt: Cache | None = None,
  prompt_mask: Bool[Array, "B P"] | None = None,
  layout: GroupLayout | None = None,
) -> Float[Array, "N T Q H"]:
  """Compute dense grouped-query attention over own keys and a prompt's.

  Own keys are [N, K, S, H], those of the prompt [B, K, P, H]; masks are true on
  keys that are attended to.  Without a layout, row n has group slot n.
  """
  q, heads = q * q.shape[-1] ** -0.5, own.k.shape[1]
  q = einops.rearrange(q, "N T (K R) H -> N T K R H", K=heads)
  # [N, T, K, R, H] queries against [N, K, S, H] keys.
  partial = _partial_softmax(q, own, own_mask)
  if prompt is not None:
    # [N, T, ...] -> [B, G T, ...]: a group is one batch of queries.
    group = q if layout is None else q[layout.row_of_slot]
    join = "(B G) T K R H -> B (G T) K R H"
    group = einops.rearrange(group, join, B=len(prompt_mask))
    shared = _partial_softmax(group, prompt, prompt_mask[:, None])
    # And back.  A free row has a group slot out of range; the gather clamps
    # it, and what the row computes is dropped.
    split = "B K R (G T) ... -> (B G) K R T ..."
    shared = [einops.rearrange(x, split, T=q.shape[1]) for x in shared]
    if layout is not None:
      shared = [x[layout.slot_of_row] for x in shared]
    partial = _merge_partials(partial, _SoftmaxPartial(*shared))
  out = partial.out / partial.total[..., None]
  return einops.rearrange(out, "N K R T H -> N T (K R) H").astype(own.v.dtype)


def _partial_softmax(
  q: Float[Array, "N T K R H"], keys: Cache, mask: Bool[Array, " N #T S"]
) -> _SoftmaxPartial:
  # Scores stay in float32: bfloat16 blurs the ranking of distant keys.
  scores = jnp.einsum(
    "NTKRH,NKSH->NKRTS", q, keys.k, preferred_element_type=jnp.float32
  )
  scores = jnp.where(mask[:, None, None], scores, MASKED_SCORE)
  # The result does not depend on the peak, so it needs no gradient.
  peak = jax.lax.stop_gradient(scores.max(-1))
  weights = jnp.exp(scores - peak[..., None])
  narrow = weights.astype(keys.v.dtype)
  out = jnp.einsum(
    "NKRTS,NKSH->NKRTH", narrow, keys.v, preferred_element_type=jnp.float32
  )
  return _SoftmaxPartial(peak, weights.sum(-1), out)


def _merge_partials(a: _SoftmaxPartial, b: _SoftmaxPartial) -> _SoftmaxPartial:
  # Both are rescaled to a common peak, so that no exponential overflows.
  peak = jnp.maximum(a.peak, b.peak)
  scale_a, scale_b = jnp.exp(a.peak - peak), jnp.exp(b.peak - peak)
  return _SoftmaxPartial(
    peak,
    a.total * scale_a + b.total * scale_b,
    a.out * scale_a[..., None] + b.out * scale_b[..., None],
  )


def fused_group_attention(
  q: Float[Array, "N T Q H"],
  own: Cache,
  prompt: Cache,
  prompt_mask: Bool[Array, "B P"],
  *,
  kernel: str,
) -> Float[Array, "N T Q H"]:
  """Compute causal attention to a prompt and own keys by a fused kernel.

  The result is that of `attention` with a causal `own_mask`.
  """
  prompts, length = prompt_mask.shape

  def append_members(prompt_keys, own_keys):
    join = "(B G) K T H -> B K (G T) H"
    members = einops.rearrange(own_keys, join, B=prompts)
    return jnp.concatenate([prompt_keys, members], 2)

  # One row per group: keys of the prompt, then those of all members.
  # The kernel needs no copy of the prompt for each member, which would be G
  # times as large.
  keys = jax.tree.map(append_members, prompt, own)
  own_keys = keys.k.shape[2] - length
  # Real tokens are segment 1, padding of the prompt is segment 0.
  segments = jnp.pad(prompt_mask, ((0, 0), (0, own_keys)), constant_values=True)
  queries = einops.rearrange(q, "(B G) T Q H -> B (G T) Q H", B=prompts)
  mask_fn = group_mask(length, q.shape[1])
  out = fused_attention(queries, keys, segments, mask_fn, kernel=kernel)
  return out.reshape(q.shape)


def fused_attention(
  q: Float[Array, "B T Q H"],
  keys: Cache,
  key_segments: Bool[Array, "B S"] | Int[Array, "B S"],
  mask_fn: MaskFn | None,
  *,
  kernel: str,
  query_segments: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T Q H"]:
  """Compute attention by a kernel that stores no scores.

  A query attends to the keys, [B, K, S, H], of its own segment (by default 1)
  where `mask_fn` allows it; without one, to all of them.  The kernel is
  "splash" or "cudnn".
  """
  if query_segments is None:
    query_segments = jnp.ones(q.shape[:2], jnp.int32)
  if kernel == "splash":
    splash = _over_mesh(_splash_attention, mask_fn)
    return splash(q, keys, query_segments, key_segments)
  # cuDNN takes an array [B, 1, T, S], and heads behind positions: [B, S, K, H].
  mask = query_segments[..., None] == key_segments[:, None]
  if mask_fn is not None:
    mask &= mask_fn(*jnp.ogrid[: q.shape[1], : key_segments.shape[1]])
  k, v = (jnp.swapaxes(a, 1, 2) for a in keys)
  return jax.nn.dot_product_attention(
    q, k, v, mask=mask[:, None], implementation="cudnn"
  )


def _over_mesh(kernel: Callable, mask_fn: MaskFn | None) -> Callable:
  """Wrap a kernel to run on each device's rows and heads, if a mesh is set.

  The partitioner cannot look into a Pallas kernel, so the split is given here.
  """

  def local(q, keys, query_segments, key_segments):
    return kernel(q, keys, query_segments, key_segments, mask_fn)

  mesh = jax.sharding.get_abstract_mesh()
  # Axes of other kinds are split by an enclosing shard_map already.
  kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
  axes = [name for name, kind in kinds if kind == AxisType.Auto]
  if not axes:
    return local
  rows = tuple(a for a in axes if a != "tensor") or None
  heads = "tensor" if "tensor" in axes else None
  queries = PartitionSpec(rows, None, heads)  # [B, T, Q, H]
  keys = PartitionSpec(rows, heads)  # [B, K, S, H]
  segments = PartitionSpec(rows)
  return jax.shard_map(
    local,
    in_specs=(queries, keys, segments, segments),
    out_specs=queries,
    axis_names=set(axes),
    check_vma=False,
  )


def _splash_attention(q, keys, query_segments, key_segments, mask_fn):
  queries, kv_heads = q.shape[1], keys.k.shape[1]
  # The kernel is multi-query: each key head with its R query heads is a row.
  q = q * q.shape[-1] ** -0.5
  q = einops.rearrange(q, "B T (K R) H -> (B K) R T H", K=kv_heads)
  # It takes whole blocks.  Padding is segment 0, so that no real query attends
  # to it.
  q, k, v = (_pad_axis(a, -2) for a in (q, *keys))
  segments = [_pad_axis(ids, 1) for ids in (query_segments, key_segments)]
  sizes = [ids.shape[1] for ids in segments]
  mask = _SplashMask(mask_fn, *sizes)
  # The mask is evaluated by block at trace time; blocks without a pair are
  # never loaded.
  kernel = splash_attention_kernel.make_splash_mqa(
    splash_attention_mask.MultiHeadMask([mask] * q.shape[1]),
    head_shards=1,
    q_seq_shards=1,
    block_sizes=_block_sizes(*sizes),
  )
  segments = splash_attention_kernel.SegmentIds(
    *(jnp.repeat(ids.astype(jnp.int32), kv_heads, 0) for ids in segments)
  )
  k, v = (einops.rearrange(a, "B K S H -> (B K) S H") for a in (k, v))
  # One call per (row, key head).
  out = jax.vmap(kernel)(q, k, v, segments)
  out = einops.rearrange(out, "(B K) R T H -> B T (K R) H", K=kv_heads)
  return out[:, :queries]


def _pad_axis(x, axis):
  """Pad an axis with zeros up to a multiple of `SPLASH_BLOCK_UNIT`."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = 0, -x.shape[axis] % SPLASH_BLOCK_UNIT
  return jnp.pad(x, widths)


def _block_sizes(queries: int, keys: int) -> splash_attention_kernel.BlockSizes:
  def largest_divisor(n):
    sizes = range(SPLASH_MAX_BLOCK, 0, -SPLASH_BLOCK_UNIT)
    return next(size for size in sizes if n % size == 0)

  q, k = largest_divisor(queries), largest_divisor(keys)
  forward = dict(block_q=q, block_kv=k, block_kv_compute=k)
  # Of the gradients of keys and values, and of queries.
  dkv = dict(block_q_dkv=q, block_kv_dkv=k, block_kv_dkv_compute=k)
  dq = dict(block_q_dq=q, block_kv_dq=k)
  return splash_attention_kernel.BlockSizes(**forward, **dkv, **dq)


class _SplashMask(splash_attention_mask.Mask):
  """A `MaskFn` as the kernel wants it: a shape, and blocks on request."""

  def __init__(self, mask_fn: MaskFn | None, queries: int, keys: int):
    self._shape = queries, keys
    self.q_sequence = np.arange(queries, dtype=np.int32)
    # The kernel calls this function itself, and never with None.
    self.mask_function = mask_fn or (lambda q, k: (q >= 0) & (k >= 0))

  @property
  def shape(self) -> tuple[int, int]:
    return self._shape

  def __getitem__(self, block) -> np.ndarray:
    q, k = (np.arange(n)[s] for n, s in zip(self._shape, block, strict=True))
    return self.mask_function(q[:, None], k[None])

  # Masks are keys of the kernel's caches: by identity, since a function has no
  # equality.
  def __eq__(self, other: object) -> bool:
    return self is other

  def __hash__(self) -> int:
    return id(self)
