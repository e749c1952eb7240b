"""The advantages and the loss, against loops and against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from r1router_jax.generation import logprobs
from r1router_jax.models import qwen2_5_vl
from r1router_jax.training import grpo_loss
from r1router_jax.training.batch import Batch
from r1router_jax.training.grpo_loss import group_advantages
from tests import tiny_policy
from tests.training.loss_helpers import ALLOWED, make_loss_config

CONFIG = tiny_policy.MODEL_CONFIG

MODEL = qwen2_5_vl.QwenVL(CONFIG)

# ---- Advantages.


def test_advantages_by_hand():
  # The standard deviation is that of a sample, as in verl.
  rewards = np.array([[0.1, 0.4, 1.0], [2.0, -1.0, 0.5]])
  got = group_advantages(rewards)
  for row in range(2):
    mean = sum(rewards[row]) / 3
    std = (sum((r - mean) ** 2 for r in rewards[row]) / 2) ** 0.5  # Sample.
    assert_allclose(got[row], (rewards[row] - mean) / (std + 1e-6), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1.1, 1 / 3])
def test_equal_rewards_have_advantages_of_exactly_zero(size, value):
  assert not group_advantages(np.full((2, size), value)).any()
  # Also in float32, whose mean of equal numbers may differ from them.
  single = np.full((2, size), value, np.float32)
  assert not group_advantages(single).any()


def test_advantages_follow_their_responses_and_ignore_scale():
  rng = np.random.default_rng(0)
  rewards = rng.normal(size=(4, 6))
  order = rng.permutation(6)
  got = group_advantages(rewards)
  assert_allclose(group_advantages(rewards[:, order]), got[:, order], atol=1e-6)
  assert_allclose(got.mean(1), 0, atol=1e-6)
  assert_allclose(got.std(1, ddof=1), 1, atol=1e-4)
  assert_allclose(group_advantages(3 * rewards + 7), got, atol=1e-4)


@pytest.mark.parametrize(
  "advantage_norm, ddof", [("sample_std", 1), ("population_std", 0)]
)
def test_advantages_are_divided_by_the_standard_deviation(advantage_norm, ddof):
  rewards = np.random.default_rng(0).normal(size=(3, 5))
  got = group_advantages(rewards, advantage_norm)
  plain = group_advantages(rewards, "none")
  assert_allclose(plain, rewards - rewards.mean(1, keepdims=True), atol=1e-6)
  for row in range(3):
    spread = (np.sum(plain[row] ** 2) / (5 - ddof)) ** 0.5
    assert_allclose(got[row], plain[row] / spread, rtol=1e-4)


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
  known = jnp.asarray(mask), advantage, single(old_logp), jnp.ones(shape[0])
  return single(logp), entropy, reference, Batch(None, None, *known)


def loss_oracle(config, logp, entropy, reference, batch):
  """Compute the formulas of the module token by token, in float64."""
  logp, entropy, reference, old_logp, advantages = (
    np.asarray(x, np.float64)
    for x in (logp, entropy, reference, batch.old_logp, batch.advantage)
  )
  mask = np.asarray(batch.mask)
  total, clipped, responses = 0.0, 0, 0
  for b, g in np.ndindex(mask.shape[:2]):
    tokens = int(mask[b, g].sum())
    responses += tokens > 0
    for t in range(tokens):
      at = b, g, t
      ratio = np.exp(logp[at] - old_logp[at])
      bound = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
      a = advantages[b, g]
      clipped += bound * a < ratio * a
      x = reference[at] - logp[at]
      kl = dict(k1=-x, k2=x * x / 2, k3=np.exp(x) - x - 1)[config.kl]
      each = -min(ratio * a, bound * a)
      each += config.kl_coef * kl - config.entropy_coef * entropy[at]
      # A penalty counts for each token, and the token by its weight.
      most = config.max_response_tokens
      weights = dict(token_mean=1, sequence_mean=tokens, fixed_length=most)
      total += each / weights[config.aggregate]
  size = mask.sum() if config.aggregate == "token_mean" else responses
  return total, clipped, size


ALL_CONFIGS = [
  make_loss_config(
    aggregate=aggregate, kl=kl, kl_coef=beta, entropy_coef=epsilon
  )
  for aggregate in ("token_mean", "sequence_mean", "fixed_length")
  for kl, beta in (("k1", 0.1), ("k2", 0.1), ("k3", 0.1), ("k3", 0.0))
  for epsilon in (0.0, 0.01)
]


@pytest.mark.parametrize("config", ALL_CONFIGS, ids=str)
def test_token_loss_is_its_formula(config):
  tokens = make_example(3)
  wanted, clipped, size = loss_oracle(config, *tokens)
  total, metrics = grpo_loss.token_loss(config, *tokens)
  assert_allclose(total, wanted, rtol=1e-5)
  batch = tokens[-1]
  assert int(metrics["clipped"][batch.mask].sum()) == clipped
  assert config.loss_denominator(np.asarray(batch.mask)).sum() == size
  assert ("kl" in metrics) == (config.kl_coef != 0)
  assert config.has_penalty == (config.kl_coef + config.entropy_coef > 0)


@pytest.mark.oracle
@pytest.mark.parametrize("config", ALL_CONFIGS, ids=str)
def test_token_loss_gradient_is_that_of_torch(config):
  torch = pytest.importorskip("torch")
  logp, entropy, reference, batch = make_example(4)

  def loss(*tokens):
    return grpo_loss.token_loss(config, *tokens, reference, batch)[0]

  ours = jax.grad(loss, argnums=(0, 1))(logp, entropy)
  batch_parts = batch.old_logp, batch.advantage, batch.mask
  # The same formulas in PyTorch, whose maximum picks the pessimistic term.
  arrays = logp, entropy, reference, *batch_parts
  x, h, ref, old, a, mask = (torch.tensor(np.asarray(v)) for v in arrays)
  x.requires_grad_(), h.requires_grad_()
  ratio = torch.exp(x - old)
  a = a[..., None]
  bound = torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high)
  each = torch.maximum(-a * ratio, -a * bound)
  kl = dict(
    k1=x - ref, k2=(x - ref).square() / 2, k3=torch.exp(ref - x) - (ref - x) - 1
  )[config.kl]
  each = each + config.kl_coef * kl - config.entropy_coef * h
  tokens = dict(
    token_mean=torch.ones(mask.shape[:2]),
    sequence_mean=mask.sum(-1).clamp(min=1),
    fixed_length=torch.full(mask.shape[:2], config.max_response_tokens),
  )[config.aggregate]
  ((each * mask).sum(-1) / tokens).sum().backward()
  for got, wanted in zip(ours, (x.grad, h.grad), strict=True):
    assert_allclose(
      got, 0 if wanted is None else wanted.numpy(), rtol=1e-5, atol=1e-6
    )


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


@pytest.mark.parametrize("name", ["aggregate", "kl"])
def test_unknown_loss_option_is_rejected(name):
  with pytest.raises(ValueError, match=f"config.step_grpo.loss.{name} is 'x'"):
    make_loss_config(**{name: "x"})


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
  wanted, clipped, size = loss_oracle(make_loss_config(), *exact)
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
