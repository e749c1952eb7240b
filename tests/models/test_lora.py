"""LoRA adapters: no change at first, the same function once merged."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from r1router_jax.models import lora, qwen2_5_vl
from r1router_jax.training import train_step
from tests import tiny_policy

CONFIG = tiny_policy.MODEL_CONFIG

MATCH = "layers/[qkvo]$|blocks/qkv"


@pytest.fixture(scope="module")
def params_with_adapters():
  return lora.add_adapters(
    tiny_policy.params(CONFIG), MATCH, rank=3, alpha=6.0, key=jax.random.key(0)
  )


def compute_states(params):
  rng = np.random.default_rng(0)
  batch = [tiny_policy.random_prompt(rng, CONFIG, 5, (4, 4))]
  return jax.jit(qwen2_5_vl.QwenVL(CONFIG).apply)(
    {"params": params},
    tiny_policy.collate(CONFIG, batch),
    tiny_policy.random_responses(rng, CONFIG, 1, 2, 4),
  )


def test_new_adapters_change_nothing(params_with_adapters):
  flat = traverse_util.flatten_dict(params_with_adapters, sep="/")
  assert flat["layers/q/lora_a"].shape == (2, 32, 3)
  assert flat["layers/k/lora_b"].shape == (2, 3, 16)
  assert flat["vision/blocks/qkv/lora_a"].shape == (3, 16, 3)
  plain = tiny_policy.params(CONFIG)
  assert len(flat) == len(jax.tree.leaves(plain)) + 10
  states = compute_states(params_with_adapters)
  np.testing.assert_array_equal(states, compute_states(plain))


def test_merged_adapters_compute_the_same(params_with_adapters):
  # b is 0 at first: only another value shows that a b is added.
  moved = jax.tree_util.tree_map_with_path(
    lambda path, x: x + 0.1 if path[-1].key == "lora_b" else x,
    params_with_adapters,
  )
  merged, plain = lora.merge_adapters(moved), tiny_policy.params(CONFIG)
  assert jax.tree.structure(merged) == jax.tree.structure(plain)
  before = compute_states(plain)
  after = compute_states(moved)
  assert np.abs(after - before).max() > 0.05
  np.testing.assert_allclose(compute_states(merged), after, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_merge_rounds_once(dtype):
  rng = np.random.default_rng(0)
  shapes = dict(w=(2, 16, 8), lora_a=(2, 16, 3), lora_b=(2, 3, 8))
  layer = {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in shapes.items()}
  merged = lora.merge_adapters({"q": layer})["q"]["w"]
  exact = {name: np.asarray(x, np.float64) for name, x in layer.items()}
  exact = exact["w"] + exact["lora_a"] @ exact["lora_b"]
  assert merged.dtype == dtype
  wanted = np.asarray(jnp.asarray(exact, dtype), np.float32)
  np.testing.assert_allclose(np.asarray(merged, np.float32), wanted, rtol=3e-6)


def test_a_match_of_no_layer_is_named():
  params, options = tiny_policy.params(CONFIG), dict(rank=1, alpha=1.0)
  with pytest.raises(ValueError, match="lora.match 'x.' fits none.*layers/q"):
    lora.add_adapters(params, "x$", key=jax.random.key(0), **options)


@pytest.mark.parametrize(
  "trainable, moves",
  [
    ("", lambda path: True),
    ("lora_", lambda path: "lora_" in path),
    ("^(?!vision/)", lambda path: not path.startswith("vision/")),
    ("norm/scale$", lambda path: path == "norm/scale"),
  ],
)
def test_only_trainable_leaves_change(params_with_adapters, trainable, moves):
  params = jax.tree.map(lambda x: x + 0.01, params_with_adapters)

  def sum_of_squares(params, reference, batch):
    total = sum(jnp.sum(x**2) for x in jax.tree.leaves(params))
    return total, jnp.float32(1), {}

  # Adam changes every parameter that has a gradient.
  optimizer = optax.adam(0.1)
  state = train_step.init_train_state(params, optimizer, trainable)
  step = train_step.make_train_step(sum_of_squares, optimizer, trainable)
  new, _ = jax.jit(step)(state, None, jnp.zeros((1, 1)))
  flat = traverse_util.flatten_dict(params, sep="/")
  for path, leaf in traverse_util.flatten_dict(new.params, sep="/").items():
    assert bool((leaf != flat[path]).any()) == bool(moves(path)), path
  # Two moments for each parameter that is trained, and none for the others.
  moments = sum(x.size for x in jax.tree.leaves(state.opt) if x.ndim)
  assert moments == 2 * sum(x.size for path, x in flat.items() if moves(path))


def test_a_trainable_regex_that_fits_nothing_is_named():
  with pytest.raises(ValueError, match="trainable_regex 'x!' fits none.*embed"):
    train_step.partition_params(tiny_policy.params(CONFIG), "x!")
