"""A policy behind an address: any model that speaks OpenAI's chat completions.

A user turn with pictures is a list of texts and pictures in their order, each
picture the very bytes of its file.  "top_k" and "min_p", which vLLM and others
add to the schema, are sent where they are not 0, so that others are not asked
what they do not know.

A reply that has begun is shown at the end of the user turn, since the schema
has no place for it.

A request asks for one response, with a seed of its own that comes from key,
prompt and member alone: where the server honours seeds, a response depends on
neither its neighbours nor their order.

What a reasoning model thinks, and what stands before a "</think>" that nothing
opened, is the protocol's thought where the rest has none, and is dropped where
the rest has: the protocol has one.
"""

import base64
import functools
import io
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from r1router_jax.common import images
from r1router_jax.common.records import Response, Step
from r1router_jax.generation.token_sampling import GREEDY, SamplingParams
from r1router_jax.inputs.processor import Encoded
from r1router_jax.models import safetensors_io
from r1router_jax.policy import config, openai_client, policy
from r1router_jax.protocol import messages, prompts
from r1router_jax.protocol.messages import Conversation, Segment

TOKENS = 2048  # Of a response, at most; R1-Router's.

GO_ON = Segment(
  "\n\nYou have begun to reply.  Go on from where this ends:\n", "template"
)

KEPT = 32  # Pictures that are kept encoded.


class Prompts:
  """What `pack.Packer` is to a policy of ours: reads prompts' pictures."""

  def encode(self, conversation: Conversation) -> Encoded:
    """Its pictures' faults; the text is the server's to encode.

    Raises:
      inputs.images.BadImage: of the question's own picture, by name.
    """
    _, unread = self.turn(conversation)
    return Encoded([], unread=unread)

  def turn(
    self, conversation: Conversation
  ) -> tuple[str | list[dict[str, Any]], tuple[str, ...]]:
    """The user turn, and why pictures of passages are left out of it."""
    parts, unread = [], []
    begun = (GO_ON, *conversation.said) if conversation.said else ()
    for segment in conversation.user + begun:
      try:
        if segment.source == "picture":
          parts.append(
            dict(type="image_url", image_url=dict(url=self._url(segment.text)))
          )
        elif parts and "text" in parts[-1]:
          parts[-1]["text"] += segment.text
        else:
          parts.append(dict(type="text", text=segment.text))
      except images.BadImage as error:
        if segment.of is None:
          raise
        unread.append(str(error))
    plain = all("text" in part for part in parts)
    turn = "".join(part["text"] for part in parts) if plain else parts
    return turn, tuple(unread)

  def _url(self, path: str) -> str:
    # Keyed by the file's state, so that a replaced picture is read anew.
    state = os.stat(path) if os.path.exists(path) else None
    return _url(path, state and (state.st_mtime_ns, state.st_size))


class Asking(NamedTuple):
  """How an endpoint is asked; what the loop needs of `settings.Settings`."""

  style: str = "full"
  routes: int = 1
  passage_pictures: int = 0

  def conversation(self, step: Step) -> Conversation:
    """The prompt of a step."""
    return prompts.step_conversation(step, **self._asdict())

  def options(self) -> dict[str, Any]:
    """Those of `settings.OPTIONS` that are on."""
    return {
      name: value
      for name, value in self._asdict().items()
      if name in config.OPTIONS and value != self._field_defaults[name]
    }


AS_PUBLISHED = Asking()


class ChatPolicy:
  """A model at an address as a policy; a `asking.Responder`.

  Args:
    address: see `completions.Chat`.
    asking: how it is asked.
    tokens: of a response, at most.

  Attributes:
    settings: how it is asked.
    packer: see `Prompts`.
  """

  def __init__(
    self, address: str, asking: Asking = AS_PUBLISHED, tokens: int = TOKENS
  ):
    self._chat, self._tokens = openai_client.Chat(address), tokens
    self.settings, self.packer = asking, Prompts()

  @property
  def model(self) -> str:
    """Its name, as the server knows it."""
    return self._chat.model

  def respond(
    self,
    conversations: Sequence[Conversation],
    key: jax.Array,
    n: int = 1,
    method: SamplingParams = GREEDY,
    stop: tuple[str, ...] = (),
  ) -> list[list[Response]]:
    """`n` responses to each conversation, with tokens counted, not known.

    Raises:
      inputs.images.BadImage: by name.
      ValueError: where a number of `method` is out of its range.
      service.RetrievalError: where the server fails.
    """
    way = dict(_way(method), max_tokens=self._tokens) | (
      {"stop": list(stop)} if stop else {}
    )
    requests = []
    for conversation in conversations:
      asked = openai_client.messages(
        conversation.system,
        self.packer.turn(conversation)[0],
        conversation.examples,
      )
      requests += [
        dict(way, messages=asked, seed=openai_client.seed(key, asked, member))
        for member in range(n)
      ]
    found = [
      Response(
        whole(reply),
        np.zeros(reply.tokens, np.int32),
        np.full(reply.tokens, np.nan, np.float32),
      )
      for reply in self._chat.ask(requests)
    ]
    return [found[i : i + n] for i in range(0, len(found), n)]


def whole(reply: openai_client.Reply) -> str:
  """What was said, with what was thought as its thought if it has none."""
  thought, said = reply.reasoning, reply.text.strip()
  before, closed, after = said.partition("</think>")
  if closed and "<think>" not in before:
    thought, said = before, after.strip()
  if not thought or "<think>" in said:
    return said
  return f"<think>{messages.neutralise(thought)}</think>{said}"


def open_policy(name: str) -> policy.Policy | ChatPolicy:
  """A policy by folder, id on the hub or "warm_start", or one at an address.

  Args:
    name: see `policy.load`; or "openai:http://host:port/v1#model".

  Raises:
    see `policy.load` and `completions.Chat`.
  """
  return (
    ChatPolicy(name)
    if name.startswith(openai_client.PREFIX)
    else policy.load(name)
  )


def fingerprint(opened: policy.Policy | ChatPolicy) -> str:
  """What tells its weights and options from others'; of an address, its model.

  Who serves a model may change; nothing else is known of its weights.
  """
  if isinstance(opened, ChatPolicy):
    known = [openai_client.PREFIX + opened.model]
  else:
    known = [
      safetensors_io.fingerprint(path)
      for path in safetensors_io.files(str(opened.tokenizer_path.parent))
    ]
  return " ".join(
    known
    + [f"{name}={value}" for name, value in opened.settings.options().items()]
  )


def _way(method: SamplingParams) -> dict[str, float]:
  """How tokens are drawn, in the words of the schema."""
  method.validate()
  way = dict(temperature=float(method.temperature), top_p=float(method.top_p))
  more = dict(top_k=int(method.top_k), min_p=float(method.min_p))
  return way | {name: value for name, value in more.items() if value}


@functools.lru_cache(maxsize=KEPT)
def _url(path: str, state: tuple[int, int] | None) -> str:
  """The file of a good picture as a data address."""
  del state
  images.load(path)  # Checks all of it.
  data = images.read(path)
  with Image.open(io.BytesIO(data), formats=images.FORMATS) as picture:
    kind = picture.get_format_mimetype()
  return f"data:{kind};base64,{base64.b64encode(data).decode()}"
