"""Conversations to token ids and back, with untrusted text kept harmless.

A prompt is a list of pieces whose ids are concatenated.  Pieces of ours may
hold control tokens; pieces from a question or a passage are encoded by a twin
tokenizer that knows none, so that no text from outside, whatever it spells,
can open a turn, close a tag or claim a picture.

Two chat templates, by style: "full" is ChatML, as published Qwen2.5-VL
checkpoints were trained; "compact" is `{system}{user}<|im_start|>`.
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Bool, Int16

from r1router_jax.protocol import messages

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

PICTURE = "<|image_pad|>"

PICTURE_OPEN, PICTURE_CLOSE = "<|vision_start|>", "<|vision_end|>"

TURNS = (PAD, START, END)  # What every policy needs.

PICTURES = (PICTURE, PICTURE_OPEN, PICTURE_CLOSE)  # And one that sees.

NEVER_DRAWN = (PAD, START, *PICTURES)


def _letters() -> dict[str, int]:
  """The byte that each letter of a byte-level vocabulary stands for.

  Bytes that print stand for themselves, the rest for letters from 256 on.
  """
  printing = {*range(33, 127), *range(161, 173), *range(174, 256)}
  others = [byte for byte in range(256) if byte not in printing]
  return {chr(byte): byte for byte in printing} | {
    chr(256 + i): byte for i, byte in enumerate(others)
  }


_BYTES = _letters()


def _automaton(words: Sequence[bytes]) -> Int16[np.ndarray, "S 256"]:
  """The state after each byte: the longest end of the text that begins a word.

  The last state is that of a text that has a whole word in it.
  """
  begun = sorted(
    {word[:n] for word in words for n in range(len(word))},
    key=lambda text: (len(text), text),
  )
  names = {text: state for state, text in enumerate(begun)}
  step = np.zeros((len(begun) + 1, 256), np.int16)
  step[-1] = len(begun)
  for text, state in names.items():
    for byte in range(256):
      longer = text + bytes([byte])
      ends = [longer[i:] for i in range(len(longer) + 1)]
      step[state, byte] = (
        len(begun)
        if any(end in words for end in ends)
        else (next(names[end] for end in ends if end in names))
      )
  return step


class PromptTooLong(ValueError):
  """A prompt that does not fit even without its passages."""


class Fitted(NamedTuple):
  """A prompt as ids.

  Attributes:
    ids: of its tokens.
    shown: whether each of its pictures is among them.
    cut: tokens that its passages lost, with those of their pictures.
  """

  ids: list[int]
  shown: list[bool]
  cut: int


@dataclasses.dataclass(frozen=True)
class Turn:
  """How a style opens and closes a prompt, and goes on after a reply."""

  opening: str
  closing: str
  again: str = ""


TEMPLATES = {
  "full": Turn(
    f"{START}system\n{{system}}{END}\n{START}user\n",
    f"{END}\n{START}assistant\n",
    f"{END}\n{START}user\n",
  ),
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
      token
      for token in twin["added_tokens"]
      if not token["special"] and "<" not in token["content"]
    ]
    self._untrusted = tokenizers.Tokenizer.from_str(json.dumps(twin))
    self._template = TEMPLATES[style]
    self.size = self._trusted.get_vocab_size()
    find = self._trusted.token_to_id
    if missing := [token for token in TURNS if find(token) is None]:
      raise ValueError(
        f"{path} lacks the tokens {missing}: it is no tokenizer "
        "of a Qwen2.5-VL policy, nor of any that was trained "
        "on ChatML."
      )
    self.pad, self.end = find(PAD), find(END)
    self._added = {
      token["content"] for token in json.loads(text)["added_tokens"]
    }
    # A tokenizer of texts alone has no placeholder, and no id is -1.
    sees = all(find(token) is not None for token in PICTURES)
    self.picture = find(PICTURE) if sees else -1

  def named(self) -> dict[str, int]:
    """The ids that a published config.json names."""
    names = dict(bos_token_id=PAD, pad_token_id=PAD, eos_token_id=END)
    if self.picture >= 0:
      names |= dict(
        image_token_id=PICTURE,
        vision_start_token_id=PICTURE_OPEN,
        vision_end_token_id=PICTURE_CLOSE,
      )
    return {
      name: self._trusted.token_to_id(token) for name, token in names.items()
    }

  def allowed(self, vocabulary: int) -> Bool[np.ndarray, " V"]:
    """False on ids that a policy never writes: padding rows, placeholders."""
    allowed = np.arange(vocabulary) < self.size
    found = map(self._trusted.token_to_id, NEVER_DRAWN)
    allowed[[i for i in found if i is not None]] = False
    return allowed

  def encode(
    self,
    conversation: messages.Conversation,
    pictures: Sequence[int],
    limit: int,
    most: messages.PassageTokens,
  ) -> Fitted:
    """Ids of a prompt of at most `limit` tokens.

    Args:
      conversation: the prompt.
      pictures: tokens that each of its pictures takes, in their order.
      limit: a longer prompt loses the ends of its passages, last one first,
        and their pictures with them.
      most: tokens of passages, see `_within`.

    Raises:
      PromptTooLong: where it is longer even without its passages.
    """
    user, sizes = conversation.user + conversation.said, iter(pictures)
    whole = [
      self._placeholders(next(sizes))
      if s.source == "picture"
      else self._piece(s.text, s.source != "template")
      for s in user
    ]
    turn = self._template
    opening = self._piece(
      "".join(
        (
          turn.opening.format(system=conversation.system),
          *(
            f"{asked}{turn.closing}{reply}{turn.again}"
            for asked, reply in conversation.examples
          ),
        )
      ),
      False,
    )
    closing = self._piece(turn.closing, False)
    pieces = _within(user, whole, most)
    excess = len(opening) + len(closing) - limit + sum(map(len, pieces))
    for i in reversed(range(len(pieces))):
      if excess > 0 and user[i].source == "passage":
        pieces[i], before = pieces[i][:-excess], pieces[i]
        excess -= len(before) - len(pieces[i])
      elif excess > 0 and user[i].source == "picture" and user[i].of:
        excess -= len(pieces[i])
        pieces[i] = []
    if excess > 0:
      text = "".join(s.text for s in conversation.user)
      raise PromptTooLong(
        f"The {conversation.kind} prompt is {excess} tokens over the limit "
        f"of {limit} without its passages: {text[:80]!r}….  Shorten the "
        "question or raise the last of config.policy.settings.prompt_tokens."
      )
    shown = [
      bool(piece)
      for s, piece in zip(user, pieces, strict=True)
      if s.source == "picture"
    ]
    cut = sum(
      len(before) - len(piece)
      for s, before, piece in zip(user, whole, pieces, strict=True)
      if s.source != "template"
    )
    pieces.insert(len(conversation.user), closing)
    return Fitted(opening + [i for piece in pieces for i in piece], shown, cut)

  def encode_response(self, text: str) -> list[int]:
    """Ids of a whole response of ours, the end token included."""
    return [*self._piece(text, False), self.end]

  def decode(self, ids) -> str:
    """The text of a response; the end token and what follows are left out."""
    ids = [int(i) for i in ids]
    if self.end in ids:
      ids = ids[: ids.index(self.end)]
    return self._trusted.decode(ids, skip_special_tokens=False)

  def words(self) -> list[int]:
    """Ids of the tokens that are whole words with their leading space."""
    vocabulary = self._trusted.get_vocab()
    return sorted(
      i
      for token, i in vocabulary.items()
      if re.fullmatch("\u0120[A-Za-z]{3,10}", token)
    )

  @functools.lru_cache(maxsize=8)  # noqa: B019 (lives as long as a policy)
  def stops(
    self, strings: tuple[str, ...], vocabulary: int
  ) -> Int16[np.ndarray, "S V"]:
    """An automaton that tells when a response has one of `strings` in it.

    Entry [s, token] is the state after `token`, from state s; state 0 is the
    start and the last one "complete".  It reads bytes, not tokens, since one
    text has many tokenisations: ".</", "ret", ">." complete "</ret>", too.

    Raises:
      ValueError: where there is no string, or an empty one.
    """
    if not strings or not all(strings):
      raise ValueError(
        f"Stop strings are {strings}: give one or more, none of them empty."
      )
    step = _automaton([text.encode() for text in strings])
    last = len(step) - 1
    table = np.zeros((len(step), vocabulary), np.int16)
    for token in range(min(vocabulary, self.size)):
      state = np.arange(len(step))
      for byte in self._bytes(token):
        state = np.where(state == last, last, step[state, byte])
      table[:, token] = state
    table[last] = last
    return table

  def _bytes(self, token: int) -> bytes:
    """What a token adds to a response."""
    text = self._trusted.id_to_token(token)
    if text in self._added:
      return text.encode()
    return bytes(_BYTES[letter] for letter in text)

  @functools.lru_cache(maxsize=65536)  # noqa: B019 (lives as long as a policy)
  def _cached(self, text: str, untrusted: bool) -> tuple[int, ...]:
    coder = self._untrusted if untrusted else self._trusted
    return tuple(coder.encode(text, add_special_tokens=False).ids)

  def _placeholders(self, count: int) -> list[int]:
    return [
      *self._piece(PICTURE_OPEN, False),
      *[self.picture] * count,
      *self._piece(PICTURE_CLOSE, False),
    ]

  def _piece(self, text: str, untrusted: bool) -> list[int]:
    return list(self._cached(text, untrusted))


def _within(
  user: Sequence[messages.Segment],
  pieces: Sequence[list[int]],
  most: messages.PassageTokens,
) -> list[list[int]]:
  """The pieces of a prompt without what its passages have too much.

  Passages come best first: of each kind the one that crosses the limit is cut,
  and later ones are left out, with all that belongs to them.
  """
  left = {kb: tokens for kb, tokens in vars(most).items() if tokens}
  kept, out = list(pieces), set()
  for i, segment in enumerate(user):
    if segment.source == "passage" and segment.of and segment.of[0] in left:
      kept[i] = pieces[i][: left[segment.of[0]]]
      left[segment.of[0]] -= len(kept[i])
      if not kept[i]:
        out.add(segment.of)
  return [
    [] if segment.of in out else piece
    for segment, piece in zip(user, kept, strict=True)
  ]
