"""Rollout groups that tests make batches of, also in child processes."""

import numpy as np

from r1router_jax.common.records import Question, Step
from r1router_jax.generation import group_decode
from r1router_jax.policy import policy
from r1router_jax.rewards import step_reward
from r1router_jax.training import advantages, rollouts, train_batches
from tests import tiny_policy

# Groups, responses per group, and the longest response of tiny_policy.SETTINGS.
SHAPE = 10, 3, 12

# The groups of unequal rewards.
USEFUL = [1, 4, 5, 6, 7, 9]


def make_groups(host=0):
  """Return ten groups, four of them of equal rewards; longer on host 1."""
  rng = np.random.default_rng(3)
  # Host 1 also has images.
  prompts = [
    tiny_policy.random_prompt(
      rng, tiny_policy.MODEL_CONFIG, n, *[(4, 4)] * host
    )
    for n in (rng.integers(5, 20, SHAPE[0]) + 20 * host).tolist()
  ]
  lengths = rng.integers(1, 8 + 5 * host, SHAPE[:2])
  sampled = group_decode.SampledResponses(
    tiny_policy.random_responses(rng, tiny_policy.MODEL_CONFIG, *SHAPE),
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
  components = step_reward.RewardComponents(*[reward.reshape(-1)] * 6)
  return rollouts.RolloutGroups(
    steps, prompts, sampled, ["x"] * reward.size, components
  )


def make_batches(config, host=0, advantage_scale=1, shape=(1, 8, 1)):
  """Return the groups of a host and the batches that are made of them."""
  groups = make_groups(host)
  batches, _ = train_batches.make_step_batches(
    policy.Policy(tiny_policy.POLICY_CONFIG, tiny_policy.TOKENIZER, {}),
    groups,
    advantage_scale * advantages.group_advantages(groups.reward),
    config,
    shape,
  )
  return groups, batches
