"""The interface that every policy offers to the routing loop."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax

from r1router_jax.common.records import Response
from r1router_jax.generation.token_sampling import GREEDY, SamplingParams
from r1router_jax.policy.config import PromptOptions
from r1router_jax.protocol.messages import Conversation


@runtime_checkable
class PolicyInterface(Protocol):
  """The part of a policy that the routing loop needs.

  `policy.Policy` runs in this process, `openai_policy.OpenAIPolicy` asks a
  model at an address.
  """

  config: PromptOptions  # How the policy is asked; makes its prompts.
  processor: Any  # Its method `encode` raises if a prompt cannot be read.

  def generate(
    self,
    conversations: Sequence[Conversation],
    key: jax.Array,
    group_size: int = 1,
    sampling: SamplingParams = GREEDY,
    stop: tuple[str, ...] = (),
    members: Sequence[int] | None = None,
  ) -> list[list[Response]]:
    """Generate a group of responses to each conversation.

    No response depends on another one, nor on the order of conversations.  It
    ends at the end token, or at any of the texts `stop`.  With `members`, one
    index for each conversation, only that response of each group is generated.
    """
