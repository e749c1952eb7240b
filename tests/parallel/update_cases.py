"""One update under a parallel strategy, and the same on one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1router_jax.models import qwen2_5_vl
from r1router_jax.parallel import mesh as mesh_lib
from r1router_jax.parallel import multihost, strategy
from r1router_jax.training import grpo_loss, train_step
from r1router_jax.training.batch import Batch, split_microbatches
from tests import tiny_policy
from tests.training.loss_helpers import ALLOWED, make_loss_config

# With this optimizer parameters lose exactly the gradient.
OPTIMIZER = optax.sgd(1.0)

# A divergence term, so that a reference policy takes part.
LOSS = make_loss_config(
  max_response_tokens=6,
  aggregate="sequence_mean",
  kl_coef=0.1,
  entropy_coef=0.01,
)


def make_batch(data_shards, first=0, last=None):
  """Return eight groups of prompts and responses of all lengths, [D, 8 / D].

  Args:
    data_shards: D of all hosts.
    first: the first data shard to return, e.g. of a host.
    last: the one after the last data shard to return.
  """
  rng = np.random.default_rng(0)
  prompts = [
    tiny_policy.random_prompt(
      rng, tiny_policy.MODEL_CONFIG, 3 + n, *[(4, 4)] * (n // 3)
    )
    for n in range(8)
  ]
  lengths = rng.integers(1, 7, (8, 2))
  # A row of padding.
  lengths[-1] = 0
  shape = data_shards, 8 // data_shards, 2
  mask = (np.arange(6) < lengths[..., None]).reshape(*shape, 6)
  responses = tiny_policy.random_responses(
    rng, tiny_policy.MODEL_CONFIG, 8, 2, 6
  )
  whole = Batch(
    None,
    responses.reshape(mask.shape),
    mask,
    rng.normal(size=shape).astype(np.float32),
    rng.normal(-4, 1, (8, 2, 6)).astype(np.float32).reshape(mask.shape),
    mask.sum((2, 3)).astype(np.float32),
  )
  local = jax.tree.map(lambda x: x[first:last], whole)
  rows = np.arange(8).reshape(data_shards, -1)[first:last]
  return local._replace(
    prompt=tiny_policy.processor(lengths=(8, 32)).collate(
      [prompts[i] for i in rows.flat], *rows.shape, multihost.max_over_hosts
    )
  )


def _reference(params):
  return jax.tree.map(lambda x: 0.9 * x, params)


def run_update(kind, mesh, micro_batch_size):
  """Return the gradient and the metrics of one update on many devices."""
  parallel = strategy.make_strategy(kind, mesh, dict(data=-1))
  loss = functools.partial(
    grpo_loss.loss,
    qwen2_5_vl.QwenVL(tiny_policy.MODEL_CONFIG),
    LOSS,
    allowed=ALLOWED,
  )
  step = parallel.jit_train_step(
    train_step.make_train_step(loss, OPTIMIZER, "", parallel.axis_name)
  )
  params = tiny_policy.params(tiny_policy.MODEL_CONFIG)
  state = parallel.init_sharded(
    lambda params: train_step.init_train_state(params, OPTIMIZER, ""), params
  )
  reference = parallel.init_sharded(_reference, params)

  # This host's shards of the batch.
  shards = parallel.local_shards
  first = jax.process_index() * shards
  batch = make_batch(shards * jax.process_count(), first, first + shards)
  state, metrics = step(
    state, reference, split_microbatches(batch, micro_batch_size)
  )
  updated = mesh_lib.gather_to_host(parallel.to_global(state).params)
  gradient = jax.tree.map(
    lambda old, new: np.asarray(old) - new, params, updated
  )
  return gradient, jax.device_get(metrics)


@functools.lru_cache(maxsize=1)
def run_on_one_device():
  """Return gradient and metrics of the same update, as one program."""
  params = tiny_policy.params(tiny_policy.MODEL_CONFIG)
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), make_batch(1))

  def mean_loss(params):
    total, count, metrics = grpo_loss.loss(
      qwen2_5_vl.QwenVL(tiny_policy.MODEL_CONFIG),
      LOSS,
      params,
      _reference(tiny_policy.params(tiny_policy.MODEL_CONFIG)),
      batch,
      ALLOWED,
    )
    return total / count, metrics

  (loss, metrics), gradient = jax.jit(
    jax.value_and_grad(mean_loss, has_aux=True)
  )(params)
  # As the train step reports them.
  means = {name: total / count for name, (total, count) in metrics.items()}
  norm = optax.tree.norm(gradient)
  return gradient, means | dict(loss=loss, skipped=0, grad_norm=norm)
