"""The optimizer: schedule, decay, Muon and clipping."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from optax import contrib

from r1router_jax.common.checkpoint_folder import locate_checkpoint
from r1router_jax.policy import config as config_lib
from r1router_jax.policy import policy
from r1router_jax.training import optimizer
from r1router_jax.training.config import OptimizerConfig

OPTIONS = dict(
  lr=1e-2,
  muon_lr=2e-2,
  warmup=10,
  final=0.1,
  b2=0.98,
  weight_decay=0.0,
  clip_norm=1e9,
)


def make_params():
  rng = np.random.default_rng(0)
  return {
    "embed": jnp.asarray(rng.normal(size=(7, 4)), jnp.float32),
    "norm": jnp.ones(4),
    "layers": {"w": jnp.asarray(rng.normal(size=(2, 4, 6)), jnp.float32)},
  }


def make_grads(seed=1):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), make_params()
  )


def first_update(given=None, **options):
  """Return what the first update adds to the parameters."""
  tx = optimizer.make_optimizer(OptimizerConfig(**OPTIONS | options), 100)
  return tx.update(
    given or make_grads(), tx.init(make_params()), make_params()
  )[0]


def test_schedule_rises_then_falls():
  # Warm-up of 10 updates to 2, and then a cosine down to 0.2.
  rate = optimizer.lr_schedule(2.0, 100, 10, 0.1)
  np.testing.assert_allclose(rate(0), 0.2, rtol=1e-6)
  np.testing.assert_allclose(rate(10), 2.0, rtol=1e-6)
  np.testing.assert_allclose(  # Half-way down the cosine.
    rate(55), 0.2 + 1.8 / 2, rtol=1e-5
  )
  np.testing.assert_allclose(rate(100), 0.2, rtol=1e-5)
  np.testing.assert_allclose(rate(500), 0.2, rtol=1e-5)
  steps = [float(rate(i)) for i in range(101)]
  assert steps[:11] == sorted(steps[:11])
  assert steps[10:] == sorted(steps[10:], reverse=True)


@pytest.mark.parametrize("warmup, steps", [(0, 1), (0, 50), (5, 3)])
def test_schedule_of_a_short_run_is_finite_and_positive(warmup, steps):
  rate = optimizer.lr_schedule(1.0, steps, warmup, 0.1)
  values = [float(rate(i)) for i in range(steps + 2)]
  assert np.isfinite(values).all() and min(values) > 0


def test_first_adamw_update_is_the_sign_of_the_gradient():
  step = first_update(name="adamw")
  rate = float(optimizer.lr_schedule(1e-2, 100, 10, 0.1)(0))
  jax.tree.map(
    lambda s, g: np.testing.assert_allclose(s, -rate * np.sign(g), rtol=1e-3),
    step,
    make_grads(),
  )


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_is_for_matrices_only(name):
  with_decay = first_update(name=name, weight_decay=0.5)
  without = first_update(name=name)
  change = jax.tree.map(lambda a, b: np.abs(a - b).max(), with_decay, without)
  assert change["norm"] == 0
  assert change["layers"]["w"] > 1e-4
  assert (change["embed"] > 1e-4) == (name == "adamw")


@functools.cache
def warm_start_params():
  """Ones in the shapes of the policy that comes with the package."""
  config = config_lib.read_config(locate_checkpoint("warm_start"))
  init = functools.partial(policy.init_params, config)
  shapes = jax.eval_shape(init, jax.random.key(0))
  return jax.tree.map(lambda x: jnp.ones(x.shape, jnp.float32), shapes)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_norms_and_biases_of_a_policy_do_not_decay(name):
  """Without gradients only decay moves parameters, by its rate."""
  params = warm_start_params()
  options = OPTIONS | dict(name=name, weight_decay=0.5, warmup=0)
  tx = optimizer.make_optimizer(OptimizerConfig(**options), 100)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zeros, tx.init(params), params)
  flat = traverse_util.flatten_dict(updates, sep="/")
  # Under Muon those that it moves.
  matrices, rate = {
    "adamw": (r"embed|.*/w", 1e-2),
    "muon": (r"(layers|vision/blocks)/.*/w", 2e-2),
  }[name]
  for path, update in flat.items():
    wanted = -0.5 * rate if re.fullmatch(matrices, path) else 0.0
    np.testing.assert_allclose(update, wanted, rtol=1e-5, err_msg=path)
  # Stacked norms have two axes.
  stacked = [x for path, x in flat.items() if path.endswith("scale")]
  assert max(x.ndim for x in stacked) == 2


def test_muon_is_beside_nadam():
  """Matrices move as by Muon alone, the rest as by NAdam alone."""
  rate = functools.partial(optimizer.lr_schedule, steps=9, warmup=2, final=0.5)
  stacked = contrib.MuonDimensionNumbers((1,), (2,))
  alone = {
    "layers": contrib.muon(rate(2e-2), muon_weight_dimension_numbers=stacked),
    "embed": optax.nadam(rate(1e-2), b2=0.98),
  }
  alone["norm"] = alone["embed"]
  options = OPTIONS | dict(name="muon", warmup=2, final=0.5)
  tx = optimizer.make_optimizer(OptimizerConfig(**options), 9)
  params, state = make_params(), tx.init(make_params())
  states = {key: rule.init(params[key]) for key, rule in alone.items()}
  for seed in range(3):
    grads = make_grads(seed)
    updates, state = tx.update(grads, state, params)
    for key, rule in alone.items():
      wanted, states[key] = rule.update(grads[key], states[key], params[key])
      jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6),
        updates[key],
        wanted,
      )


def test_muon_updates_each_matrix_by_an_orthogonal_one():
  step = first_update(name="muon")["layers"]["w"]
  for layer in range(2):
    # Newton-Schulz is approximate: singular values are only nearly equal.
    values = np.linalg.svd(step[layer], compute_uv=False)
    assert values.max() / values.min() < 2.0  # Newton-Schulz is approximate.
  # One layer's gradient does not move another's matrix.
  other = make_grads() | {
    "layers": {"w": make_grads()["layers"]["w"].at[1].multiply(-3.0)}
  }
  np.testing.assert_allclose(
    first_update(other, name="muon")["layers"]["w"][0], step[0], atol=1e-6
  )


def test_large_gradients_are_clipped_by_global_norm():
  """Once both are clipped, twice the gradient gives the same state."""
  for name in ("adamw", "muon"):
    big = jax.tree.map(lambda g: 1e3 * g, make_grads())
    bigger = jax.tree.map(lambda g: 2e3 * g, make_grads())
    tx = optimizer.make_optimizer(
      OptimizerConfig(**OPTIONS | dict(name=name, clip_norm=1.0)), 100
    )
    # The states after one update of each.
    one, two = (
      tx.update(g, tx.init(make_params()), make_params())[1]
      for g in (big, bigger)
    )
    norm = optax.tree.norm(
      optax.tree_utils.tree_get_all_with_path(one, "mu")[0][1]
    )
    assert norm < 1.0
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), one, two
    )
