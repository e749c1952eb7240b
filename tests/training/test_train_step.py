"""One step of the optimiser: a bad batch changes nothing but its count."""

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


def batch(x, y):
  return {
    "x": np.full((1, 4), x, np.float32),
    "y": np.full((1, 4), y, np.float32),
  }


GOOD = batch(1, 3)

BAD = {  # The loss, and the gradient of a loss that is finite.
  "loss": batch(np.nan, 3),
  "gradient": batch(1e15, 3),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_not_finite_is_skipped_and_counted(bad):
  tx = optax.adam(0.1)
  step = jax.jit(train_step.make(loss, tx, ""))
  state = train_step.start({"w": np.zeros(4, np.float32)}, tx, "")
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
  assert state.step == 3  # The next batch is another.
  after, metrics = step(state, None, GOOD)
  assert metrics["skipped"] == 0
  jax.tree.map(
    np.testing.assert_array_equal,
    after.params,
    step(good, None, GOOD)[0].params,
  )


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_passes_of_fewer_rows_give_the_same_update(rows):
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(2, 8, 4)).astype(np.float32)
  tx = optax.sgd(0.1)

  def after(rows):
    split = lambda a: a.reshape(-1, rows, 4)
    state, metrics = jax.jit(train_step.make(loss, tx, ""))(
      train_step.start({"w": np.ones(4, np.float32)}, tx, ""),
      None,
      {"x": split(x), "y": split(y)},
    )
    return state.params["w"], metrics["loss"], metrics["grad_norm"]

  grad = 2 * np.sum((x - y) * x, 0) / x.size
  np.testing.assert_allclose(after(rows)[0], 1 - 0.1 * grad, rtol=1e-5)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5),
    after(rows),
    after(8),
  )
