"""Sequence packing: packed texts have the loss of separate rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Passage, Question, Step
from r1router_jax.inputs.processor import pad_responses
from r1router_jax.models import qwen2_5_vl
from r1router_jax.policy import policy
from r1router_jax.training import sequence_packing, sft, sft_targets
from r1router_jax.training.batch import Batch, pad_to_shards
from tests import tiny_policy

SETTINGS = dataclasses.replace(
  tiny_policy.POLICY_CONFIG, prompt_tokens=(96,), response_tokens=(48,)
)

POLICY = policy.Policy(SETTINGS, tiny_policy.TOKENIZER, {})

QUESTION = Question("q", "What is the capital of Chad?", ("N'Djamena",))

STEPS = [
  Step(
    "q/0", "plan", QUESTION, sub_question="Which one is it?", routes=("text",)
  ),
  Step(
    "q/1",
    "answer",
    QUESTION,
    sub_question="What is the capital of Chad?",
    answers=("N'Djamena",),
    passages=(Passage("p", "text", "The capital of Chad is N'Djamena."),),
  ),
  Step(
    "q/2",
    "final",
    QUESTION,
    history=(("What is it?", "N'Djamena"),),
    answers=("N'Djamena",),
  ),
]


def make_plain_batch(steps):
  """Return a batch with a row for each step, as packing does not make it."""
  processor = POLICY.processor
  prompts = [processor.encode(SETTINGS.build_prompt(step)) for step in steps]
  tokens, mask = pad_responses(
    [
      processor.tokenizer.encode_response(sft_targets.sft_target(step))
      for step in steps
    ],
    SETTINGS.response_tokens[-1],
    processor.tokenizer.pad_id,
  )
  mask = pad_to_shards(mask, 1, len(steps))[:, :, None]
  return Batch(
    processor.collate(prompts, 1, len(steps)),
    pad_to_shards(tokens, 1, len(steps))[:, :, None],
    mask,
    np.ones((1, len(steps), 1), np.float32),
    np.zeros(mask.shape, np.float32),
    mask.sum((2, 3)).astype(np.float32),
  )


@given(st.lists(st.integers(1, 20), min_size=1), st.integers(0, 3))
def test_best_fit_takes_every_text_once_and_leaves_little_room(sizes, seed):
  # Every text once, no row too long.
  rows = sequence_packing.best_fit_bins(sizes, 20, seed)
  assert sorted(sum(rows, [])) == list(range(len(sizes)))
  used = [sum(sizes[i] for i in row) for row in rows]
  assert max(used) <= 20
  # No two rows could have been one, as after any best fit.
  assert all(
    a + b > 20 for a, b in zip(sorted(used), sorted(used)[1:], strict=False)
  )
  assert rows == sequence_packing.best_fit_bins(sizes, 20, seed)


@pytest.mark.slow
def test_packed_loss_and_gradient_are_those_of_separate_rows():
  plain = make_plain_batch(STEPS)
  # All three texts fit one row.
  examples = sequence_packing.pack_examples(POLICY, STEPS, 160, 0)
  assert len(examples) == 1 and len(examples[0].steps) == 3
  # With a second row, of padding.
  pairs = [sequence_packing.encode_gold_step(POLICY, step) for step in STEPS]
  rows = [[pairs[STEPS.index(step)] for step in examples[0].steps]]
  packed = sequence_packing.make_packed_batch(POLICY, rows, 1, 2, 160)
  assert packed.mask.sum() == plain.mask.sum() == packed.loss_denominator.sum()
  model = qwen2_5_vl.QwenVL(tiny_policy.FULL_VOCAB_CONFIG)
  params = tiny_policy.params(tiny_policy.FULL_VOCAB_CONFIG)
  allowed = jnp.ones(tiny_policy.FULL_VOCAB_CONFIG.vocab, bool)

  def mean_loss(params, batch):
    total, count, _ = sft.loss(model, params, None, batch, allowed)
    return total / count

  loss_and_grad = jax.jit(jax.value_and_grad(mean_loss))
  (packed_loss, packed_grad), (plain_loss, plain_grad) = (
    loss_and_grad(params, jax.tree.map(np.concatenate, batch))
    for batch in (packed, plain)
  )
  np.testing.assert_allclose(packed_loss, plain_loss, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    packed_grad,
    plain_grad,
  )


def test_step_longer_than_a_row_is_left_out_and_named(caplog):
  sizes = [
    sum(map(len, (prompt.ids, response)))
    for prompt, response in (
      sequence_packing.encode_gold_step(POLICY, step) for step in STEPS
    )
  ]
  # Room for the shortest step alone.
  with caplog.at_level("WARNING"):
    (row,) = sequence_packing.pack_examples(POLICY, STEPS, min(sizes), 0)
  assert row.steps == (STEPS[sizes.index(min(sizes))],)
  assert f"skipped {len(STEPS) - 1} of {len(STEPS)}" in caplog.text
  with pytest.raises(UserError, match="q/0 has .*packed_length is 3: raise"):
    sequence_packing.pack_examples(POLICY, STEPS, 3, 0)
