"""Pieces that transformer policies share: norm, rotary angles, attention, MLP.

Attention looks at up to two stretches of keys, the *prompt*'s and the row's
*own*, under one softmax:

  out = softmax([q k_prompt, q k_own] / sqrt(H)) [v_prompt, v_own]

Rows of one group share a prompt: its keys are stored and read once, and the
group is only a batch of queries against them.  Prefill has own keys alone,
decoding both, and so has the training pass over sampled responses: all three
are this one function.

Axes:  B prompts   G responses per prompt   N = B G rows   T queries of a row
  S own keys   P prompt keys   Q query heads   K key heads   H head size
Sources: transformers, models/qwen2_5_vl/modeling_qwen2_5_vl.py (mathematics).
"""

from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30  # Finite, so that a row that may look nowhere stays finite.


class Cache(NamedTuple):
  """Keys (rotated) and values of one layer, or of all with a leading axis."""

  k: Array
  v: Array


@jax.custom_vjp
def project(
    x: Float[Array, "*B D"], w: Float[Array, "D F"]
) -> Float[Array, "*B F"]:
  """x @ w, with a backward pass that XLA's CPU compiler does well.

  It transposes the left operand of a product, fused with whatever made it.
  The weight's gradient therefore has the narrower operand on its left: an
  update of the tiny policy spends a third less time.
  """
  return x @ w


def _project_back(saved, g):
  x, w = saved
  flat_x, flat_g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
  rows = (((0,), (0,)), ((), ()))
  if w.shape[0] <= w.shape[1]:
    dw = jax.lax.dot_general(flat_x, flat_g, rows)
  else:
    dw = jax.lax.dot_general(flat_g, flat_x, rows).T
  return g @ w.T, dw


project.defvjp(lambda x, w: (x @ w, (x, w)), _project_back)


class RMSNorm(nn.Module):
  """x / rms(x) * scale, the mean of squares in float32."""

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
    return scale * y.astype(x.dtype)


class Linear(nn.Module):
  """x @ w (+ b); kernels are stored [in, out]."""

  features: int
  bias: bool = False
  scale: float = 1.0  # Of the initial standard deviation, 1 / sqrt(in).

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B F"]:
    init = nn.initializers.variance_scaling(
      self.scale**2, "fan_in", "truncated_normal"
    )
    w = self.param("w", init, (x.shape[-1], self.features))
    x = project(x, w.astype(x.dtype))
    if self.bias:
      bias = self.param("b", nn.initializers.zeros, (self.features,))
      x = x + bias.astype(x.dtype)
    return x


class SwiGLU(nn.Module):
  """down(silu(gate(x)) * up(x))."""

  hidden: int
  bias: bool = False
  scale: float = 1.0

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    gate = Linear(self.hidden, self.bias, name="gate")(x)
    up = Linear(self.hidden, self.bias, name="up")(x)
    down = Linear(x.shape[-1], self.bias, self.scale, name="down")
    return down(nn.silu(gate) * up)


def rotate(
  x: Float[Array, "*B T N H"], angles: Float[Array, "*B T F"]
) -> Float[Array, "*B T N H"]:
  """Rotates feature pairs (i, i + H/2) by `angles`, F = H/2, in float32."""
  cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
  a, b = jnp.split(x.astype(jnp.float32), 2, -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(
    x.dtype
  )


def mrope_angles(
  positions: Int[Array, "3 N T"], section: tuple[int, ...], theta: float
) -> Float[Array, "N T F"]:
  """Angles of multimodal rotary positions.

  Frequency j of F = sum(section) turns with the temporal, vertical or
  horizontal position, by the section that j falls into; on text all three
  agree and this is the usual rotary embedding.
  """
  frequencies = sum(section)
  axis = jnp.repeat(jnp.arange(3), jnp.array(section),
                    total_repeat_length=frequencies)
  rate = theta ** (-jnp.arange(frequencies) / frequencies)
  return jnp.moveaxis(positions, 0, -1)[..., axis].astype(jnp.float32) * rate


def attention(
  q: Float[Array, "N T Q H"],
  own: Cache,
  own_mask: Bool[Array, "N T S"],
  prompt: Cache | None = None,
  prompt_mask: Bool[Array, "B P"] | None = None,
) -> Float[Array, "N T Q H"]:
  """Grouped-query attention over own keys and a shared prompt's (see top).

  Args:
    q: queries, rotated.
    own: keys and values `N S K H`.
    own_mask: true where a query may look.
    prompt: keys and values `B P K H`, or None; row n belongs to prompt n // G.
    prompt_mask: true on the prompt's real tokens.
  """
  n, kv_heads = q.shape[0], own.k.shape[2]
  q = q * q.shape[-1] ** -0.5
  q = einops.rearrange(q, "N T (K R) H -> N T K R H", K=kv_heads)
  # Scores stay in float32: bfloat16 blurs the ranking of distant keys.
  scores = jnp.einsum(
    "NTKRH,NSKH->NKRTS", q, own.k, preferred_element_type=jnp.float32)
  scores = jnp.where(own_mask[:, None, None], scores, MASKED)
  if prompt is None:
    probs = jax.nn.softmax(scores).astype(q.dtype)
    out = jnp.einsum("NKRTS,NSKH->NTKRH", probs, own.v)
    return einops.rearrange(out, "N T K R H -> N T (K R) H")

  group = einops.rearrange(q, "(B G) T K R H -> B G T K R H",
                           B=prompt.k.shape[0])
  shared = jnp.einsum(
    "BGTKRH,BPKH->BGKRTP", group, prompt.k, preferred_element_type=jnp.float32)
  shared = jnp.where(prompt_mask[:, None, None, None, None], shared, MASKED)
  shared = einops.rearrange(shared, "B G K R T P -> (B G) K R T P")
  probs = jax.nn.softmax(jnp.concatenate([shared, scores], -1)).astype(q.dtype)
  p = prompt.k.shape[1]
  out = jnp.einsum("NKRTS,NSKH->NTKRH", probs[..., p:], own.v)
  shared = einops.rearrange(
    probs[..., :p], "(B G) K R T P -> B G K R T P", B=prompt.k.shape[0])
  shared = jnp.einsum("BGKRTP,BPKH->BGTKRH", shared, prompt.v)
  out = out + shared.reshape(n, *out.shape[1:])
  return einops.rearrange(out, "N T K R H -> N T (K R) H")
