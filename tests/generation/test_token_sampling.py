"""Ranges and filters of sampling, and rounding of cumulative sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.generation import token_sampling
from r1router_jax.generation.token_sampling import SamplingParams


@pytest.mark.parametrize(
  "sampling, message",
  [
    (SamplingParams(-1.0), "temperature is -1.0, wanted 0, or 0.001 to 1000.0"),
    *((SamplingParams(x), "temperature is") for x in (1e-38, np.inf, np.nan)),
    *((SamplingParams(top_k=x), "top_k is") for x in (-1, 2.7, 2**31, np.inf)),
    (SamplingParams(top_p=0.0), "top_p is 0.0, wanted 1e-06 to 1"),
    *((SamplingParams(top_p=x), "top_p is") for x in (1e-38, 1.1, np.nan)),
  ],
)
def test_values_out_of_range_are_named(sampling, message):
  with pytest.raises(ValueError, match=message):
    sampling.validate()


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
@pytest.mark.parametrize("top_k", [0, 1, 2**31 - 1])
@pytest.mark.parametrize("top_p", [1e-6, 1.0])
def test_values_at_the_edge_sample_a_token(temperature, top_k, top_p):
  sampling = SamplingParams(temperature, top_k, top_p).validate()
  sampling = SamplingParams(*(jnp.full(2, x) for x in sampling))
  # The largest logits that a policy has, and equal ones.
  logits = jnp.array([[90.0, -90, 0, 89], [5, 5, 5, 5]])
  tokens, logp = token_sampling.sample_tokens(logits, sampling, jnp.zeros(2))
  # At u = 0 the first token that passes.
  np.testing.assert_array_equal(tokens, [0, 0])
  assert np.isfinite(logp).all()


def test_first_of_the_likeliest_tokens_is_taken():
  inf = np.inf
  logits = jnp.array([[0, 2, 2, 1], [-inf, -inf, -9, -inf], [5, 5, 5, 5.0]])
  greedy = SamplingParams(*(jnp.full(3, x) for x in token_sampling.GREEDY))
  tokens, _ = token_sampling.sample_tokens(logits, greedy, jnp.full(3, 0.9))
  np.testing.assert_array_equal(tokens, [1, 2, 0])


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


def filter_slowly(logits, top_k, top_p):
  """Return which ids pass, one logit value after the other."""
  values = sorted(set(logits), reverse=True)
  ranked = sorted(logits, reverse=True)
  lowest = ranked[min(top_k, len(ranked)) - 1] if top_k else -np.inf
  values = [value for value in values if value >= lowest]
  # Equal logits are one step of the sum of probabilities.
  weights = [np.exp(np.float64(v)) * list(logits).count(v) for v in values]
  passed, reached = set(), 0.0
  for value, weight in zip(values, weights, strict=True):
    if reached < top_p:
      passed.add(value)
    reached += weight / sum(weights)
  return [value in passed for value in logits]


TIES = [[1.0, 0, 0, 0, 0, 0, 0, 0], [2, 2, 1, 1, 1, 0, 0, -1]]
TIES += [[0.0] * 8, [3, 2, 1, 0, -1, -2, -3, -np.inf]]

FILTERS = [(2, 0.6), (3, 1.0), (1, 0.9), (0, 0.5), (0, 1.0), (99, 0.7)]


@pytest.mark.parametrize("top_k, top_p", FILTERS)
def test_equal_logits_pass_the_filters_together(top_k, top_p):
  logits = np.array(TIES, np.float32)
  sampling = SamplingParams(1.0, top_k, top_p).validate()
  passed = token_sampling.filter_mask(jnp.asarray(logits), sampling)
  wanted = [filter_slowly(row, top_k, top_p) for row in TIES]
  np.testing.assert_array_equal(passed, wanted)


@pytest.mark.oracle
@pytest.mark.parametrize("top_k, top_p", FILTERS)
def test_filters_pass_what_those_of_transformers_pass(top_k, top_p):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  random = np.random.default_rng(0).normal(size=(4, 8))
  logits = np.concatenate([random, np.array(TIES)]).astype(np.float32)
  scores = torch.tensor(logits)
  if top_k:
    scores = transformers.TopKLogitsWarper(top_k)(None, scores)
  if top_p < 1:
    scores = transformers.TopPLogitsWarper(top_p)(None, scores)
  # Of equal logits theirs may pass some, by the order of a sort.
  kept = np.where(np.isfinite(scores), logits, np.inf).min(-1, keepdims=True)
  wanted = logits >= (kept if top_k or top_p < 1 else -np.inf)
  sampling = SamplingParams(1.0, top_k, top_p).validate()
  passed = token_sampling.filter_mask(jnp.asarray(logits), sampling)
  # An id without probability is never sampled, whether it passes or not.
  possible = np.isfinite(logits)
  np.testing.assert_array_equal(np.asarray(passed)[possible], wanted[possible])


def test_row_without_filters_keeps_all_ids_beside_one_that_filters():
  # The rounded sum of so many probabilities passes 1 before its end.
  logits = np.random.default_rng(0).normal(0, 3, (1, 151_936))
  logits = np.repeat(logits, 2, 0).astype(np.float32)
  sampling = SamplingParams(np.ones(2), np.zeros(2), np.array([1.0, 0.9]))
  passed = token_sampling.filter_mask(jnp.asarray(logits), sampling.validate())
  assert passed[0].all() and not passed[1].all()
