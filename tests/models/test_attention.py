"""Fused kernels against the dense one, which transformers vouches for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.models import attention
from r1router_jax.models.attention import Cache


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
  """The kernel, run by XLA on a CPU."""
  kernels = attention.splash_attention_kernel
  monkeypatch.setattr(
    kernels,
    "make_splash_mqa",
    functools.partial(kernels.make_splash_mqa, interpret=True),
  )


def normal(rng, *shape):
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.fixture
def group():
  """Two prompts, three responses each; four query heads on two key heads."""
  rng = np.random.default_rng(0)
  b, g, t, p, h = 2, 3, 10, 30, 128
  prompt_mask = jnp.arange(p) < jnp.array([[30], [17]])
  return (
    normal(rng, b * g, t, 4, h),
    Cache(normal(rng, b * g, 2, t, h), normal(rng, b * g, 2, t, h)),
    Cache(normal(rng, b, 2, p, h), normal(rng, b, 2, p, h)),
    prompt_mask,
  )


def dense(q, own, prompt, prompt_mask):
  t = q.shape[1]
  mask = jnp.broadcast_to(jnp.tril(jnp.ones((t, t), bool)), (len(q), t, t))
  return attention.attention(q, own, mask, prompt, prompt_mask)


@pytest.mark.slow
def test_splash_sees_what_the_group_may_see(group):
  fused = lambda *of: attention.grouped(*of, kernel="splash")
  weights = normal(np.random.default_rng(1), *group[0].shape)
  grad = lambda f: jax.value_and_grad(
    lambda q, own, prompt: jnp.sum(f(q, own, prompt, group[3]) * weights),
    (0, 1, 2),
  )(*group[:3])
  wanted = grad(dense)
  got = grad(fused)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.fixture
def cudnn(monkeypatch):
  """cuDNN needs a GPU; XLA reads the same arguments."""
  plain = jax.nn.dot_product_attention

  def stand_in(*of, implementation, **options):
    assert implementation == "cudnn"
    return plain(*of, implementation="xla", **options)

  monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_texts_side_by_side_do_not_see_each_other(kernel, cudnn):
  rng = np.random.default_rng(3)
  q, keys = (
    normal(rng, 2, 40, 4, 128),
    Cache(*(normal(rng, 2, 2, 40, 128) for _ in range(2))),
  )
  segments = jnp.searchsorted(jnp.array([7, 20, 33]), jnp.arange(40)) % 3 + 1
  segments = jnp.stack([segments, jnp.where(segments < 3, segments, 0)])
  mask = jnp.tril(segments[:, :, None] == segments[:, None])
  got = attention.fused(
    q, keys, segments, attention.causal, kernel=kernel, asks=segments
  )
  np.testing.assert_allclose(
    got, attention.attention(q, keys, mask), rtol=1e-4, atol=1e-4
  )


def test_the_mask_that_cudnn_is_given(group, cudnn):
  got = attention.grouped(*group, kernel="cudnn")
  np.testing.assert_allclose(got, dense(*group), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sees", [attention.causal, None])
def test_splash_over_one_row(sees):
  rng = np.random.default_rng(2)
  q, keys = (
    normal(rng, 2, 200, 4, 128),
    Cache(*(normal(rng, 2, 2, 200, 128) for _ in range(2))),
  )
  valid = jnp.arange(200) < jnp.array([[200], [150]])
  mask = valid[:, None] & (
    jnp.ones((200, 200), bool)
    if sees is None
    else jnp.tril(jnp.ones((200, 200), bool))
  )
  wanted = attention.attention(q, keys, mask)
  got = attention.fused(q, keys, valid, sees, kernel="splash")
  np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_members_of_a_group_by_hand():
  """Two members of three tokens after a prompt of four."""
  sees = attention.same_member(4, 3)(*np.ogrid[:6, :10])
  wanted = np.zeros((6, 10), bool)
  wanted[:, :4] = True
  for member in range(2):
    for t in range(3):
      for s in range(t + 1):
        wanted[3 * member + t, 4 + 3 * member + s] = True
  np.testing.assert_array_equal(sees, wanted)


def test_kernels_by_name():
  assert attention.resolve("auto", "bfloat16") == "xla"  # On a CPU.
  assert attention.resolve("splash", "float32") == "splash"
  with pytest.raises(ValueError, match="'flash': take one of.*cudnn"):
    attention.resolve("flash", "float32")
