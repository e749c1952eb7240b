"""A tiny policy for tests: random weights, a real tokenizer, any images."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import r1router_jax
from r1router_jax.inputs.processor import (
  EncodedPrompt,
  ImagePatches,
  Processor,
)
from r1router_jax.inputs.tokenizer import Tokenizer
from r1router_jax.models import qwen2_5_vl
from r1router_jax.policy import config as config_lib
from r1router_jax.policy import policy

TOKENIZER = pathlib.Path(
  r1router_jax.__path__[0], "data/files/georouter/tokenizer.json"
)

# Sizes that differ from each other, so that no axis passes for another.
VISION = qwen2_5_vl.VisionConfig(
  hidden=16, mlp=20, layers=3, heads=2, patch=4, window=16, full_blocks=(1,)
)

MODEL_CONFIG = qwen2_5_vl.Config(
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

# The same sizes, with an embedding for each id of the tokenizer.
FULL_VOCAB_CONFIG = dataclasses.replace(MODEL_CONFIG, vocab=4096, tied=True)

# Two lengths each, so that padding and cutting are tested.
POLICY_CONFIG = config_lib.PolicyConfig(
  model=FULL_VOCAB_CONFIG,
  style="compact",
  prompt_tokens=(24, 48),
  response_tokens=(8, 12),
  min_pixels=64,
  max_pixels=1024,
  decode_batch_size=2,
)

# Of a policy of texts alone, whose prompts have a marker for an image.
TEXT_MODEL = dataclasses.replace(FULL_VOCAB_CONFIG, vision=None)
MARKER = "[picture]"
MARKED_CONFIG = dataclasses.replace(
  POLICY_CONFIG, model=TEXT_MODEL, image_marker=MARKER
)


def param_shapes(config):
  """Return shapes of the parameters of a model."""
  known = dataclasses.replace(POLICY_CONFIG, model=config)
  return jax.eval_shape(
    functools.partial(policy.init_params, known), jax.random.key(0)
  )


# Cached, since many tests share them; nobody may change them.
@functools.lru_cache(maxsize=8)
def params(config, seed=0):
  """Return parameters that are random in every leaf."""
  shapes = param_shapes(config)
  rng = np.random.default_rng(seed)

  # Scales of 1 and biases of 0, as in a new model, would hide their absence.

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


def processor(config=MODEL_CONFIG, lengths=(32,)):
  """Return a processor that pads prompts to `lengths`."""
  return Processor(tokenizer(), config.vision, lengths, 64, 4096)


def collate(config, batch, length=32):
  """Return the prompts as a batch of one device."""
  packed = processor(config, (length,)).collate(batch, 1, len(batch))
  return jax.tree.map(lambda x: x[0], packed)


def random_prompt(rng, config, text, *grids):
  """Return a prompt of `text` random tokens with an image per grid of patches.

  The images stand a third of the way in, a token apart; a grid (0, 0) is none.
  """
  ids = rng.integers(6, config.vocab, text).tolist()  # Below 6: control tokens.
  position, images = text // 3, []
  for grid in grids:
    if grid != (0, 0):
      v = config.vision
      count = grid[0] * grid[1]
      # A placeholder for each merged patch.
      placeholders = [tokenizer().image_id] * (count // v.merge**2)
      ids[position:position] = placeholders
      position += len(placeholders) + 1
      patches = rng.normal(size=(count, 3 * v.temporal * v.patch**2))
      images.append(ImagePatches(patches.astype(np.float32), grid, 0))
  return EncodedPrompt(ids, tuple(images))


def random_responses(rng, config, *shape):
  """Return tokens of random responses, none of them control tokens."""
  return rng.integers(6, config.vocab, shape).astype(np.int32)
