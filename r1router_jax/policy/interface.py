"""Defines what every policy offers to the routing loop."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax

from r1router_jax.common.records import Response
from r1router_jax.generation.token_sampling import GREEDY, SamplingParams
from r1router_jax.protocol.messages import Conversation


@runtime_checkable
class Responder(Protocol):
  """What a loop needs of a policy; `Policy` and `chat.ChatPolicy` have it.

  Attributes:
    settings: with `style`, `routes` and `conversation`, as of
      `settings.Settings`.
    packer: with `encode`, which says whether a prompt can be read.
  """

  settings: Any
  packer: Any

  def generate(
    self,
    conversations: Sequence[Conversation],
    key: jax.Array,
    n: int = 1,
    method: SamplingParams = GREEDY,
    stop: tuple[str, ...] = (),
  ) -> list[list[Response]]:
    """`n` responses to each conversation, none dependent on another."""
