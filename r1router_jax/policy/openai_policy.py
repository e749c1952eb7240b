"""A policy behind an address: any model that answers OpenAI chat completions.

A user turn with images is a list of texts and images in their order, each image
with the very bytes of its file.  "top_k", which vLLM and others add to the
schema, is sent only to servers that are known to take it.

The start of a reply is shown at the end of the user turn, as the schema has no
place for it.  A request asks for one response, with a seed of key, prompt and
member alone: if the server honours seeds, a response does not depend on others.

The thoughts of a reasoning model, and text before a "</think>" that nothing
opened, become the protocol's thought if the rest has none, and are dropped if
the rest has one: the protocol has a single thought.
"""

import base64
import functools
import io
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from PIL import Image

from r1router_jax.common import files, images
from r1router_jax.common.records import Response
from r1router_jax.generation.token_sampling import GREEDY, SamplingParams
from r1router_jax.inputs.processor import EncodedPrompt
from r1router_jax.policy import openai_client
from r1router_jax.policy.config import PromptOptions
from r1router_jax.protocol import messages
from r1router_jax.protocol.messages import Conversation, Segment

MAX_RESPONSE_TOKENS = 2048  # As R1-Router's.
IMAGE_CACHE_SIZE = 32  # Images that are kept encoded.
CONTINUE_NOTE = Segment(
  "\n\nYou have begun to reply.  Go on from where this ends:\n", "template"
)


class RemoteProcessor:
  """The counterpart of `processor.Processor` for a policy at an address."""

  def encode(self, conversation: Conversation) -> EncodedPrompt:
    """Check the images of a prompt; the text is the server's to encode.

    Raises images.BadImage, which names the file, if the question's own is bad.
    """
    _, unread_images = self.build_user_turn(conversation)
    return EncodedPrompt([], unread_images=unread_images)

  def build_user_turn(
    self, conversation: Conversation
  ) -> tuple[str | list[dict[str, Any]], tuple[str, ...]]:
    """Return the user turn, and why images of passages are left out of it."""
    parts, unread_images, segments = [], [], conversation.user
    if conversation.reply_prefix:
      segments += (CONTINUE_NOTE, *conversation.reply_prefix)
    for segment in segments:
      try:
        if segment.source == "image":
          path = segment.text
          url = dict(url=_data_url(path, files.file_state(path)))
          parts.append(dict(type="image_url", image_url=url))
        # Neighbouring texts are one part, as templates are cut into segments.
        elif parts and "text" in parts[-1]:
          parts[-1]["text"] += segment.text
        else:
          parts.append(dict(type="text", text=segment.text))
      except images.BadImage as error:
        # A question must be seen whole; a passage may go without its image.
        if segment.passage_ref is None:
          raise
        unread_images.append(str(error))
    # Servers of models without vision may know plain texts alone.
    if all("text" in part for part in parts):
      parts = "".join(part["text"] for part in parts)
    return parts, tuple(unread_images)


class OpenAIPolicy:
  """A model at an address as a policy, see `interface.PolicyInterface`.

  For address and `model` see `openai_client.ChatClient`; the options, of how it
  is asked, become the attribute `config`.
  """

  def __init__(self, address: str, options: PromptOptions | None = None):
    self._client = openai_client.ChatClient(address)
    self.model = self._client.model
    self.config = options or PromptOptions()
    self.processor = RemoteProcessor()

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

    The tokens of responses are counted but not known: ids are 0 and
    log-probabilities NaN.  Raises images.BadImage if a question's image is bad,
    RemoteServiceError if the server fails, and UserError if a number of
    `sampling` is out of its range.
    """
    # The same in all requests.
    sampling.validate()
    temperature, top_k, top_p = map(float, sampling)
    fields = dict(temperature=temperature, top_p=top_p)
    if top_k and self._client.takes_top_k:
      fields["top_k"] = int(top_k)
    elif top_k:
      text = "%s is not sent top_k=%d, which it may refuse; vLLM takes it."
      logging.log_first_n(logging.WARNING, text, 1, self.model, top_k)
    fields["max_tokens"] = MAX_RESPONSE_TOKENS
    if stop:
      fields["stop"] = list(stop)
    asked = [range(group_size)] * len(conversations)
    if members is not None:
      asked, group_size = [[member] for member in members], 1
    requests = []
    for each, group in zip(conversations, asked, strict=True):
      user, _ = self.processor.build_user_turn(each)
      turns = openai_client.request_messages(each.system, user, each.examples)
      # One request for each response: "n" would give all of a group one seed.
      for member in group:
        seed = openai_client.request_seed(key, turns, member)
        requests.append(dict(fields, messages=turns, seed=seed))
    replies = self._client.complete(requests)
    responses = [_make_response(reply) for reply in replies]
    starts = range(0, len(responses), group_size)
    return [responses[start : start + group_size] for start in starts]


def _make_response(reply: openai_client.Reply) -> Response:
  tokens = np.zeros(reply.tokens, np.int32)
  logp = np.full(reply.tokens, np.nan, np.float32)
  return Response(merge_reasoning(reply), tokens, logp)


def merge_reasoning(reply: openai_client.Reply) -> str:
  """Return the text of a reply, its reasoning as thought if it has none."""
  # Fields of their own come first.
  thought, text = reply.reasoning, reply.text.strip()
  # Some servers leave the reasoning in the text, without its opening tag.
  before, closing_tag, after = text.partition("</think>")
  if closing_tag and "<think>" not in before:
    thought, text = before, after.strip()
  if not thought or "<think>" in text:
    return text
  return f"<think>{messages.escape_control_tags(thought)}</think>{text}"


@functools.lru_cache(maxsize=IMAGE_CACHE_SIZE)
def _data_url(path: str, state: tuple[int, int] | None) -> str:
  """Return the file of a good image as a data URL."""
  del state  # Only part of the cache's key.
  images.load_image(path)  # Decodes, and so checks, all of the file.
  data = images.read_image_bytes(path)
  with Image.open(io.BytesIO(data), formats=images.FORMATS) as image:
    # A photo of a phone may have more pictures behind it, and is a JPEG.
    is_mpo = image.format == "MPO"
    kind = "image/jpeg" if is_mpo else image.get_format_mimetype()
  return f"data:{kind};base64,{base64.b64encode(data).decode()}"
