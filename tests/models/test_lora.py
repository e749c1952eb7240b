"""Adapters: nothing at first, their product once merged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from r1router_jax.models import lora, qwen2_5_vl
from r1router_jax.training import train_step
from tests import tiny_policy

MATCH = "layers/[qkvo]$|blocks/qkv"


@pytest.fixture(scope="module")
def adapted():
  return lora.add(
    tiny_policy.params(tiny_policy.CONFIG),
    MATCH,
    rank=3,
    alpha=6.0,
    key=jax.random.key(0),
  )


def states(params):
  rng = np.random.default_rng(0)
  batch = [tiny_policy.encoded(rng, tiny_policy.CONFIG, 5, (4, 4))]
  return jax.jit(qwen2_5_vl.QwenVL(tiny_policy.CONFIG).apply)(
    {"params": params},
    tiny_policy.pack(tiny_policy.CONFIG, batch),
    tiny_policy.responses(rng, tiny_policy.CONFIG, 1, 2, 4),
  )


def test_new_adapters_change_nothing(adapted):
  flat = traverse_util.flatten_dict(adapted, sep="/")
  assert flat["layers/q/lora_a"].shape == (2, 32, 3)
  assert flat["layers/k/lora_b"].shape == (2, 3, 16)
  assert flat["vision/blocks/qkv/lora_a"].shape == (3, 16, 3)
  assert (
    len(flat)
    == len(jax.tree.leaves(tiny_policy.params(tiny_policy.CONFIG))) + 10
  )
  np.testing.assert_array_equal(
    states(adapted), states(tiny_policy.params(tiny_policy.CONFIG))
  )


def test_merged_adapters_compute_the_same(adapted):
  moved = jax.tree_util.tree_map_with_path(
    lambda path, x: x + 0.1 if path[-1].key == "lora_b" else x, adapted
  )
  merged = lora.merge(moved)
  assert jax.tree.structure(merged) == jax.tree.structure(
    tiny_policy.params(tiny_policy.CONFIG)
  )
  before, after = states(tiny_policy.params(tiny_policy.CONFIG)), states(moved)
  assert np.abs(after - before).max() > 0.05
  np.testing.assert_allclose(states(merged), after, atol=1e-4)


def test_what_fits_nothing_is_named():
  with pytest.raises(ValueError, match="lora.match 'x.' fits none.*layers/q"):
    lora.add(
      tiny_policy.params(tiny_policy.CONFIG),
      "x$",
      rank=1,
      alpha=1.0,
      key=jax.random.key(0),
    )


@pytest.mark.parametrize(
  "trainable, moves",
  [
    ("", lambda path: True),
    ("lora_", lambda path: "lora_" in path),
    ("^(?!vision/)", lambda path: not path.startswith("vision/")),
    ("norm/scale$", lambda path: path == "norm/scale"),
  ],
)
def test_only_what_is_trainable_moves(adapted, trainable, moves):
  import optax

  params = jax.tree.map(lambda x: x + 0.01, adapted)
  loss = lambda params, reference, batch: (
    sum(jnp.sum(x**2) for x in jax.tree.leaves(params)),
    jnp.float32(1),
    {},
  )
  tx = optax.adam(0.1)
  state = train_step.start(params, tx, trainable)
  new, _ = jax.jit(train_step.make(loss, tx, trainable))(
    state, None, jnp.zeros((1, 1))
  )
  flat = traverse_util.flatten_dict(params, sep="/")
  for path, leaf in traverse_util.flatten_dict(new.params, sep="/").items():
    assert bool((leaf != flat[path]).any()) == bool(moves(path)), path
  held = sum(x.size for x in jax.tree.leaves(state.opt) if x.ndim)
  assert held == 2 * sum(x.size for path, x in flat.items() if moves(path))


def test_nothing_trainable_is_named():
  with pytest.raises(ValueError, match="trainable 'x!' fits none.*embed"):
    train_step.split(tiny_policy.params(tiny_policy.CONFIG), "x!")
