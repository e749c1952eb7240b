"""Ask a model behind an address for chat completions, by OpenAI's schema.

  POST {base}/chat/completions
    {"model", "messages": [system, user], "temperature", "top_p", "max_tokens",
     "seed"}  ->  {"choices": [{"message": {"content"}}], "usage"}

Servers of reasoning models may return the thoughts apart from the text, as
"reasoning_content" or "reasoning".

If the server refuses a request for its contents, for example as too long, the
reply is empty and a warning is logged; if it has not answered any request yet,
the refusal is an error.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from r1router_jax.common import http_client
from r1router_jax.common.errors import UserError
from r1router_jax.common.row_files import RowError
from r1router_jax.retrieval.encoders import http_encoders

PREFIX = "openai:"

MAX_IN_FLIGHT = 32  # Requests at a time.

DEADLINE_SECONDS = 900.0  # Of all tries of a request together.

MAX_COMPLETION_TOKENS = 1 << 20  # A server that counts more is not believed.

_CURE = "See that a chat model answers there"


class Reply(NamedTuple):
  """The reply to a request.

  Attributes:
    text: the text that the model wrote.
    reasoning: its thoughts, if the server returns them apart; else "".
    tokens: number of tokens that it wrote, 0 if the server does not say.
  """

  text: str
  reasoning: str = ""
  tokens: int = 0


class ChatClient:
  """A client of one model at an address.

  Args:
    address: "http://host:port/v1#model", with or without "openai:" before it.

  Attributes:
    model: name of the model, as the server knows it.

  Raises:
    UserError: if the address is not of that form.
    RemoteServiceError: if nobody answers.
  """

  def __init__(self, address: str):
    # Everything before "#" is the address, the rest the name.
    base, _, self.model = address.removeprefix(PREFIX).partition("#")
    if not self.model:
      raise UserError(
        f"{address!a} names no model.  Write address and name, as in "
        f"{PREFIX}http://127.0.0.1:8000/v1#model."
      )
    headers = http_encoders.authorization_header(base)
    # Fail before any work is done if there is no server or the key is wrong.
    http_client.JsonHttpClient(base, headers).get("/models")
    self._client = http_client.JsonHttpClient(
      base, headers, in_flight=MAX_IN_FLIGHT, deadline=DEADLINE_SECONDS
    )
    self._has_answered = False

  def complete(self, requests: Sequence[Mapping[str, Any]]) -> list[Reply]:
    """Return the reply to each request, a body without the model's name.

    Raises:
      RemoteServiceError: if the server fails, or refuses all requests before
        it answered any.
    """
    replies = self._client.post(
      "/chat/completions",
      [dict(model=self.model, **request) for request in requests],
      lambda _, answer: _parse_reply(answer),
      lambda _, error: error,
    )
    refused = [each for each in replies if not isinstance(each, Reply)]
    # Before any answer, a refusal of all means that the requests are wrong, say
    # for a server of another schema; later it is about these prompts.
    if refused and len(refused) == len(replies) and not self._has_answered:
      raise refused[0]
    self._has_answered |= bool(replies)
    if refused:
      warning = "%d of %d prompts are refused, the first of them so: %s"
      logging.warning(warning, len(refused), len(replies), refused[0])
    return [each if isinstance(each, Reply) else Reply("") for each in replies]


def request_messages(
  system: str, user: str | list, examples: Sequence[tuple[str, str]] = ()
) -> list[dict[str, Any]]:
  """Return the messages of a request, with examples before the user turn."""
  turns = [("system", system)]
  for example, reply in examples:
    turns += [("user", example), ("assistant", reply)]
  turns.append(("user", user))
  return [dict(role=role, content=content) for role, content in turns]


def request_seed(key: jax.Array, prompt: Any, member: int) -> int:
  """Return the 31-bit seed of a member of the group of samples for a prompt.

  The prompt must be JSON-serialisable.
  """
  # A digest, since servers take small integers as seeds.
  digest = hashlib.sha256(np.asarray(jax.random.key_data(key)).tobytes())
  digest.update(json.dumps([prompt, member]).encode())
  return int.from_bytes(digest.digest()[:4], "big") >> 1


def _parse_reply(answer: Any) -> Reply:
  """Return the only choice of an answer, or raise a `RowError`."""
  try:
    # Requests ask for one response each.
    (choice,) = answer["choices"]
    message, usage = choice["message"], answer.get("usage") or {}
    # A reasoning model may leave the content null.
    text = message.get("content") or ""
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    tokens = usage.get("completion_tokens", 0)
  except (TypeError, ValueError, KeyError, AttributeError):
    reason = "the answer is no chat completion of one choice"
    raise RowError(reason, _CURE) from None
  reasoning = thoughts or ""
  if not isinstance(text, str) or not isinstance(reasoning, str):
    raise RowError("the message is no text", _CURE)
  # True and 7.0 are no counts, and a huge one would allocate memory.
  if type(tokens) is not int or not 0 <= tokens <= MAX_COMPLETION_TOKENS:
    raise RowError(f"completion_tokens is {tokens!a:.40}", _CURE)
  return Reply(text, reasoning, tokens)
