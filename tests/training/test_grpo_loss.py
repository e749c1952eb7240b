"""Advantages and losses against loops and against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1router_jax.generation import logprobs
from r1router_jax.models import qwen2_5_vl
from r1router_jax.training import grpo_loss
from r1router_jax.training.batch import Batch
from tests import tiny_policy

MODEL = qwen2_5_vl.QwenVL(tiny_policy.CONFIG)

ALLOWED = jnp.arange(tiny_policy.CONFIG.vocab) != 5


# ---- Advantages.


def test_advantages_by_hand():
  rewards = np.array([[0.1, 0.4, 1.0], [2.0, -1.0, 0.5]])
  got = grpo_loss.advantages(rewards)
  for row in range(2):
    mean = sum(rewards[row]) / 3
    std = (sum((r - mean) ** 2 for r in rewards[row]) / 2) ** 0.5  # Sample.
    np.testing.assert_allclose(
      got[row], (rewards[row] - mean) / (std + 1e-6), rtol=1e-6
    )


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1.1, 1 / 3])
def test_equal_rewards_teach_exactly_nothing(size, value):
  assert not grpo_loss.advantages(np.full((2, size), value)).any()
  single = np.full((2, size), value, np.float32)
  assert not grpo_loss.advantages(single).any()


def test_advantages_follow_their_responses():
  rng = np.random.default_rng(0)
  rewards = rng.normal(size=(4, 6))
  order = rng.permutation(6)
  got = grpo_loss.advantages(rewards)
  np.testing.assert_allclose(
    grpo_loss.advantages(rewards[:, order]), got[:, order], atol=1e-6
  )
  np.testing.assert_allclose(got.mean(1), 0, atol=1e-6)
  np.testing.assert_allclose(got.std(1, ddof=1), 1, atol=1e-4)
  np.testing.assert_allclose(
    grpo_loss.advantages(3 * rewards + 7), got, atol=1e-4
  )


@pytest.mark.parametrize("normalise, lost", [("std1", 1), ("std0", 0)])
def test_what_advantages_are_divided_by(normalise, lost):
  rewards = np.random.default_rng(0).normal(size=(3, 5))
  got = grpo_loss.advantages(rewards, normalise)
  plain = grpo_loss.advantages(rewards, "none")
  np.testing.assert_allclose(
    plain, rewards - rewards.mean(1, keepdims=True), atol=1e-6
  )
  for row in range(3):
    spread = (np.sum(plain[row] ** 2) / (5 - lost)) ** 0.5
    np.testing.assert_allclose(got[row], plain[row] / spread, rtol=1e-4)


# ---- The loss of tokens.


def of(**changes):
  return grpo_loss.Objective(
    **dict(
      temperature=0.8,
      longest=7,
      clip_low=0.2,
      clip_high=0.28,
      aggregate="token_mean",
      kl="k3",
      kl_coef=0.0,
      entropy_coef=0.0,
    )
    | changes
  )


def example(seed, shape=(3, 4, 5)):
  """logp, entropy, reference and a batch without prompts."""
  rng = np.random.default_rng(seed)
  old_logp = rng.normal(-1, 1, shape)
  logp = old_logp + 0.4 * rng.normal(size=shape)
  lengths = rng.integers(1, shape[2] + 1, shape[:2])
  lengths[0, 0] = 0  # A row of padding.
  mask = np.arange(shape[2]) < lengths[..., None]
  single = lambda x: jnp.asarray(x, jnp.float32)
  return (
    single(logp),
    single(rng.random(shape)),
    single(logp + 0.4 * rng.normal(size=shape)),
    Batch(
      None,
      None,
      jnp.asarray(mask),
      single(rng.normal(size=shape[:2])),
      single(old_logp),
      jnp.ones(shape[0]),
    ),
  )


def oracle(what, logp, entropy, reference, batch):
  """The formulas of the module, token by token, in float64."""
  logp, entropy, reference, old_logp, advantages = (
    np.asarray(x, np.float64)
    for x in (logp, entropy, reference, batch.old_logp, batch.weight)
  )
  mask = np.asarray(batch.mask)
  total, clipped, responses = 0.0, 0, 0
  for b, g in np.ndindex(mask.shape[:2]):
    tokens = int(mask[b, g].sum())
    responses += tokens > 0
    for t in range(tokens):
      at = b, g, t
      ratio = np.exp(logp[at] - old_logp[at])
      bound = min(max(ratio, 1 - what.clip_low), 1 + what.clip_high)
      a = advantages[b, g]
      clipped += bound * a < ratio * a
      x = reference[at] - logp[at]
      kl = dict(k1=-x, k2=x * x / 2, k3=np.exp(x) - x - 1)[what.kl]
      each = (
        -min(ratio * a, bound * a)
        + what.kl_coef * kl
        - what.entropy_coef * entropy[at]
      )
      total += (
        each
        / dict(token_mean=1, sequence_mean=tokens, fixed_length=what.longest)[
          what.aggregate
        ]
      )
  size = mask.sum() if what.aggregate == "token_mean" else responses
  return total, clipped, size


EVERY = [
  of(aggregate=aggregate, kl=kl, kl_coef=beta, entropy_coef=epsilon)
  for aggregate in ("token_mean", "sequence_mean", "fixed_length")
  for kl, beta in (("k1", 0.1), ("k2", 0.1), ("k3", 0.1), ("k3", 0.0))
  for epsilon in (0.0, 0.01)
]


@pytest.mark.parametrize("what", EVERY, ids=str)
def test_every_loss_is_its_formula(what):
  tokens = example(3)
  wanted, clipped, size = oracle(what, *tokens)
  total, metrics = grpo_loss.of_tokens(what, *tokens)
  np.testing.assert_allclose(total, wanted, rtol=1e-5)
  batch = tokens[-1]
  assert int(metrics["clipped"][batch.mask].sum()) == clipped
  assert what.size(np.asarray(batch.mask)).sum() == size
  assert ("kl" in metrics) == (what.kl_coef != 0)
  assert what.penalises == (what.kl_coef + what.entropy_coef > 0)


@pytest.mark.oracle
@pytest.mark.parametrize("what", EVERY, ids=str)
def test_every_gradient_is_that_of_torch(what):
  torch = pytest.importorskip("torch")
  logp, entropy, reference, batch = example(4)
  ours = jax.grad(
    lambda logp, entropy: grpo_loss.of_tokens(
      what, logp, entropy, reference, batch
    )[0],
    argnums=(0, 1),
  )(logp, entropy)
  x, h, ref, old, a, mask = (
    torch.tensor(np.asarray(v))
    for v in (
      logp,
      entropy,
      reference,
      batch.old_logp,
      batch.weight,
      batch.mask,
    )
  )
  x.requires_grad_(), h.requires_grad_()
  ratio = torch.exp(x - old)
  a = a[..., None]
  each = torch.maximum(
    -a * ratio, -a * torch.clamp(ratio, 1 - what.clip_low, 1 + what.clip_high)
  )
  kl = dict(
    k1=x - ref, k2=(x - ref).square() / 2, k3=torch.exp(ref - x) - (ref - x) - 1
  )[what.kl]
  each = each + what.kl_coef * kl - what.entropy_coef * h
  tokens = dict(
    token_mean=torch.ones(mask.shape[:2]),
    sequence_mean=mask.sum(-1).clamp(min=1),
    fixed_length=torch.full(mask.shape[:2], what.longest),
  )[what.aggregate]
  ((each * mask).sum(-1) / tokens).sum().backward()
  for got, wanted in zip(ours, (x.grad, h.grad), strict=True):
    np.testing.assert_allclose(
      got, 0 if wanted is None else wanted.numpy(), rtol=1e-5, atol=1e-6
    )


def test_padding_may_hold_anything():
  logp, entropy, reference, batch = example(0)
  what = of(kl_coef=0.1, entropy_coef=0.1)
  wanted, _ = grpo_loss.of_tokens(what, logp, entropy, reference, batch)
  wild = lambda x, y: jnp.where(batch.mask, x, y)
  batch = batch._replace(old_logp=wild(batch.old_logp, -500))
  loss = lambda logp: grpo_loss.of_tokens(
    what, logp, wild(entropy, jnp.nan), wild(reference, 900), batch
  )[0]
  value, grad = jax.value_and_grad(loss)(wild(logp, 500))
  np.testing.assert_allclose(value, wanted, rtol=1e-6)
  assert not np.asarray(grad)[~np.asarray(batch.mask)].any()


def test_a_clipped_token_has_no_gradient():
  ratio = np.array([0.5, 0.79, 1.0, 1.27, 1.29, 2.0], np.float32)
  zeros = jnp.zeros((1, 1, 6))
  grad = jax.grad(
    lambda logp, a: grpo_loss.of_tokens(
      of(),
      logp,
      zeros,
      None,
      Batch(
        None,
        None,
        jnp.ones((1, 1, 6), bool),
        jnp.full((1, 1), a),
        zeros,
        jnp.ones(1),
      ),
    )[0]
  )
  logp = jnp.log(ratio)[None, None]
  np.testing.assert_allclose(
    grad(logp, 1.0)[0, 0], -ratio * (ratio < 1.28), rtol=1e-5
  )
  np.testing.assert_allclose(
    grad(logp, -1.0)[0, 0], ratio * (ratio > 0.8), rtol=1e-5
  )


@pytest.mark.parametrize("name", ["aggregate", "kl"])
def test_an_option_that_is_none_is_named(name):
  with pytest.raises(ValueError, match=f"config.step_grpo.loss.{name} is 'x'"):
    of(**{name: "x"})


# ---- The loss of a policy.


def batch(rows=8, members=2, tokens=4, seed=0):
  """Prompts of many lengths, responses of many, one row of padding."""
  rng = np.random.default_rng(seed)
  prompts = [
    tiny_policy.encoded(rng, tiny_policy.CONFIG, 3 + n) for n in range(rows)
  ]
  lengths = rng.integers(1, tokens + 1, (rows, members))
  lengths[-1] = 0
  shape = rows, members, tokens
  return jax.tree.map(
    jnp.asarray,
    Batch(
      tiny_policy.pack(tiny_policy.CONFIG, prompts, length=12),
      tiny_policy.responses(rng, tiny_policy.CONFIG, *shape),
      np.arange(tokens) < lengths[..., None],
      rng.normal(size=shape[:2]).astype(np.float32),
      rng.normal(-4, 1, shape).astype(np.float32),
      lengths.sum(1).astype(np.float32),
    ),
  )


def numerator(params, batch):
  total, count, metrics = grpo_loss.loss(
    MODEL, of(), params, None, batch, ALLOWED
  )
  return total, (count, metrics)


def test_loss_is_the_surrogate_of_a_second_pass():
  params, whole = tiny_policy.params(tiny_policy.CONFIG), batch()
  states = jax.jit(
    lambda params: MODEL.apply({"params": params}, whole.prompt, whole.response)
  )(params)
  logits = np.asarray(states @ params["head"].T) / 0.8
  logits = np.where(ALLOWED, logits, -np.inf).astype(np.float64)
  logits -= logits.max(-1, keepdims=True)
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  logp = np.log(np.take_along_axis(probs, whole.response[..., None], -1))[
    ..., 0
  ]
  total, (count, metrics) = jax.jit(numerator)(params, whole)
  wanted, clipped, size = oracle(of(), logp, logp, logp, whole)
  np.testing.assert_allclose(total, wanted, rtol=1e-3)
  assert count == size
  assert metrics["clipped"][0] == clipped
  entropy = -np.sum(probs * np.log(np.where(probs > 0, probs, 1)), -1)
  np.testing.assert_allclose(
    metrics["entropy"][0], entropy[whole.mask].sum(), rtol=1e-4
  )
  np.testing.assert_allclose(
    metrics["logp_drift"][0],
    np.abs(logp - whole.old_logp)[whole.mask].sum(),
    rtol=1e-4,
  )


def test_updates_favour_the_better_response():
  """Three updates on what was drawn; rewards say which member is better."""
  params, tx = tiny_policy.params(tiny_policy.CONFIG), optax.adam(5e-4)
  whole = batch(rows=2, members=2)
  whole = whole._replace(mask=jnp.ones_like(whole.mask))
  logp = jax.jit(
    lambda params: logprobs.token_logp(
      MODEL.apply({"params": params}, whole.prompt, whole.response) / 0.8,
      jnp.asarray(whole.response),
      MODEL.apply({"params": params}, method="vocabulary"),
      jnp.asarray(ALLOWED),
    )[0]
  )
  first = logp(params)
  reward = np.array([[1.0, 0.0], [0.2, 0.9]])
  whole = whole._replace(
    weight=jnp.asarray(grpo_loss.advantages(reward)), old_logp=first
  )
  opt, losses = tx.init(params), []

  @jax.jit
  def update(params, opt):
    (loss, _), grads = jax.value_and_grad(numerator, has_aux=True)(
      params, whole
    )
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, loss

  for _ in range(3):
    params, opt, loss = update(params, opt)
    losses.append(float(loss))
  assert abs(losses[0]) < 1e-4  # 0 by construction, at ratio 1.
  assert losses[2] < losses[1] < -1e-3
  gain = np.asarray(logp(params) - first).sum(-1)
  assert (
    np.sign(gain) == np.sign(reward - reward.mean(1, keepdims=True))
  ).all()
