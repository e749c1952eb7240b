"""Step-GRPO: group-relative policy optimization of routing steps.

An iteration samples groups of responses with the current policy, and rewards
them (`rewards/`): single steps (`rollouts.py`), or whole trajectories
(`trajectory_rollouts.py`), as `config.step_grpo.credit` says.  Of the groups
with unequal rewards it makes the batches of one or more updates
(`train_batches.py`), whose loss is in `grpo_loss.py`.

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
from etils import epath
from jaxtyping import Bool, Float, Int

from r1router_jax.common.records import Question, Step
from r1router_jax.generation.token_sampling import SamplingParams
from r1router_jax.parallel import mesh, multihost
from r1router_jax.parallel.strategy import ParallelStrategy
from r1router_jax.policy.policy import Policy
from r1router_jax.retrieval.retriever import KnowledgeBase, is_collective
from r1router_jax.rewards import step_reward, trajectory_reward
from r1router_jax.routing.router import RolloutOptions
from r1router_jax.training import (
  advantages,
  grpo_loss,
  old_logprobs,
  rollouts,
  throughput,
  train_batches,
  trajectory_rollouts,
)
from r1router_jax.training.advantages import Credit
from r1router_jax.training.batch import Batch
from r1router_jax.training.config import RunConfig

Groups = rollouts.RolloutGroups | trajectory_rollouts.TrajectoryGroups


class StepGrpo:
  """The algorithm Step-GRPO: makes the batches of a run and has their loss.

  The policy's own parameters are not used; online rollouts search the knowledge
  bases.  A judge's verdicts are kept in `workdir`.
  """

  def __init__(
    self,
    policy: Policy,
    strategy: ParallelStrategy,
    config: RunConfig,
    kbs: Mapping[str, KnowledgeBase],
    workdir: epath.Path,
  ):
    self._policy, self._kbs, self._config = policy, kbs, config
    self._options = options = config.step_grpo
    self._data_shards = strategy.local_shards
    # Steps, or questions, of this host; rollouts have a mesh of their own.
    shards = mesh.local_submesh(strategy.rollout_mesh).shape[mesh.DATA]
    self.examples_per_iteration = config.data.prompts_per_shard * shards
    # A group is of responses to one step, or of trajectories to one question.
    group = "trajectories" if config.walks_trajectories else "group_size"
    self._rollout_options = how = RolloutOptions(
      k=config.data.passages,
      sampling=SamplingParams(options.temperature),
      **{group: options.group_size},
    )
    if config.walks_trajectories:
      self._reward = trajectory_reward.make_trajectory_reward(
        options.reward,
        format_weight=options.format_weight,
        search_cost=options.search_cost,
        token_cost=options.token_cost,
        max_steps=how.max_steps,
        judge=options.judge,
        judge_cache=workdir / "judge.jsonl",
      )
    else:
      # Rewards of plans depend on the number of routes that a plan may name.
      self._reward = step_reward.make_reward(
        options.reward, policy.config.max_routes, options.search_cost
      )
    self._loss_config = grpo_loss.make_loss_config(options, policy.config)
    self._credit = Credit(
      norm=grpo_loss.choose_advantage_norm(options),
      by_part=options.advantage_by_part,
      truncated=options.loss.truncated,
      end_ids=policy.processor.tokenizer.eos_ids,
      state_weight=options.state_weight if options.credit == "gigpo" else 0.0,
      discount=options.discount,
    )
    self.needs_reference = self._loss_config.kl_coef != 0
    # Of several updates in 16 bits: see old_logprobs.py.
    self._recompute = None
    in_16_bits = grpo_loss.computes_in_16_bits(policy.config)
    if in_16_bits and options.minibatches > 1:
      self._recompute = old_logprobs.make_recompute(
        policy, strategy, options.temperature, config.rows_per_backward
      )
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
    model = policy.config.model

    # 1. Rollouts, until enough groups have unequal rewards.
    start = time.perf_counter()
    sampled = self._sample_groups(policy, examples_for, iteration)
    groups = type(sampled[0]).concat(sampled)
    seconds = dict(reward=groups.reward_seconds)
    seconds["rollout"] = time.perf_counter() - start - seconds["reward"]

    # 2. Batches of the groups that have a gradient.
    advantage, responses = groups.advantages(self._credit), groups.sampled
    truncated = advantages.find_truncated(
      responses.tokens, responses.mask, self._credit.end_ids
    )
    task = policy, groups, advantage, truncated
    batches, kept = self._collate_groups(*task)
    if self._recompute:
      start = time.perf_counter()
      batches = [self._recompute(params, batch) for batch in batches]
      seconds["old_logp"] = time.perf_counter() - start

    # 3. The report.  A reference policy costs one more forward pass, and so do
    # log-probabilities before the updates.
    passes = throughput.FORWARD_PASSES_PER_UPDATE + self.needs_reference
    passes += self._recompute is not None
    lengths = responses.mask.sum(-1)
    work = throughput.count_work(model, groups.prompts, lengths)
    learnt = [groups.prompts[i] for i in kept], lengths[kept]
    update = throughput.count_work(model, *learnt, passes)
    work = work._replace(flops=work.flops + update.flops)
    metrics = _rollout_metrics(groups, truncated)
    metrics["refills"] = float(len(sampled) - 1)
    shown = groups.samples(advantage)
    return batches, throughput.IterationReport(metrics, work, seconds, shown)

  def _collate_groups(
    self,
    policy: Policy,
    groups: Groups,
    advantage: Float[np.ndarray, "B G"],
    truncated: Bool[np.ndarray, "B G"],
  ) -> tuple[list[Batch], Int[np.ndarray, " kept"]]:
    """Return the batches of an iteration, and the indices of groups in them."""
    options, responses = self._options, groups.sampled
    if self._credit.truncated == "drop":
      task = advantage, responses.mask, truncated
      advantage, mask = advantages.drop_truncated(*task)
      left = responses._replace(mask=mask)
      groups = dataclasses.replace(groups, sampled=left)
    shape = options.minibatches, self._data_shards, options.update_batch_size
    make = train_batches.make_step_batches
    if self._config.walks_trajectories:
      make = train_batches.make_trajectory_batches
    return make(policy, groups, advantage, self._loss_config, shape)

  def _sample_groups(
    self, policy: Policy, examples_for: Callable, iteration: int
  ) -> list[Groups]:
    """Return the rollouts of an iteration, one or more.

    Another one is made while fewer groups have unequal rewards than the updates
    hold, or than there are questions, `max_resample_rounds` times at most.
    """
    options = self._options
    wanted = self._data_shards * options.update_batch_size * options.minibatches
    if self._config.walks_trajectories:
      # Updates have room for the trajectories of any number of questions.
      wanted = self.examples_per_iteration
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
  ) -> Groups:
    """Sample and score a group at each of the examples."""
    seed = self._config.seed
    key = jax.random.fold_in(jax.random.key(seed), index)
    how = self._rollout_options
    if self._config.is_online:
      sample = rollouts.online_rollouts
      if self._config.walks_trajectories:
        sample = trajectory_rollouts.sample_trajectories
      rest = key, how, self._reward, self._options.routing_loop
      return sample(policy, self._kbs, examples, *rest)
    # Each step is a prompt of its own.
    build_prompt = policy.config.build_prompt
    prompts = [policy.processor.encode(build_prompt(step)) for step in examples]
    sampled = policy.sample(prompts, key, how.group_size, how.sampling)
    groups = policy.decode(sampled)
    texts = [response.text for group in groups for response in group]
    return rollouts.score_groups(
      examples, prompts, sampled, texts, self._reward
    )


def _rollout_metrics(
  groups: Groups, truncated: Bool[np.ndarray, "B G"]
) -> dict[str, float]:
  """Return the scalars that the sampled responses give to the log."""
  lengths = groups.sampled.mask.sum(-1)
  present = lengths > 0
  cut_tokens = [prompt.truncated_tokens for prompt in groups.prompts]
  return groups.metrics() | {
    "reward/std_in_group": float(groups.reward.std(axis=1).mean()),
    "groups": float(len(groups.reward)),
    "equal_groups": float(np.mean(~groups.has_signal)),
    "response_tokens": float(lengths[present].mean()),
    "cut_tokens": float(np.mean(cut_tokens)),
    "truncated": float(truncated[present].mean()),
  }
