"""Rollouts of Step-GRPO: groups of responses with rewards, made into batches.

  offline  each step of a gold trajectory is a prompt of its own, with the gold
           history and passages (as in the paper)
  online   the policy runs the routing loop itself, with live retrieval; G
           responses to each step form a group, and the loop goes on with one

Online, golds are aligned by position: the plan of round n is compared with the
gold hop n, or should stop if there is no such hop; the answer of round n is
compared with the answers of hop n, and has no gold without it; the final answer
is compared with the question's.  Retrieved text is part of prompts alone, so
the policy is never trained to write it.

Axes:  B groups   G responses per group   T response tokens
"""

import dataclasses
import math
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
from r1router_jax.parallel import multihost
from r1router_jax.policy.policy import Policy
from r1router_jax.protocol import format
from r1router_jax.retrieval.retriever import KnowledgeBase
from r1router_jax.rewards import step_reward
from r1router_jax.routing import device_loop
from r1router_jax.routing.router import RolloutOptions
from r1router_jax.training.batch import Batch, pad_to_shards
from r1router_jax.training.grpo_loss import GrpoLossConfig


@dataclasses.dataclass(frozen=True)
class RolloutGroups:
  """Groups of sampled responses with their rewards, one group per step."""

  steps: list[Step]  # B, with their golds.
  prompts: list[EncodedPrompt]  # B, as the policy read them.
  sampled: group_decode.SampledResponses  # Leaves [B, G, T], or [B, G].
  texts: list[str]  # B * G, those of a group one after the other.
  components: step_reward.RewardComponents  # In the order of the texts.
  reward_seconds: float = 0.0  # Spent on computing the rewards.

  @property
  def reward(self) -> Float[np.ndarray, "B G"]:
    """Return the reward of each response."""
    return self.components.total.reshape(len(self.steps), -1)

  @property
  def has_signal(self) -> Bool[np.ndarray, " B"]:
    """Return True for groups of unequal rewards: their advantages are not 0."""
    return np.ptp(self.reward, axis=1) > 0


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
    list(steps), list(prompts), sampled, list(texts), components, seconds
  )


def concat_groups(rollouts: Sequence[RolloutGroups]) -> RolloutGroups:
  """Concatenate the groups of several rollouts."""

  def concat(*arrays):
    return np.concatenate(arrays)

  # One sequence of columns per rollout, in the order of the fields.
  components = [vars(each.components).values() for each in rollouts]
  return RolloutGroups(
    [step for each in rollouts for step in each.steps],
    [prompt for each in rollouts for prompt in each.prompts],
    jax.tree.map(concat, *[each.sampled for each in rollouts]),
    [text for each in rollouts for text in each.texts],
    step_reward.RewardComponents(*map(concat, *components)),
    sum(each.reward_seconds for each in rollouts),
  )


def sample_groups(
  groups: RolloutGroups, advantages: Float[np.ndarray, "B G"]
) -> list[dict[str, Any]]:
  """Return the first group of each kind of step, as JSON holds it."""
  kinds = [step.kind for step in groups.steps]
  group_size, samples = advantages.shape[1], []
  for kind in dict.fromkeys(kinds):
    row = kinds.index(kind)
    step, start = groups.steps[row], row * group_size
    # The gold answers, or the gold plan in words.
    plan = f"{step.sub_question} ({' or '.join(step.routes)})"
    sample = dict(
      id=step.id,
      kind=kind,
      question=step.question.text,
      history=[list(pair) for pair in step.history],
      sub_question=step.sub_question if kind == "answer" else "",
      gold=[plan] if kind == "plan" else list(step.answers),
      responses=groups.texts[start : start + group_size],
      rewards=groups.reward[row].tolist(),
      advantages=advantages[row].tolist(),
    )
    samples.append(sample)
  return samples


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
  options = dataclasses.replace(
    options, on_step=lambda step, group: visited.append((step, group))
  )
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


def make_train_batches(
  policy: Policy,
  groups: RolloutGroups,
  advantage: Float[np.ndarray, "B G"],
  loss_config: GrpoLossConfig,
  shape: tuple[int, int, int],
) -> tuple[list[Batch], np.ndarray]:
  """Make batches of the groups that have a gradient, as many as fit.

  `shape` is the number of batches, of this host's data shards, and of groups in
  each of them.  Returns the batches, and the indices of the groups in them.

  The loss remains a mean over all groups: its denominator, spread evenly over
  the rows of the batches, also counts the groups of equal rewards, in
  proportion to the fraction of the other groups that fit.

  Groups of equal rewards are kept, too, where a penalty gives them a gradient.
  """
  sampled = groups.sampled
  sizes = loss_config.loss_denominator(sampled.mask)
  minibatches, *shard_rows = shape
  total_rows = math.prod(shape)

  # 1. The groups that have a gradient; the last of them may not fit.
  useful = np.flatnonzero(advantage.any(axis=1) | loss_config.has_penalty)
  kept = useful[:total_rows]

  # 2. The denominator of each row.
  fraction = sizes[kept].sum() / sizes[useful].sum() if len(useful) else 1
  denominator = sizes.sum() * fraction / total_rows
  denominators = np.full(shard_rows, denominator, np.float32)

  # 3. The arrays, cut to the longest response on any host.
  longest = int(sampled.mask[kept].sum(-1).max(initial=0))
  length = policy.config.response_length(*multihost.max_over_hosts([longest]))
  arrays = [x[..., :length] for x in (sampled.tokens, sampled.mask)]
  arrays += [advantage, sampled.logp[..., :length]]
  batches = []
  for n in range(minibatches):
    chosen = kept[n::minibatches]
    # Without any group, one prompt gives the batch of padding its shapes.
    prompts = [groups.prompts[i] for i in chosen] or groups.prompts[:1]
    prompts = policy.processor.collate(
      prompts, *shard_rows, multihost.max_over_hosts
    )
    padded = (pad_to_shards(x[chosen], *shard_rows) for x in arrays)
    batches.append(Batch(prompts, *padded, denominators))
  return batches, kept
