"""The objectives and the loss, against loops and against PyTorch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from r1router_jax.generation import logprobs
from r1router_jax.models import qwen2_5_vl
from r1router_jax.training import grpo_loss
from r1router_jax.training.advantages import group_advantages
from r1router_jax.training.batch import Batch
from tests import tiny_policy
from tests.train_runs import make_run_config
from tests.training.loss_helpers import (
  ALLOWED,
  loss_oracle,
  make_loss_config,
)

CONFIG = tiny_policy.MODEL_CONFIG

MODEL = qwen2_5_vl.QwenVL(CONFIG)

# ---- The loss of tokens.


def make_example(seed, shape=(3, 4, 5)):
  """Return logp, entropy, reference logp and a batch without prompts."""
  rng = np.random.default_rng(seed)
  old_logp = rng.normal(-1, 1, shape)
  logp = old_logp + 0.4 * rng.normal(size=shape)
  lengths = rng.integers(1, shape[2] + 1, shape[:2])
  # The first response is padding.
  lengths[0, 0] = 0
  mask = np.arange(shape[2]) < lengths[..., None]

  def single(x):
    return jnp.asarray(x, jnp.float32)

  entropy = single(rng.random(shape))
  reference = single(logp + 0.4 * rng.normal(size=shape))
  advantage = single(rng.normal(size=shape[:2]))
  sampler_logp = single(old_logp + 0.2 * rng.normal(size=shape))
  known = jnp.asarray(mask), advantage, single(old_logp), jnp.ones(shape[0])
  batch = Batch(None, None, *known, sampler_logp=sampler_logp)
  return single(logp), entropy, reference, batch


# As published.
OBJECTIVES = {
  "grpo": dict(
    clip_low=0.2, clip_high=0.28, aggregate="token_mean", dual_clip=3.0
  ),
  "dr_grpo": dict(
    clip_low=0.2, clip_high=0.2, aggregate="fixed_length", dual_clip=3.0
  ),
  "gspo": dict(clip_low=3e-4, clip_high=4e-4, aggregate="sequence_mean"),
  "cispo": dict(clip_low=1.0, clip_high=4.0, aggregate="token_mean"),
  "sapo": dict(clip_low=None, clip_high=None, aggregate="sequence_mean"),
  "dppo": dict(clip_low=0.2, clip_high=0.2, aggregate="token_mean"),
}

ALL_CONFIGS = [
  make_loss_config(
    aggregate=aggregate, kl=kl, kl_coef=beta, entropy_coef=epsilon
  )
  for aggregate in ("token_mean", "sequence_mean", "fixed_length")
  for kl, beta in (("k2", 0.1), ("k3", 0.1), ("k3", 0.0))
  for epsilon in (0.0, 0.01)
]

# Each alone, with penalties, and with pi_old of the update itself.
ALL_CONFIGS += [
  make_loss_config(objective=name, **own, **more)
  for name, own in OBJECTIVES.items()
  for more in ({}, dict(kl_coef=0.1, entropy_coef=0.01), dict(on_policy=True))
]

# Bounds that some tokens reach and others do not.
NARROW = dict(clip_low=0.2, clip_high=0.2)

ALL_CONFIGS += [
  make_loss_config(objective=name, **more)
  for name, more in (
    ("gspo", dict(dual_clip=1.1, aggregate="token_mean")),
    ("grpo", dict(dual_clip=1.5, aggregate="sequence_mean")),
    ("cispo", dict(aggregate="fixed_length")),
    ("dppo", dict(clip_low=0.05, clip_high=0.05)),
  )
]

ALL_CONFIGS += [
  make_loss_config(objective=name, importance_cap=1.1, **NARROW, **more)
  for name in ("grpo", "gspo", "cispo", "sapo")
  for more in ({}, dict(on_policy=True))
]


def name_config(config):
  return "-".join(map(str, dataclasses.astuple(config)[2:]))


def value_and_gradient(config, logp, entropy, reference, batch):
  """Return numerator, gradient by log-probabilities, and metrics."""

  def loss(logp):
    return grpo_loss.token_loss(config, logp, entropy, reference, batch)

  (total, metrics), grad = jax.value_and_grad(loss, has_aux=True)(logp)
  return total, grad, metrics


@pytest.mark.parametrize("config", ALL_CONFIGS, ids=name_config)
def test_token_loss_is_its_formula(config):
  tokens = make_example(3)
  wanted, slopes, clipped, size = loss_oracle(config, *tokens)
  total, grad, metrics = value_and_gradient(config, *tokens)
  assert_allclose(total, wanted, rtol=1e-5, atol=1e-6)
  assert_allclose(grad, slopes, rtol=1e-5, atol=1e-6)
  batch = tokens[-1]
  assert int(metrics["clipped"][batch.mask].sum()) == clipped
  assert config.loss_denominator(np.asarray(batch.mask)).sum() == size
  assert ("kl" in metrics) == (config.kl_coef != 0)
  assert config.has_penalty == (config.kl_coef + config.entropy_coef > 0)
  # A row at a time gives the same sums.
  parts = [
    value_and_gradient(
      config, *jax.tree.map(lambda x, n=n: x[n : n + 1], tokens)
    )
    for n in range(3)
  ]
  assert_allclose(sum(part[0] for part in parts), total, rtol=1e-5, atol=1e-6)
  rows = np.concatenate([part[1] for part in parts])
  assert_allclose(rows, grad, rtol=1e-6, atol=1e-7)


def torch_objective(torch, config, x, old, mu, a, mask):
  """Return the loss of each token, as papers write it."""
  if config.on_policy:
    old = x.detach()
  rho = torch.exp(torch.where(mask, x - old, 0))
  if config.objective == "gspo":
    # Of whole responses, in the paper's form, while tokens weigh the same.
    mean = torch.where(mask, x - old, 0).sum(-1) / mask.sum(-1).clamp(min=1)
    mean = mean[..., None].expand_as(x)
    if config.importance_cap:
      mean = mean.detach() + x - x.detach()
    rho = torch.exp(mean)
  if config.objective in ("grpo", "dr_grpo", "gspo"):
    bound = torch.clamp(rho, 1 - config.clip_low, 1 + config.clip_high)
    each = torch.maximum(-a * rho, -a * bound)
    if config.dual_clip:
      each = torch.where(
        a < 0, torch.minimum(each, -config.dual_clip * a), each
      )
  elif config.objective == "cispo":
    bound = torch.clamp(rho, 1 - config.clip_low, 1 + config.clip_high)
    each = -bound.detach() * a * x
  elif config.objective == "sapo":
    tau = torch.where(a > 0, 1.0, 1.05)
    each = -torch.sigmoid(tau * (rho - 1)) * 4 / tau * a
  else:
    moved = x.exp() - mu.exp()
    too_far = torch.where(
      a > 0, moved > config.clip_high, moved < -config.clip_low
    )
    rho = torch.exp(x - mu).clamp(max=20).detach()
    each = -(~too_far).float() * rho * a * x
  if config.importance_cap:
    each = each * torch.exp(old - mu).clamp(max=config.importance_cap).detach()
  return each


@pytest.mark.oracle
@pytest.mark.parametrize("config", ALL_CONFIGS, ids=name_config)
def test_token_loss_gradient_is_that_of_torch(config):
  torch = pytest.importorskip("torch")
  logp, entropy, reference, batch = make_example(4)

  def loss(*tokens):
    return grpo_loss.token_loss(config, *tokens, reference, batch)[0]

  value, ours = jax.value_and_grad(loss, argnums=(0, 1))(logp, entropy)
  parts = batch.old_logp, batch.sampler_logp, batch.advantage, batch.mask
  arrays = logp, entropy, reference, *parts
  x, h, ref, old, mu, a, mask = (torch.tensor(np.asarray(v)) for v in arrays)
  x.requires_grad_(), h.requires_grad_()
  each = torch_objective(torch, config, x, old, mu, a[..., None], mask)
  kl = dict(k2=(x - ref).square() / 2, k3=torch.exp(ref - x) - (ref - x) - 1)[
    config.kl
  ]
  each = each + config.kl_coef * kl - config.entropy_coef * h
  tokens = dict(
    token_mean=torch.ones(mask.shape[:2]),
    sequence_mean=mask.sum(-1).clamp(min=1),
    fixed_length=torch.full(mask.shape[:2], config.max_response_tokens),
  )[config.aggregate]
  wanted = ((each * mask).sum(-1) / tokens).sum()
  wanted.backward()
  assert_allclose(value, wanted.detach().numpy(), rtol=1e-5, atol=1e-6)
  for got, expected in zip(ours, (x.grad, h.grad), strict=True):
    assert_allclose(
      got, 0 if expected is None else expected.numpy(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_alone_has_its_published_options(name):
  def options(**changes):
    changes = {f"step_grpo.loss.{key}": x for key, x in changes.items()}
    return make_run_config("step_grpo", **changes).step_grpo

  known = tiny_policy.POLICY_CONFIG
  run = options(objective=name)
  config = grpo_loss.make_loss_config(run, known)
  for key, value in OBJECTIVES[name].items():
    assert getattr(config, key) == value
  norm = "none" if name == "dr_grpo" else "sample_std"
  assert grpo_loss.choose_advantage_norm(run) == norm
  # PyTorch's field bounds the loss of worse responses where nothing else does.
  assert config.dual_clip == (3.0 if name in ("grpo", "dr_grpo") else 0.0)
  assert (
    grpo_loss.make_loss_config(options(dual_clip=0.0), known).dual_clip == 0
  )
  # What is set stays set.
  run = options(objective=name, aggregate="fixed_length", kl="k2")
  config = grpo_loss.make_loss_config(run, known)
  assert (config.aggregate, config.kl) == ("fixed_length", "k2")
  if name != "sapo":
    run = options(objective=name, clip_low=0.0)
    config = grpo_loss.make_loss_config(run, known)
    bounds = config.clip_low, config.clip_high
    assert bounds == (0.0, OBJECTIVES[name]["clip_high"])


@pytest.mark.parametrize("config", ALL_CONFIGS[16:], ids=name_config)
def test_huge_ratios_have_finite_losses_and_gradients(config):
  far = jnp.array([0.0, 20, 89, 1e4, -20, -89, -1e4])[None, None]
  # Better, worse, and alone in its group.
  far, advantage = jnp.tile(far, (1, 3, 1)), jnp.array([[1.0, -1, 0]])
  zeros = jnp.zeros(far.shape)
  for mask in (zeros == 0, zeros > 0):
    known = mask, advantage, zeros, jnp.ones(1)
    # The sampler and the reference are as far on the other side.
    batch = Batch(None, None, *known, sampler_logp=-far)
    tokens = far, zeros, -far, batch
    total, grad, metrics = value_and_gradient(config, *tokens)
    assert np.isfinite(total) and np.isfinite(grad).all()
    assert all(np.isfinite(x).all() for x in metrics.values())
    assert config.kl_coef or not grad[0, 2].any()
    # All padding: nothing is learnt.
    if not mask.any():
      assert total == 0 and not grad.any()


def test_dual_clip_bounds_the_loss_of_worse_responses():
  logp = jnp.log(jnp.array([0.5, 2.0, 2.9, 3.1, 1e9]))[None, None]
  zeros = jnp.zeros(logp.shape)
  known = zeros == 0, jnp.full((1, 1), -2.0), zeros, jnp.ones(1)
  tokens = logp, zeros, None, Batch(None, None, *known)
  config = make_loss_config(dual_clip=3.0)
  total, grad, metrics = value_and_gradient(config, *tokens)
  assert_allclose(total, 2 * (0.8 + 2.0 + 2.9 + 3 + 3), rtol=1e-6)
  assert_allclose(grad[0, 0], [0, 4.0, 5.8, 0, 0], rtol=1e-6)
  assert metrics["clipped"][0, 0].tolist() == [True, False, False, True, True]


def test_update_on_the_sampling_policy_has_a_ratio_of_exactly_one():
  logp, entropy, reference, batch = make_example(5)
  # The sampler's numbers alone, from which the trainer's differ.
  batch = batch._replace(sampler_logp=None)
  tokens = logp, entropy, reference, batch
  for on_policy in (False, True):
    config = make_loss_config(on_policy=on_policy)
    _, grad, metrics = value_and_gradient(config, *tokens)
    ratio = np.asarray(metrics["ratio"])[batch.mask]
    assert (ratio == 1).all() == on_policy
  drift = np.abs(logp - batch.old_logp)[batch.mask]
  assert_allclose(metrics["sampler_drift"][batch.mask], drift, rtol=1e-6)
  assert not metrics["logp_drift"].any()
  # The gradient is that of REINFORCE: no token is bounded.
  wanted = np.where(batch.mask, -batch.advantage[..., None], 0)
  assert_allclose(grad, wanted, rtol=1e-6)


def test_padding_changes_neither_loss_nor_gradient():
  logp, entropy, reference, batch = make_example(0)
  config = make_loss_config(kl_coef=0.1, entropy_coef=0.1)
  wanted, _ = grpo_loss.token_loss(config, logp, entropy, reference, batch)

  def fill_padding(x, value):
    return jnp.where(batch.mask, x, value)

  def loss(logp):
    # Numbers that overflow or spread unless the padding is masked.
    others = fill_padding(entropy, jnp.nan), fill_padding(reference, 900)
    filled = batch._replace(old_logp=fill_padding(batch.old_logp, -500))
    return grpo_loss.token_loss(config, logp, *others, filled)[0]

  value, grad = jax.value_and_grad(loss)(fill_padding(logp, 500))
  assert_allclose(value, wanted, rtol=1e-6)
  assert not np.asarray(grad)[~np.asarray(batch.mask)].any()


def test_clipped_tokens_have_no_gradient():
  # Below, within and above the range in which ratios are not clipped.
  ratio = np.array([0.5, 0.79, 1.0, 1.27, 1.29, 2.0], np.float32)
  zeros = jnp.zeros((1, 1, 6))

  def loss(logp, advantage):
    known = zeros == 0, jnp.full((1, 1), advantage), zeros, jnp.ones(1)
    tokens = logp, zeros, None, Batch(None, None, *known)
    return grpo_loss.token_loss(make_loss_config(), *tokens)[0]

  grad = jax.grad(loss)
  logp = jnp.log(ratio)[None, None]
  assert_allclose(grad(logp, 1.0)[0, 0], -ratio * (ratio < 1.28), rtol=1e-5)
  assert_allclose(grad(logp, -1.0)[0, 0], ratio * (ratio > 0.8), rtol=1e-5)


# ---- The loss of a policy.


def make_batch(rows=8, members=2, tokens=4, seed=0):
  """Return prompts and responses of several lengths, and a row of padding."""
  rng = np.random.default_rng(seed)
  prompts = [tiny_policy.random_prompt(rng, CONFIG, 3 + n) for n in range(rows)]
  lengths = rng.integers(1, tokens + 1, (rows, members))
  lengths[-1] = 0
  shape = rows, members, tokens
  return jax.tree.map(
    jnp.asarray,
    Batch(
      tiny_policy.collate(CONFIG, prompts, length=12),
      tiny_policy.random_responses(rng, CONFIG, *shape),
      np.arange(tokens) < lengths[..., None],
      rng.normal(size=shape[:2]).astype(np.float32),
      rng.normal(-4, 1, shape).astype(np.float32),
      lengths.sum(1).astype(np.float32),
    ),
  )


def loss_numerator(params, batch):
  total, count, metrics = grpo_loss.loss(
    MODEL, make_loss_config(), params, None, batch, ALLOWED
  )
  return total, (count, metrics)


def test_loss_of_a_policy_is_that_of_its_log_probabilities():
  params, whole = tiny_policy.params(CONFIG), make_batch()
  apply = jax.jit(MODEL.apply)
  states = apply({"params": params}, whole.prompt, whole.response)
  # All logits, and from these log-probabilities and entropies in float64.
  logits = np.asarray(states @ params["head"].T) / 0.8
  logits = np.where(ALLOWED, logits, -np.inf).astype(np.float64)
  logits -= logits.max(-1, keepdims=True)
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  chosen = np.take_along_axis(probs, whole.response[..., None], -1)
  logp = np.log(chosen[..., 0])
  # The same from the loss, which never makes all logits at once.
  total, (count, metrics) = jax.jit(loss_numerator)(params, whole)
  exact = logp, logp, logp, whole
  wanted, _, clipped, size = loss_oracle(make_loss_config(), *exact)
  assert_allclose(total, wanted, rtol=1e-3)
  assert count == size
  assert metrics["clipped"][0] == clipped
  entropy = -np.sum(probs * np.log(np.where(probs > 0, probs, 1)), -1)
  assert_allclose(metrics["entropy"][0], entropy[whole.mask].sum(), rtol=1e-4)
  drift = np.abs(logp - whole.old_logp)[whole.mask].sum()
  assert_allclose(metrics["logp_drift"][0], drift, rtol=1e-4)


def test_updates_favour_the_better_response():
  """Three updates on the same responses raise the better one of each group."""
  params, tx = tiny_policy.params(CONFIG), optax.adam(5e-4)
  whole = make_batch(rows=2, members=2)
  whole = whole._replace(mask=jnp.ones_like(whole.mask))
  logp = jax.jit(
    lambda params: logprobs.token_logp(
      MODEL.apply({"params": params}, whole.prompt, whole.response) / 0.8,
      jnp.asarray(whole.response),
      MODEL.apply({"params": params}, method="output_embedding"),
      jnp.asarray(ALLOWED),
    )[0]
  )
  first = logp(params)
  reward = np.array([[1.0, 0.0], [0.2, 0.9]])
  advantage = jnp.asarray(group_advantages(reward))
  whole = whole._replace(advantage=advantage, old_logp=first)
  opt, losses = tx.init(params), []

  @jax.jit
  def update(params, opt):
    loss_and_grad = jax.value_and_grad(loss_numerator, has_aux=True)
    (loss, _), grads = loss_and_grad(params, whole)
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, loss

  for _ in range(3):
    params, opt, loss = update(params, opt)
    losses.append(float(loss))
  # At ratio 1 the loss is 0 by construction.
  assert abs(losses[0]) < 1e-4
  assert losses[2] < losses[1] < -1e-3
  # Responses better than their group became likelier, others less likely.
  gain = np.asarray(logp(params) - first).sum(-1)
  better = reward - reward.mean(1, keepdims=True)
  assert (np.sign(gain) == np.sign(better)).all()
