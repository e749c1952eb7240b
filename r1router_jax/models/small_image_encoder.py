"""A small picture encoder: a picture to one vector of length 1.

Three stages of residual convolutions at 16, 8 and 4 pixels a side, then one
linear map of the whole grid: where a colour is matters in a flag, so nothing is
averaged away.  It serves the embedded world; crawled pictures deserve CLIP.

Axes:  B pictures   H W pixels, `SIDE` each   C channels   E width of the vector
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from r1router_jax.models.safetensors_io import BadWeights

SIDE = 64  # Pixels.

WIDTH = 128  # E.


class Residual(nn.Module):
  """x + a two-layer convolution of x."""

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    y = nn.GroupNorm(8, name="norm")(x)
    y = nn.Conv(x.shape[-1], (3, 3), name="first")(nn.gelu(y))
    return x + nn.Conv(x.shape[-1], (3, 3), name="second")(nn.gelu(y))


class PictureEncoder(nn.Module):
  """Pictures of `SIDE` x `SIDE` pixels to unit vectors; 0.45M parameters."""

  stages: tuple[tuple[int, int], ...] = ((4, 32), (2, 64), (2, 96))

  @nn.compact
  def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B E"]:
    """Vectors of pixels in [0, 1]."""
    x = 2 * pixels - 1
    for i, (stride, channels) in enumerate(self.stages):
      window = (stride, stride)
      x = nn.Conv(channels, window, window, name=f"shrink_{i}")(x)
      x = Residual(name=f"stage_{i}")(x)
    x = nn.GroupNorm(8, name="norm")(x)
    x = nn.Dense(WIDTH, name="out")(x.reshape(len(x), -1))
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def save(path: str, params: dict) -> None:
  """Writes the parameters in float16, which halves them and loses nothing."""
  leaves = traverse_util.flatten_dict(params, sep="/")
  save_file({k: np.asarray(v, np.float16) for k, v in leaves.items()}, path)


def load(path: str) -> dict:
  """Parameters, in float32, of the file that `save` wrote."""
  try:
    leaves = load_file(path)
  except (OSError, SafetensorError) as error:
    raise BadWeights(
      f"{path}: not an intact safetensors file ({error}).  Train it with "
      "python -m tools.georouter.train_image_encoder."
    ) from error
  shapes = {
    name: leaf.shape
    for name, leaf in traverse_util.flatten_dict(
      jax.eval_shape(init, jax.random.key(0)), sep="/"
    ).items()
  }
  found = {name: leaf.shape for name, leaf in leaves.items()}
  if shapes != found:
    wrong = sorted(dict(shapes.items() ^ found.items()))
    raise BadWeights(
      f"{path}: tensors {wrong[:4]} are missing, unknown or of another "
      "shape.  Train it again."
    )
  return traverse_util.unflatten_dict(
    {name: leaf.astype(np.float32) for name, leaf in leaves.items()}, sep="/"
  )


def init(key: jax.Array) -> dict:
  """Parameters of an untrained encoder."""
  return PictureEncoder().init(key, jnp.zeros((1, SIDE, SIDE, 3)))["params"]
