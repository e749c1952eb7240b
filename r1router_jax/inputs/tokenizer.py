"""Tokenizer: conversations to token ids and back; untrusted text is harmless.

A prompt is a list of pieces.  Pieces of templates may hold control tokens; all
else is encoded by a twin tokenizer that knows none, so that no text from
outside, whatever it spells, can open a turn, close a tag or stand for an image.
Control tokens are those that tokenizer.json calls special, and whatever holds a
"<".

There are two chat templates, by style: "full" is ChatML, as published
Qwen2.5-VL checkpoints were trained, with the ids of the whole text; "compact"
is `{system}{user}<|im_start|>`, with those of each piece.
"""

import collections
import dataclasses
import functools
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Bool, Int16

from r1router_jax.common import tokenizer_file
from r1router_jax.common.checkpoint_folder import is_gguf
from r1router_jax.common.errors import UserError
from r1router_jax.common.text import mend_text
from r1router_jax.inputs import gguf_tokenizer
from r1router_jax.protocol import format, messages

# Every policy needs the first three, and with images the others.
CHAT_TOKENS = PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_PAD = "<|image_pad|>"
VISION_BORDERS = VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_TOKENS = (IMAGE_PAD, VISION_START, VISION_END)
NEVER_SAMPLED = (PAD, START, *IMAGE_TOKENS)

# Capitals, digits, signs, spaces and letters of several bytes, in normal form.
_PROBE = 'Who wrote "Dracula" in 1897?  Ünï 東京'


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
  whole: bool = True  # Whether pieces are encoded together.


TEMPLATES = {
  "full": ChatTemplate(
    f"{START}system\n{{system}}{END}\n{START}user\n",
    f"{END}\n{START}assistant\n",
    f"{END}\n{START}user\n",
  ),
  "compact": ChatTemplate("{system}", START, whole=False),
}


def _read_tokenizer(
  path: str | pathlib.Path,
) -> tuple[dict[str, Any], tokenizers.Tokenizer]:
  """Return a tokenizer.json, or that of a GGUF file, and the tokenizer."""
  if not is_gguf(path):
    return tokenizer_file.read_tokenizer(path)
  text = gguf_tokenizer.read_tokenizer_files(path)["tokenizer.json"]
  return json.loads(text), tokenizers.Tokenizer.from_str(text)


class Tokenizer:
  """The tokenizer of one policy, for one style of prompts.

  Attributes:
    vocab_size: the largest id that the tokenizer knows, plus one.
    pad_id, eos_id: ids of padding and of the token that ends a response.
    eos_ids: the latter, and what else ends a sampled response.
    image_id: id of the image placeholder; -1 if the policy reads texts alone.
  """

  def __init__(
    self,
    path: str | pathlib.Path,
    style: str,
    embeddings: int | None = None,
    end_ids: Sequence[int] = (),
  ):
    """Read a `tokenizer.json` or a GGUF file, for a style of `TEMPLATES`.

    If it lacks a token of the protocol, contradicts itself or has ids beyond
    the `embeddings` of its model, it raises UserError; the errors of a GGUF
    file are those of `gguf_tokenizer.read_tokenizer_files`.
    """
    # 1. The tokenizer, and its twin for untrusted text.
    self._template = TEMPLATES[style]
    tree, self._trusted = _read_tokenizer(path)
    added, model = tree["added_tokens"], tree["model"]
    # Their bytes are their text; all other tokens are spelt in the byte
    # alphabet.
    self._added = {token["content"]: token["id"] for token in added}
    # Table markers such as [sep] are text; whatever holds a < is control.
    plain = [x for x in added if not x["special"] and "<" not in x["content"]]
    kept = {token["content"]: token["id"] for token in plain}
    self._control = {x: i for x, i in self._added.items() if x not in kept}
    self._split_control = _make_split(self._control)
    self._split_tags = _make_split(filter(format.TAG.fullmatch, self._control))
    # Words of the model keep their ids, also where other tokens are left out.
    if isinstance(model["vocab"], dict):
      model["vocab"] = kept | model["vocab"]
    tree["added_tokens"] = plain
    self._untrusted = tokenizers.Tokenizer.from_str(json.dumps(tree))

    # 2. What of its vocabulary has to be as the policy needs it.
    words = self._trusted.get_vocab()
    self._check_added(path, words)
    self._ids = np.fromiter(words.values(), np.int64)
    self.vocab_size = 1 + self._ids.max(initial=-1).item()
    if embeddings is not None and self.vocab_size > embeddings:
      raise UserError(
        f"{path} has ids up to {self.vocab_size - 1}, but its model has "
        f"{embeddings} embeddings.  Resize these in transformers, or take the "
        "tokenizer that the model was trained with."
      )
    find = self._trusted.token_to_id
    if missing := [token for token in CHAT_TOKENS if find(token) is None]:
      raise UserError(
        f"{path} lacks the tokens {missing}: it is no tokenizer of a "
        "Qwen2.5-VL policy, nor of any that was trained on ChatML."
      )
    for coder in (self._trusted, self._untrusted):
      _check_probe(path, coder)

    # 3. Ids by their meaning.  A policy of texts alone lacks image tokens.
    self.pad_id, self.eos_id = find(PAD), find(END)
    others = {i for i in end_ids if 0 <= i < self.vocab_size} - {self.eos_id}
    self.eos_ids = (self.eos_id, *sorted(others))
    has_images = all(find(token) is not None for token in IMAGE_TOKENS)
    self.image_id = find(IMAGE_PAD) if has_images else -1

  def _check_added(
    self, path: str | pathlib.Path, words: Mapping[str, int]
  ) -> None:
    """Raise UserError if the id of an added token is not its own everywhere.

    Untrusted text must never become a control token.
    """
    count, control = collections.Counter(words.values()), self._control.values()
    twin = self._untrusted.get_vocab()
    for token, i in self._added.items():
      found = {words.get(token), twin.get(token, i)}
      ids = self._untrusted.encode(token, add_special_tokens=False).ids
      if found != {i} or count[i] > 1 or not {*control}.isdisjoint(ids):
        raise UserError(
          f"{path}: the id {i} of the added token {token!a} is another "
          "token's, or text is read as it.  Save the tokenizer again with "
          "transformers."
        )

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
    allowed = np.isin(np.arange(vocabulary), self._ids)
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
    segments = conversation.user + conversation.reply_prefix
    sizes = iter(image_sizes)
    pieces = [(self._opening_text(conversation), self._split_control)]
    for segment in segments:
      text, split = segment.text, self._split_control
      if segment.source == "image":
        text = VISION_START + IMAGE_PAD * next(sizes) + VISION_END
      elif segment.source != "template":
        split = None
      pieces.append((text, split))
    closing = self._template.closing, self._split_control
    pieces.insert(1 + len(conversation.user), closing)
    if self._template.whole:
      opening, *whole = self._encode_pieces(pieces)
    else:
      opening, *whole = [self._encode_pieces([each])[0] for each in pieces]
    closing = whole.pop(len(conversation.user))

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
    """Encode a whole response, the end token included.

    Of all control tokens that it spells, only the protocol's tags become ids.
    """
    return [*self._encode_pieces([(text, self._split_tags)])[0], self.eos_id]

  def encode_template(self, text: str) -> list[int]:
    """Encode trusted text, which may hold control tokens."""
    return self._encode_pieces([(text, self._split_control)])[0]

  def decode(self, ids) -> str:
    """Return the text of a response, up to its end token."""
    # Sampled responses are padded with end tokens.
    ids = itertools.takewhile(lambda i: i not in self.eos_ids, map(int, ids))
    return self._trusted.decode([*ids], skip_special_tokens=False)

  def letter_ids(self) -> tuple[list[int], list[int]]:
    """Return ids of tokens that are letters alone: those behind a space first.

    Words begin with one of the former, and go on with any of the others.
    """
    starts, others = [], []
    for text, i in sorted(self._trusted.get_vocab().items()):
      # A byte-level tokenizer writes a space so.
      is_start = text.startswith("\u0120")
      if self._trusted.decode([i]).removeprefix(" ").isalpha():
        (starts if is_start else others).append(i)
    return sorted(starts), sorted(others)

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
    # A vocabulary may have holes.
    text = self._trusted.id_to_token(token) or ""
    if text in self._added:
      return text.encode()
    if strange := set(text) - _BYTES.keys():
      raise UserError(
        f"The token {text!a} has letters {strange!a} that stand for no bytes: "
        "stop strings need a tokenizer of byte-level BPE, as Qwen2.5's."
      )
    return bytes(_BYTES[letter] for letter in text)

  def _encode_pieces(
    self, pieces: Sequence[tuple[str, Callable[[str], list[str]] | None]]
  ) -> list[list[int]]:
    """Encode texts together, each with its `_make_split`, if it is trusted.

    A token of several texts belongs to that in which it ends.
    """
    parts = [  # Is it a control token, its text, the index of its piece.
      (k % 2, part, n)
      for n, (text, split) in enumerate(pieces)
      for k, part in enumerate(split(text) if split else [text])
    ]
    found = [[] for _ in pieces]
    for is_control, run in itertools.groupby(parts, key=lambda part: part[0]):
      _, texts, owners = zip(*run, strict=True)
      if is_control:
        ids = [[self._control[token]] for token in texts]
      else:
        ids = self._encode_run(texts)
      for owner, some in zip(owners, ids, strict=True):
        found[owner] += some
    return found

  @functools.lru_cache(maxsize=4096)  # noqa: B019 (lives as long as a policy)
  def _encode_run(self, texts: tuple[str, ...]) -> list[list[int]]:
    text = mend_text("".join(texts), "a prompt or a response")
    encoding = self._untrusted.encode(text, add_special_tokens=False)
    found, ends = [[] for _ in texts], np.cumsum([*map(len, texts)])
    owners = np.searchsorted(ends, [end for _, end in encoding.offsets])
    for owner, i in zip(owners, encoding.ids, strict=True):
      found[owner].append(i)
    return found


def _make_split(tokens: Iterable[str]) -> Callable[[str], list[str]]:
  """Return a function that splits a text; every second part is a token."""
  # Longer ones first, as the library finds them; "(?!)" is found nowhere.
  longest = sorted(map(re.escape, tokens), key=len, reverse=True)
  return re.compile(f"({'|'.join(longest) or '(?!)'})").split


def _check_probe(path: str | pathlib.Path, coder: tokenizers.Tokenizer) -> None:
  """Raise UserError if a tokenizer loses or changes letters of a text."""
  ids = coder.encode(_PROBE, add_special_tokens=False).ids
  # Some put a space in front.
  if coder.decode(ids, skip_special_tokens=False).lstrip() != _PROBE:
    raise UserError(
      f"{path}: the text {_PROBE!r} is not what it encodes and decodes it to.  "
      "Copy that of the model again."
    )


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
  limits = dataclasses.asdict(passage_tokens).items()
  left = {kb: tokens for kb, tokens in limits if tokens}
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
