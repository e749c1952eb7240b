"""A policy that answers from a script, and knowledge bases without vectors."""

import dataclasses

import numpy as np

from r1router_jax.common.images import BadImage
from r1router_jax.common.records import Passage, Response
from r1router_jax.generation.token_sampling import GREEDY
from r1router_jax.inputs.processor import EncodedPrompt
from r1router_jax.policy.policy import Policy
from r1router_jax.retrieval.knowledge_base import KnowledgeBase
from tests import tiny_policy


class Scripted(Policy):
  """`script(kind, prompt, temperature)` is the text it writes.

  A prompt's `tokens` are its passages' words, of which it reads so many.
  """

  def __init__(self, script, tokens=100, style="full", **options):
    super().__init__(
      dataclasses.replace(tiny_policy.SETTINGS, style=style, **options),
      tiny_policy.TOKENIZER,
      {},
    )
    self.script, self.asked = script, []  # Prompts, one list for each call.
    self.processor, self.tokens = self, tokens

  def encode(self, conversation):
    unread = []
    for segment in conversation.user:
      if segment.source == "image" and segment.text.startswith("missing"):
        unread.append(f"{segment.text} does not exist.")
        if segment.of is None:
          raise BadImage(unread[0])
    words = sum(
      len(segment.text.split())
      for segment in conversation.user
      if segment.source == "passage"
    )
    return EncodedPrompt([], truncated_tokens=max(words - self.tokens, 0), unread_images=tuple(unread))

  def respond(self, conversations, key, n=1, method=GREEDY, stop=()):
    prompts = [
      "".join(s.text for s in c.user if s.source != "image")
      for c in conversations
    ]
    self.asked.append(
      list(zip([c.kind for c in conversations], prompts, strict=True))
    )
    texts = [
      self.script(c.kind, prompt, method.temperature)
      for c, prompt in zip(conversations, prompts, strict=True)
    ]
    return [
      [
        Response(
          text,
          np.zeros(len(text.split()), np.int32),
          np.zeros(len(text.split()), np.float32),
        )
      ]
      * n
      for text in texts
    ]


class Echo(KnowledgeBase):
  """Finds passages that repeat the query."""

  devices = ()

  def __init__(self, kb):
    super().__init__({"kb": kb})
    self.kb, self.queries = kb, []

  def __len__(self):
    return 1

  def _search_uncached(self, queries, k):
    self.queries += queries
    return [
      [
        Passage(
          f"{self.kb}/{n}",
          self.kb,
          f"{self.kb} on {query.text}",
          score=1 - n / 10,
        )
        for n in range(k)
      ]
      for query in queries
    ]

  def _to_passages(self, found):
    return found


def kbs():
  return {kb: Echo(kb) for kb in ("text", "image", "table")}
