"""Rollouts of single steps: groups of responses to a step, with rewards.

  offline  each step of a gold trajectory is a prompt of its own, with the gold
           history and passages (as in the paper)
  online   the policy runs the routing loop itself, with live retrieval; G
           responses to each step form a group, and the loop goes on with one

Online, golds are aligned by position: the plan of round n is compared with the
gold hop n, or should stop if there is no such hop; the answer of round n is
compared with the answers of hop n, and has no gold without it; the final answer
is compared with the question's.  Retrieved text is part of prompts alone, so
the policy is never trained to write it.

`trajectory_rollouts` has the other kind of groups, and `train_batches` makes
batches of both.

Axes:  B groups   G responses per group   T response tokens
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Question, Response, Step
from r1router_jax.generation import group_decode
from r1router_jax.inputs.processor import EncodedPrompt, pad_responses
from r1router_jax.policy.policy import Policy
from r1router_jax.protocol import format
from r1router_jax.retrieval.retriever import KnowledgeBase
from r1router_jax.rewards import step_reward
from r1router_jax.routing import device_loop
from r1router_jax.routing.router import RolloutOptions
from r1router_jax.training.advantages import (
  Credit,
  find_truncated,
  reward_advantages,
)


@dataclasses.dataclass(frozen=True)
class RolloutGroups:
  """Groups of sampled responses with their rewards, one group per step."""

  steps: list[Step]  # B, with their golds.
  prompts: list[EncodedPrompt]  # B, as the policy read them.
  sampled: group_decode.SampledResponses  # Leaves [B, G, T], or [B, G].
  texts: list[str]  # B * G, those of a group one after the other.
  components: step_reward.RewardComponents  # In the order of the texts.
  # Of the components in the reward; {} if the user's own function made it.
  weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
  reward_seconds: float = 0.0  # Spent on computing the rewards.

  @property
  def reward(self) -> Float[np.ndarray, "B G"]:
    """Return the reward of each response."""
    return self.components.total.reshape(len(self.steps), -1)

  @property
  def has_signal(self) -> Bool[np.ndarray, " B"]:
    """Return True for groups of unequal rewards: their advantages are not 0."""
    return np.ptp(self.reward, axis=1) > 0

  @classmethod
  def concat(cls, rollouts: Sequence["RolloutGroups"]) -> "RolloutGroups":
    """Concatenate the groups of several rollouts."""

    def concat(*arrays):
      return np.concatenate(arrays)

    # One sequence of columns per rollout, in the order of the fields.
    components = [vars(each.components).values() for each in rollouts]
    return cls(
      [step for each in rollouts for step in each.steps],
      [prompt for each in rollouts for prompt in each.prompts],
      jax.tree.map(concat, *[each.sampled for each in rollouts]),
      [text for each in rollouts for text in each.texts],
      step_reward.RewardComponents(*map(concat, *components)),
      rollouts[0].weights,
      sum(each.reward_seconds for each in rollouts),
    )

  def advantages(self, credit: Credit) -> Float[np.ndarray, "B G"]:
    """Return the advantage of each response among those to its step."""
    sampled, reward = self.sampled, self.reward
    # A plan has no score of an answer, nor an answer a route.
    parts = {
      name: np.nan_to_num(getattr(self.components, name)).reshape(reward.shape)
      for name in self.weights
    }
    truncated = find_truncated(sampled.tokens, sampled.mask, credit.end_ids)
    return reward_advantages(credit, reward, parts, self.weights, truncated)

  def metrics(self) -> dict[str, float]:
    """Return the scalars that the responses give to the log."""
    kinds = np.array([step.kind for step in self.steps])
    means = self.components.means()
    metrics = {f"reward/{name}": mean for name, mean in means.items()}
    # Plans, answers and final answers are rewarded differently.
    for kind in dict.fromkeys(kinds.tolist()):
      metrics[f"reward/{kind}"] = float(self.reward[kinds == kind].mean())
    return metrics

  def samples(
    self, advantages: Float[np.ndarray, "B G"]
  ) -> list[dict[str, Any]]:
    """Return the first group of each kind of step, as JSON holds it."""
    kinds = [step.kind for step in self.steps]
    group_size, samples = advantages.shape[1], []
    for kind in dict.fromkeys(kinds):
      row = kinds.index(kind)
      step, start = self.steps[row], row * group_size
      # The gold answers, or the gold plan in words.
      plan = f"{step.sub_question} ({' or '.join(step.routes)})"
      sample = dict(
        id=step.id,
        kind=kind,
        question=step.question.text,
        history=[list(pair) for pair in step.history],
        sub_question=step.sub_question if kind == "answer" else "",
        gold=[plan] if kind == "plan" else list(step.answers),
        responses=self.texts[start : start + group_size],
        rewards=self.reward[row].tolist(),
        advantages=advantages[row].tolist(),
      )
      samples.append(sample)
    return samples


def score_groups(
  steps: Sequence[Step],
  prompts: Sequence[EncodedPrompt],
  sampled: group_decode.SampledResponses,
  texts: Sequence[str],
  reward: step_reward.Reward,
) -> RolloutGroups:
  """Return the responses with their rewards."""
  # The time is kept apart from that of sampling: rewards may embed texts.
  step_of_text = [step for step in steps for _ in range(sampled.mask.shape[1])]
  start = time.perf_counter()
  components = reward.score(step_of_text, texts)
  seconds = time.perf_counter() - start
  return RolloutGroups(
    list(steps),
    list(prompts),
    sampled,
    list(texts),
    components,
    reward.weights,
    seconds,
  )


def online_rollouts(
  policy: Policy,
  kbs: Mapping[str, KnowledgeBase],
  questions: Sequence[Question],
  key: jax.Array,
  options: RolloutOptions,
  reward: step_reward.Reward,
  routing_loop: str = "host",
) -> RolloutGroups:
  """Sample and score the responses to each step of the policy's trajectories.

  `routing_loop` is a key of `device_loop.ROUTING_LOOPS`.

  Raises:
    UserError: if no question has a step that could be scored.
  """
  # 1. Run the routing loop and keep the group of each step that has a gold.
  visited: list[tuple[Step, Sequence[Response]]] = []

  def keep_group(visit):
    # The prompt of a repair is none of a step, so nobody learns from it.
    if not visit.is_repair:
      visited.append((visit.step, visit.responses))

  options = dataclasses.replace(options, on_step=keep_group)
  device_loop.ROUTING_LOOPS[routing_loop](policy, kbs, questions, key, options)
  # Sorted, because each routing loop visits steps in an order of its own.
  visited.sort(key=lambda pair: (pair[0].id, pair[0].kind))
  scorable = [(attach_gold(step), group) for step, group in visited]
  scorable = [pair for pair in scorable if pair[0] is not None]
  if not scorable:
    raise UserError(
      f"None of {len(questions)} questions led to a step with a gold: their "
      "images cannot be read, or their prompts are too long."
    )

  # 2. Shuffle: an update takes the first groups with a signal, which should not
  # all come from the first round.
  order = np.asarray(jax.random.permutation(key, len(scorable)))
  steps, groups = zip(*(scorable[i] for i in order), strict=True)

  # 3. Score.
  prompts = [
    policy.processor.encode(policy.config.build_prompt(step)) for step in steps
  ]
  texts = [response.text for group in groups for response in group]
  sampled = _stack_responses(policy, groups)
  return score_groups(steps, prompts, sampled, texts, reward)


def _stack_responses(
  policy: Policy, groups: Sequence[Sequence[Response]]
) -> group_decode.SampledResponses:
  """Return the responses of all groups as arrays [B, G, T]."""
  shape = len(groups), len(groups[0])
  responses = [response for group in groups for response in group]
  tokens, mask = pad_responses(
    [response.tokens for response in responses],
    policy.config.response_tokens[-1],
    policy.processor.tokenizer.pad_id,
  )
  # The log-probabilities are in the order of the tokens that are not padding.
  logp = np.zeros(tokens.shape, np.float32)
  logp[mask] = np.concatenate([response.logp for response in responses])
  arrays = [x.reshape(*shape, -1) for x in (tokens, logp, mask)]
  return group_decode.SampledResponses(*arrays, np.zeros(shape, bool))


def attach_gold(step: Step) -> Step | None:
  """Return a step of the routing loop with its gold; None if it has none."""
  # Rounds done so far say which gold hop the step is compared with.
  position, hops = len(step.history), step.question.hops
  hop = hops[position] if position < len(hops) else None
  if step.kind == "final":
    return dataclasses.replace(step, answers=step.question.answers)
  # The sub-question is the policy's own, and stays.
  if step.kind == "answer":
    return hop and dataclasses.replace(step, answers=hop.answers)
  # A plan after the last gold hop should stop.
  if hop is None:
    return dataclasses.replace(step, sub_question=format.NONE, routes=("none",))
  gold = dict(sub_question=hop.sub_question, routes=hop.routes)
  return dataclasses.replace(step, **gold)
