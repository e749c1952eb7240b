"""Whole trajectories: their states, returns and advantages, against loops."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.common.errors import UserError
from r1router_jax.generation import token_sampling
from r1router_jax.models import qwen2_5_vl
from r1router_jax.rewards.trajectory_reward import (
  AnswerReward,
  TrajectoryRewards,
)
from r1router_jax.routing import router
from r1router_jax.training import (
  advantages,
  grpo_loss,
  train_batches,
  trajectory_rollouts,
)
from r1router_jax.training.advantages import Credit
from r1router_jax.training.batch import Batch
from tests.routing import device_loop_cases
from tests.training.loss_helpers import make_loss_config

KEY = jax.random.key(3)

SIZE, COUNT = 4, 5

# Every step costs something, so that returns differ from step to step.
WEIGHTS = dict(answer=0.9, well_formed=0.1, searches=-0.05, tokens=-0.001)

OPTIONS = router.RolloutOptions(
  sampling=token_sampling.SamplingParams(1.0), trajectories=SIZE
)


class RandomReward(AnswerReward):
  """Draws the answer's part, so that trajectories of one question differ."""

  def __init__(self):
    super().__init__("f1", WEIGHTS, OPTIONS.max_steps)

  def score(self, trajectories):
    rng, count = np.random.default_rng(5), len(trajectories)
    searches = [sum(len(r.plan.routes) for r in t.rounds) for t in trajectories]
    parts = dict(
      answer=rng.choice([0.0, 0.5, 1.0], count),
      well_formed=rng.integers(0, 2, count),
      searches=np.array(searches),
      tokens=np.array([t.tokens for t in trajectories]),
    )
    parts = {name: part.astype(np.float64) for name, part in parts.items()}
    return TrajectoryRewards(parts, WEIGHTS)


@pytest.fixture(scope="module")
def policy():
  return device_loop_cases.load_warm_start(1)


@pytest.fixture(scope="module")
def walked(policy):
  """The groups of some questions, and each response of the loop by itself."""
  task = device_loop_cases.load_kbs(), device_loop_cases.load_questions(COUNT)
  groups = trajectory_rollouts.sample_trajectories(
    policy, *task, KEY, OPTIONS, RandomReward()
  )
  visited = []
  options = dataclasses.replace(OPTIONS, on_step=visited.append)
  again = router.run_routing(policy, *task, KEY, options)
  assert again == groups.trajectories
  # Of the first question nothing can be read.
  assert {visit.step.question.id for visit in visited} == {
    question.id for question in task[1][1:]
  }
  return groups, visited


def without_scores(trajectories):
  """Return trajectories without scores, whose last bits depend on batches."""
  return [
    dataclasses.replace(
      trajectory,
      rounds=tuple(
        dataclasses.replace(
          done,
          passages=tuple(
            dataclasses.replace(passage, score=0.0) for passage in done.passages
          ),
        )
        for done in trajectory.rounds
      ),
    )
    for trajectory in trajectories
  ]


def responses_of(groups, walker):
  """Return (state, member) of a trajectory's responses, in their order."""
  question, member = divmod(walker, SIZE)
  states = [
    state
    for state in np.flatnonzero(groups.questions == question)
    if groups.present[state, member]
  ]
  return sorted(
    ((state, member) for state in states), key=lambda at: groups.positions[at]
  )


def test_each_response_stands_at_its_state(walked, policy):
  groups, visited = walked
  assert groups.present.sum() == len(visited)
  by_walker = collections.defaultdict(list)
  ids = [each.question.id for each in groups.trajectories[::SIZE]]
  numbers = {question_id: n for n, question_id in enumerate(ids)}
  for visit in sorted(visited, key=lambda visit: visit.number):
    walker = numbers[visit.step.question.id] * SIZE + visit.member
    by_walker[walker].append(visit)
  shared = collections.defaultdict(set)
  for walker, visits in by_walker.items():
    places = responses_of(groups, walker)
    for place, visit in zip(places, visits, strict=True):
      (response,) = visit.responses
      mask = groups.sampled.mask[place]
      np.testing.assert_array_equal(
        groups.sampled.tokens[place][mask], response.tokens
      )
      np.testing.assert_array_equal(
        groups.sampled.logp[place][mask], response.logp
      )
      prompt = policy.processor.encode(visit.prompt)
      assert groups.prompts[place[0]].ids == prompt.ids
      state = walker // SIZE, visit.number, visit.step.history, visit.prompt
      shared[state].add(place[0])
    # All tokens of a trajectory are there.
    tokens = sum(len(visit.responses[0].tokens) for visit in visits)
    assert tokens == groups.trajectories[walker].tokens
  # Equal states are one group, others are not.
  assert all(len(states) == 1 for states in shared.values())
  assert len(shared) == len(groups.prompts) < len(visited)


def slow_returns(groups, discount):
  """Return what follows each response, by the sum of its definition."""
  found = np.zeros(groups.present.shape)
  for walker, trajectory in enumerate(groups.trajectories):
    places = responses_of(groups, walker)
    rewards, searched = [], 0
    for n, place in enumerate(places):
      tokens = groups.sampled.mask[place].sum()
      reward = WEIGHTS["tokens"] * tokens
      # The plan whose round follows is the last one before an answer.
      following = places[n + 1 : n + 2]
      is_executed = following and groups.searches[place]
      if is_executed:
        routes = trajectory.rounds[searched].plan.routes
        reward += WEIGHTS["searches"] * len(routes)
        searched += 1
      rewards.append(reward)
    if not places:
      continue
    assert searched == len(trajectory.rounds)
    rewards[-1] += groups.rewards.total[walker] - sum(rewards)
    for n, place in enumerate(places):
      found[place] = sum(
        discount ** (k - n) * rewards[k] for k in range(n, len(places))
      )
  return found


@pytest.mark.parametrize("discount", [1.0, 0.9, 0.0])
def test_returns_are_the_sums_of_what_follows(walked, discount):
  groups, _ = walked
  np.testing.assert_allclose(
    groups.returns(groups.reward, discount),
    slow_returns(groups, discount),
    atol=1e-12,
  )
  # Without a discount the first response earns the whole reward.
  if discount == 1:
    first = groups.present & (groups.positions == 0)
    returns = groups.returns(groups.reward, 1.0)
    state, member = np.nonzero(first)
    whole = groups.reward[groups.questions[state], member]
    np.testing.assert_allclose(returns[first], whole, atol=1e-12)


def slow_advantage(values):
  """Return sample-standardised values, 0 if there is one or all are equal."""
  values = np.array(values, np.float64)
  if len(values) < 2 or values.max() == values.min():
    return np.zeros(len(values))
  return (values - values.mean()) / (values.std(ddof=1) + 1e-6)


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.4])
def test_advantages_are_those_of_trajectories_and_of_states(walked, weight):
  groups, _ = walked
  found = groups.advantages(Credit(state_weight=weight, discount=0.95))
  wanted = np.zeros(found.shape)
  for question in range(COUNT):
    total = groups.rewards.total[question * SIZE : (question + 1) * SIZE]
    for member, advantage in enumerate(slow_advantage(total)):
      for place in responses_of(groups, question * SIZE + member):
        wanted[place] += advantage
  returns = slow_returns(groups, 0.95)
  for state, present in enumerate(groups.present):
    members = np.flatnonzero(present)
    wanted[state, members] += weight * slow_advantage(returns[state, members])
  np.testing.assert_allclose(found, wanted, atol=1e-5)
  assert found.any() and not found[~groups.present].any()


def test_truncated_trajectories_lose_their_penalty(walked):
  groups, _ = walked
  sampled = groups.sampled
  mask, tokens = sampled.mask.copy(), sampled.tokens.copy()
  # The last response of the second question's third trajectory is cut.
  place = responses_of(groups, SIZE + 2)[-1]
  mask[place], tokens[place] = True, 7
  cut = dataclasses.replace(
    groups, sampled=sampled._replace(mask=mask, tokens=tokens)
  )
  found = cut.advantages(Credit(truncated="penalise", end_ids=(2,)))
  # Others of that question may have a response without an end token, too.
  is_cut = [
    not all(2 in tokens[at][mask[at]] for at in responses_of(groups, SIZE + n))
    for n in range(SIZE)
  ]
  assert is_cut[2]
  total = groups.rewards.total[SIZE : 2 * SIZE].copy()
  total -= advantages.TRUNCATED_PENALTY * np.array(is_cut)
  first = responses_of(groups, SIZE + 2)[0]
  np.testing.assert_allclose(found[first], slow_advantage(total)[2], atol=1e-5)


def test_rollouts_are_put_together_with_questions_of_their_own(walked):
  groups, _ = walked
  both = trajectory_rollouts.TrajectoryGroups.concat([groups, groups])
  credit = Credit(state_weight=1.0)
  np.testing.assert_array_equal(
    both.advantages(credit), np.tile(groups.advantages(credit), (2, 1))
  )
  assert both.questions.max() == 2 * COUNT - 1


@pytest.mark.parametrize("loop", ["halves", "fused"])
def test_each_loop_samples_the_same_trajectories(walked, policy, loop):
  groups, _ = walked
  task = device_loop_cases.load_kbs(), device_loop_cases.load_questions(COUNT)
  found = trajectory_rollouts.sample_trajectories(
    policy, *task, KEY, OPTIONS, RandomReward(), loop
  )
  assert without_scores(found.trajectories) == without_scores(
    groups.trajectories
  )
  for name in ("questions", "positions", "searches"):
    np.testing.assert_array_equal(getattr(found, name), getattr(groups, name))
  np.testing.assert_array_equal(found.sampled.tokens, groups.sampled.tokens)
  np.testing.assert_allclose(found.sampled.logp, groups.sampled.logp, atol=1e-4)


def test_trajectories_do_not_depend_on_other_questions(walked, policy):
  groups, _ = walked
  kbs, questions = device_loop_cases.load_kbs(), groups.trajectories[::SIZE]
  alone = trajectory_rollouts.sample_trajectories(
    policy, kbs, [questions[3].question], KEY, OPTIONS, RandomReward()
  )
  together = groups.trajectories[3 * SIZE : 4 * SIZE]
  assert without_scores(alone.trajectories) == without_scores(together)


def test_questions_that_cannot_be_read_raise(policy):
  broken = device_loop_cases.load_questions(1)
  with pytest.raises(UserError, match="could be asked none of 1 questions"):
    trajectory_rollouts.sample_trajectories(
      policy, device_loop_cases.load_kbs(), broken, KEY, OPTIONS, RandomReward()
    )


def test_metrics_tell_whether_there_is_anything_to_learn(walked):
  groups, _ = walked
  metrics = groups.metrics()
  right = groups.rewards.parts["answer"].reshape(COUNT, SIZE) == 1
  assert metrics["solved_groups"] == right.any(1).mean()
  assert metrics["reward/answer"] == groups.rewards.parts["answer"].mean()
  assert metrics["steps"] * COUNT * SIZE == groups.present.sum()
  (sample,) = groups.samples(groups.advantages(Credit()))
  shown = [t.question.id for t in groups.trajectories].index(sample["id"])
  assert sample["rewards"] == groups.reward[shown // SIZE].tolist()
  assert len(set(sample["rewards"])) > 1
  assert "final: " in sample["responses"][0]


@pytest.mark.slow
@pytest.mark.parametrize("minibatches, block, shards", [(1, 4, 1), (2, 3, 2)])
def test_batches_have_the_gradient_of_each_response_alone(
  walked, policy, minibatches, block, shards
):
  groups, _ = walked
  loss_config = make_loss_config(max_response_tokens=40, temperature=1.0)
  advantage = groups.advantages(Credit(state_weight=1.0))
  batches, kept = train_batches.make_trajectory_batches(
    policy, groups, advantage, loss_config, (minibatches, shards, block)
  )
  assert sorted(kept) == np.flatnonzero(advantage.any(1)).tolist()
  model = qwen2_5_vl.QwenVL(policy.config.model, policy.config.compute)
  allowed = jnp.asarray(policy.allowed_tokens)

  @jax.jit
  def numerator(params, batch):
    def of_params(params):
      total, count, _ = grpo_loss.loss(
        model, loss_config, params, None, batch, allowed
      )
      return total, count

    return jax.value_and_grad(of_params, has_aux=True)(params)

  def add(sums, parts):
    return parts if sums is None else jax.tree.map(np.add, sums, parts)

  for n, batch in enumerate(batches):
    found = wanted = None
    for shard in range(shards):
      some = jax.tree.map(lambda x, shard=shard: x[shard], batch)
      found = add(found, jax.device_get(numerator(policy.params, some)))
    # Each response by itself, in a batch of one.
    for state, member in np.argwhere(groups.present):
      if groups.questions[state] % minibatches != n:
        continue
      tokens, logp, mask = (
        x[state, member][None, None] for x in groups.sampled[:3]
      )
      prompt = policy.processor.collate([groups.prompts[state]], 1, 1)
      prompt = jax.tree.map(lambda x: x[0], prompt)
      one = advantage[state, member][None, None]
      count = np.array([mask.sum()], np.float32)
      alone = Batch(prompt, tokens, mask, one, logp, count)
      wanted = add(wanted, jax.device_get(numerator(policy.params, alone)))
    (loss, count), gradient = found
    (wanted_loss, tokens), wanted_gradient = wanted
    np.testing.assert_allclose(count, tokens, rtol=1e-6)
    np.testing.assert_allclose(loss / count, wanted_loss / tokens, atol=1e-6)
    jax.tree.map(
      lambda got, want, count=count: np.testing.assert_allclose(
        got / count, want / count, atol=1e-5
      ),
      gradient,
      wanted_gradient,
    )
