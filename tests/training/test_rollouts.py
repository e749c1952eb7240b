"""Groups that teach, and golds of the policy's own trajectories."""

import jax
import numpy as np
import pytest

from r1router_jax.common.records import Hop, Question, Step
from r1router_jax.generation import group_decode
from r1router_jax.models import qwen2_5_vl
from r1router_jax.policy import policy
from r1router_jax.rewards import step_reward
from r1router_jax.training import grpo_loss, rollouts
from r1router_jax.training.batch import Batch
from tests import tiny_policy, two_processes
from tests.training.test_grpo_loss import ALLOWED, of

SHAPE = 10, 3, 12  # As long as tiny.SETTINGS draws.


def groups(host=0):
  """Ten groups, of which four have equal rewards; longer on the next host."""
  rng = np.random.default_rng(3)
  prompts = [
    tiny_policy.encoded(rng, tiny_policy.CONFIG, n, *[(4, 4)] * host)
    for n in (rng.integers(5, 20, SHAPE[0]) + 20 * host).tolist()
  ]
  lengths = rng.integers(1, 8 + 5 * host, SHAPE[:2])
  drawn = group_decode.Drawn(
    tiny_policy.responses(rng, tiny_policy.CONFIG, *SHAPE),
    rng.normal(-4, 0.1, SHAPE).astype(np.float32),
    np.arange(SHAPE[2]) < lengths[..., None],
    np.zeros(SHAPE[:2], bool),
  )
  reward = rng.random(SHAPE[:2])
  reward[[0, 2, 3, 8]] = 0.5
  steps = [
    Step(str(n), "final", Question(str(n), "who", ("x",)))
    for n in range(SHAPE[0])
  ]
  parts = step_reward.Parts(*[reward.reshape(-1)] * 6)
  return rollouts.Groups(steps, prompts, drawn, ["x"] * reward.size, parts)


def learn(what, host=0, **changes):
  found = groups(host)
  trained = policy.Policy(tiny_policy.SETTINGS, tiny_policy.TOKENIZER, {})
  return found, rollouts.learn_from(
    trained,
    found,
    grpo_loss.advantages(found.reward),
    **dict(
      rows=1, parts=8, minibatches=1, size=what.size, all_teach=what.penalises
    )
    | changes,
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "aggregate", ["token_mean", "sequence_mean", "fixed_length"]
)
def test_groups_of_equal_rewards_are_left_out_and_change_nothing(aggregate):
  what = of(aggregate=aggregate)
  found, (part,) = learn(what)
  assert part.mask.any((1, 2, 3)).sum() == 6
  whole = Batch(
    tiny_policy.pack(tiny_policy.CONFIG, found.prompts),
    found.drawn.tokens,
    found.drawn.mask,
    grpo_loss.advantages(found.reward),
    found.drawn.logp,
    what.size(found.drawn.mask).astype(np.float32),
  )
  model, params = (
    qwen2_5_vl.QwenVL(tiny_policy.CONFIG),
    tiny_policy.params(tiny_policy.CONFIG),
  )

  def mean(params, batch):
    total, count, _ = grpo_loss.loss(model, what, params, None, batch, ALLOWED)
    return total / count

  grad = jax.jit(jax.grad(mean))
  jax.tree.map(
    lambda got, want: np.testing.assert_allclose(
      got, want, rtol=1e-4, atol=1e-5
    ),
    grad(params, jax.tree.map(np.concatenate, part)),
    grad(params, whole),
  )


def test_groups_beyond_the_rows_are_counted_by_their_share():
  found, (part,) = learn(of(), parts=2)
  mask = found.drawn.mask
  kept, teach = [1, 4], [1, 4, 5, 6, 7, 9]
  np.testing.assert_array_equal(part.mask[..., 0, 0, :], mask[kept, 0, :8])
  np.testing.assert_allclose(
    part.count.sum() / mask.sum(),
    mask[kept].sum() / mask[teach].sum(),
    rtol=1e-6,
  )


CHILD = """
import jax
from r1router_jax import pods
pods.join_pod()
from tests.learning import test_rollouts
_, (part,) = test_rollouts.learn(
    test_rollouts.of(), jax.process_index(), rows=5, parts=2)
print("shapes", part.mask.shape, part.prompt.tokens.shape,
      part.prompt.patches.shape[:2])
"""


@pytest.mark.slow
def test_hosts_make_batches_of_one_shape(tmp_path):
  """One has the longer prompts and responses, and the pictures."""
  for said in two_processes.run(CHILD, tmp_path):
    assert "shapes (2, 5, 3, 12) (2, 5, 48) (2, 5)" in said


def test_minibatches_share_what_teaches():
  found, batches = learn(of(), parts=2, rows=2, minibatches=2)
  rows = [batch.response.reshape(4, 3, -1) for batch in batches]
  for batch, kept in zip(rows, ([1, 5, 7], [4, 6, 9]), strict=True):
    np.testing.assert_array_equal(
      batch[:3] * found.drawn.mask[kept, :, :8],
      (found.drawn.tokens * found.drawn.mask)[kept, :, :8],
    )
    assert not batch[3].any()
  for batch in batches:
    np.testing.assert_allclose(batch.count.sum(), found.drawn.mask.sum() / 2)


def test_penalties_are_for_all_groups():
  _, (part,) = learn(of(kl_coef=0.1), parts=2, rows=5)
  assert part.mask.any((2, 3)).all() and not part.weight[0, 0].any()


def test_nothing_teaches():
  found = groups()
  (part,) = rollouts.learn_from(
    policy.Policy(tiny_policy.SETTINGS, tiny_policy.TOKENIZER, {}),
    found,
    0 * grpo_loss.advantages(found.reward),
    rows=1,
    parts=8,
    minibatches=1,
    size=of().size,
    all_teach=False,
  )
  assert not part.mask.any() and not part.weight.any()
  assert np.isfinite(part.count).all()


ASKED = Question(
  "q",
  "Who rules the land of this flag?",
  ("Idriss Deby",),
  "chad.png",
  hops=(
    Hop("Which flag?", ("image",), ("Chad",)),
    Hop("Who rules Chad?", ("text", "table"), ("Deby", "Idriss Deby")),
  ),
)

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
  asked = "What flag?" if kind == "answer" else ""
  found = rollouts.with_gold(Step("q/0", kind, ASKED, history, asked))
  if answers is None:
    assert found is None
  else:
    assert (found.sub_question, found.routes, found.answers) == (
      sub_question,
      routes,
      answers,
    )
    assert found.history == history
