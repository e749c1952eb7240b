"""Log-probabilities in chunks, against log_softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.generation import logprobs


def naive_token_logp(states, targets, vocabulary, allowed):
  logits = jnp.where(allowed, states @ vocabulary.T, -jnp.inf)
  logp = jax.nn.log_softmax(logits)
  # 0 times -inf would be NaN, in the gradient too.
  finite = jnp.where(allowed, logp, 0)
  return (
    jnp.take_along_axis(logp, targets[..., None], -1)[..., 0],
    -jnp.sum(jnp.exp(finite) * finite, -1, where=allowed),
  )


@pytest.mark.parametrize("shape", [(3,), (4,), (2, 3, 3)])
def test_token_logp_is_log_softmax(shape, monkeypatch):
  """Values and gradients, also if tokens do not fill the last chunk of 4."""
  monkeypatch.setattr(logprobs, "CHUNK", 4)
  rng = np.random.default_rng(sum(shape))
  states = jnp.asarray(rng.normal(size=(*shape, 6)), jnp.float32)
  vocabulary = jnp.asarray(rng.normal(size=(9, 6)), jnp.float32)
  allowed = jnp.arange(9) != 4
  targets = jnp.asarray(rng.choice([0, 3, 8], shape))
  # Random weights give each token another gradient.
  weights = jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)

  def values_and_gradients(function):
    def weighted_sum(states, vocabulary):
      logp, entropy = function(states, targets, vocabulary, allowed)
      assert logp.shape == entropy.shape == shape
      total = jnp.sum(weights[0] * logp + weights[1] * entropy)
      return total, (logp, entropy)

    return jax.grad(weighted_sum, (0, 1), has_aux=True)(states, vocabulary)

  got = values_and_gradients(logprobs.token_logp)
  wanted = values_and_gradients(naive_token_logp)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
