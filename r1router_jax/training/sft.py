"""Supervised warm start: next-token loss on gold responses.

  loss = - sum_n sum_t log pi(token_nt) / sum_n |response_n|

A gold response is a group of one, so the loss reads the same `Batch` as
Step-GRPO's.  A policy that is trained from scratch first learns to look up and
copy (`copy_curriculum.py`): the first batches are rows of random tokens, and so
is a fraction of the later ones.  Names in gold rows are changed with a
probability that falls over the run.

Axes:  D data shards   B prompts   G responses per prompt   T response tokens
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from r1router_jax.common.records import Step
from r1router_jax.generation import logprobs
from r1router_jax.inputs.processor import EncodedPrompt, pad_responses
from r1router_jax.models import qwen2_5_vl
from r1router_jax.parallel import multihost
from r1router_jax.parallel.strategy import ParallelStrategy
from r1router_jax.policy.policy import Policy
from r1router_jax.training import copy_curriculum, sequence_packing, throughput
from r1router_jax.training.batch import (
  Batch,
  PromptBuilder,
  example_rng,
  pad_to_shards,
)
from r1router_jax.training.config import RunConfig
from r1router_jax.training.sft_targets import overask_target, sft_target


class Sft:
  """Supervised training: makes the batches of a run and has their loss.

  Args:
    policy: the policy that is trained; its parameters are not used.
    strategy: the devices that the run uses.
    config: the options of the run, with a section sft.

  Attributes:
    examples_per_iteration: steps, or packed rows, of this host per update.
    needs_reference: whether the loss compares with a reference policy.
  """

  needs_reference = False

  def __init__(
    self, policy: Policy, strategy: ParallelStrategy, config: RunConfig
  ):
    self._policy = policy
    self._options = config.sft
    self._seed = config.seed
    self._total_steps = config.total_steps
    self._data_shards = strategy.local_shards
    self._rows_per_shard = config.data.batch_size_per_device
    self.examples_per_iteration = self._data_shards * self._rows_per_shard
    self._build_prompt = PromptBuilder(
      policy, renames=max(self._options.rename_prob) > 0
    )
    # Look-up rows need the tokenizer, which not every run has to open.
    self._recall_sampler = None
    if self._options.recall_warmup_steps or self._options.recall_prob:
      self._recall_sampler = copy_curriculum.RecallSampler(
        policy.processor.tokenizer
      )

  def make_batches(
    self,
    params: dict,
    examples_for: Callable[
      [int], Sequence[Step] | Sequence[sequence_packing.PackedExample]
    ],
    iteration: int,
  ) -> tuple[list[Batch], throughput.IterationReport]:
    """Return the one batch of an update, [D, B, ...], and a report about it.

    Args:
      params: parameters of the current policy; not used.
      examples_for: returns this host's examples of an iteration.
      iteration: updates done before.
    """
    del params
    metrics = {}
    if self._options.packed_length:
      batch = sequence_packing.make_packed_batch(
        self._policy,
        examples_for(iteration),
        self._data_shards,
        self._rows_per_shard,
        self._options.packed_length,
      )
    else:
      # All hosts draw the same number, and so choose the same kind of batch.
      rng = np.random.default_rng((self._seed, iteration))
      is_recall = iteration < self._options.recall_warmup_steps or (
        rng.random() < self._options.recall_prob
      )
      metrics["recall"] = float(is_recall)
      if is_recall:
        pairs = self._recall_pairs(iteration)
      else:
        pairs = [
          self._gold_pair(step, iteration) for step in examples_for(iteration)
        ]
      batch = self._collate_pairs(pairs)
    # An update reads every real token of the batch.
    work = throughput.update_work(self._policy.config.model, batch)
    return [batch], throughput.IterationReport(metrics, work)

  def _recall_pairs(
    self, iteration: int
  ) -> list[tuple[EncodedPrompt, list[int]]]:
    """Draw a random look-up prompt and its response for each row."""
    # A row's number counts the rows of all hosts.
    count = self.examples_per_iteration
    first = jax.process_index() * count
    return [
      self._recall_sampler(
        example_rng(self._seed, iteration, f"recall/{first + row}")
      )
      for row in range(count)
    ]

  def _gold_pair(
    self, step: Step, iteration: int
  ) -> tuple[EncodedPrompt, list[int]]:
    """Return the prompt and the response of a step, maybe with other names."""
    rng = example_rng(self._seed, iteration, step.id)
    first, last = self._options.rename_prob
    # The probability changes linearly over the run.
    rename_prob = first + (last - first) * iteration / self._total_steps
    step, prompt = self._build_prompt(step, rename_prob, rng)
    # Where the gold trace stops after a search, the target may ask again.
    stops = bool(step.history) and step.routes == ("none",)
    overask_prob = self._options.overask_prob
    if overask_prob and stops and rng.random() < overask_prob:
      target = overask_target(step, rng)
    else:
      target = sft_target(step)
    tokenizer = self._policy.processor.tokenizer
    return prompt, tokenizer.encode_response(target)

  def _collate_pairs(
    self, pairs: Sequence[tuple[EncodedPrompt, list[int]]]
  ) -> Batch:
    """Make a batch of prompts and responses; rows beyond them are padding."""
    processor = self._policy.processor
    shape = self._data_shards, self._rows_per_shard
    # Hosts compile the same program, so they need one length.
    longest = self._policy.config.response_length(
      *multihost.max_over_hosts([max(len(response) for _, response in pairs)])
    )
    tokens, mask = pad_responses(
      [response for _, response in pairs], longest, processor.tokenizer.pad_id
    )
    # The axis of groups has size 1.
    mask = pad_to_shards(mask[:, None], *shape)
    return Batch(
      prompt=processor.collate(
        [prompt for prompt, _ in pairs], *shape, multihost.max_over_hosts
      ),
      response=pad_to_shards(tokens[:, None], *shape),
      mask=mask,
      advantage=pad_to_shards(np.ones((len(pairs), 1), np.float32), *shape),
      old_logp=np.zeros(mask.shape, np.float32),
      loss_denominator=mask.sum((2, 3)).astype(np.float32),
    )

  def loss(
    self,
    params: dict,
    reference: None,
    batch: Batch,
    allowed: Bool[Array, " V"],
  ) -> tuple[Float[Array, ""], Float[Array, ""], dict]:
    """Compute the loss of a batch, see the function `loss`."""
    del reference
    return loss(self._policy.model, params, batch, allowed)


def loss(
  model: qwen2_5_vl.QwenVL,
  params: dict,
  batch: Batch,
  allowed: Bool[Array, " V"],
) -> tuple[Float[Array, ""], Float[Array, ""], dict]:
  """Compute the negative log-likelihood of the responses.

  Args:
    model: the network.
    params: its parameters.
    batch: prompts and gold responses.
    allowed: False on token ids that are never written.

  Returns:
    Numerator and denominator of the loss, and (sum, count) of each metric.
  """
  variables = {"params": params}
  if batch.packing is None:
    states = model.apply(variables, batch.prompt, batch.response)
  else:
    # The response of a packed row is made of those of its texts.
    states = model.apply(
      variables, batch.prompt, batch.packing.segments, method="packed_states"
    )
    positions = batch.packing.target_positions[..., None]
    states = jnp.take_along_axis(states, positions, 1)[:, None]
  embedding = model.apply(variables, method="output_embedding")
  # `where` keeps what stands in padding out of the sum.
  logp, _ = logprobs.token_logp(states, batch.response, embedding, allowed)
  nll = -jnp.sum(jnp.where(batch.mask, logp, 0))
  total = jnp.sum(batch.loss_denominator)
  return nll, total, {"nll": (nll, total)}
