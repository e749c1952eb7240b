"""Attention, dense or by a fused kernel, over a shared prompt and own keys.

Attention looks at up to two stretches of keys, the *prompt*'s and the row's
*own*, under one softmax:

  out = softmax([q k_prompt, q k_own] / sqrt(H)) [v_prompt, v_own]

which is made of a part for each, with its own largest score m:

  part = (m, sum exp(s - m), sum exp(s - m) v),   s = q k / sqrt(H)
  out  = sum over parts of e^m part_2 / sum over parts of e^m part_1

Rows of one group share a prompt: its keys are stored and read once, and the
group is only a batch of queries against them.  Prefill has own keys alone,
decoding both, and so has the training pass over sampled responses.  While
groups decode, members finish and rows change places: `Lanes` then says which
row is which member.

Kernels, by name, for passes over many tokens; decoding is always dense:

  xla     dense scores, on any backend (jax.nn takes it everywhere if not told)
  splash  Pallas on TPU: blocks that nobody may look at cost nothing
  cudnn   on GPU, in 16 bits; the mask is an array, but the scores are not

A fused kernel sees a whole group as one row of G T queries over P + G T keys,
whose mask is a function of the two positions, as `same_member` is.

Axes:  B prompts   G responses per prompt   N = B G rows   T queries of a row
  S own keys   P prompt keys   Q query heads   K key heads   H head size
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

KERNELS = ("auto", "xla", "splash", "cudnn")

MASKED = -1e30  # Finite, so that a row that may look nowhere stays finite.

BLOCK = 512  # Positions in a tile of the splash kernel, at most.

LANES = 128  # Its tiles are multiples of this.


# (positions of queries, positions of keys) -> true where one sees the other.
Sees = Callable[[Any, Any], Any]


class Cache(NamedTuple):
  """Keys (rotated) and values of one layer, or of all with a leading axis.

  Heads stand before positions, the order in which products read them.
  """

  k: Float[Array, "*N K S H"]
  v: Float[Array, "*N K S H"]


Caches = Cache | tuple[Cache, ...]  # Of all layers, in one array or one each.


def resolve(kernel: str, dtype: str) -> str:
  """The kernel that "auto" stands for on this machine.

  Raises:
    ValueError: where the name is unknown.
  """
  if kernel not in KERNELS:
    raise ValueError(
      f"settings.compute.attention is {kernel!r}: take one of {KERNELS}."
    )
  if kernel != "auto":
    return kernel
  best = {"tpu": "splash", "gpu": "cudnn"}.get(jax.default_backend(), "xla")
  # cuDNN has no attention in float32.
  return "xla" if best == "cudnn" and dtype == "float32" else best


def causal(q, k):
  return q >= k


def same_member(prompt: int, tokens: int) -> Sees:
  """A group in one row: all see the prompt, each its own tokens so far."""

  def sees(q, k):
    own = k - prompt
    return (k < prompt) | ((own // tokens == q // tokens) & (own <= q))

  return sees


class Lanes(NamedTuple):
  """Which row is which member: lane b G + g is member g of prompt b.

  Attributes:
    row: the row in each lane; any row, where a lane is free.
    of: the lane of each row; beyond the last, where a row is free.
  """

  row: Int[Array, " BG"]
  of: Int[Array, " N"]


class _Part(NamedTuple):
  """What one stretch of keys adds to a softmax (see top), in float32."""

  peak: Float[Array, "N K R T"]
  total: Float[Array, "N K R T"]
  out: Float[Array, "N K R T H"]


def attention(
  q: Float[Array, "N T Q H"],
  own: Cache,
  own_mask: Bool[Array, " N #T S"],
  prompt: Cache | None = None,
  prompt_mask: Bool[Array, "B P"] | None = None,
  lanes: Lanes | None = None,
) -> Float[Array, "N T Q H"]:
  """Dense grouped-query attention over own keys and a prompt's (see top).

  Args:
    q: queries, rotated.
    own: keys and values `N K S H`.
    own_mask: true where a query may look.
    prompt: keys and values `B K P H`, or None.
    prompt_mask: true on the prompt's real tokens.
    lanes: whose prompt is whose; by default row n is in lane n.
  """
  q = einops.rearrange(
    q * q.shape[-1] ** -0.5, "N T (K R) H -> N T K R H", K=own.k.shape[1]
  )
  part = _part(q, own, own_mask)
  if prompt is not None:
    prompts = len(prompt_mask)
    group = q if lanes is None else q[lanes.row]
    group = einops.rearrange(group, "(B G) T K R H -> B (G T) K R H", B=prompts)
    shared = _part(group, prompt, prompt_mask[:, None])
    members = lambda a: einops.rearrange(
      a, "B K R (G T) ... -> (B G) K R T ...", T=q.shape[1]
    )
    shared = jax.tree.map(members, shared)
    if lanes is not None:
      shared = jax.tree.map(lambda a: a[lanes.of], shared)
    part = _merged(part, shared)
  out = part.out / part.total[..., None]
  return einops.rearrange(out, "N K R T H -> N T (K R) H").astype(own.v.dtype)


def _part(
  q: Float[Array, "N T K R H"], keys: Cache, mask: Bool[Array, " N #T S"]
) -> _Part:
  # Scores stay in float32: bfloat16 blurs the ranking of distant keys.
  scores = jnp.einsum(
    "NTKRH,NKSH->NKRTS", q, keys.k, preferred_element_type=jnp.float32
  )
  scores = jnp.where(mask[:, None, None], scores, MASKED)
  peak = jax.lax.stop_gradient(scores.max(-1))
  weights = jnp.exp(scores - peak[..., None])
  out = jnp.einsum(
    "NKRTS,NKSH->NKRTH",
    weights.astype(keys.v.dtype),
    keys.v,
    preferred_element_type=jnp.float32,
  )
  return _Part(peak, weights.sum(-1), out)


def _merged(a: _Part, b: _Part) -> _Part:
  peak = jnp.maximum(a.peak, b.peak)
  of_a, of_b = jnp.exp(a.peak - peak), jnp.exp(b.peak - peak)
  return _Part(
    peak,
    a.total * of_a + b.total * of_b,
    a.out * of_a[..., None] + b.out * of_b[..., None],
  )


def grouped(
  q: Float[Array, "N T Q H"],
  own: Cache,
  prompt: Cache,
  prompt_mask: Bool[Array, "B P"],
  *,
  kernel: str,
) -> Float[Array, "N T Q H"]:
  """As `attention`, causal in own keys, by a fused kernel."""
  prompts, length = prompt_mask.shape
  members = lambda a: einops.rearrange(
    a, "(B G) K T H -> B K (G T) H", B=prompts
  )
  keys = Cache(
    *(
      jnp.concatenate([a, members(b)], 2)
      for a, b in zip(prompt, own, strict=True)
    )
  )
  valid = jnp.pad(
    prompt_mask, ((0, 0), (0, keys.k.shape[2] - length)), constant_values=True
  )
  rows = einops.rearrange(q, "(B G) T Q H -> B (G T) Q H", B=prompts)
  out = fused(rows, keys, valid, same_member(length, q.shape[1]), kernel=kernel)
  return out.reshape(q.shape)


def fused(
  q: Float[Array, "B T Q H"],
  keys: Cache,
  valid: Bool[Array, "B S"] | Int[Array, "B S"],
  sees: Sees | None,
  *,
  kernel: str,
  asks: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T Q H"]:
  """Attention by a kernel that keeps no scores.

  Args:
    q: queries.
    keys: and values, `B K S H`.
    valid: of each key, the number of the queries that may see it.
    sees: which positions see which, None for all.
    kernel: "splash" or "cudnn".
    asks: the number of each query, by default 1.
  """
  if asks is None:
    asks = jnp.ones(q.shape[:2], jnp.int32)
  if kernel == "splash":
    return _over_mesh(_splash, sees)(q, keys, asks, valid)
  mask = asks[..., None] == valid[:, None]
  if sees is not None:
    mask &= sees(*jnp.ogrid[: q.shape[1], : valid.shape[1]])
  mask = mask[:, None]
  k, v = (jnp.swapaxes(a, 1, 2) for a in keys)
  return jax.nn.dot_product_attention(
    q, k, v, mask=mask, implementation="cudnn"
  )


def _over_mesh(kernel: Callable, sees: Sees | None) -> Callable:
  """The kernel on each device's rows and heads, where a mesh is set.

  A Pallas kernel is opaque to the partitioner, so it is told here.
  """
  local = lambda *of: kernel(*of, sees)
  mesh = jax.sharding.get_abstract_mesh()
  ours = [
    name
    for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
    if kind == AxisType.Auto
  ]
  if not ours:
    return local
  rows = tuple(a for a in ours if a != "tensor") or None
  heads = "tensor" if "tensor" in ours else None
  spec = PartitionSpec(rows, None, heads)
  return jax.shard_map(
    local,
    in_specs=(
      spec,
      PartitionSpec(rows, heads),
      PartitionSpec(rows),
      PartitionSpec(rows),
    ),
    out_specs=spec,
    axis_names=set(ours),
    check_vma=False,
  )


def _splash(q, keys, asks, valid, sees):
  queries, kv_heads = q.shape[1], keys.k.shape[1]
  q = einops.rearrange(
    q * q.shape[-1] ** -0.5, "B T (K R) H -> (B K) R T H", K=kv_heads
  )
  q, k, v = (_padded(a, -2) for a in (q, *keys))
  asks, valid = _padded(asks, 1), _padded(valid, 1)
  mask = _Mask(sees, asks.shape[1], valid.shape[1])
  kernel = splash_attention_kernel.make_splash_mqa(
    splash_attention_mask.MultiHeadMask([mask] * q.shape[1]),
    head_shards=1,
    q_seq_shards=1,
    block_sizes=_blocks(asks.shape[1], valid.shape[1]),
  )
  segments = splash_attention_kernel.SegmentIds(
    *(jnp.repeat(ids.astype(jnp.int32), kv_heads, 0) for ids in (asks, valid))
  )
  k, v = (einops.rearrange(a, "B K S H -> (B K) S H") for a in (k, v))
  out = jax.vmap(kernel)(q, k, v, segments)
  return einops.rearrange(out, "(B K) R T H -> B T (K R) H", K=kv_heads)[
    :, :queries
  ]


def _padded(x, axis):
  """X with zeros up to a multiple of LANES positions."""
  room = [(0, 0)] * x.ndim
  room[axis] = 0, -x.shape[axis] % LANES
  return jnp.pad(x, room)


def _blocks(queries: int, keys: int):
  fit = lambda n: next(b for b in range(BLOCK, 0, -LANES) if n % b == 0)
  q, k = fit(queries), fit(keys)
  return splash_attention_kernel.BlockSizes(
    block_q=q,
    block_kv=k,
    block_kv_compute=k,
    block_q_dkv=q,
    block_kv_dkv=k,
    block_kv_dkv_compute=k,
    block_q_dq=q,
    block_kv_dq=k,
  )


class _Mask(splash_attention_mask.Mask):
  """`sees` as the kernel wants it: a shape, tiles, and what computes them."""

  def __init__(self, sees: Sees | None, queries: int, keys: int):
    self._shape = queries, keys
    self.q_sequence = np.arange(queries, dtype=np.int32)
    self.mask_function = sees or (lambda q, k: (q >= 0) & (k >= 0))

  @property
  def shape(self) -> tuple[int, int]:
    return self._shape

  def __getitem__(self, tile) -> np.ndarray:
    q, k = (np.arange(n)[s] for n, s in zip(self._shape, tile, strict=True))
    return self.mask_function(q[:, None], k[None])

  def __eq__(self, other: object) -> bool:
    return self is other

  def __hash__(self) -> int:
    return id(self)
