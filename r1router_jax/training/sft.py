"""Supervised warm start: next-token loss on gold responses.

  loss = - sum_n sum_t log pi(token_nt) / sum_n |response_n|

A gold response is a group of one, so batches and model passes are Step-GRPO's.
A policy trained from scratch first learns to look up and copy (`data.warmup`):
rows of random tokens fill the first batches, then a share of them, while names
in gold rows are changed with a probability that falls over the run.

Axes:  B prompts   G responses per prompt   T response tokens
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from r1router_jax.common.records import Step
from r1router_jax.generation import logprobs
from r1router_jax.inputs import processor
from r1router_jax.models import qwen2_5_vl
from r1router_jax.parallel import multihost
from r1router_jax.parallel.strategy import Driver
from r1router_jax.policy.policy import Policy
from r1router_jax.training import copy_curriculum, sequence_packing, throughput
from r1router_jax.training.batch import Batch, Prompts, generator
from r1router_jax.training.sft_targets import demonstration, overasking


class Sft:
  """Batches and loss of the warm start; an `Algorithm` of `train`.

  Args:
    policy: what is trained.
    driver: on which devices.
    rows: steps per update and share.
    total_steps: updates of the run.
    recall_steps: updates on random look-up rows alone, at the start.
    recall_share: chance that a later update is on such rows.
    rename: probability of changed names at the start and at the end.
    overask: probability that a demonstration asks again where it could stop.
    side_by_side: tokens of a row that holds many texts; 0 for one text a row.
    seed: of everything drawn.

  Attributes:
    examples: steps, or rows of them, of this host per update.
    updates: per iteration.
    penalised: whether the loss needs a reference policy.
    online: whether examples are questions, not steps.
  """

  updates, penalised, online = 1, False, False

  def __init__(
    self,
    policy: Policy,
    driver: Driver,
    *,
    rows: int,
    total_steps: int,
    recall_steps: int,
    recall_share: float,
    rename: tuple[float, float],
    overask: float,
    side_by_side: int,
    seed: int,
  ):
    if side_by_side and any((*rename, recall_steps, recall_share, overask)):
      raise ValueError(
        "config.sft.side_by_side wants gold steps as they are, of known "
        "lengths: set rename, recall_steps, recall_share and overask to 0."
      )
    self._room = side_by_side
    self.examples = rows * driver.parts
    self._shape = driver.parts, rows
    self._policy, self._seed, self._overask = policy, seed, overask
    self._total, self._rename = total_steps, rename
    self._recall_steps, self._recall_share = recall_steps, recall_share
    self._recall = (
      copy_curriculum.Recall(policy.packer.tokenizer)
      if (recall_steps or recall_share)
      else None
    )
    self._prompts = Prompts(policy, renames=max(rename) > 0)

  def make_batches(
    self,
    params: dict,
    examples: Callable[[int], Sequence[Step] | Sequence[sequence_packing.Row]],
    index: int,
  ) -> tuple[list[Batch], throughput.Account]:
    """The batch of update `index`, leaves [D, ...], and what to report."""
    del params
    if self._room:
      batch = sequence_packing.batch(
        self._policy, examples(index), *self._shape, self._room
      )
      return [batch], throughput.Account(
        {}, throughput.learnt(self._policy.settings.model, batch)
      )
    rng = np.random.default_rng((self._seed, index))
    packer, (parts, rows) = self._policy.packer, self._shape
    recalling = index < self._recall_steps or (
      rng.random() < self._recall_share
    )
    if recalling:
      first = jax.process_index() * parts * rows
      pairs = [
        self._recall(generator(self._seed, index, f"recall/{first + n}"))
        for n in range(parts * rows)
      ]
    else:
      pairs = [self._pair(step, index) for step in examples(index)]
    longest = self._policy.settings.response_length(
      *multihost.most([max(len(response) for _, response in pairs)])
    )
    responses, mask = processor.pad_responses(
      [response for _, response in pairs], longest, packer.tokenizer.pad
    )

    def split(a):
      short = parts * rows - len(a)
      a = np.pad(a, ((0, short), *((0, 0),) * (a.ndim - 1)))
      return a.reshape(parts, rows, 1, *a.shape[1:])

    mask = split(mask)
    batch = Batch(
      packer.pack([prompt for prompt, _ in pairs], parts, rows, multihost.most),
      split(responses),
      mask,
      split(np.ones(len(pairs), np.float32)),
      np.zeros(mask.shape, np.float32),
      mask.sum((2, 3)).astype(np.float32),
    )
    return [batch], throughput.Account(
      {"recall": float(recalling)},
      throughput.learnt(self._policy.settings.model, batch),
    )

  def _pair(
    self, step: Step, index: int
  ) -> tuple[processor.Encoded, list[int]]:
    """Prompt and response of a step, with other names as often as due."""
    rng = generator(self._seed, index, step.id)
    first, last = self._rename
    chance = first + (last - first) * index / self._total
    step, prompt = self._prompts(step, chance, rng)
    stops = bool(step.history) and step.routes == ("none",)
    text = (
      overasking(step, rng)
      if (self._overask and stops and rng.random() < self._overask)
      else demonstration(step)
    )
    return prompt, self._policy.packer.tokenizer.encode_response(text)

  def loss(
    self,
    params: dict,
    reference: None,
    batch: Batch,
    allowed: Bool[Array, " V"],
  ) -> tuple[Float[Array, ""], Float[Array, ""], dict]:
    """See `loss`."""
    del reference
    return loss(self._policy.model, params, batch, allowed)


def loss(
  model: qwen2_5_vl.QwenVL,
  params: dict,
  batch: Batch,
  allowed: Bool[Array, " V"],
) -> tuple[Float[Array, ""], Float[Array, ""], dict]:
  """Numerator and denominator of the loss, and (sum, count) of each metric."""
  if batch.beside is None:
    states = model.apply({"params": params}, batch.prompt, batch.response)
  else:
    states = model.apply(
      {"params": params}, batch.prompt, batch.beside.segments, method="packed"
    )
    states = jnp.take_along_axis(states, batch.beside.at[..., None], 1)[:, None]
  vocabulary = model.apply({"params": params}, method="vocabulary")
  logp, _ = logprobs.token_logp(states, batch.response, vocabulary, allowed)
  nll = -jnp.sum(jnp.where(batch.mask, logp, 0))
  total = jnp.sum(batch.count)
  return nll, total, {"nll": (nll, total)}
