"""A policy that answers from a script, and knowledge bases without vectors."""

import dataclasses

import numpy as np

from r1router_jax.common.images import BadImage
from r1router_jax.common.records import (
  Answer,
  Hop,
  Passage,
  Plan,
  Question,
  Response,
)
from r1router_jax.generation.token_sampling import GREEDY
from r1router_jax.inputs.processor import EncodedPrompt
from r1router_jax.policy.policy import Policy
from r1router_jax.protocol import format
from r1router_jax.retrieval.knowledge_base import KnowledgeBase
from tests import tiny_policy

PEOPLE = Question(
  "q/people",
  "How many people live here?",
  ("18 million",),
  "chad.png",
  hops=(
    Hop("Which country is this?", ("image",), ("Chad",)),
    Hop("How many people live in Chad?", ("table", "text"), ("18 million",)),
  ),
)

COLOUR = Question("q/colour", "What colour is grass?", ("green",))


# The protocol's text, without its tags in each test.
def write_plan(sub_question, *routes):
  """Return the text of a plan."""
  return format.render_plan(Plan("because", sub_question, routes))


def write_answer(text):
  """Return the text of an answer."""
  return format.render_answer(Answer("because", text))


def good_script(kind, prompt, temperature):
  """Return the response of a good policy to the prompts of both questions."""
  if kind == "plan":
    # Nothing to search, or all was found.
    if "grass" in prompt or "18 million" in prompt:
      return write_plan("None")
    if "chad" in prompt:
      return write_plan("How many people live in Chad?", "table")
    return write_plan("Which country is this?", "image")
  if kind == "answer":
    return write_answer("Chad" if "which country" in prompt else "18 million")
  return write_answer("green" if "grass" in prompt else "18 million")


class ScriptedPolicy(Policy):
  """A policy that writes `script(kind, prompt, temperature)`.

  Words stand for tokens.  Images whose path starts with "missing" cannot be
  read.

  Args:
    script: returns the response to a prompt.
    max_passage_tokens: words of passages that a prompt may have; further ones
      count as truncated.
    style: style of the prompts.
    options: further fields of the config.

  Attributes:
    prompts: (kind, text) of each prompt, one list for each call.
  """

  def __init__(self, script, max_passage_tokens=100, style="full", **options):
    config = dataclasses.replace(
      tiny_policy.POLICY_CONFIG, style=style, **options
    )
    super().__init__(config, tiny_policy.TOKENIZER, {})
    self.script, self.prompts = script, []
    self.max_passage_tokens = max_passage_tokens
    self.processor = self  # It is asked for nothing but `encode`.

  def encode(self, conversation):
    """Check images and count words of passages."""
    unread_images, words = [], 0
    # The images that a real processor would decode.
    for segment in conversation.user:
      if segment.source == "passage":
        words += len(segment.text.split())
      if segment.source == "image" and segment.text.startswith("missing"):
        unread_images.append(f"{segment.text} does not exist.")
        if segment.passage_ref is None:
          raise BadImage(unread_images[0])
    truncated_tokens = max(words - self.max_passage_tokens, 0)
    return EncodedPrompt(
      [],
      truncated_tokens=truncated_tokens,
      unread_images=tuple(unread_images),
    )

  def generate(
    self,
    conversations,
    key,
    group_size=1,
    sampling=GREEDY,
    stop=(),
    members=None,
  ):
    """Return the script's response to each prompt, the same for all members."""
    count = group_size if members is None else 1
    asked = [
      (c.kind, "".join(s.text for s in c.user if s.source != "image"))
      for c in conversations
    ]
    self.prompts.append(asked)
    # The script is called once for each prompt, in order.
    groups = []
    for kind, prompt in asked:
      text = self.script(kind, prompt, sampling.temperature)
      tokens = len(text.split())
      response = Response(
        text, np.zeros(tokens, np.int32), np.zeros(tokens, np.float32)
      )
      groups.append([response] * count)
    return groups


class EchoKB(KnowledgeBase):
  """A knowledge base whose passages repeat the query.

  Attributes:
    kb: its kind.
    queries: all queries so far, but those answered from the cache.
  """

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

  def _to_passages(self, result):
    return result


class PicturedKB(EchoKB):
  """One whose passages have images, in a folder of its own."""

  image_folder = "/pictures"

  def _search_uncached(self, queries, k):
    results = super()._search_uncached(queries, k)
    path = f"{self.image_folder}/a.png"
    return [[dataclasses.replace(p, image=path) for p in x] for x in results]


def make_kbs():
  """Return a knowledge base of each kind."""
  return {kb: EchoKB(kb) for kb in ("text", "image", "table")}
