"""What a loss sees: packed prompts, groups of responses, a weight for each.

`Prompts` makes prompts of training steps; some have their entities renamed, so
that a policy learns to read names and not to remember them (`data.warmup`).

Axes:  B prompts   G responses per prompt   T response tokens
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from r1router_jax import protocol
from r1router_jax.data import georouter, warmup
from r1router_jax.inputs.pack import Encoded
from r1router_jax.inputs.tokenizer import PromptTooLong
from r1router_jax.models import qwen_vl
from r1router_jax.policy import Policy
from r1router_jax.records import Step


class Batch(NamedTuple):
  """One update's worth of responses, or one device's share of it.

  Attributes:
    prompt: packed prompts.
    response: sampled or gold tokens, padded after the end token.
    mask: true up to and including the end token.
    weight: the advantage of a rollout; 1 for a gold response, 0 for padding.
    old_logp: log-probabilities under the policy that drew the response.
  """

  prompt: qwen_vl.Prompt
  response: Int[Array, "B G T"]
  mask: Bool[Array, "B G T"]
  weight: Float[Array, "B G"]
  old_logp: Float[Array, "B G T"]


class Prompts:
  """Steps to prompts of one policy."""

  def __init__(self, policy: Policy):
    self._packer, self._style = policy.packer, policy.settings.style
    tokenizer, countries = policy.packer.tokenizer, georouter.countries()
    # The name of a held-out country is changed, but never given.
    self._renamer = warmup.Renamer(
        [country["name"] for country in countries],
        [c["name"] for c in countries if c["split"] == "train"],
        [tokenizer.decode([i]).strip() for i in tokenizer.words()])

  def __call__(
      self, step: Step, chance: float, rng: np.random.Generator
  ) -> tuple[Step, Encoded]:
    """The step, renamed with probability `chance`, and its prompt."""
    if rng.random() < chance:
      renamed = self._renamer(step, rng)
      try:
        return renamed, self._encode(renamed)
      except PromptTooLong:
        pass  # Longer names did not fit; the row is as good with its own.
    return step, self._encode(step)

  def _encode(self, step: Step) -> Encoded:
    return self._packer.encode(
        protocol.step_conversation(step, style=self._style))
