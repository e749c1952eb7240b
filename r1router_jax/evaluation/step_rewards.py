"""Rewards of what policies respond to gold steps, kept in a file as they come.

Axes:  n steps
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import logging
from jaxtyping import Float

from r1router_jax.common import jsonl, progress
from r1router_jax.common.records import Query, Question, Step
from r1router_jax.data import gold_steps
from r1router_jax.generation import token_sampling
from r1router_jax.policy import policy
from r1router_jax.protocol import format
from r1router_jax.retrieval import retriever
from r1router_jax.retrieval.encoders import registry
from r1router_jax.rewards import step_reward
from r1router_jax.routing import policy_requests
from r1router_jax.routing.episode import Walk

EVERY = 8  # Of so many questions one has its gold steps rewarded.

CHUNK = 390  # Steps between two lines of progress.

SAMPLES = 1  # Per gold step; more would need programs of other shapes.


def step_rewards(
  trained: policy.Policy,
  steps: Sequence[Step],
  reward: step_reward.StepReward,
  key: jax.Array,
  *,
  samples: int = 0,
) -> Float[np.ndarray, " n"]:
  """The reward of the response to each gold step; 0 where none can be given.

  Args:
    trained: the policy.
    steps: with the passages that answer steps read.
    reward: of each.
    key: of the samples.
    samples: 0 for the greedy response, else the mean of so many drawn at
      temperature 1.
  """
  members, earned = max(samples, 1), np.zeros(len(steps))
  prompts = [
    policy_requests.Prompt(
      Walk(step.question),
      trained.settings.conversation(step),
      functools.partial(format.parse, step.kind),
    )
    for step in steps
  ]
  unfit = [policy_requests.fits(trained, prompt) for prompt in prompts]
  good = [i for i, fault in enumerate(unfit) if fault is None]
  if len(good) < len(steps):
    logging.warning(
      "%d of %d gold steps cannot be read and earn 0, the first since: %s",
      len(steps) - len(good),
      len(steps),
      next(fault.reason for fault in unfit if fault),
    )
  for at in progress.progress(
    range(0, len(good), CHUNK), f"step rewards, {CHUNK} steps each"
  ):
    chunk = good[at : at + CHUNK]
    groups = trained.generate(
      [prompts[i].prompt for i in chunk],
      key,
      members,
      token_sampling.SamplingParams(float(samples > 0)),
    )
    flat = reward(
      [steps[i] for i in chunk for _ in range(members)],
      [each.text for group in groups for each in group],
    )
    earned[chunk] = flat.reshape(len(chunk), members).mean(axis=1)
  return earned


def of_policies(
  policies: Mapping[str, policy.Policy],
  labels: Mapping[str, dict],
  kbs,
  questions: Sequence[Question],
  seed: int,
  path: pathlib.Path,
) -> dict[str, dict[str, np.ndarray]]:
  """Rewards by policy, greedy and sampled; what the file holds is kept."""
  retrieve = retriever.retriever(kbs)
  some = questions[::EVERY]
  steps = [
    step for each in gold_steps.gold_steps(some, retrieve) for step in each
  ]
  minilm = registry.make("minilm")
  reward = step_reward.StepReward(
    lambda texts: minilm([Query(text) for text in texts]), preset="reference"
  )
  known, found = jsonl.read(path), {}
  for name, trained in policies.items():
    label = dict(labels[name], seed=seed, steps=len(steps))
    row = next((row for row in known if label.items() <= row.items()), None)
    if row is None:
      logging.info("%s: %d gold steps, greedy, then sampled.", name, len(steps))
      row = dict(
        label,
        **{
          way: step_rewards(
            trained, steps, reward, jax.random.key(seed), samples=samples
          ).tolist()
          for way, samples in (("greedy", 0), ("sampled", SAMPLES))
        },
      )
      jsonl.append(path, [row])
    found[name] = {way: np.array(row[way]) for way in ("greedy", "sampled")}
  return found
