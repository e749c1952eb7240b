"""Layers that transformer policies share: norm, linear, rotary angles, MLP.

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
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int


@jax.custom_vjp
def project_features(
  x: Float[Array, "*B D"], w: Float[Array, "D F"]
) -> Float[Array, "*B F"]:
  """Compute `x @ w`, with products that suit XLA's CPU compiler.

  The compiler transposes the left operand of a product, fused with whatever
  made it.  The weight's gradient therefore has the narrower operand on its
  left: an update of the tiny policy takes a third less time.

  Under `jax.default_matmul_precision("bfloat16")`, operands are rounded here:
  XLA's CPU compiler ignores the option.  Sums are always those of float32.  Of
  a product that is asked for in bfloat16, the compiler makes one in float32.
  """
  return _multiply(x, w, contract=(x.ndim - 1, 0))


def _multiply(x, y, contract):
  dtype = x.dtype
  if jax.config.jax_default_matmul_precision == "bfloat16":
    x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
  axes = tuple((axis,) for axis in contract), ((), ())
  product = jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)
  return product.astype(dtype)


def _project_forward(x, w):
  return _multiply(x, w, contract=(x.ndim - 1, 0)), (x, w)


def _project_backward(saved, g):
  x, w = saved
  flat_x, flat_g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
  # dw = x^T g; the smaller of D and F is on the left.
  if w.shape[0] <= w.shape[1]:
    dw = _multiply(flat_x, flat_g, contract=(0, 0))
  else:
    dw = _multiply(flat_g, flat_x, contract=(0, 0)).T
  return _multiply(g, w, contract=(g.ndim - 1, 1)), dw


project_features.defvjp(_project_forward, _project_backward)


# Largest number of rows for which a loop beats a matrix product on CPUs.
MAX_FEW_ROWS = 48


def matmul_few_rows(
  x: Float[Array, "*B D"], w: Float[Array, "F D"]
) -> Float[Array, "*B F"]:
  """Compute `x @ w.T` in float32 accuracy, for the few rows of decoding.

  XLA's CPU compiler hands a product to Eigen, which first copies the weights
  into an order of its own: one row gets all of a machine's bandwidth, but 2 to
  48 rows get a half to a fifth.  Multiplied and summed in one loop they get up
  to twice that (measured by `benchmarks/matmul.py`).

  Rows must not all be equal: in that case jaxlib 0.10.2 makes a fusion for CPUs
  (YNNPACK's) that multiplies them with the first row of w alone.
  """
  rows = x.reshape(-1, x.shape[-1])

  def sum_products(rows, w):
    # Without the barriers XLA fuses neighbouring operations into the loop, and
    # repeats them for each output feature.
    rows = jax.lax.optimization_barrier(rows)
    return jax.lax.optimization_barrier(jnp.sum(w * rows[:, None], -1))

  def matrix_product(rows, w):
    return jax.lax.dot_general(
      w, rows, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    ).T

  # One row, other dtypes and other backends take the matrix product, which is
  # at least as fast there.
  if 1 < len(rows) <= MAX_FEW_ROWS and x.dtype == w.dtype == jnp.float32:
    y = jax.lax.platform_dependent(
      rows, w, cpu=sum_products, default=matrix_product
    )
  else:
    y = matrix_product(rows, w)
  return y.reshape(*x.shape[:-1], len(w))


class RMSNorm(nn.Module):
  """Root-mean-square norm, x / rms(x) * scale, in float32."""

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Normalise the last axis; the result has the dtype of `x`."""
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    # The mean of squares of 16-bit numbers would lose most of its digits.
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
    return (y * scale).astype(x.dtype)


class Linear(nn.Module):
  """Linear layer, x @ w (+ b), with an adapter if the parameters have one.

  The parameters decide which form it takes, so that one model runs on those of
  training, with or without LoRA, and on those of inference:

    w               [in, out], in training
    rows            [out, in], see `to_inference_params`
    lora_a, lora_b  [in, rank] and [rank, out], see `lora.add_adapters`
  """

  features: int
  bias: bool = False
  scale: float = 1.0  # Factor on the initial standard deviation, 1 / sqrt(in).

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B F"]:
    """Apply the layer in the precision of `x`."""
    if self.has_variable("params", "rows"):
      rows = self.get_variable("params", "rows")
      y = matmul_few_rows(x, rows).astype(x.dtype)
    else:
      init = nn.initializers.variance_scaling(
        self.scale**2, "fan_in", "truncated_normal"
      )
      w = self.param("w", init, (x.shape[-1], self.features))
      y = project_features(x, w.astype(x.dtype))
    if self.bias:
      bias = self.param("b", nn.initializers.zeros, (self.features,))
      y = y + bias.astype(x.dtype)
    # The adapter's product a b is never added to w here: that would cost a copy
    # of w in each pass.
    if self.has_variable("params", "lora_a"):
      a = self.get_variable("params", "lora_a").astype(x.dtype)
      b = self.get_variable("params", "lora_b").astype(x.dtype)
      y = y + project_features(project_features(x, a), b)
    return y


class SwiGLU(nn.Module):
  """Gated MLP, down(silu(gate(x)) * up(x))."""

  hidden: int
  bias: bool = False
  scale: float = 1.0  # Factor on the initial standard deviation of `down`.

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Apply the MLP; the width of the output is that of `x`."""
    gate = Linear(self.hidden, self.bias, name="gate")(x)
    up = Linear(self.hidden, self.bias, name="up")(x)
    down = Linear(x.shape[-1], self.bias, self.scale, name="down")
    return down(nn.silu(gate) * up)


def apply_rope(
  x: Float[Array, "*B T N H"], angles: Float[Array, "*B T F"]
) -> Float[Array, "*B T N H"]:
  """Rotate feature pairs (i, i + H/2) by `angles`, F = H/2, in float32."""
  # [..., T, F] -> [..., T, 1, F]: all heads turn by the same angles.
  cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
  a, b = jnp.split(x.astype(jnp.float32), 2, -1)
  rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
  return rotated.astype(x.dtype)


class Llama3RopeScaling(NamedTuple):
  """Scaling of rotary frequencies in Llama 3.1 and later.

  Frequencies whose wavelength is longer than `original / low` tokens turn
  `factor` times slower, those shorter than `original / high` are unchanged, and
  between the two the change is blended.
  """

  factor: float
  low: float
  high: float
  original: int  # Context length that the model was first trained on.


def mrope_angles(
  positions: Int[Array, "3 N T"],
  section: tuple[int, ...],
  theta: float,
  scaling: Llama3RopeScaling | None = None,
) -> Float[Array, "N T F"]:
  """Compute the angles of multimodal rotary positions (m-rope).

  Each token has a temporal, a vertical and a horizontal position; on text all
  three are equal, and this is the usual rotary embedding.  `section` is the
  number of frequencies, of base `theta`, that turn with each; F is their sum.
  """
  frequencies = sum(section)
  # The position axis, 0 to 2, that each frequency turns with.
  axis = np.repeat(np.arange(3), section)
  # Slowest last: rate_j = theta^(-j / F).
  rate = theta ** (-jnp.arange(frequencies) / frequencies)
  if scaling is not None:
    # Number of turns within the original context.
    turns = scaling.original * rate / (2 * math.pi)
    fast = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    rate = rate * (fast + (1 - fast) / scaling.factor)
  # [3, N, T] -> [N, T, F]: each frequency takes the position of its axis.
  positions = jnp.moveaxis(positions, 0, -1)[..., axis]
  return positions.astype(jnp.float32) * rate
