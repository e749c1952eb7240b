"""A planted policy continues what it has seen; an ordinary start does not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.models import induction_init, qwen2_5_vl
from tests import tiny_policy

# The head size matters: fast frequencies find the neighbour, slow ones carry
# the content.  Of the sizes of configs/sft.py, but for the layers.
CONFIG = dataclasses.replace(
  tiny_policy.CONFIG,
  vocab=512,
  hidden=128,
  mlp=32,
  layers=2,
  heads=4,
  kv_heads=4,
  mrope_section=(4, 6, 6),
  theta=1e6,
  tied=True,
)

LENGTH = 24


def fresh(config):
  """Parameters as `init` makes them; only the decoder's matter here."""
  prompt = tiny_policy.pack(config, [tiny_policy.Encoded([7])], length=2)
  return jax.jit(qwen2_5_vl.QwenVL(config).init)(
    jax.random.key(0), prompt, np.zeros((1, 1, 2), np.int32)
  )["params"]


def share_continued(params, seed=0):
  """How often the second half of a repeated random sequence is foretold."""
  rng = np.random.default_rng(seed)
  half = np.stack(
    [rng.permutation(np.arange(6, 512))[:LENGTH] for _ in range(16)]
  ).astype(np.int32)
  twice = np.concatenate([half, half], 1)[:, None]
  batch = [tiny_policy.Encoded([4])] * len(twice)  # The prompt says nothing.
  prompt = jax.tree.map(jnp.asarray, tiny_policy.pack(CONFIG, batch, length=2))
  model = qwen2_5_vl.QwenVL(CONFIG)
  states = jax.jit(
    lambda params: model.apply({"params": params}, prompt, jnp.asarray(twice))
  )(params)
  guess = np.asarray(states @ params["embed"].T).argmax(-1)
  again = slice(LENGTH + 2, None)  # After two tokens that stood before.
  return np.mean((guess == twice)[..., again])


def test_a_planted_start_continues_what_repeats():
  params = fresh(CONFIG)
  planted = induction_init.plant(params, CONFIG, 0)
  assert jax.tree.map(jnp.shape, planted) == jax.tree.map(jnp.shape, params)
  assert share_continued(planted) >= 0.85
  assert share_continued(params) <= 0.02


@pytest.mark.parametrize(
  "change", [dict(tied=False), dict(kv_heads=2), dict(layers=1)]
)
def test_other_shapes_are_refused(change):
  with pytest.raises(ValueError, match="config.policy.induction wants"):
    induction_init.plant({}, dataclasses.replace(CONFIG, **change), 0)
