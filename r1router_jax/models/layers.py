"""Pieces that transformer policies share: norm, linear, rotary angles, MLP.

A linear layer may have an *adapter*, two thin matrices beside its own (LoRA,
`models.lora`):  y = x w + (x a) b.

Axes:  B rows   T tokens   N heads   H head size   D F features   R rank
Sources: transformers, models/qwen2_5_vl/modeling_qwen2_5_vl.py (mathematics);
  arxiv.org/abs/2106.09685 (LoRA).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int


@jax.custom_vjp
def project(
  x: Float[Array, "*B D"], w: Float[Array, "D F"]
) -> Float[Array, "*B F"]:
  """X @ w, with a backward pass that XLA's CPU compiler does well.

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


FEW = 48  # Rows up to which `product` beats a matrix product on CPUs.


def product(
  x: Float[Array, "*B D"], w: Float[Array, "F D"]
) -> Float[Array, "*B F"]:
  """X @ w.T in float32 accuracy, for decoding: few rows, each weight read once.

  XLA's CPU compiler hands a product to Eigen, which first copies the weights
  into an order of its own: of a machine's bandwidth one row gets all, but 2 to
  48 rows get a half to a fifth.  Multiplied and summed in one loop they get up
  to twice that (`benchmarks/products.py`).

  Rows must not all be copies of one: of these jaxlib 0.10.2 makes a fusion for
  CPUs (YNNPACK's) that multiplies them with the first row of w alone.
  """
  rows = x.reshape(-1, x.shape[-1])

  def summed(rows, w):
    # The barriers keep neighbours out of the loop, which would repeat them.
    rows = jax.lax.optimization_barrier(rows)
    return jax.lax.optimization_barrier(jnp.sum(w * rows[:, None], -1))

  def dot(rows, w):
    return jax.lax.dot_general(
      w, rows, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    ).T

  if 1 < len(rows) <= FEW and x.dtype == w.dtype == jnp.float32:
    y = jax.lax.platform_dependent(rows, w, cpu=summed, default=dot)
  else:
    y = dot(rows, w)
  return y.reshape(*x.shape[:-1], len(w))


class RMSNorm(nn.Module):
  """x / rms(x) * scale, in float32."""

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
    return (y * scale).astype(x.dtype)


class Linear(nn.Module):
  """x @ w (+ b); kernels are stored [in, out], or [out, in] as `rows`."""

  features: int
  bias: bool = False
  scale: float = 1.0  # Of the initial standard deviation, 1 / sqrt(in).

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B F"]:
    if self.has_variable("params", "rows"):  # See `serving.served`.
      y = product(x, self.get_variable("params", "rows")).astype(x.dtype)
    else:
      init = nn.initializers.variance_scaling(
        self.scale**2, "fan_in", "truncated_normal"
      )
      w = self.param("w", init, (x.shape[-1], self.features))
      y = project(x, w.astype(x.dtype))
    if self.bias:
      bias = self.param("b", nn.initializers.zeros, (self.features,))
      y = y + bias.astype(x.dtype)
    if self.has_variable("params", "lora_a"):
      a, b = (
        self.get_variable("params", name).astype(x.dtype)
        for name in ("lora_a", "lora_b")
      )
      y = y + project(project(x, a), b)
    return y


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


class Llama3(NamedTuple):
  """Frequencies of Llama 3.1 and later: slow ones turn `factor` times slower.

  Frequencies whose wave is longer than `original / low` tokens are slowed,
  those shorter than `original / high` are not, and between the two it blends.
  """

  factor: float
  low: float
  high: float
  original: int  # Tokens that the model was first trained on.


def mrope_angles(
  positions: Int[Array, "3 N T"],
  section: tuple[int, ...],
  theta: float,
  scaling: Llama3 | None = None,
) -> Float[Array, "N T F"]:
  """Angles of multimodal rotary positions.

  Frequency j of F = sum(section) turns with the temporal, vertical or
  horizontal position, by the section that j falls into; on text all three
  agree and this is the usual rotary embedding.
  """
  frequencies = sum(section)
  axis = jnp.repeat(
    jnp.arange(3), jnp.array(section), total_repeat_length=frequencies
  )
  rate = theta ** (-jnp.arange(frequencies) / frequencies)
  if scaling is not None:
    turns = scaling.original * rate / (2 * math.pi)
    fast = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    rate = rate * (fast + (1 - fast) / scaling.factor)
  return jnp.moveaxis(positions, 0, -1)[..., axis].astype(jnp.float32) * rate
