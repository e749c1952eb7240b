"""Conversations to token ids and back, with untrusted text kept harmless.

A prompt is a list of pieces whose ids are concatenated.  Pieces of ours may
hold control tokens; pieces from a question or a passage are encoded by a twin
tokenizer that knows none, so that no text from outside, whatever it spells,
can open a turn, close a tag or claim a picture.

Two chat templates, by style: "full" is ChatML, as published Qwen2.5-VL
checkpoints were trained; "compact" is `{system}{picture}{text}<|im_start|>`.
"""

import dataclasses
import functools
import json
import pathlib
import re

import numpy as np
import tokenizers
from jaxtyping import Bool

from r1router_jax import prompts, protocol

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PICTURE = "<|image_pad|>"
PICTURE_OPEN, PICTURE_CLOSE = "<|vision_start|>", "<|vision_end|>"
NEVER_DRAWN = (PAD, START, PICTURE, PICTURE_OPEN, PICTURE_CLOSE)


class PromptTooLong(ValueError):
  """A prompt that does not fit even without its passages."""


@dataclasses.dataclass(frozen=True)
class Turn:
  """How a style opens and closes a prompt."""

  opening: str
  closing: str


TEMPLATES = {
    "full": Turn(f"{START}system\n{{system}}{END}\n{START}user\n",
                 f"{END}\n{START}assistant\n"),
    "compact": Turn("{system}", START),
}


class Tokenizer:
  """The tokenizer of one policy, for one style of prompts."""

  def __init__(self, path: str | pathlib.Path, style: str):
    """Reads a `tokenizer.json`.

    Raises:
      ValueError: where it lacks a token of the protocol.
    """
    text = pathlib.Path(path).read_text("utf-8")
    self._trusted = tokenizers.Tokenizer.from_str(text)
    twin = json.loads(text)
    # Table markers such as [sep] are text; whatever opens with < is control.
    twin["added_tokens"] = [
        token for token in twin["added_tokens"]
        if not token["special"] and "<" not in token["content"]]
    self._untrusted = tokenizers.Tokenizer.from_str(json.dumps(twin))
    self._template = TEMPLATES[style]
    self._image_first = prompts.STYLES[style].image_first
    self.size = self._trusted.get_vocab_size()
    missing = [token for token in (*NEVER_DRAWN, END)
               if self._trusted.token_to_id(token) is None]
    if missing:
      raise ValueError(f"{path} lacks the tokens {missing}: it is no tokenizer "
                       "of a Qwen2.5-VL policy.")
    self.pad, self.end, self.picture = map(
        self._trusted.token_to_id, (PAD, END, PICTURE))

  def allowed(self, vocabulary: int) -> Bool[np.ndarray, " V"]:
    """False on ids that a policy never writes: padding rows, placeholders."""
    allowed = np.arange(vocabulary) < self.size
    for token in NEVER_DRAWN:
      allowed[self._trusted.token_to_id(token)] = False
    return allowed

  def encode(
      self, conversation: protocol.Conversation, picture: int, limit: int
  ) -> list[int]:
    """Ids of a prompt of at most `limit` tokens.

    Args:
      conversation: the prompt.
      picture: tokens that its picture takes, 0 where it has none.
      limit: a longer prompt loses the ends of its passages, last one first.

    Raises:
      PromptTooLong: where it is longer even without its passages.
    """
    pieces = [self._piece(s.text, s.source != "template")
              for s in conversation.user]
    pads = []
    if picture:
      pads = self._piece(PICTURE_OPEN, False) + (
          [self.picture] * picture) + self._piece(PICTURE_CLOSE, False)
    opening = self._piece(
        self._template.opening.format(system=conversation.system), False)
    closing = self._piece(self._template.closing, False)
    excess = len(opening) + len(pads) + len(closing) - limit + sum(
        map(len, pieces))
    for i in reversed(range(len(pieces))):
      if excess > 0 and conversation.user[i].source == "passage":
        cut = min(excess, len(pieces[i]))
        pieces[i] = pieces[i][:len(pieces[i]) - cut]
        excess -= cut
    if excess > 0:
      raise PromptTooLong(
          f"The {conversation.kind} prompt is {excess} tokens over the limit "
          f"of {limit} without its passages: "
          f"{conversation.user[0].text[:80]!r}….  Shorten the question or "
          "raise the last of config.policy.settings.prompt_tokens.")
    text = [i for piece in pieces for i in piece]
    body = pads + text if self._image_first else text + pads
    return opening + body + closing

  def encode_response(self, text: str) -> list[int]:
    """Ids of a whole response of ours, the end token included."""
    return [*self._piece(text, False), self.end]

  def decode(self, ids) -> str:
    """The text of a response; the end token and what follows are left out."""
    ids = [int(i) for i in ids]
    if self.end in ids:
      ids = ids[:ids.index(self.end)]
    return self._trusted.decode(ids, skip_special_tokens=False)

  def words(self) -> list[int]:
    """Ids of the tokens that are whole words with their leading space."""
    vocabulary = self._trusted.get_vocab()
    return sorted(i for token, i in vocabulary.items()
                  if re.fullmatch("\u0120[A-Za-z]{3,10}", token))

  @functools.lru_cache(maxsize=65536)  # noqa: B019 (lives as long as a policy)
  def _cached(self, text: str, untrusted: bool) -> tuple[int, ...]:
    coder = self._untrusted if untrusted else self._trusted
    return tuple(coder.encode(text, add_special_tokens=False).ids)

  def _piece(self, text: str, untrusted: bool) -> list[int]:
    return list(self._cached(text, untrusted))
