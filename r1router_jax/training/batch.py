"""What a loss sees: packed prompts, groups of responses, a weight for each.

`Prompts` makes prompts of training steps; some of GeoRouter's have their
entities renamed, so that a policy learns to read names and not to remember them
(`data.warmup`).

Axes:  D shares   B prompts   G responses per prompt   T response tokens
"""

import zlib
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from r1router_jax.common.records import Step
from r1router_jax.data import georouter
from r1router_jax.inputs.processor import Encoded
from r1router_jax.inputs.tokenizer import PromptTooLong, Tokenizer
from r1router_jax.models import qwen2_5_vl
from r1router_jax.policy.policy import Policy
from r1router_jax.training import copy_curriculum


class Beside(NamedTuple):
  """Where texts of a row stand side by side: whose each token is, from 1 on,
  and the places whose states predict the responses.
  """

  segments: Int[Array, "B L"]
  at: Int[Array, "B R"]


class Batch(NamedTuple):
  """One update's worth of responses, or one device's share of it.

  Attributes:
    prompt: packed prompts.
    response: sampled or gold tokens, padded after the end token.
    mask: true up to and including the end token.
    weight: the advantage of a rollout, 1 for a gold response.
    old_logp: log-probabilities under the policy that drew the response.
    count: what each row adds to the denominator of the loss.
    beside: of rows of many texts, whose responses are one; else None.
  """

  prompt: qwen2_5_vl.Prompt
  response: Int[Array, "B G T"]
  mask: Bool[Array, "B G T"]
  weight: Float[Array, "B G"]
  old_logp: Float[Array, "B G T"]
  count: Float[Array, " B"]
  beside: Beside | None = None


def in_passes(batch: Batch, rows: int) -> Batch:
  """A batch of leaves [D, B, ...] as [D, M, m, ...], for m rows at a time.

  Args:
    batch: of D shares.
    rows: m; 0 for all.

  Raises:
    ValueError: where B is not a multiple of them.
  """
  of_all = batch.count.shape[1]
  passes, rest = divmod(of_all, rows or of_all)
  if rest:
    raise ValueError(
      f"config.micro_rows is {rows}, and an update has {of_all} rows a "
      "share: choose a divisor, or 0 for all at one time."
    )
  return jax.tree.map(
    lambda x: x.reshape(len(x), passes, x.shape[1] // passes, *x.shape[2:]),
    batch,
  )


def generator(seed: int, index: int, name: str) -> np.random.Generator:
  """What is random about one row of an iteration, wherever it is made."""
  return np.random.default_rng((seed, index, zlib.crc32(name.encode())))


class Prompts:
  """Steps to prompts of one policy.

  Args:
    policy: whose prompts.
    renames: whether any step is ever renamed.
  """

  def __init__(self, policy: Policy, renames: bool):
    self._packer, self._settings = policy.packer, policy.settings
    self._renamer = _renamer(policy.packer.tokenizer) if renames else None

  def __call__(
    self, step: Step, chance: float, rng: np.random.Generator
  ) -> tuple[Step, Encoded]:
    """The step, renamed with probability `chance`, and its prompt."""
    if self._renamer and rng.random() < chance:
      renamed = self._renamer(step, rng)
      try:
        return renamed, self._encode(renamed)
      except PromptTooLong:
        pass  # Longer names did not fit; the row is as good with its own.
    return step, self._encode(step)

  def _encode(self, step: Step) -> Encoded:
    return self._packer.encode(self._settings.conversation(step))


def _renamer(tokenizer: Tokenizer) -> copy_curriculum.Renamer:
  countries = georouter.countries()
  # The name of a held-out country is changed, but never given.
  return copy_curriculum.Renamer(
    [country["name"] for country in countries],
    [c["name"] for c in countries if c["split"] == "train"],
    [tokenizer.decode([i]).strip() for i in tokenizer.words()],
  )
