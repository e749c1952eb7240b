"""Advantages and the surrogate against loops; one loss over many devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1router_jax import drawing, policy, sampling
from r1router_jax.learning import step_grpo
from r1router_jax.learning.batch import Batch
from r1router_jax.models import qwen_vl
from tests import tiny

CLIP = dict(clip_low=0.2, clip_high=0.28)
MODEL = qwen_vl.QwenVL(tiny.CONFIG)
ALLOWED = jnp.arange(tiny.CONFIG.vocab) != 5


# ---- Advantages.


def test_advantages_by_hand():
  rewards = np.array([[0.1, 0.4, 1.0], [2.0, -1.0, 0.5]])
  got = step_grpo.advantages(rewards)
  for row in range(2):
    mean = sum(rewards[row]) / 3
    std = (sum((r - mean) ** 2 for r in rewards[row]) / 2) ** 0.5  # Sample.
    np.testing.assert_allclose(
        got[row], (rewards[row] - mean) / (std + 1e-6), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1.1, 1 / 3])
def test_equal_rewards_teach_exactly_nothing(size, value):
  assert not step_grpo.advantages(np.full((2, size), value)).any()
  single = np.full((2, size), value, np.float32)
  assert not step_grpo.advantages(single).any()


def test_advantages_follow_their_responses():
  rng = np.random.default_rng(0)
  rewards = rng.normal(size=(4, 6))
  order = rng.permutation(6)
  got = step_grpo.advantages(rewards)
  np.testing.assert_allclose(
      step_grpo.advantages(rewards[:, order]), got[:, order], atol=1e-6)
  np.testing.assert_allclose(got.mean(1), 0, atol=1e-6)
  np.testing.assert_allclose(got.std(1, ddof=1), 1, atol=1e-4)
  np.testing.assert_allclose(
      step_grpo.advantages(3 * rewards + 7), got, atol=1e-4)


# ---- The surrogate.


def example(seed, shape=(3, 4, 5)):
  rng = np.random.default_rng(seed)
  old_logp = rng.normal(-1, 1, shape)
  logp = old_logp + 0.4 * rng.normal(size=shape)
  lengths = rng.integers(1, shape[2] + 1, shape[:2])
  mask = np.arange(shape[2]) < lengths[..., None]
  return tuple(x.astype(np.float32) for x in (
      logp, old_logp, rng.normal(size=shape[:2]))) + (mask,)


def oracle(logp, old_logp, advantage, mask):
  total, clipped = 0.0, 0
  for b, g, t in np.argwhere(mask):
    ratio = np.exp(np.float64(logp[b, g, t]) - old_logp[b, g, t])
    bound = min(max(ratio, 1 - CLIP["clip_low"]), 1 + CLIP["clip_high"])
    a = advantage[b, g]
    total += min(ratio * a, bound * a)
    clipped += bound * a < ratio * a
  return -total, clipped


@pytest.mark.parametrize("seed", range(5))
def test_surrogate_is_the_formula(seed):
  got = step_grpo.surrogate(*map(jnp.asarray, example(seed)), **CLIP)
  wanted = oracle(*example(seed))
  np.testing.assert_allclose(got[0], wanted[0], rtol=1e-4)
  assert int(got[1]) == wanted[1]


def test_padding_may_hold_anything():
  logp, old_logp, advantage, mask = example(0)
  wanted = step_grpo.surrogate(*map(jnp.asarray, example(0)), **CLIP)
  logp, old_logp = (np.where(mask, x, y).astype(np.float32)
                    for x, y in ((logp, 500), (old_logp, -500)))
  loss = lambda logp: step_grpo.surrogate(
      logp, *map(jnp.asarray, (old_logp, advantage, mask)), **CLIP)[0]
  value, grad = jax.value_and_grad(loss)(jnp.asarray(logp))
  np.testing.assert_allclose(value, wanted[0], rtol=1e-6)
  assert not np.asarray(grad)[~mask].any()


def test_a_clipped_token_has_no_gradient():
  ratio = np.array([0.5, 0.79, 1.0, 1.27, 1.29, 2.0])
  logp = jnp.asarray(np.log(ratio), jnp.float32)[None, None]
  grad = jax.grad(lambda logp, a: step_grpo.surrogate(
      logp, jnp.zeros_like(logp), jnp.full((1, 1), a),
      jnp.ones((1, 1, 6), bool), **CLIP)[0])
  np.testing.assert_allclose(
      grad(logp, 1.0)[0, 0], -ratio * (ratio < 1.28), rtol=1e-5)
  np.testing.assert_allclose(
      grad(logp, -1.0)[0, 0], ratio * (ratio > 0.8), rtol=1e-5)


# ---- The loss of a policy.


def batch(rows=8, members=2, tokens=4, seed=0):
  """Prompts of many lengths, responses of many, one row of padding."""
  rng = np.random.default_rng(seed)
  prompts = [tiny.encoded(rng, tiny.CONFIG, 3 + n) for n in range(rows)]
  lengths = rng.integers(1, tokens + 1, (rows, members))
  lengths[-1] = 0
  shape = rows, members, tokens
  return jax.tree.map(jnp.asarray, Batch(
      tiny.pack(tiny.CONFIG, prompts, length=12),
      tiny.responses(rng, tiny.CONFIG, *shape),
      np.arange(tokens) < lengths[..., None],
      rng.normal(size=shape[:2]).astype(np.float32),
      rng.normal(-4, 1, shape).astype(np.float32)))


def objective(params, batch):
  total, count, metrics = step_grpo.loss(
      MODEL, params, batch, ALLOWED, temperature=0.8, **CLIP)
  return total, (count, metrics)


def by_device(batch, devices):
  """Leaves [devices, rows / devices, ...]."""
  split = lambda x: x.reshape(devices, -1, *x.shape[1:])
  rows_first = batch.prompt._replace(
      positions=batch.prompt.positions.swapaxes(0, 1))
  prompt = jax.tree.map(
      lambda x: split(x) if len(x) else jnp.zeros(
          (devices, *x.shape), x.dtype), rows_first)
  prompt = prompt._replace(positions=prompt.positions.swapaxes(1, 2))
  return Batch(prompt, *map(split, batch[1:]))


@pytest.mark.slow
def test_eight_devices_have_the_gradient_of_one():
  """Although their shares hold unequal numbers of tokens."""
  params = tiny.params(tiny.CONFIG)
  whole = batch()
  grad = jax.value_and_grad(objective, has_aux=True)

  @functools.partial(jax.pmap, axis_name="data", in_axes=(None, 0))
  def update(params, share):
    (total, (count, metrics)), grads = grad(params, share)
    total, count, metrics, grads = jax.lax.psum(
        (total, count, metrics, grads), "data")
    return (total / count, metrics,
            jax.tree.map(lambda g: g / count, grads))

  (total, (count, metrics)), grads = tiny.jit(grad)(params, whole)
  assert count == whole.mask.sum()
  loss8, metrics8, grads8 = jax.tree.map(
      lambda x: x[0], update(params, by_device(whole, 8)))
  np.testing.assert_allclose(loss8, total / count, rtol=1e-4)
  for name, (value, number) in metrics.items():
    np.testing.assert_allclose(metrics8[name][0], value, rtol=1e-4, atol=1e-4)
    assert metrics8[name][1] == number == count
  moved = jax.tree.map(lambda g: float(jnp.abs(g).max()), grads8)
  assert moved["layers"]["q"]["w"] > 1e-5
  jax.tree.map(
      lambda got, want: np.testing.assert_allclose(
          got, want / count, rtol=1e-3, atol=1e-5), grads8, grads)


def test_loss_is_the_surrogate_of_a_second_pass():
  params, whole = tiny.params(tiny.CONFIG), batch()
  states = tiny.jit(lambda params: MODEL.apply(
      {"params": params}, whole.prompt, whole.response))(params)
  logits = np.asarray(states @ params["head"].T) / 0.8
  logits = np.where(ALLOWED, logits, -np.inf).astype(np.float64)
  logits -= logits.max(-1, keepdims=True)
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  logp = np.log(np.take_along_axis(
      probs, whole.response[..., None], -1))[..., 0]
  total, (count, metrics) = tiny.jit(objective)(params, whole)
  wanted, clipped = oracle(
      logp, *map(np.asarray, (whole.old_logp, whole.weight, whole.mask)))
  np.testing.assert_allclose(total, wanted, rtol=1e-3)
  assert metrics["clipped"][0] == clipped
  entropy = -np.sum(probs * np.log(np.where(probs > 0, probs, 1)), -1)
  np.testing.assert_allclose(
      metrics["entropy"][0], entropy[whole.mask].sum(), rtol=1e-4)
  np.testing.assert_allclose(
      metrics["logp_drift"][0],
      np.abs(logp - whole.old_logp)[whole.mask].sum(), rtol=1e-4)


def test_updates_favour_the_better_response():
  """Three updates on what was drawn; rewards say which member is better."""
  params, tx = tiny.params(tiny.CONFIG), optax.adam(5e-4)
  whole = batch(rows=2, members=2)
  whole = whole._replace(mask=jnp.ones_like(whole.mask))
  logp = tiny.jit(lambda params: drawing.token_logp(
      MODEL.apply({"params": params}, whole.prompt, whole.response) / 0.8,
      jnp.asarray(whole.response), MODEL.apply(
          {"params": params}, method="vocabulary"), jnp.asarray(ALLOWED))[0])
  first = logp(params)
  reward = np.array([[1.0, 0.0], [0.2, 0.9]])
  whole = whole._replace(
      weight=jnp.asarray(step_grpo.advantages(reward)), old_logp=first)
  opt, losses = tx.init(params), []

  @tiny.jit
  def update(params, opt):
    (loss, _), grads = jax.value_and_grad(objective, has_aux=True)(
        params, whole)
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, loss

  for _ in range(3):
    params, opt, loss = update(params, opt)
    losses.append(float(loss))
  assert abs(losses[0]) < 1e-4  # 0 by construction, at ratio 1.
  assert losses[2] < losses[1] < -1e-3
  gain = np.asarray(logp(params) - first).sum(-1)
  assert (np.sign(gain) == np.sign(reward - reward.mean(1, keepdims=True))
          ).all()


def test_groups_of_equal_rewards_are_left_out_and_change_nothing():
  rng, count = np.random.default_rng(3), 10
  trained = policy.Policy(tiny.SETTINGS, tiny.TOKENIZER, {})
  prompts = [tiny.encoded(rng, tiny.CONFIG, int(n))
             for n in rng.integers(5, 20, count)]
  shape = (count, 3, 7)
  tokens = tiny.responses(rng, tiny.CONFIG, *shape)
  lengths = rng.integers(1, shape[2] + 1, shape[:2])
  mask = np.arange(shape[2]) < lengths[..., None]
  logp = rng.normal(-4, 0.1, shape).astype(np.float32)
  drawn = sampling.Drawn(tokens, logp, mask, np.zeros(shape[:2], bool))
  reward = rng.random(shape[:2])
  reward[[0, 2, 3, 8]] = 0.5
  advantage = step_grpo.advantages(reward)
  grad = tiny.jit(jax.grad(lambda params, b: _mean_loss(params, b)))
  params = tiny.params(tiny.CONFIG)
  whole = Batch(
      tiny.pack(tiny.CONFIG, prompts), tokens, mask, advantage, logp)
  part = step_grpo.learn_from(
      trained, prompts, drawn, advantage, rows=1)
  assert part.mask.any((1, 2, 3)).sum() == 6
  flat = jax.tree.map(np.concatenate, part)
  flat = flat._replace(prompt=flat.prompt._replace(
      positions=np.concatenate(part.prompt.positions, 1)))
  jax.tree.map(
      lambda got, want: np.testing.assert_allclose(
          got, want, rtol=1e-4, atol=1e-5),
      grad(params, flat), grad(params, whole))
  few = step_grpo.learn_from(
      trained, prompts, drawn, advantage * 0, rows=1)
  assert not few.mask.any() and not few.weight.any()


def _mean_loss(params, batch):
  total, (count, _) = objective(params, batch)
  return total / count


def test_a_group_of_one_is_refused():
  with pytest.raises(ValueError, match="config.step_grpo.group_size is 1"):
    step_grpo.StepGrpo(
        policy.Policy(tiny.SETTINGS, tiny.TOKENIZER, {}), total_steps=1,
        seed=0, group_size=1, learn_rows=1, temperature=1.0, clip_low=0.2,
        clip_high=0.2, reward="recall", rename=0.0)
