"""Batches of rollout groups, and golds of the policy's own trajectories."""

import jax
import numpy as np
import pytest

from r1router_jax.common.records import Hop, Question, Step
from r1router_jax.generation import group_decode
from r1router_jax.models import qwen2_5_vl
from r1router_jax.rewards import step_reward
from r1router_jax.training import advantages, grpo_loss, rollouts
from r1router_jax.training.batch import Batch
from tests import tiny_policy, two_processes
from tests.training.loss_helpers import ALLOWED, make_loss_config
from tests.training.rollout_cases import USEFUL, make_batches


@pytest.mark.slow
@pytest.mark.parametrize(
  "aggregate", ["token_mean", "sequence_mean", "fixed_length"]
)
def test_groups_of_equal_rewards_are_left_out_and_change_nothing(aggregate):
  config = make_loss_config(aggregate=aggregate)
  groups, (batch,) = make_batches(config)
  assert batch.mask.any((1, 2, 3)).sum() == len(USEFUL)
  # The same groups, with those of equal rewards, as one batch.
  whole = Batch(
    tiny_policy.collate(tiny_policy.MODEL_CONFIG, groups.prompts),
    groups.sampled.tokens,
    groups.sampled.mask,
    advantages.group_advantages(groups.reward),
    groups.sampled.logp,
    config.loss_denominator(groups.sampled.mask).astype(np.float32),
  )
  model = qwen2_5_vl.QwenVL(tiny_policy.MODEL_CONFIG)
  params = tiny_policy.params(tiny_policy.MODEL_CONFIG)

  def mean_loss(params, batch):
    total, count, _ = grpo_loss.loss(
      model, config, params, None, batch, ALLOWED
    )
    return total / count

  gradient = jax.jit(jax.grad(mean_loss))
  jax.tree.map(
    lambda got, want: np.testing.assert_allclose(
      got, want, rtol=1e-4, atol=1e-5
    ),
    gradient(params, jax.tree.map(np.concatenate, batch)),
    gradient(params, whole),
  )


def test_denominator_counts_only_the_fraction_of_groups_that_fit():
  groups, (batch,) = make_batches(make_loss_config(), shape=(1, 2, 1))
  mask = groups.sampled.mask
  kept = USEFUL[:2]
  np.testing.assert_array_equal(batch.mask[..., 0, 0, :], mask[kept, 0, :8])
  np.testing.assert_allclose(
    batch.loss_denominator.sum() / mask.sum(),
    mask[kept].sum() / mask[USEFUL].sum(),
    rtol=1e-6,
  )


CHILD = """
import jax
from r1router_jax.parallel import multihost
multihost.initialize_distributed()
from tests.training import loss_helpers, rollout_cases
_, (batch,) = rollout_cases.make_batches(
    loss_helpers.make_loss_config(), jax.process_index(), shape=(1, 2, 5))
print("shapes", batch.mask.shape, batch.prompt.tokens.shape,
      batch.prompt.patches.shape[:2])
"""


@pytest.mark.slow
def test_hosts_make_batches_of_one_shape(tmp_path):
  """Only one of them has long prompts, long responses and images."""
  for output in two_processes.run_two_processes(CHILD, tmp_path):
    assert "shapes (2, 5, 3, 12) (2, 5, 48) (2, 5)" in output


def test_minibatches_share_the_groups():
  groups, batches = make_batches(make_loss_config(), shape=(2, 2, 2))
  sampled = groups.sampled
  rows = [batch.response.reshape(4, 3, -1) for batch in batches]
  # Three groups each, so that one row of four is padding.
  for batch, kept in zip(rows, (USEFUL[::2], USEFUL[1::2]), strict=True):
    np.testing.assert_array_equal(
      batch[:3] * sampled.mask[kept, :, :8],
      (sampled.tokens * sampled.mask)[kept, :, :8],
    )
    assert not batch[3].any()
  for batch in batches:
    np.testing.assert_allclose(
      batch.loss_denominator.sum(), sampled.mask.sum() / 2
    )


def test_penalties_keep_groups_of_equal_rewards():
  config = make_loss_config(kl_coef=0.1)
  _, (batch,) = make_batches(config, shape=(1, 2, 5))
  assert batch.mask.any((2, 3)).all() and not batch.advantage[0, 0].any()


@pytest.mark.parametrize("rows", [4, 6, 8])
def test_unequal_groups_come_first_beside_a_penalty(rows):
  """Rewards have their share of the mean, the penalty is a mean of its own."""
  shape = 1, 2, rows // 2
  penalised = make_loss_config(entropy_coef=1e-3)
  groups, (batch,) = make_batches(penalised, shape=shape)
  _, (plain,) = make_batches(make_loss_config(), shape=shape)
  # The groups in the order in which they were drawn, and of these first
  # the six of unequal rewards, then the first of equal ones, 0 and 2.
  kept = sorted([*USEFUL, 0, 2][:rows])
  np.testing.assert_array_equal(
    batch.mask.reshape(rows, 3, -1), groups.sampled.mask[kept, :, :8]
  )
  sizes = groups.sampled.mask.sum((1, 2))
  total = batch.loss_denominator.sum()
  np.testing.assert_allclose(total, sizes[kept].sum(), rtol=1e-6)

  def weights(batch):
    rows = batch.advantage.reshape(-1, 3) / batch.loss_denominator.sum()
    return rows[rows.any(1)]

  np.testing.assert_allclose(weights(batch), weights(plain), rtol=1e-5)


def test_batch_without_useful_groups_is_padding():
  _, (batch,) = make_batches(make_loss_config(), advantage_scale=0)
  assert not batch.mask.any() and not batch.advantage.any()
  assert np.isfinite(batch.loss_denominator).all()


QUESTION = Question(
  "q",
  "Who rules the land of this flag?",
  ("Idriss Deby",),
  "chad.png",
  hops=(
    Hop("Which flag?", ("image",), ("Chad",)),
    Hop("Who rules Chad?", ("text", "table"), ("Deby", "Idriss Deby")),
  ),
)

# Rounds that the policy has gone through.
ONE, TWO = ("What flag?", "Niger"), ("Who rules Niger?", "Tandja")


@pytest.mark.parametrize(
  "kind, history, sub_question, routes, answers",
  [
    ("plan", (), "Which flag?", ("image",), ()),
    ("plan", (ONE,), "Who rules Chad?", ("text", "table"), ()),
    ("plan", (ONE, TWO), "None", ("none",), ()),
    ("answer", (), "What flag?", (), ("Chad",)),
    ("answer", (ONE,), "What flag?", (), ("Deby", "Idriss Deby")),
    ("answer", (ONE, TWO), None, None, None),
    ("final", (), "", (), ("Idriss Deby",)),
    ("final", (ONE, TWO), "", (), ("Idriss Deby",)),
  ],
)
def test_golds_align_by_position(kind, history, sub_question, routes, answers):
  # An answer step has a sub-question of its own, which stays.
  asked = "What flag?" if kind == "answer" else ""
  found = rollouts.attach_gold(Step("q/0", kind, QUESTION, history, asked))
  if answers is None:
    assert found is None
  else:
    assert (found.sub_question, found.routes, found.answers) == (
      sub_question,
      routes,
      answers,
    )
    assert found.history == history


def test_first_group_of_each_kind_is_sampled():
  asked = Question("q", "Where?", ("here",))
  steps = [
    Step(
      "q/0",
      "plan",
      asked,
      sub_question="What is here?",
      routes=("text", "table"),
    ),
    Step(
      "q/1", "answer", asked, sub_question="What is here?", answers=("a", "b")
    ),
    Step("p/0", "plan", asked, sub_question="None", routes=("none",)),
    Step(
      "q/2",
      "final",
      asked,
      history=(("What is here?", "a"),),
      answers=("here",),
    ),
  ]
  reward = np.arange(8.0).reshape(4, 2)
  components = step_reward.RewardComponents(*[reward.reshape(-1)] * 6)
  sampled, texts = group_decode.empty_responses(4, 2, 1), list("stuvwxyz")
  groups = rollouts.RolloutGroups(steps, [], sampled, texts, components)
  groups = groups.samples(-reward)
  assert [group["id"] for group in groups] == ["q/0", "q/1", "q/2"]
  # A plan: its gold is the sub-question with its routes.
  assert groups[0] == dict(
    id="q/0",
    kind="plan",
    question="Where?",
    history=[],
    sub_question="",
    gold=["What is here? (text or table)"],
    responses=["s", "t"],
    rewards=[0.0, 1.0],
    advantages=[0.0, -1.0],
  )
  assert groups[1]["sub_question"] == "What is here?"
  assert groups[1]["gold"] == ["a", "b"]
  # A final answer.
  assert groups[2] == dict(
    id="q/2",
    kind="final",
    question="Where?",
    sub_question="",
    history=[["What is here?", "a"]],
    gold=["here"],
    responses=["y", "z"],
    rewards=[6.0, 7.0],
    advantages=[-6.0, -7.0],
  )
