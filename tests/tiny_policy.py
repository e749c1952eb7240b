"""A tiny policy for tests: random weights, a real tokenizer, any pictures."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import r1router_jax
from r1router_jax.inputs.processor import Encoded, Packer, Picture
from r1router_jax.inputs.tokenizer import Tokenizer
from r1router_jax.models import qwen2_5_vl
from r1router_jax.policy import config as config_lib
from r1router_jax.policy import policy

TOKENIZER = pathlib.Path(
  r1router_jax.__path__[0], "data/files/georouter/tokenizer.json"
)

VISION = qwen2_5_vl.VisionConfig(
  hidden=16, mlp=20, layers=3, heads=2, patch=4, window=16, full_blocks=(1,)
)

CONFIG = qwen2_5_vl.Config(
  vocab=61,
  hidden=32,
  mlp=40,
  layers=2,
  heads=4,
  kv_heads=2,
  mrope_section=(1, 2, 1),
  theta=100.0,
  vision=VISION,
)

# As CONFIG, for ids of the tokenizer.
SPOKEN = dataclasses.replace(CONFIG, vocab=4096, tied=True)

SETTINGS = config_lib.Settings(
  model=SPOKEN,
  style="compact",
  prompt_tokens=(24, 48),
  response_tokens=(8, 12),
  min_pixels=64,
  max_pixels=1024,
  batch_rows=2,
)


def shapes_of(config):
  settings = dataclasses.replace(SETTINGS, model=config)
  return jax.eval_shape(
    functools.partial(policy.initial, settings), jax.random.key(0)
  )


@functools.lru_cache(maxsize=8)
def params(config, seed=0):
  """Every leaf random: an initial 0 or 1 would hide a bias or a norm."""
  shapes = shapes_of(config)
  rng = np.random.default_rng(seed)

  def leaf(path, x):
    noise = rng.normal(size=x.shape)
    name = path[-1].key
    if name == "w":
      noise *= x.shape[-2] ** -0.5
    elif name == "scale":
      noise = 1 + 0.2 * noise
    elif name == "b":
      noise *= 0.2
    return jnp.asarray(noise, jnp.float32)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


@functools.lru_cache(maxsize=2)
def tokenizer(style="compact"):
  return Tokenizer(TOKENIZER, style)


def packer(config=CONFIG, lengths=(32,)):
  return Packer(tokenizer(), config.vision, lengths, 64, 4096)


def pack(config, batch, length=32):
  """The prompts on one device."""
  packed = packer(config, (length,)).pack(batch, 1, len(batch))
  return jax.tree.map(lambda x: x[0], packed)


def encoded(rng, config, text, *grids):
  """A prompt of `text` random tokens with a picture of each grid of patches.

  The pictures stand a third of the way in, a token apart; a grid (0, 0) is
  none.
  """
  image, first = tokenizer().picture, 6  # Below are control tokens.
  ids = rng.integers(first, config.vocab, text).tolist()
  at, pictures = text // 3, []
  for grid in grids:
    if grid != (0, 0):
      v = config.vision
      pads = [image] * (grid[0] * grid[1] // v.merge**2)
      ids[at:at] = pads
      at += len(pads) + 1
      patches = rng.normal(
        size=(grid[0] * grid[1], 3 * v.temporal * v.patch**2)
      )
      pictures.append(Picture(patches.astype(np.float32), grid))
  return Encoded(ids, tuple(pictures))


def responses(rng, config, *shape):
  return rng.integers(6, config.vocab, shape).astype(np.int32)
