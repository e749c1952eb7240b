"""A small image encoder: encode an image as one vector of length 1.

Three stages of residual convolutions at 16, 8 and 4 pixels a side, then one
linear map of the whole grid: where a colour is matters in a flag, so nothing is
averaged away.  The encoder serves GeoRouter; crawled images deserve CLIP.

Axes:  B images   H W pixels, `IMAGE_SIZE` each   C channels
       E width of the vector
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

IMAGE_SIZE = 64  # Side of an image in pixels.
WIDTH = 128  # E.


class ResidualBlock(nn.Module):
  """A residual block: x plus a two-layer convolution of x."""

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Return features of the same shape."""
    # Norm and activation come before each convolution.
    y = nn.GroupNorm(8, name="norm")(x)
    y = nn.Conv(x.shape[-1], (3, 3), name="first")(nn.gelu(y))
    return x + nn.Conv(x.shape[-1], (3, 3), name="second")(nn.gelu(y))


class SmallImageEncoder(nn.Module):
  """An encoder of square images with 0.45M parameters."""

  # (stride, channels) of each downsampling stage.
  stages: tuple[tuple[int, int], ...] = ((4, 32), (2, 64), (2, 96))

  @nn.compact
  def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B E"]:
    """Return unit vectors of images whose pixels are in [0, 1]."""
    # [0, 1] -> [-1, 1].
    x = 2 * pixels - 1
    for i, (stride, channels) in enumerate(self.stages):
      window = (stride, stride)
      x = nn.Conv(channels, window, window, name=f"shrink_{i}")(x)
      x = ResidualBlock(name=f"stage_{i}")(x)
    x = nn.GroupNorm(8, name="norm")(x)
    # [B 4 4 C] -> [B 16 C] -> [B E]: every position has its own weights.
    x = nn.Dense(WIDTH, name="out")(x.reshape(len(x), -1))
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def init_params(key: jax.Array) -> dict:
  """Return the parameters of an untrained encoder."""
  pixels = jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3))
  return SmallImageEncoder().init(key, pixels)["params"]


def save_params(path: str, params: dict) -> None:
  """Write the parameters in float16, which halves the file.

  Vectors of the reloaded encoder find the same images as those of the original.
  """
  leaves = traverse_util.flatten_dict(params, sep="/")
  save_file({k: np.asarray(v, np.float16) for k, v in leaves.items()}, path)


def load_params(path: str) -> dict:
  """Load parameters that `save_params` wrote, in float32.

  A file that is damaged, or of other tensors, raises BadWeights.
  """
  try:
    leaves = load_file(path)
  except (OSError, SafetensorError) as error:
    raise BadWeights(
      f"{path}: not an intact safetensors file ({error}).  Train it with "
      "python -m tools.georouter.train_image_encoder."
    ) from error

  # Compare names and shapes with those of a new encoder.
  wanted = jax.eval_shape(init_params, jax.random.key(0))
  wanted = traverse_util.flatten_dict(wanted, sep="/")
  differing = {(name, leaf.shape) for name, leaf in wanted.items()}
  differing ^= {(name, leaf.shape) for name, leaf in leaves.items()}
  if differing:
    wrong = sorted(dict(differing))
    raise BadWeights(
      f"{path}: tensors {wrong[:4]} are missing, unknown or of another "
      "shape.  Train it again."
    )
  # Files are in float16; the model computes in float32.
  leaves = {name: leaf.astype(np.float32) for name, leaf in leaves.items()}
  return traverse_util.unflatten_dict(leaves, sep="/")
