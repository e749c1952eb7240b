"""Asks a model behind an address, by OpenAI's chat completions.

  POST {base}/chat/completions
    {"model", "messages": [system, user], "temperature", "top_p", "max_tokens",
     "seed"}  ->  {"choices": [{"message": {"content"}}], "usage"}

What a reasoning model thinks may come apart from what it says, as
"reasoning_content" or "reasoning".

A request that the server refuses for what it holds, say as too long, has an
empty reply, with a warning; where it never answered anything yet, the refusal
is an error.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from r1router_jax.common import http_client
from r1router_jax.common.row_files import Fault
from r1router_jax.retrieval.encoders import http_encoders

PREFIX = "openai:"

IN_FLIGHT = 32  # Requests at a time.

DEADLINE = 900.0  # Seconds, of all tries of a request.

MOST = 1 << 20  # Tokens that a server may claim to have written.

_CURE = "See that a chat model answers there"


class Reply(NamedTuple):
  """What came back.

  Attributes:
    text: what the model says.
    reasoning: what it thought, where that came apart; else "".
    tokens: that it wrote, 0 where the server does not say.
  """

  text: str
  reasoning: str = ""
  tokens: int = 0


class Chat:
  """A model at an address.

  Args:
    address: "http://host:port/v1#model", with or without "openai:" before it.

  Attributes:
    model: its name.

  Raises:
    ValueError: where this is no such address.
    service.RetrievalError: where nobody answers.
  """

  def __init__(self, address: str):
    base, _, self.model = address.removeprefix(PREFIX).partition("#")
    if not self.model:
      raise ValueError(
        f"{address!a} names no model.  Write address and name, as in "
        f"{PREFIX}http://127.0.0.1:8000/v1#model."
      )
    headers = http_encoders.authorisation(base)
    http_client.Service(base, headers).get("/models")  # Is anybody there?
    self._service = http_client.Service(
      base, headers, in_flight=IN_FLIGHT, deadline=DEADLINE
    )
    self._answered = False

  def ask(self, requests: Sequence[Mapping[str, Any]]) -> list[Reply]:
    """The reply to each request: all of its body but the model's name.

    Raises:
      service.RetrievalError: see the module's docstring.
    """
    found = self._service.post(
      "/chat/completions",
      [dict(model=self.model, **request) for request in requests],
      lambda _, answer: _read(answer),
      lambda _, error: error,
    )
    refused = [one for one in found if not isinstance(one, Reply)]
    if refused and len(refused) == len(found) and not self._answered:
      raise refused[0]
    self._answered |= bool(found)
    if refused:
      logging.warning(
        "%d of %d prompts are refused, the first of them so: %s",
        len(refused),
        len(found),
        refused[0],
      )
    return [one if isinstance(one, Reply) else Reply("") for one in found]


def messages(
  system: str, user: str | list, examples: Sequence[tuple[str, str]] = ()
) -> list[dict[str, Any]]:
  """The turns of a request: between its two, what was asked and replied."""
  turns = [
    ("system", system),
    *(
      turn
      for asked, reply in examples
      for turn in (("user", asked), ("assistant", reply))
    ),
    ("user", user),
  ]
  return [dict(role=role, content=content) for role, content in turns]


def seed(key: jax.Array, prompt: Any, member: int) -> int:
  """Of the response `member` to a prompt, which JSON can say; 31 bits."""
  digest = hashlib.sha256(np.asarray(jax.random.key_data(key)).tobytes())
  digest.update(json.dumps([prompt, member]).encode())
  return int.from_bytes(digest.digest()[:4], "big") >> 1


def _read(answer: Any) -> Reply:
  """The one choice of an answer."""
  try:
    (choice,) = answer["choices"]
    message, usage = choice["message"], answer.get("usage") or {}
    text = message.get("content") or ""
    reasoning = (
      message.get("reasoning_content") or message.get("reasoning") or ""
    )
    tokens = usage.get("completion_tokens", 0)
  except (TypeError, ValueError, KeyError, AttributeError):
    raise Fault(
      "the answer is no chat completion of one choice", _CURE
    ) from None
  if not isinstance(text, str) or not isinstance(reasoning, str):
    raise Fault("the message is no text", _CURE)
  if type(tokens) is not int or not 0 <= tokens <= MOST:
    raise Fault(f"completion_tokens is {tokens!a:.40}", _CURE)
  return Reply(text, reasoning, tokens)
