"""Fused attention kernels against dense attention.

Dense attention itself is compared with transformers in test_qwen2_5_vl.py.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.models import attention
from r1router_jax.models.attention import Cache, causal_mask


@pytest.fixture(autouse=True)
def interpret_kernel(monkeypatch):
  """Run the Pallas kernel by XLA on a CPU."""
  kernels = attention.splash_attention_kernel
  by_xla = partial(kernels.make_splash_mqa, interpret=True)
  monkeypatch.setattr(kernels, "make_splash_mqa", by_xla)


@pytest.fixture
def fake_cudnn(monkeypatch):
  """Give cuDNN's arguments to XLA: cuDNN needs a GPU."""
  dot_product_attention = jax.nn.dot_product_attention

  def stand_in(*args, implementation, **options):
    assert implementation == "cudnn"
    return dot_product_attention(*args, implementation="xla", **options)

  monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)


def random_normal(rng, *shape):
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def random_cache(rng, *shape):
  return Cache(random_normal(rng, *shape), random_normal(rng, *shape))


def lower_triangle(tokens):
  return jnp.tril(jnp.ones((tokens, tokens), bool))


@pytest.fixture
def two_groups():
  """Two prompts, three responses each; four query heads on two key heads."""
  rng = np.random.default_rng(0)
  b, g, t, p, h = 2, 3, 10, 30, 128
  return (
    random_normal(rng, b * g, t, 4, h),
    random_cache(rng, b * g, 2, t, h),
    random_cache(rng, b, 2, p, h),
    jnp.arange(p) < jnp.array([[30], [17]]),  # Real tokens of the prompts.
  )


def dense_attention(q, own, prompt, prompt_mask):
  t = q.shape[1]
  mask = jnp.broadcast_to(lower_triangle(t), (len(q), t, t))
  return attention.attention(q, own, mask, prompt, prompt_mask)


@pytest.mark.slow
def test_splash_group_attention_has_dense_values_and_gradients(two_groups):
  *inputs, prompt_mask = two_groups
  # Random weights give each output another gradient.
  weights = random_normal(np.random.default_rng(1), *inputs[0].shape)
  # The splash kernel has a backward pass of its own, so gradients are compared
  # as well as values.
  splash = partial(attention.fused_group_attention, kernel="splash")

  def value_and_grad(function):
    def weighted_sum(q, own, prompt):
      return jnp.sum(function(q, own, prompt, prompt_mask) * weights)

    return jax.value_and_grad(weighted_sum, (0, 1, 2))(*inputs)

  wanted = jax.tree.leaves(value_and_grad(dense_attention))
  got = jax.tree.leaves(value_and_grad(splash))
  for a, b in zip(got, wanted, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_packed_texts_do_not_attend_to_each_other(kernel, fake_cudnn):
  rng = np.random.default_rng(3)
  q, keys = random_normal(rng, 2, 40, 4, 128), random_cache(rng, 2, 2, 40, 128)
  # Texts end at 7, 20 and 33; those of segment 3 are padding in the second row.
  segments = jnp.searchsorted(jnp.array([7, 20, 33]), jnp.arange(40)) % 3 + 1
  segments = jnp.stack([segments, jnp.where(segments < 3, segments, 0)])
  mask = jnp.tril(segments[:, :, None] == segments[:, None])
  got = attention.fused_attention(
    q, keys, segments, causal_mask, kernel=kernel, query_segments=segments
  )
  wanted = attention.attention(q, keys, mask)
  np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_cudnn_group_attention_is_dense_attention(two_groups, fake_cudnn):
  got = attention.fused_group_attention(*two_groups, kernel="cudnn")
  wanted = dense_attention(*two_groups)
  np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mask_fn", [causal_mask, None])
def test_splash_attention_with_padding(mask_fn):
  rng = np.random.default_rng(2)
  q = random_normal(rng, 2, 200, 4, 128)
  keys = random_cache(rng, 2, 2, 200, 128)
  valid = jnp.arange(200) < jnp.array([[200], [150]])
  # 200 is no multiple of the kernel's blocks, which are padded.
  attends = lower_triangle(200) if mask_fn else jnp.ones((200, 200), bool)
  wanted = attention.attention(q, keys, valid[:, None] & attends)
  got = attention.fused_attention(q, keys, valid, mask_fn, kernel="splash")
  np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_group_mask_by_hand():
  """Two members of three tokens after a prompt of four."""
  attends = attention.group_mask(4, 3)(*np.ogrid[:6, :10])
  wanted = np.zeros((6, 10), bool)
  wanted[:, :4] = True
  for member in range(2):
    for t in range(3):
      start = 4 + 3 * member
      wanted[3 * member + t, start : start + t + 1] = True
  np.testing.assert_array_equal(attends, wanted)


def test_kernels_are_resolved_by_name():
  assert attention.resolve_kernel("auto", "bfloat16") == "xla"  # On a CPU.
  assert attention.resolve_kernel("splash", "float32") == "splash"
  with pytest.raises(ValueError, match="'flash': take one of.*cudnn"):
    attention.resolve_kernel("flash", "float32")
