"""Planted induction heads continue repeated text; a random start does not."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.models import induction_init, qwen2_5_vl
from tests import tiny_policy
from tests.tiny_policy import EncodedPrompt

# The head size matters: fast frequencies find the neighbour, slow ones carry
# the content.  Sizes are those of configs/sft.py, but for fewer layers.
SIZES = dict(vocab=512, hidden=128, mlp=32, layers=2, heads=4, kv_heads=4)
CONFIG = replace(
  tiny_policy.MODEL_CONFIG,
  **SIZES,
  mrope_section=(4, 6, 6),
  theta=1e6,
  tied=True,
)

LENGTH = 24


def init_params(config):
  """Return random parameters; only those of the decoder matter here."""
  prompt = tiny_policy.collate(config, [EncodedPrompt([7])], length=2)
  return jax.jit(qwen2_5_vl.QwenVL(config).init)(
    jax.random.key(0), prompt, np.zeros((1, 1, 2), np.int32)
  )["params"]


def continued_fraction(params, seed=0):
  """Return how often the second half of a repeated sequence is predicted."""
  rng = np.random.default_rng(seed)
  half = [rng.permutation(np.arange(6, 512))[:LENGTH] for _ in range(16)]
  twice = np.concatenate([half, half], 1)[:, None].astype(np.int32)
  batch = [EncodedPrompt([4])] * len(twice)  # The prompt says nothing.
  prompt = tiny_policy.collate(CONFIG, batch, length=2)
  prompt = jax.tree.map(jnp.asarray, prompt)
  model = qwen2_5_vl.QwenVL(CONFIG)
  states = jax.jit(
    lambda params: model.apply({"params": params}, prompt, jnp.asarray(twice))
  )(params)
  # Logits by the tied embedding.
  guess = np.asarray(states @ params["embed"].T).argmax(-1)
  again = slice(LENGTH + 2, None)  # After two tokens that stood before.
  return np.mean((guess == twice)[..., again])


def test_planted_heads_continue_repeated_sequences():
  params = init_params(CONFIG)
  planted = induction_init.plant_induction_heads(params, CONFIG, 0)
  assert jax.tree.map(jnp.shape, planted) == jax.tree.map(jnp.shape, params)
  assert continued_fraction(planted) >= 0.85
  assert continued_fraction(params) <= 0.02


@pytest.mark.parametrize(
  "change", [dict(tied=False), dict(kv_heads=2), dict(layers=1)]
)
def test_unsupported_shapes_are_refused(change):
  with pytest.raises(ValueError, match="config.policy.induction wants"):
    induction_init.plant_induction_heads({}, replace(CONFIG, **change), 0)


def test_embeddings_begin_with_meanings_and_still_copy():
  params = init_params(CONFIG)
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(500, 40)).astype(np.float32)
  vectors[300:400] = vectors[200:300]  # Words of the same meaning.
  vectors[:20] = 0  # Control tokens.
  plain, planted = (
    induction_init.plant_induction_heads(params, CONFIG, 0, meanings)
    for meanings in (None, vectors)
  )
  assert continued_fraction(planted) >= 0.85
  # Tokens without a meaning keep their embeddings, and all keep their lengths.
  before, after = np.asarray(plain["embed"]), np.asarray(planted["embed"])
  np.testing.assert_array_equal(before[:20], after[:20])
  np.testing.assert_array_equal(before[500:], after[500:])
  lengths = np.linalg.norm(after, axis=1) / np.linalg.norm(before, axis=1)
  assert 0.8 < lengths.min() and lengths.max() < 1.4

  def mean_cosine(one, other):
    unit = after / np.linalg.norm(after, axis=1, keepdims=True)
    return np.mean(np.sum(unit[one] * unit[other], 1))

  same, other = np.arange(300, 400), np.arange(400, 500)
  assert mean_cosine(np.arange(200, 300), same) > 0.3
  assert abs(mean_cosine(np.arange(200, 300), other)) < 0.1
