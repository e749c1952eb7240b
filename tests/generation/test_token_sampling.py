"""Ranges of sampling parameters, and rounding of cumulative sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.generation import token_sampling
from r1router_jax.generation.token_sampling import SamplingParams


@pytest.mark.parametrize(
  "sampling, message",
  [
    (SamplingParams(-1.0), "temperature is -1.0, wanted 0 to inf"),
    (SamplingParams(top_k=-1), "top_k is -1"),
    (SamplingParams(top_p=0.0), "top_p is 0.0, wanted 0 to 1, and above 0"),
    (SamplingParams(top_p=float("nan")), "top_p is nan"),
  ],
)
def test_values_out_of_range_are_named(sampling, message):
  with pytest.raises(ValueError, match=message):
    sampling.validate()


def test_rounding_samples_no_id_of_weight_0():
  """Thresholds where cumulative sums end, with forbidden ids in between."""
  rng = np.random.default_rng(0)
  weights = np.exp(3 * rng.normal(size=(64, 4096))).astype(np.float32)
  weights[:, 1000:1100] = weights[:, 4000:] = 0
  # The sum by XLA, with its rounding.
  total = np.asarray(jnp.cumsum(jnp.asarray(weights), -1))
  sample = jax.jit(token_sampling.sample_inverse_cdf)
  for at in (*range(999, 1100, 3), 3998, 3999, 4000, 4094):
    edge = total[:, at] / total[:, -1]
    for u in (edge, np.nextafter(edge, np.float32(0))):
      u = np.minimum(u, np.float32(1 - 2**-23))  # jax.random's largest number.
      assert (weights[np.arange(64), sample(weights, u)] > 0).all()
  assert (sample(weights, np.zeros(64, np.float32)) == 0).all()


def test_sample_inverse_cdf_by_hand():
  weights = jnp.tile(jnp.array([0, 1.0, 0, 3.0, 4.0, 0]), (6, 1))
  u = jnp.array([0, 0.12, 0.126, 0.49, 0.51, 0.999])
  tokens = token_sampling.sample_inverse_cdf(weights, u)
  np.testing.assert_array_equal(tokens, [1, 1, 3, 3, 4, 4])
