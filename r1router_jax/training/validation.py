"""Scores a policy, while it learns, on gold steps that it does not learn from.

The mean reward of its greedy responses tells which of its states is the best so
far; `train` keeps that state in <workdir>/best.
"""

import dataclasses

import jax

from r1router_jax.common.records import Step
from r1router_jax.policy.policy import Policy
from r1router_jax.rewards import step_reward

REWARD_METRIC = "validation/total"


class Validator:
  """Scores parameters of a policy, not its own, on held-out gold steps."""

  def __init__(
    self, policy: Policy, steps: list[Step], reward: step_reward.Reward
  ):
    self._policy, self._steps, self._reward = policy, steps, reward
    # Prompts are encoded once, for all validations.
    self._prompts = [
      policy.processor.encode(policy.config.build_prompt(step))
      for step in steps
    ]

  def score_params(self, params: dict) -> dict[str, float]:
    """Return the means of the rewards and of their components, by metric."""
    policy = dataclasses.replace(self._policy, params=params)
    # Greedy, so the key has no effect.
    sampled = policy.sample(self._prompts, jax.random.key(0), 1)
    texts = [response.text for (response,) in policy.decode(sampled)]
    means = self._reward.score(self._steps, texts).means()
    return {f"validation/{name}": mean for name, mean in means.items()}
