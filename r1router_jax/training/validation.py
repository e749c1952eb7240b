"""How a policy does, while it learns, on steps that it does not learn from.

Its greedy responses to gold steps of held-out questions are rewarded; the mean
says which of its states is the best so far, and is kept in <workdir>/best.
"""

import dataclasses

import jax
import ml_collections as mlc
import numpy as np

from r1router_jax.common.records import Step
from r1router_jax.policy.policy import Policy
from r1router_jax.rewards import step_reward

REWARD = "validation/total"


class Validation:
  """Scores of parameters.

  Args:
    policy: whose parameters.
    steps: held-out gold steps.
    reward: of a response.
  """

  def __init__(
    self, policy: Policy, steps: list[Step], reward: step_reward.Reward
  ):
    self._policy, self._steps, self._reward = policy, steps, reward
    self._prompts = [
      policy.packer.encode(policy.settings.conversation(step)) for step in steps
    ]

  def __call__(self, params: dict) -> dict[str, float]:
    """Means of the rewards and of their parts; `REWARD` is the whole."""
    policy = dataclasses.replace(self._policy, params=params)
    drawn = policy.draw(self._prompts, jax.random.key(0), 1)
    texts = [response.text for (response,) in policy.read(drawn)]
    means = self._reward.parts(self._steps, texts).means()
    return {f"validation/{name}": mean for name, mean in means.items()}


def some(steps: list[Step], config: mlc.ConfigDict) -> list[Step]:
  """At most `config.validation.steps` of them, by `config.seed`."""
  order = np.random.default_rng(config.seed).permutation(len(steps))
  return [steps[i] for i in sorted(order[: config.validation.steps])]
