"""Step rewards of policies: their responses to gold steps, scored.

Results are appended to a JSONL file as they come, so that an interrupted run
continues.

Axes:  n steps
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence

import jax
import msgspec
import numpy as np
from absl import logging
from jaxtyping import Float

from r1router_jax.common import jsonl, progress
from r1router_jax.common.records import Question, Step
from r1router_jax.common.schema import Count, Finite
from r1router_jax.data import gold_steps
from r1router_jax.generation import token_sampling
from r1router_jax.policy.policy import Policy
from r1router_jax.retrieval import retriever
from r1router_jax.retrieval.retriever import KnowledgeBase
from r1router_jax.rewards import step_reward
from r1router_jax.routing import policy_requests
from r1router_jax.routing.episode import Episode

QUESTION_STRIDE = 8  # The gold steps of every 8th question are scored.
STEPS_PER_CHUNK = 390  # Steps between two lines of progress.
# Temperature of the response to each step, by the name of the mode.
MODES = dict(greedy=0.0, sampled=1.0)


class _SavedRow(msgspec.Struct):
  """The schema of a row: of each mode, a number for each gold step."""

  steps: Count
  greedy: list[Finite]
  sampled: list[Finite]

  def __post_init__(self):
    if not len(self.greedy) == len(self.sampled) == self.steps:
      raise ValueError("wanted a reward for each step")


def score_gold_steps(
  policy: Policy,
  steps: Sequence[Step],
  reward: step_reward.Reward,
  key: jax.Array,
  temperature: float,
) -> Float[np.ndarray, " n"]:
  """Return the reward of the policy's response to each gold step.

  A step whose prompt cannot be read, e.g. for its image, has reward 0.  The key
  is that of the samples; at temperature 0 the responses are greedy.
  """
  # 1. Leave out the prompts that cannot be read.
  prompts = [policy.config.build_prompt(step) for step in steps]
  check = functools.partial(policy_requests.check_prompt, policy)
  episodes = [Episode(step.question) for step in steps]
  checked = list(map(check, episodes, prompts))
  good = [i for i, fault in enumerate(checked) if fault is None]
  if faults := list(filter(None, checked)):
    logging.warning(
      f"{len(faults)} of {len(steps)} gold steps cannot be read and earn 0, "
      f"the first because: {faults[0].reason}"
    )

  # 2. Respond and score, chunk by chunk.
  rewards = np.zeros(len(steps))
  sampling = token_sampling.SamplingParams(temperature)
  desc = f"step rewards, {STEPS_PER_CHUNK} steps each"
  for chunk in progress.show_chunks(good, STEPS_PER_CHUNK, desc):
    asked = [prompts[i] for i in chunk]
    groups = policy.generate(asked, key, sampling=sampling)
    texts = [response.text for (response,) in groups]
    rewards[chunk] = reward.score([steps[i] for i in chunk], texts).total
  return rewards


def score_policies(
  policies: Mapping[str, Policy],
  labels: Mapping[str, dict],
  kbs: Mapping[str, KnowledgeBase],
  questions: Sequence[Question],
  seed: int,
  path: pathlib.Path,
) -> dict[str, dict[str, Float[np.ndarray, " n"]]]:
  """Return the step rewards of each policy, greedy and sampled.

  The questions have gold hops.  The JSONL file at `path` has a row per policy;
  rows of the same label (see `runner.run_label`), seed and number of steps are
  read instead of computed again.
  """
  # Answer steps read passages that a search for the gold sub-question finds.
  retrieve = retriever.make_retriever(kbs)
  traces = gold_steps.make_gold_steps(questions[::QUESTION_STRIDE], retrieve)
  steps = [step for trace in traces for step in trace]
  reward = step_reward.make_reward("reference")
  known, rewards = jsonl.read_rows(path, _SavedRow), {}
  for name, policy in policies.items():
    label = dict(labels[name], seed=seed, steps=len(steps))
    # An earlier run may have scored this policy.
    row = next((row for row in known if label.items() <= row.items()), None)
    if row is None:
      logging.info("%s: %d gold steps, greedy, then sampled.", name, len(steps))
      row = label
      for mode, temperature in MODES.items():
        # The same key for each policy and mode, whatever was scored before.
        task = policy, steps, reward, jax.random.key(seed)
        row[mode] = score_gold_steps(*task, temperature).tolist()
      jsonl.append_rows(path, [row])
    rewards[name] = {mode: np.array(row[mode]) for mode in MODES}
  return rewards
