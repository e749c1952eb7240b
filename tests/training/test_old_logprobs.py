"""Log-probabilities before the updates: the trainer's, in 16 bits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.generation.token_sampling import SamplingParams
from r1router_jax.parallel import strategy
from r1router_jax.policy.policy import Policy
from r1router_jax.training import grpo_loss, old_logprobs
from r1router_jax.training.batch import Batch
from tests import tiny_policy
from tests.train_runs import make_run_config
from tests.training.loss_helpers import make_loss_config

TEMPERATURE = 0.8


@functools.lru_cache
def make_policy(dtype):
  """Return a policy with random weights that computes in a dtype."""
  known = tiny_policy.POLICY_CONFIG
  compute = dataclasses.replace(known.compute, dtype=dtype)
  params = tiny_policy.params(tiny_policy.FULL_VOCAB_CONFIG)
  known = dataclasses.replace(known, compute=compute)
  return Policy(known, tiny_policy.TOKENIZER, params)


@functools.lru_cache
def sample_batch(dtype, data_shards=1):
  """Return eight groups that the policy samples, [D, 8 / D]."""
  policy, rng = make_policy(dtype), np.random.default_rng(0)
  sizes = [3 + n for n in range(8)]
  prompts = [
    tiny_policy.random_prompt(rng, policy.config.model, n) for n in sizes
  ]
  sampling = SamplingParams(TEMPERATURE)
  sampled = policy.sample(prompts, jax.random.key(3), 2, sampling)
  rows = data_shards, 8 // data_shards

  def split(x):
    return x.reshape(*rows, *x.shape[1:])

  return Batch(
    policy.processor.collate(prompts, *rows),
    split(sampled.tokens),
    split(sampled.mask),
    np.ones((*rows, 2), np.float32),
    split(sampled.logp),
    np.ones(rows, np.float32),
  )


def read_metrics(config, batch):
  """Return the metrics of each token that the loss has, shard by shard."""
  policy = make_policy("bfloat16")
  allowed = jnp.asarray(policy.allowed_tokens)

  @jax.jit
  def metrics_of(params, batch):
    def metrics_of_shard(batch):
      known = policy.model, TEMPERATURE, params, batch
      logp, entropy = grpo_loss.policy_logp(*known, allowed)
      return grpo_loss.token_loss(config, logp, entropy, None, batch)[1]

    return jax.lax.map(metrics_of_shard, batch)

  metrics = metrics_of(policy.params, jax.tree.map(jnp.asarray, batch))
  return {name: np.asarray(x)[batch.mask] for name, x in metrics.items()}


def recompute(dtype, kind, mesh, micro_batch_size):
  """Return the batch of a strategy with the trainer's log-probabilities."""
  policy = make_policy(dtype)
  devices = strategy.make_strategy(kind, mesh, dict(data=-1))
  params = devices.init_sharded(lambda params: params, policy.params)
  function = old_logprobs.make_recompute(
    policy, devices, TEMPERATURE, micro_batch_size
  )
  return function(params, sample_batch(dtype, devices.local_shards))


@pytest.mark.slow
def test_ratio_before_updates_is_one_in_16_bits():
  batch = sample_batch("bfloat16", 8)
  # By the sampler's numbers the policy seems to have changed.
  before = read_metrics(make_loss_config(), batch)
  assert np.abs(before["ratio"] - 1).max() > 1e-3
  assert "sampler_drift" not in before

  # One update an iteration: by construction.
  once = read_metrics(make_loss_config(on_policy=True), batch)
  assert (once["ratio"] == 1).all() and not once["logp_drift"].any()
  drift = before["logp_drift"].mean()
  np.testing.assert_allclose(once["sampler_drift"].mean(), drift, rtol=0.1)

  # Several: by the trainer's own numbers.
  own = recompute("bfloat16", "pmap", dict(data=-1), 0)
  np.testing.assert_array_equal(own.sampler_logp, batch.old_logp)
  several = read_metrics(make_loss_config(), own)
  assert several["logp_drift"].mean() < drift / 10
  np.testing.assert_allclose(several["sampler_drift"].mean(), drift, rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
  "kind, mesh, micro_batch_size",
  [
    ("pmap", dict(data=-1), 0),
    ("fsdp", dict(data=2, fsdp=2, tensor=2), 1),
    ("fsdp", dict(data=1, fsdp=2, tensor=4), 2),
  ],
)
def test_old_log_probabilities_are_those_of_one_device(
  kind, mesh, micro_batch_size
):
  batch = recompute("float32", kind, mesh, micro_batch_size)
  policy, whole = make_policy("float32"), sample_batch("float32")
  rows = jax.tree.map(lambda x: jnp.asarray(x[0]), whole)
  known = policy.model, TEMPERATURE, policy.params, rows
  wanted, _ = jax.jit(grpo_loss.policy_logp, static_argnums=(0, 1))(
    *known, jnp.asarray(policy.allowed_tokens)
  )
  mask = np.asarray(rows.mask)
  got = batch.old_logp.reshape(mask.shape)
  np.testing.assert_allclose(got[mask], wanted[mask], atol=2e-5)
  assert not got[~mask].any()
  # In float32 they are the sampler's.
  drift = np.abs(got - batch.sampler_logp.reshape(mask.shape))[mask]
  assert drift.max() < 1e-4


def test_policies_of_16_bits_alone_give_up_the_samplers_numbers():
  def is_on_policy(dtype, minibatches):
    run = make_run_config("step_grpo", **{"step_grpo.minibatches": minibatches})
    policy = make_policy(dtype).config
    return grpo_loss.make_loss_config(run.step_grpo, policy).on_policy

  assert is_on_policy("bfloat16", 1)
  assert not is_on_policy("bfloat16", 2) and not is_on_policy("float32", 1)
