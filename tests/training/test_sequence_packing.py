"""Texts that share a row learn as if each had one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1router_jax.models import qwen2_5_vl
from r1router_jax.policy import policy
from r1router_jax.training import sequence_packing, sft
from tests import tiny_policy
from tests.training.test_sft import batch_of, examples, made

SETTINGS = dataclasses.replace(
  tiny_policy.SETTINGS, prompt_tokens=(96,), response_tokens=(48,)
)


@given(st.lists(st.integers(1, 20), min_size=1), st.integers(0, 3))
def test_every_text_once_and_little_room_left(sizes, seed):
  rows = sequence_packing.fill(sizes, 20, seed)
  assert sorted(sum(rows, [])) == list(range(len(sizes)))
  used = [sum(sizes[i] for i in row) for row in rows]
  assert max(used) <= 20
  # No two rows could have been one, as of any best fit.
  assert all(
    a + b > 20 for a, b in zip(sorted(used), sorted(used)[1:], strict=False)
  )
  assert rows == sequence_packing.fill(sizes, 20, seed)


@pytest.mark.slow
def test_loss_and_gradient_are_those_of_rows_of_their_own():
  steps = examples()
  apart, _ = batch_of(made(SETTINGS), steps, 0)
  trained = policy.Policy(SETTINGS, tiny_policy.TOKENIZER, {})
  rows = sequence_packing.rows(trained, steps, 160, 0)
  assert len(rows) == 1 and len(rows[0].steps) == 3
  together, _ = batch_of(made(SETTINGS, side_by_side=160), rows, 0)
  assert together.mask.sum() == apart.mask.sum() == together.count.sum()
  model, params = (
    qwen2_5_vl.QwenVL(tiny_policy.SPOKEN),
    tiny_policy.params(tiny_policy.SPOKEN),
  )

  def mean(params, batch):
    total, count, _ = sft.loss(
      model, params, batch, jnp.ones(tiny_policy.SPOKEN.vocab, bool)
    )
    return total / count

  learn = jax.jit(jax.value_and_grad(mean))
  flat = [jax.tree.map(np.concatenate, batch) for batch in (apart, together)]
  (one, g1), (other, g2) = (learn(params, batch) for batch in flat)
  np.testing.assert_allclose(one, other, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), g1, g2
  )


def test_a_step_longer_than_a_row_is_named():
  trained = policy.Policy(SETTINGS, tiny_policy.TOKENIZER, {})
  with pytest.raises(ValueError, match="Step q/0 has .*side_by_side is 30"):
    sequence_packing.rows(trained, examples(), 30, 0)


def test_only_steps_of_known_lengths_share_rows():
  with pytest.raises(ValueError, match="set rename"):
    made(SETTINGS, side_by_side=160, rename=(0.5, 0.5))
