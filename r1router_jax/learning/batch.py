"""What a loss sees: packed prompts, groups of responses, a weight for each.

Axes:  B prompts   G responses per prompt   T response tokens
"""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int

from r1router_jax.models import qwen_vl


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
