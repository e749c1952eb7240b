"""Supervised warm start: next-token loss on gold responses.

  loss = - sum_n w_n sum_t log pi(token_nt) / sum_n w_n |response_n|

A gold response is a group of one, so batches and model passes are Step-GRPO's.
A policy trained from scratch first learns to look up and copy (`data.warmup`):
rows of random tokens fill the first batches, then a share of them, while names
in gold rows are changed with a probability that falls over the run.

Demonstrations may also come from a teacher that does not know when to stop:
where the answer is known it asks again.  (Of R1-Router's 119 published rows 66
spend all three retrievals, and 54 repeat a sub-question.)

Axes:  B prompts   G responses per prompt   T response tokens
"""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from r1router_jax import drawing, protocol
from r1router_jax.data import warmup
from r1router_jax.inputs import pack
from r1router_jax.learning.batch import Batch, Prompts
from r1router_jax.models import qwen_vl
from r1router_jax.policy import Policy
from r1router_jax.records import KBS, Answer, Plan, Step

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


def overasking(step: Step, rng: np.random.Generator) -> str:
  """Asks the last sub-question again, of a knowledge base that cannot tell."""
  known = step.question.hops[len(step.history) - 1].routes
  route = str(rng.choice([kb for kb in KBS if kb not in known]))
  return protocol.render_plan(
      Plan(THOUGHTS[route], step.history[-1][0], route))


def _reading(step: Step) -> str:
  """What an answer rests on: the value to check, or two, the larger first."""
  values = [answer for _, answer in step.history]
  if step.kind == "final" and len(values) == 2:
    numbers = [_number(value) for value in values]
    if None not in numbers:
      low, high = sorted(zip(numbers, values, strict=True))
      return f"{high[1]} > {low[1]}"
  if step.kind == "final" and len(values) == 1 and step.answers[0] in (
      "yes", "no"):
    return f"it is {values[0]}"
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
    overask: probability that a demonstration asks again where it could stop.
    seed: of everything drawn.
  """

  def __init__(
      self,
      policy: Policy,
      *,
      total_steps: int,
      recall_steps: int,
      recall_share: float,
      rename: tuple[float, float],
      overask: float,
      seed: int,
  ):
    self._policy, self._seed, self._overask = policy, seed, overask
    self._total, self._rename = total_steps, rename
    self._recall_steps, self._recall_share = recall_steps, recall_share
    self._recall = warmup.Recall(policy.packer.tokenizer)
    self._prompts = Prompts(policy)

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

  def _pair(
      self, step: Step, index: int, rng: np.random.Generator
  ) -> tuple[pack.Encoded, list[int]]:
    """Prompt and response of a step, with other names as often as due."""
    first, last = self._rename
    chance = first + (last - first) * index / self._total
    step, prompt = self._prompts(step, chance, rng)
    stops = bool(step.history) and step.routes == ("none",)
    text = overasking(step, rng) if (
        self._overask and stops and rng.random() < self._overask
    ) else demonstration(step)
    return prompt, self._policy.packer.tokenizer.encode_response(text)

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
  logp, _ = drawing.token_logp(states, batch.response, vocabulary, allowed)
  weight = batch.weight[..., None] * batch.mask
  total = jnp.sum(weight)
  nll = -jnp.sum(weight * logp)
  return nll, total, {"nll": (nll, total)}
