"""Step-GRPO: group-relative policy optimization of single routing steps.

An iteration samples groups of responses with the current policy
(`rollouts.py`), scores them (`rewards/`), and makes of the groups with unequal
rewards the batches of one or more updates, whose loss is in `grpo_loss.py`.

Axes:  D data shards   B prompts of a shard   G responses per prompt
  T response tokens
Source: arxiv.org/abs/2505.22095 (Step-GRPO).
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from r1router_jax.common.records import Question, Step
from r1router_jax.generation.token_sampling import SamplingParams
from r1router_jax.parallel import mesh, multihost
from r1router_jax.parallel.strategy import ParallelStrategy
from r1router_jax.policy.policy import Policy
from r1router_jax.retrieval.retriever import KnowledgeBase, is_collective
from r1router_jax.rewards import step_reward
from r1router_jax.routing.router import RolloutOptions
from r1router_jax.training import grpo_loss, rollouts, throughput
from r1router_jax.training.advantages import group_advantages
from r1router_jax.training.batch import Batch, PromptBuilder, example_rng
from r1router_jax.training.config import RunConfig


class StepGrpo:
  """The algorithm Step-GRPO: makes the batches of a run and has their loss.

  The policy's own parameters are not used; online rollouts search the knowledge
  bases.
  """

  def __init__(
    self,
    policy: Policy,
    strategy: ParallelStrategy,
    config: RunConfig,
    kbs: Mapping[str, KnowledgeBase],
  ):
    self._policy, self._kbs, self._config = policy, kbs, config
    self._options = options = config.step_grpo
    self._data_shards = strategy.local_shards
    # Steps, or questions, of this host; rollouts have a mesh of their own.
    shards = mesh.local_submesh(strategy.rollout_mesh).shape[mesh.DATA]
    self.examples_per_iteration = config.data.prompts_per_shard * shards
    self._rollout_options = RolloutOptions(
      k=config.data.passages,
      sampling=SamplingParams(options.temperature),
      group_size=options.group_size,
    )
    self._build_prompt = PromptBuilder(policy, options.rename_prob > 0)
    # Rewards of plans depend on the number of routes that a plan may name.
    self._reward = step_reward.make_reward(
      options.reward, policy.config.max_routes, options.search_cost
    )
    self._loss_config = grpo_loss.make_loss_config(options, policy.config)
    self.needs_reference = self._loss_config.kl_coef != 0
    self.loss = functools.partial(
      grpo_loss.loss, policy.model, self._loss_config
    )

  def make_batches(
    self,
    params: dict,
    examples_for: Callable[[int], Sequence[Step] | Sequence[Question]],
    iteration: int,
  ) -> tuple[list[Batch], throughput.IterationReport]:
    """Return the batches of an iteration and a report about them.

    `examples_for` returns this host's steps or questions of an iteration; for
    resampling it is asked for iterations beyond the last one.
    """
    policy = dataclasses.replace(self._policy, params=params)
    options, model = self._options, policy.config.model

    # 1. Rollouts, until enough groups have unequal rewards.
    start = time.perf_counter()
    sampled = self._sample_groups(policy, examples_for, iteration)
    groups = rollouts.concat_groups(sampled)
    seconds = dict(reward=groups.reward_seconds)
    seconds["rollout"] = time.perf_counter() - start - seconds["reward"]

    # 2. Batches of the groups that have a gradient.
    norm = grpo_loss.choose_advantage_norm(options)
    advantage = group_advantages(groups.reward, norm)
    shape = options.minibatches, self._data_shards, options.update_batch_size
    batches, kept = rollouts.make_train_batches(
      policy, groups, advantage, self._loss_config, shape
    )

    # 3. The report.  A reference policy costs one more forward pass.
    passes = throughput.FORWARD_PASSES_PER_UPDATE + self.needs_reference
    lengths = groups.sampled.mask.sum(-1)
    work = throughput.count_work(model, groups.prompts, lengths)
    learnt = [groups.prompts[i] for i in kept], lengths[kept]
    update = throughput.count_work(model, *learnt, passes)
    work = work._replace(flops=work.flops + update.flops)
    metrics = _rollout_metrics(groups) | {"refills": float(len(sampled) - 1)}
    shown = rollouts.sample_groups(groups, advantage)
    return batches, throughput.IterationReport(metrics, work, seconds, shown)

  def _sample_groups(
    self, policy: Policy, examples_for: Callable, iteration: int
  ) -> list[rollouts.RolloutGroups]:
    """Return the rollouts of an iteration, one or more.

    Another one is made while fewer groups have unequal rewards than the updates
    hold, `max_resample_rounds` times at most.
    """
    options = self._options
    wanted = self._data_shards * options.update_batch_size * options.minibatches
    # Groups of equal rewards have no gradient.
    sampled, useful = [], 0
    for extra in range(options.max_resample_rounds + 1):
      # Extra rounds have numbers, and so examples and keys, of their own.
      index = iteration + extra * self._config.total_steps
      sampled.append(self._sample_round(policy, examples_for(index), index))
      useful += int(np.sum(sampled[-1].has_signal))
      enough = useful >= wanted
      if is_collective(self._kbs):
        # Hosts that search together also sample together.
        enough = multihost.all_hosts_agree(enough)
      if enough:
        break
    return sampled

  def _sample_round(
    self, policy: Policy, examples: Sequence, index: int
  ) -> rollouts.RolloutGroups:
    """Sample and score a group at each of the examples."""
    seed = self._config.seed
    key = jax.random.fold_in(jax.random.key(seed), index)
    how = self._rollout_options
    if self._config.is_online:
      rest = key, how, self._reward, self._options.routing_loop
      return rollouts.online_rollouts(policy, self._kbs, examples, *rest)
    # Names are drawn by step and iteration, not by place in the batch.
    rngs = [example_rng(seed, index, step.id) for step in examples]
    pairs = [
      self._build_prompt(step, self._options.rename_prob, rng)
      for step, rng in zip(examples, rngs, strict=True)
    ]
    steps, prompts = zip(*pairs, strict=True)
    # Each step is a prompt of its own.
    sampled = policy.sample(prompts, key, how.group_size, how.sampling)
    groups = policy.decode(sampled)
    texts = [response.text for group in groups for response in group]
    return rollouts.score_groups(steps, prompts, sampled, texts, self._reward)


def _rollout_metrics(groups: rollouts.RolloutGroups) -> dict[str, float]:
  """Return the scalars that the sampled responses give to the log."""
  kinds = np.array([step.kind for step in groups.steps])
  reward, sampled = groups.reward, groups.sampled
  means = groups.components.means()
  metrics = {f"reward/{name}": mean for name, mean in means.items()}
  # Plans, answers and final answers are rewarded differently.
  for kind in dict.fromkeys(kinds.tolist()):
    metrics[f"reward/{kind}"] = float(reward[kinds == kind].mean())
  truncated = [prompt.truncated_tokens for prompt in groups.prompts]
  return metrics | {
    "reward/std_in_group": float(reward.std(axis=1).mean()),
    "groups": float(len(groups.steps)),
    "equal_groups": float(np.mean(~groups.has_signal)),
    "response_tokens": float(sampled.mask.sum(-1).mean()),
    "cut_tokens": float(np.mean(truncated)),
    # A response that fills its room has no end token.
    "truncated": float(sampled.mask.all(-1).mean()),
  }
