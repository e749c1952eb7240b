"""Supervised warm start: next-token loss on gold responses.

  loss = - sum_n sum_t log pi(token_nt) / sum_n |response_n|

A gold response is a group of one, so the loss reads the same `Batch` as
Step-GRPO's.  A policy that is trained from scratch first learns to look up and
copy (`copy_curriculum.py`): the first batches are rows of random tokens, and so
is a fraction of the later ones.

Axes:  D data shards   B prompts   G responses per prompt   T response tokens
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from r1router_jax.common.records import Step
from r1router_jax.generation import logprobs
from r1router_jax.inputs.processor import pad_responses
from r1router_jax.models import qwen2_5_vl
from r1router_jax.parallel import multihost
from r1router_jax.parallel.strategy import ParallelStrategy
from r1router_jax.policy.policy import Policy
from r1router_jax.training import copy_curriculum, throughput
from r1router_jax.training.batch import (
  Batch,
  example_rng,
  pad_to_shards,
)
from r1router_jax.training.config import RunConfig
from r1router_jax.training.sequence_packing import (
  PackedExample,
  PromptAndResponse,
  encode_gold_step,
  make_packed_batch,
)
from r1router_jax.training.sft_targets import overask_target, sft_target


class Sft:
  """Supervised training: makes the batches of a run and has their loss.

  The policy's own parameters are not used.
  """

  needs_reference = False

  def __init__(
    self, policy: Policy, strategy: ParallelStrategy, config: RunConfig
  ):
    self._policy, self._options = policy, config.sft
    self.loss = functools.partial(loss, policy.model)
    self._seed = config.seed
    # D and B.
    self._shape = strategy.local_shards, config.data.batch_size_per_device
    # Steps, or packed rows, of this host per update.
    self.examples_per_iteration = math.prod(self._shape)
    # Look-up rows need the tokenizer, which not every run has to open.
    self._recall_sampler = None
    if self._options.recall_warmup_steps or self._options.recall_prob:
      tokenizer = policy.processor.tokenizer
      self._recall_sampler = copy_curriculum.RecallSampler(tokenizer)

  def make_batches(
    self,
    params: dict,
    examples_for: Callable[[int], Sequence[Step | PackedExample]],
    iteration: int,
  ) -> tuple[list[Batch], throughput.IterationReport]:
    """Return the one batch of an update, [D, B, ...], and a report about it.

    `examples_for` returns this host's examples of an iteration.
    """
    del params
    metrics, length = {}, self._options.packed_length
    if length:
      rows = [
        [encode_gold_step(self._policy, step) for step in example.steps]
        for example in examples_for(iteration)
      ]
      batch = make_packed_batch(self._policy, rows, *self._shape, length)
      pairs = [pair for row in rows for pair in row]
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
        steps = examples_for(iteration)
        pairs = [self._gold_pair(step, iteration) for step in steps]
      batch = self._collate_pairs(pairs)
    prompts, responses = zip(*pairs, strict=True)
    lengths = np.array([[len(response)] for response in responses])
    passes = throughput.FORWARD_PASSES_PER_UPDATE
    model = self._policy.config.model
    work = throughput.count_work(model, prompts, lengths, passes)
    return [batch], throughput.IterationReport(metrics, work)

  def _recall_pairs(self, iteration: int) -> list[PromptAndResponse]:
    """Draw a random look-up prompt and its response for each row."""
    # A row's number counts the rows of all hosts.
    count = self.examples_per_iteration
    first = jax.process_index() * count
    ids = [f"recall/{row}" for row in range(first, first + count)]
    rngs = [example_rng(self._seed, iteration, name) for name in ids]
    return [self._recall_sampler(rng) for rng in rngs]

  def _gold_pair(self, step: Step, iteration: int) -> PromptAndResponse:
    """Return the prompt and the response of a step."""
    policy = self._policy
    prompt = policy.processor.encode(policy.config.build_prompt(step))
    # Where the gold trace stops after a search, the target may ask again.
    stops = bool(step.history) and step.routes == ("none",)
    overask_prob = self._options.overask_prob
    rng = example_rng(self._seed, iteration, step.id)
    overasks = overask_prob and stops and rng.random() < overask_prob
    target = overask_target(step, rng) if overasks else sft_target(step)
    return prompt, policy.encode_target(target)

  def _collate_pairs(self, pairs: Sequence[PromptAndResponse]) -> Batch:
    """Make a batch of prompts and responses; rows beyond them are padding."""
    processor, shape = self._policy.processor, self._shape
    prompts, responses = zip(*pairs, strict=True)
    # Hosts compile the same program, so they need one length.
    longest = multihost.max_over_hosts([max(map(len, responses))])
    length = self._policy.config.response_length(*longest)
    tokens, mask = pad_responses(responses, length, processor.tokenizer.pad_id)
    # The axis of groups has size 1.
    mask = pad_to_shards(mask[:, None], *shape)
    return Batch(
      prompt=processor.collate(prompts, *shape, multihost.max_over_hosts),
      response=pad_to_shards(tokens[:, None], *shape),
      mask=mask,
      advantage=pad_to_shards(np.ones((len(pairs), 1), np.float32), *shape),
      old_logp=np.zeros(mask.shape, np.float32),
      loss_denominator=mask.sum((2, 3)).astype(np.float32),
    )


def loss(
  model: qwen2_5_vl.QwenVL,
  params: dict,
  reference: None,
  batch: Batch,
  allowed: Bool[Array, " V"],
) -> tuple[Float[Array, ""], Float[Array, ""], dict]:
  """Compute the negative log-likelihood of the responses.

  Returns numerator and denominator of the loss, and (sum, count) of each
  metric.  `allowed` is False on token ids that are never written.
  """
  del reference  # The arguments are those of `grpo_loss.loss`.
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
