"""Tokenizer: conversations to token ids and back; untrusted text is harmless.

A prompt is a list of pieces whose ids are concatenated.  Pieces of templates
may hold control tokens; pieces of a question or a passage are encoded by a twin
tokenizer that knows none, so that no text from outside, whatever it spells, can
open a turn, close a tag or stand for an image.

There are two chat templates, by style: "full" is ChatML, as published
Qwen2.5-VL checkpoints were trained; "compact" is `{system}{user}<|im_start|>`.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Bool, Int16

from r1router_jax.common.checkpoint_folder import is_gguf
from r1router_jax.common.errors import UserError
from r1router_jax.inputs import gguf_tokenizer
from r1router_jax.protocol import messages

# Every policy needs the first three, and with images the others.
CHAT_TOKENS = PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_PAD = "<|image_pad|>"
VISION_BORDERS = VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_TOKENS = (IMAGE_PAD, VISION_START, VISION_END)
NEVER_SAMPLED = (PAD, START, *IMAGE_TOKENS)


def _byte_alphabet() -> dict[str, int]:
  """Map each letter of a byte-level vocabulary to the byte that it stands for.

  Printing bytes are written as themselves, the others as letters from 256 on.
  """
  printing = {*range(33, 127), *range(161, 173), *range(174, 256)}
  others = [byte for byte in range(256) if byte not in printing]
  letters = map(chr, [*printing, *range(256, 256 + len(others))])
  return dict(zip(letters, [*printing, *others], strict=True))


_BYTES = _byte_alphabet()


def _build_automaton(words: Sequence[bytes]) -> Int16[np.ndarray, "S 256"]:
  """Return the next state for each state and byte (Aho-Corasick).

  A state is the longest end of the text that begins one of the words; the last
  state is that of a text that contains a whole word.
  """
  # States are the beginnings of words, shortest first, so that 0 is the empty
  # one.
  prefixes = sorted(
    {word[:n] for word in words for n in range(len(word))},
    key=lambda text: (len(text), text),
  )
  states = {text: state for state, text in enumerate(prefixes)}
  complete = len(prefixes)
  step = np.zeros((complete + 1, 256), np.int16)
  step[complete] = complete
  for text, state in states.items():
    for byte in range(256):
      longer = text + bytes([byte])
      # Longest first; the empty end is state 0.
      ends = [longer[i:] for i in range(len(longer) + 1)]
      if any(end in words for end in ends):
        step[state, byte] = complete
      else:
        step[state, byte] = next(states[end] for end in ends if end in states)
  return step


class PromptTooLong(UserError):
  """The error of a prompt that does not fit even without its passages."""


class TruncatedPrompt(NamedTuple):
  """A prompt as ids, within the limits of its length."""

  ids: list[int]
  image_kept: list[bool]  # For each of its images, whether ids still have it.
  truncated_tokens: int  # Lost by passages, those of their images included.


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """The text around the turns of a prompt."""

  opening: str  # Before the user turn; has a field for the system turn.
  closing: str  # Between the user turn and the reply.
  next_turn: str = ""  # Between a reply and the next user turn.


TEMPLATES = {
  "full": ChatTemplate(
    f"{START}system\n{{system}}{END}\n{START}user\n",
    f"{END}\n{START}assistant\n",
    f"{END}\n{START}user\n",
  ),
  "compact": ChatTemplate("{system}", START),
}


class Tokenizer:
  """The tokenizer of one policy, for one style of prompts.

  Attributes:
    vocab_size: number of ids that the tokenizer knows.
    pad_id, eos_id: ids of padding and of the token that ends a response.
    image_id: id of the image placeholder; -1 if the policy reads texts alone.
  """

  def __init__(self, path: str | pathlib.Path, style: str):
    """Read a `tokenizer.json` or a GGUF file, for a style of `TEMPLATES`.

    If it lacks a token of the protocol, it raises UserError; the errors of a
    GGUF file are those of `gguf_tokenizer.read_tokenizer_files`.
    """
    if is_gguf(path):
      text = gguf_tokenizer.read_tokenizer_files(path)["tokenizer.json"]
    else:
      text = pathlib.Path(path).read_text("utf-8")
    added = json.loads(text)["added_tokens"]
    # Their bytes are their text; all other tokens are spelt in the byte
    # alphabet.
    self._added = {token["content"] for token in added}
    self._trusted = tokenizers.Tokenizer.from_str(text)
    # Table markers such as [sep] are text; whatever opens with < is control.
    twin = json.loads(text)
    plain = [token for token in added if not token["special"]]
    twin["added_tokens"] = [x for x in plain if "<" not in x["content"]]
    self._untrusted = tokenizers.Tokenizer.from_str(json.dumps(twin))
    self._template = TEMPLATES[style]

    self.vocab_size = self._trusted.get_vocab_size()
    find = self._trusted.token_to_id
    if missing := [token for token in CHAT_TOKENS if find(token) is None]:
      raise UserError(
        f"{path} lacks the tokens {missing}: it is no tokenizer of a "
        "Qwen2.5-VL policy, nor of any that was trained on ChatML."
      )
    # A policy of texts alone lacks the image tokens, which is no error.
    self.pad_id, self.eos_id = find(PAD), find(END)
    has_images = all(find(token) is not None for token in IMAGE_TOKENS)
    self.image_id = find(IMAGE_PAD) if has_images else -1

  def special_token_ids(self) -> dict[str, int]:
    """Return the ids that a published config.json names."""
    names = dict(bos=PAD, pad=PAD, eos=END)
    if self.image_id >= 0:
      names |= dict(image=IMAGE_PAD)
      names |= dict(vision_start=VISION_START, vision_end=VISION_END)
    find = self._trusted.token_to_id
    return {f"{name}_token_id": find(token) for name, token in names.items()}

  def allowed_mask(self, vocabulary: int) -> Bool[np.ndarray, " V"]:
    """Return false on ids that a policy never writes: padding, placeholders."""
    # Embeddings are often padded to a multiple of 128 rows, so that there are
    # more of them than the tokenizer has ids.
    allowed = np.arange(vocabulary) < self.vocab_size
    found = map(self._trusted.token_to_id, NEVER_SAMPLED)
    allowed[[i for i in found if i is not None]] = False
    return allowed

  def encode(
    self,
    conversation: messages.Conversation,
    image_sizes: Sequence[int],
    limit: int,
    passage_tokens: messages.PassageTokens,
  ) -> TruncatedPrompt:
    """Encode a prompt in at most `limit` tokens.

    A longer prompt loses the ends of its passages, last one first, and their
    images with them; one that is longer even without raises PromptTooLong.
    `image_sizes` are the numbers of tokens of its images.
    """
    # 1. Ids of every piece.
    opening = self._encode_piece(self._opening_text(conversation), False)
    closing = self._encode_piece(self._template.closing, False)
    segments = conversation.user + conversation.reply_prefix
    sizes, whole = iter(image_sizes), []
    first, last = (self._encode_piece(x, False) for x in VISION_BORDERS)
    for segment in segments:
      if segment.source == "image":
        whole.append([*first, *[self.image_id] * next(sizes), *last])
      else:
        untrusted = segment.source != "template"
        whole.append(self._encode_piece(segment.text, untrusted))

    # 2. Passages within their own limits, then the prompt within its limit.
    pieces = _limit_passages(segments, whole, passage_tokens)
    excess = len(opening) + len(closing) + sum(map(len, pieces)) - limit
    pieces, excess = _truncate_passages(segments, pieces, excess)
    if excess > 0:
      text = "".join(segment.text for segment in conversation.user)
      raise PromptTooLong(
        f"The {conversation.kind} prompt is {excess} tokens over the limit "
        f"of {limit} without its passages: {text[:80]!r}….  Shorten the "
        "question or raise the last of config.policy.overrides.prompt_tokens."
      )

    # 3. The prompt, and a report of what it has lost.
    image_kept, truncated = [], 0
    for segment, before, piece in zip(segments, whole, pieces, strict=True):
      if segment.source == "image":
        image_kept.append(bool(piece))
      # Template text of a dropped passage is left out too, but does not count.
      if segment.source != "template":
        truncated += len(before) - len(piece)
    pieces.insert(len(conversation.user), closing)
    ids = [*opening, *itertools.chain.from_iterable(pieces)]
    return TruncatedPrompt(ids, image_kept, truncated)

  def _opening_text(self, conversation: messages.Conversation) -> str:
    # Few-shot examples are trusted: they may hold control tokens.
    template = self._template
    text = template.opening.format(system=conversation.system)
    for user, reply in conversation.examples:
      text += f"{user}{template.closing}{reply}{template.next_turn}"
    return text

  def encode_response(self, text: str) -> list[int]:
    """Encode a whole response of trusted text, the end token included."""
    return [*self._encode_piece(text, False), self.eos_id]

  def decode(self, ids) -> str:
    """Return the text of a response, up to its end token."""
    # Sampled responses are padded with end tokens.
    ids = [int(i) for i in ids]
    if self.eos_id in ids:
      ids = ids[: ids.index(self.eos_id)]
    return self._trusted.decode(ids, skip_special_tokens=False)

  def whole_word_ids(self) -> list[int]:
    """Return ids of tokens that are whole words with their leading space."""
    word = re.compile("\u0120[A-Za-z]{3,10}")
    vocabulary = self._trusted.get_vocab()
    return sorted(i for text, i in vocabulary.items() if word.fullmatch(text))

  @functools.lru_cache(maxsize=8)  # noqa: B019 (lives as long as a policy)
  def stop_table(
    self, strings: tuple[str, ...], vocabulary: int
  ) -> Int16[np.ndarray, "S V"]:
    """Return an automaton that detects stop strings in a response.

    Entry [s, token] is the state after `token`, from state s; state 0 is the
    start and the last one "complete".  The automaton reads bytes, not tokens,
    since one text has many tokenisations: ".</", "ret", ">." complete "</ret>",
    too.  Without a string, or with an empty one, it raises UserError.
    """
    if not strings or not all(strings):
      raise UserError(
        f"Stop strings are {strings}: give one or more, none of them empty."
      )
    # Bytes first, then tokens: the table has a row per state, and few states,
    # so it is small.
    step = _build_automaton([text.encode() for text in strings])
    complete = len(step) - 1
    table = np.zeros((len(step), vocabulary), np.int16)
    # Fold the bytes of each token, from all states at once.
    for token in range(min(vocabulary, self.vocab_size)):
      state = np.arange(len(step))
      for byte in self._token_bytes(token):
        state = np.where(state == complete, complete, step[state, byte])
      table[:, token] = state
    table[complete] = complete  # Of padding ids too.
    return table

  def _token_bytes(self, token: int) -> bytes:
    text = self._trusted.id_to_token(token)
    if text in self._added:
      return text.encode()
    return bytes(_BYTES[letter] for letter in text)

  @functools.lru_cache(maxsize=65536)  # noqa: B019 (lives as long as a policy)
  def _encode_cached(self, text: str, untrusted: bool) -> tuple[int, ...]:
    coder = self._untrusted if untrusted else self._trusted
    return tuple(coder.encode(text, add_special_tokens=False).ids)

  def _encode_piece(self, text: str, untrusted: bool) -> list[int]:
    return list(self._encode_cached(text, untrusted))


def _limit_passages(
  segments: Sequence[messages.Segment],
  pieces: Sequence[list[int]],
  passage_tokens: messages.PassageTokens,
) -> list[list[int]]:
  """Drop passage tokens beyond the limit of each knowledge base.

  Passages come best first: of each knowledge base the one that crosses the
  limit is cut, and later ones are left out, with all that belongs to them.
  """
  # Knowledge bases without a limit are absent from `left`.
  left = {kb: tokens for kb, tokens in vars(passage_tokens).items() if tokens}
  kept, dropped = list(pieces), set()
  for i, segment in enumerate(segments):
    kb = segment.passage_ref and segment.passage_ref[0]
    if segment.source == "passage" and kb in left:
      kept[i] = pieces[i][: left[kb]]
      left[kb] -= len(kept[i])
      if not kept[i]:
        dropped.add(segment.passage_ref)
  return [
    [] if segment.passage_ref in dropped else piece
    for segment, piece in zip(segments, kept, strict=True)
  ]


def _truncate_passages(
  segments: Sequence[messages.Segment], pieces: list[list[int]], excess: int
) -> tuple[list[list[int]], int]:
  """Cut `excess` tokens from the ends of passages, last one first.

  Images of passages go whole.  Returns the pieces and the excess that is left.
  """
  pieces = list(pieces)
  for i in reversed(range(len(pieces))):
    if excess <= 0:
      break
    if segments[i].source == "passage":
      kept = pieces[i][:-excess]
    elif segments[i].source == "image" and segments[i].passage_ref:
      kept = []
    else:
      continue
    # Images may free more than is needed; the prompt is shorter then.
    excess -= len(pieces[i]) - len(kept)
    pieces[i] = kept
  return pieces, excess
