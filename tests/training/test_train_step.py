"""The train step: a bad batch changes nothing but its count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1router_jax.training import train_step


def loss(params, reference, batch):
  assert reference is None
  fit = jnp.sum((params["w"] * batch["x"] - batch["y"]) ** 2)
  return fit, jnp.float32(batch["x"].size), {"fit": (fit, jnp.float32(1))}


def make_batch(x, y):
  """Return a batch of one microbatch of four numbers."""
  return {
    "x": np.full((1, 4), x, np.float32),
    "y": np.full((1, 4), y, np.float32),
  }


GOOD = make_batch(1, 3)

# The loss is not finite, or only the gradient of a finite loss.
BAD = {"loss": make_batch(np.nan, 3), "gradient": make_batch(1e15, 3)}


@pytest.mark.parametrize("bad", BAD)
def test_update_that_is_not_finite_is_skipped_and_counted(bad):
  optimizer = optax.adam(0.1)
  step = jax.jit(train_step.make_train_step(loss, optimizer, ""))
  state = train_step.init_train_state(
    {"w": np.zeros(4, np.float32)}, optimizer, ""
  )

  # A good batch, then two bad ones.
  good, metrics = step(state, None, GOOD)
  assert metrics["skipped"] == 0 and np.all(good.params["w"] > 0)
  state = good
  for n in (1, 2):
    state, metrics = step(state, None, BAD[bad])
    assert metrics["skipped"] == state.skipped == n
    assert not np.isfinite(metrics["loss"] + metrics["grad_norm"])
  jax.tree.map(
    np.testing.assert_array_equal,
    (state.params, state.opt),
    (good.params, good.opt),
  )
  # Steps are counted, so that the next iteration has another batch.
  assert state.step == 3

  # The next good batch acts as if the bad ones had not been.
  after, metrics = step(state, None, GOOD)
  assert metrics["skipped"] == 0
  jax.tree.map(
    np.testing.assert_array_equal,
    after.params,
    step(good, None, GOOD)[0].params,
  )


@pytest.mark.parametrize("rate", [np.inf, np.nan])
def test_update_that_is_not_finite_itself_counts_as_skipped(rate):
  optimizer = optax.chain(optax.scale_by_adam(), optax.scale(-rate))
  step = jax.jit(train_step.make_train_step(loss, optimizer, ""))
  params = {"w": np.zeros(4, np.float32)}
  state = train_step.init_train_state(params, optimizer, "")
  state, metrics = step(state, None, GOOD)
  # Loss and gradient are those of any good batch.
  assert np.isfinite(metrics["loss"] + metrics["grad_norm"])
  assert metrics["skipped"] == state.skipped == state.step == 1
  # Nothing learns from such parameters.
  _, metrics = step(state, None, GOOD)
  assert metrics["skipped"] == 2


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_microbatches_give_the_same_update(rows):
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(2, 8, 4)).astype(np.float32)
  optimizer = optax.sgd(0.1)

  def run_step(rows):
    """Return weights, loss and gradient norm after one step."""
    params = {"w": np.ones(4, np.float32)}
    step = jax.jit(train_step.make_train_step(loss, optimizer, ""))
    state, metrics = step(
      train_step.init_train_state(params, optimizer, ""),
      None,
      {"x": x.reshape(-1, rows, 4), "y": y.reshape(-1, rows, 4)},
    )
    return state.params["w"], metrics["loss"], metrics["grad_norm"]

  grad = 2 * np.sum((x - y) * x, 0) / x.size
  np.testing.assert_allclose(run_step(rows)[0], 1 - 0.1 * grad, rtol=1e-5)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5),
    run_step(rows),
    run_step(8),
  )
