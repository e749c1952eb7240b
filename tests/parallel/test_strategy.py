"""One update, however it lies on the devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1router_jax.models import qwen2_5_vl
from r1router_jax.parallel import mesh as mesh_lib
from r1router_jax.parallel import multihost, strategy
from r1router_jax.training import grpo_loss, train_step
from r1router_jax.training.batch import Batch, in_passes
from tests import tiny_policy, two_processes

TX = optax.sgd(1.0)  # What parameters lose is the gradient.

ALLOWED = jnp.arange(tiny_policy.CONFIG.vocab) != 5


def batch(parts, first=0, last=None):
  """Eight groups, of prompts and responses of all lengths: [D, 8 / D, ...].

  Shares `first` to `last`, as the host packs them whose they are.
  """
  rng = np.random.default_rng(0)
  prompts = [
    tiny_policy.encoded(rng, tiny_policy.CONFIG, 3 + n, *[(4, 4)] * (n // 3))
    for n in range(8)
  ]
  lengths = rng.integers(1, 7, (8, 2))
  lengths[-1] = 0
  shape = parts, 8 // parts, 2
  mask = (np.arange(6) < lengths[..., None]).reshape(*shape, 6)
  share = jax.tree.map(
    lambda x: x[first:last],
    Batch(
      None,
      tiny_policy.responses(rng, tiny_policy.CONFIG, 8, 2, 6).reshape(
        mask.shape
      ),
      mask,
      rng.normal(size=shape).astype(np.float32),
      rng.normal(-4, 1, (8, 2, 6)).astype(np.float32).reshape(mask.shape),
      mask.sum((2, 3)).astype(np.float32),
    ),
  )
  rows = np.arange(8).reshape(parts, -1)[first:last]
  return share._replace(
    prompt=tiny_policy.packer(lengths=(8, 32)).pack(
      [prompts[i] for i in rows.flat], *rows.shape, multihost.most
    )
  )


def updated(kind, mesh, rows):
  """Gradient and metrics, with a penalty so that a reference takes part."""
  driver = strategy.make(kind, mesh, dict(data=-1))
  what = grpo_loss.Objective(
    0.8, 6, 0.2, 0.28, "sequence_mean", "k3", 0.1, 0.01
  )
  loss = functools.partial(
    grpo_loss.loss, qwen2_5_vl.QwenVL(tiny_policy.CONFIG), what, allowed=ALLOWED
  )
  learn = driver.compile(train_step.make(loss, TX, "", driver.axis))
  params = tiny_policy.params(tiny_policy.CONFIG)
  state = driver.born(
    functools.partial(train_step.start, tx=TX, trainable=""), params
  )
  reference = driver.born(
    lambda tree: jax.tree.map(lambda x: 0.9 * x, tree), params
  )
  first = jax.process_index() * driver.parts
  share = batch(driver.parts * jax.process_count(), first, first + driver.parts)
  state, metrics = learn(state, reference, in_passes(share, rows))
  after = mesh_lib.whole(driver.shared(state).params)
  return jax.tree.map(
    lambda old, new: np.asarray(old) - new, params, after
  ), jax.device_get(metrics)


@functools.lru_cache(maxsize=1)
def alone():
  """The same by one program on one device."""
  what = grpo_loss.Objective(
    0.8, 6, 0.2, 0.28, "sequence_mean", "k3", 0.1, 0.01
  )
  params = tiny_policy.params(tiny_policy.CONFIG)
  one = jax.tree.map(lambda x: jnp.asarray(x[0]), batch(1))

  def mean(params):
    total, count, metrics = grpo_loss.loss(
      qwen2_5_vl.QwenVL(tiny_policy.CONFIG),
      what,
      params,
      jax.tree.map(lambda x: 0.9 * x, tiny_policy.params(tiny_policy.CONFIG)),
      one,
      ALLOWED,
    )
    return total / count, metrics

  (value, metrics), grads = jax.jit(jax.value_and_grad(mean, has_aux=True))(
    params
  )
  return grads, {n: total / count for n, (total, count) in metrics.items()} | {
    "loss": value,
    "skipped": 0,
    "grad_norm": optax.tree.norm(grads),
  }


@pytest.mark.slow
@pytest.mark.parametrize(
  "kind, mesh, rows",
  [
    ("pmap", dict(data=-1), 0),
    ("fsdp", dict(data=2, fsdp=2, tensor=2), 2),
    ("fsdp", dict(data=1, fsdp=2, tensor=4), 1),
    ("fsdp", dict(data=1, fsdp=2, tensor=4), 4),
  ],
)
def test_every_layout_has_the_gradient_of_one_device(kind, mesh, rows):
  """And every number of rows that a pass may have."""
  grads, metrics = updated(kind, mesh, rows)
  wanted, said = alone()
  assert metrics.keys() == said.keys()
  for name, value in said.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5)
  assert np.abs(grads["layers"]["q"]["w"]).max() > 1e-3
  # Sums are rounded otherwise where they are added in another order.
  jax.tree.map(
    lambda got, want: np.testing.assert_allclose(
      got, want, rtol=1e-3, atol=1e-5 * np.abs(want).max()
    ),
    grads,
    jax.tree.map(np.asarray, wanted),
  )


CHILD = """
import jax, numpy as np
from r1router_jax import pods
pods.join_pod()
from tests import test_drivers
grads, metrics = test_drivers.updated("pmap", dict(data=4), 0)
wanted, said = test_drivers.alone()
worst = max(jax.tree.leaves(jax.tree.map(
    lambda got, want: float(np.max(
        np.abs(got - want) / (np.abs(want) + 0.02))), grads, wanted)))
print("worst", worst, abs(metrics["loss"] / said["loss"] - 1))
"""


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tmp_path):
  """Under pmap; tests/test_train.py has the other driver."""
  for text in two_processes.run(CHILD, tmp_path, timeout=400):
    worst, loss = map(float, re.search(r"worst (\S+) (\S+)", text).groups())
    assert worst < 1e-3 and loss < 1e-4, text


@pytest.mark.parametrize(
  "kind, mesh, rollout, says",
  [
    ("fsdp", dict(data=3), {}, "config.mesh .*does not tile 8 devices"),
    ("pmap", dict(data=4, fsdp=2), {}, "'pmap' keeps them whole .*'fsdp'"),
    ("fsdp", dict(data=8), dict(data=3), "config.rollout_mesh .*not tile"),
    ("ddp", dict(data=8), {}, "config.parallel is 'ddp'"),
  ],
)
def test_what_no_driver_can_do_is_said(kind, mesh, rollout, says):
  with pytest.raises(ValueError, match=says):
    strategy.make(kind, mesh, rollout or dict(data=-1))
