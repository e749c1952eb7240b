"""Supervised warm start: next-token loss on gold responses.

  loss = - sum_n w_n sum_t log pi(token_nt) / sum_n w_n |response_n|

A gold response is a group of one, so batches and model passes are Step-GRPO's.
A policy trained from scratch first learns to look up and copy (`data.warmup`):
rows of random tokens fill the first batches, then a share of them, while names
in gold rows are changed with a probability that falls over the run.

Axes:  B prompts   G responses per prompt   T response tokens
"""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from r1router_jax import protocol, sampling
from r1router_jax.data import georouter, warmup
from r1router_jax.inputs import pack
from r1router_jax.inputs.tokenizer import PromptTooLong
from r1router_jax.learning.batch import Batch
from r1router_jax.models import qwen_vl
from r1router_jax.policy import Policy
from r1router_jax.records import Answer, Plan, Step

THOUGHTS = {
    "text": "look in the text",
    "image": "look at the picture",
    "table": "look in the table",
    "none": "enough is known",
}
READING = "it says so"


def demonstration(step: Step) -> str:
  """The response that the warm start teaches for a step."""
  if step.kind == "plan":
    return protocol.render_plan(
        Plan(THOUGHTS[step.routes[0]], step.sub_question, step.routes[0]))
  return protocol.render_answer(Answer(_reading(step), step.answers[0]))


def _reading(step: Step) -> str:
  """Why the answer is what it is: two numbers, the larger first, or a phrase."""
  if step.kind == "final" and len(step.history) == 2:
    values = [answer for _, answer in step.history]
    numbers = [_number(value) for value in values]
    if None not in numbers:
      low, high = sorted(zip(numbers, values, strict=True))
      return f"{high[1]} > {low[1]}"
  return READING


def _number(text: str) -> float | None:
  plain = text.replace(",", "")
  return float(plain) if re.fullmatch(r"\d+(\.\d+)?", plain) else None


class Sft:
  """Batches and loss of the warm start; an `Algorithm` of `train`.

  Args:
    policy: what is trained.
    total_steps: updates of the run.
    recall_steps: updates on random look-up rows alone, at the start.
    recall_share: chance that a later update is on such rows.
    rename: probability of changed names at the start and at the end.
    seed: of everything drawn.
  """

  needs_retrieval = False

  def __init__(
      self,
      policy: Policy,
      *,
      total_steps: int,
      recall_steps: int,
      recall_share: float,
      rename: tuple[float, float],
      seed: int,
  ):
    self._policy, self._seed = policy, seed
    self._total, self._rename = total_steps, rename
    self._recall_steps, self._recall_share = recall_steps, recall_share
    tokenizer = policy.packer.tokenizer
    self._recall = warmup.Recall(tokenizer)
    names = [country["name"] for country in georouter.countries()]
    words = [tokenizer.decode([i]).strip() for i in tokenizer.words()]
    self._renamer = warmup.Renamer(names, words)

  def make_batch(
      self, params: dict, examples: Sequence[Step], index: int, rows: int
  ) -> tuple[Batch, dict]:
    """The batch of update `index`, leaves [D, ...], and what to report."""
    del params
    rng = np.random.default_rng((self._seed, index))
    packer = self._policy.packer
    devices = jax.local_device_count()
    recalling = index < self._recall_steps or (
        rng.random() < self._recall_share)
    if recalling:
      pairs = [self._recall(rng) for _ in range(devices * rows)]
    else:
      pairs = [self._pair(step, index, rng) for step in examples]
    responses, mask = pack.pad_responses(
        [response for _, response in pairs],
        self._policy.settings.response_tokens, packer.tokenizer.pad)
    weight = np.zeros(devices * rows, np.float32)
    weight[:len(pairs)] = 1

    def split(a):
      short = devices * rows - len(a)
      a = np.pad(a, ((0, short), *((0, 0),) * (a.ndim - 1)))
      return a.reshape(devices, rows, 1, *a.shape[1:])

    batch = Batch(
        packer.pack([prompt for prompt, _ in pairs], devices, rows),
        split(responses), split(mask), split(weight),
        np.zeros((devices, rows, 1, responses.shape[1]), np.float32))
    return batch, {"recall": float(recalling)}

  def _pair(self, step: Step, index: int, rng: np.random.Generator):
    """Prompt and response of a step, with other names as often as due."""
    first, last = self._rename
    chance = first + (last - first) * index / self._total
    if rng.random() < chance:
      try:
        return self._encode(self._renamer(step, rng))
      except PromptTooLong:
        pass  # Longer names did not fit; the row is as good with its own.
    return self._encode(step)

  def _encode(self, step: Step):
    packer, style = self._policy.packer, self._policy.settings.style
    prompt = packer.encode(protocol.step_conversation(step, style=style))
    return prompt, packer.tokenizer.encode_response(demonstration(step))

  def loss(
      self,
      params: dict,
      batch: Batch,
      allowed: Bool[Array, " V"],
  ) -> tuple[Float[Array, ""], Float[Array, ""], dict]:
    """See `loss`."""
    return loss(self._policy.model, params, batch, allowed)


def loss(
    model: qwen_vl.QwenVL,
    params: dict,
    batch: Batch,
    allowed: Bool[Array, " V"],
) -> tuple[Float[Array, ""], Float[Array, ""], dict]:
  """Numerator and denominator of the loss, and (sum, count) of each metric."""
  states = model.apply({"params": params}, batch.prompt, batch.response)
  vocabulary = model.apply({"params": params}, method="vocabulary")
  logp, _ = sampling.token_logp(states, batch.response, vocabulary, allowed)
  weight = batch.weight[..., None] * batch.mask
  total = jnp.sum(weight)
  nll = -jnp.sum(weight * logp)
  return nll, total, {"nll": (nll, total)}
