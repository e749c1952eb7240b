import dataclasses

import jax
import numpy as np

from r1router_jax.data import gold_steps
from r1router_jax.evaluation import step_rewards
from r1router_jax.protocol import prompts
from r1router_jax.rewards import step_reward
from tests import fakes
from tests.evaluation.census import QUESTIONS, write_response


def embed(texts):
  # Texts of equal length are alike, all others unlike.
  return np.stack([np.eye(8)[len(text) % 8] for text in texts])


def score_steps(questions=QUESTIONS, temperature=0.0):
  """Returns the rewards of all steps together, and of each alone."""
  found = gold_steps.make_gold_steps(questions, lambda asked: [()] * len(asked))
  steps = [step for each in found for step in each]
  # The preset whose rewards are those of the paper.
  reward = step_reward.StepReward(embed, preset="reference")
  task = fakes.ScriptedPolicy(write_response), steps, reward
  options = jax.random.key(0), temperature
  together = step_rewards.score_gold_steps(*task, *options)
  texts = [write_response(step.kind, prompt_text(step), 0) for step in steps]
  alone = [reward([s], [t])[0] for s, t in zip(steps, texts, strict=True)]
  return together, alone


def prompt_text(step):
  conversation = prompts.step_conversation(step, style="full")
  return "".join(segment.text for segment in conversation.user)


def test_unreadable_step_earns_nothing(caplog):
  """Its neighbours earn what they would earn without it."""
  broken = dataclasses.replace(QUESTIONS[0], image="missing.png")
  together, alone = score_steps([broken, *QUESTIONS[1:]])
  count = len(alone) // len(QUESTIONS)  # Steps of each question.
  assert min(alone[:count]) > 0  # It would have earned something.
  assert together.tolist() == [0] * count + alone[count:]
  assert f"{count} of {len(alone)} gold steps cannot be read" in caplog.text
  assert "missing.png does not exist" in caplog.text


def test_rewards_do_not_depend_on_chunks(monkeypatch):
  # Chunks that end within a question.
  monkeypatch.setattr(step_rewards, "STEPS_PER_CHUNK", 3)
  together, alone = score_steps()
  assert together.tolist() == alone and len(set(alone)) > 1
  assert score_steps(temperature=1.0)[0].tolist() == alone
