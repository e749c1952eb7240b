"""Ask a model behind an address for chat completions, by OpenAI's schema.

  POST {base}/chat/completions
    {"model", "messages": [system, user], "temperature", "top_p", "max_tokens",
     "seed"}  ->  {"choices": [{"message": {"content"}}], "usage"}

Servers of reasoning models may return the thoughts apart from the text, as
"reasoning_content" or "reasoning".

If the server refuses a request for its contents, for example as too long, or
its answers cannot be used, the reply is empty and a warning is logged; if it
has not answered any request yet, that is an error.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import msgspec
import numpy as np
from absl import logging

from r1router_jax.common import http_client
from r1router_jax.common.errors import UserError

PREFIX = "openai:"

MAX_IN_FLIGHT = 32  # Requests at a time.
# Of all tries of a request, from the server's last answer to any of its call.
DEADLINE_SECONDS = 900.0
MAX_COMPLETION_TOKENS = 1 << 20  # A server that counts more is not believed.
# Limits of answers: of the list of models, and of a reply by its tokens.
MAX_MODELS_BYTES, MIN_REPLY_BYTES, MAX_TOKEN_BYTES = 4 << 20, 1 << 16, 1 << 10


class Reply(NamedTuple):
  """The answer of a model to a request."""

  text: str
  reasoning: str = ""  # Its thoughts, if the server returns them apart.
  tokens: int = 0  # Their number; 0 if the server does not say.


class _Part(msgspec.Struct):
  type: str = "text"
  text: str | None = None


class _Message(msgspec.Struct):
  content: str | list[_Part | str] | None = None
  reasoning_content: str | None = None
  reasoning: str | None = None


class _Choice(msgspec.Struct):
  message: _Message


class _Completion(msgspec.Struct):
  # A request asks for one choice.
  choices: Annotated[list[_Choice], msgspec.Meta(min_length=1, max_length=1)]
  usage: Any = None


class ChatClient:
  """A client of the `model` at an address, http://host:port/v1#model.

  "openai:" may stand before it.  Another form raises a UserError, and a server
  that does not answer a RemoteServiceError.
  """

  def __init__(self, address: str):
    base, _, self.model = address.removeprefix(PREFIX).partition("#")
    if not self.model:
      example = f"{PREFIX}http://127.0.0.1:8000/v1#model"
      cure = f"Write address and name, as in {example}."
      raise UserError(f"{address!a} names no model.  {cure}")
    http_client.allow_addresses([base])
    who = base, "a chat model", http_client.authorization_header(base)
    limits = dict(in_flight=MAX_IN_FLIGHT, deadline=DEADLINE_SECONDS)
    self._client = http_client.JsonHttpClient(*who, **limits)
    # Fail before any work is done if there is no server or the key is wrong.
    models = self._client.get("/models", MAX_MODELS_BYTES)
    # So vLLM, SGLang, llama.cpp and LMDeploy name the owner of their models.
    owner = r'"owned_by": "(vllm|sglang|llamacpp|lmdeploy)"'
    self.takes_top_k = bool(re.search(owner, json.dumps(models)))
    self._has_answered, self._num_lost = False, 0

  def complete(self, requests: Sequence[Mapping[str, Any]]) -> list[Reply]:
    """Return the reply to each request, a body without the model's name.

    Raises a RemoteServiceError if the server fails, or refuses or answers
    unusably all requests before it answered any.
    """
    most_tokens = max((r["max_tokens"] for r in requests), default=0)
    replies = self._client.post(
      "/chat/completions",
      [dict(model=self.model, **request) for request in requests],
      _Completion,
      lambda _, answer: _to_reply(answer),
      max_bytes=MIN_REPLY_BYTES + most_tokens * MAX_TOKEN_BYTES,
      keep_errors=(http_client.UNUSABLE, *http_client.BODY_ERROR_STATUSES),
    )
    lost = [each for each in replies if not isinstance(each, Reply)]
    # Before any answer, the loss of all means that the requests are wrong, say
    # for a server of another schema; later it is about these prompts.
    if lost and len(lost) == len(replies) and not self._has_answered:
      raise lost[0]
    self._has_answered |= bool(replies)
    if lost:
      self._num_lost += len(lost)
      text = "%d of %d replies are empty (%d so far); the first error is: %s"
      counts = len(lost), len(replies), self._num_lost
      logging.warning(text, *counts, lost[0])
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


def _to_reply(answer: _Completion) -> Reply:
  """Return the reply in an answer."""
  message = answer.choices[0].message
  text = message.content or ""  # A reasoning model may leave it null.
  if isinstance(text, list):
    # Parts of other types, such as thoughts, are no part of the answer.
    parts = [_Part(text=x) if isinstance(x, str) else x for x in text]
    text = "".join(x.text or "" for x in parts if x.type.endswith("text"))
  reasoning = message.reasoning_content or message.reasoning or ""
  try:
    count = int(answer.usage["completion_tokens"])
  except (TypeError, LookupError, ValueError, OverflowError):
    count = 0  # Servers differ, and no reply is lost for it.
  # A huge count would allocate memory.
  is_count = 0 <= count <= MAX_COMPLETION_TOKENS
  return Reply(text, reasoning, count if is_count else 0)
