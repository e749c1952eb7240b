"""Embedders of what can be seen.

"clip_sf" is UniIR's score fusion: what an item shows and what it says in one
space, added.  "picture_caption" fuses the scores of two encoders by placing
vectors side by side and masking what a query lacks:

  passage [picture ; caption],   query with a picture [picture ; 0],
                                 query without one    [0 ; text]

A query's words do not count where it has a picture: asking "which country is
this?", they say nothing of the answer.

Axes:  n items   E width
Source: arxiv.org/abs/2311.17136 (UniIR, score fusion).
"""

import functools
import html
from collections.abc import Callable

import ftfy
import numpy as np
import tokenizers
from jaxtyping import Float32

from r1router_jax.common import images
from r1router_jax.common.records import Passage, Query
from r1router_jax.models import clip, small_image_encoder
from r1router_jax.retrieval.encoders import batched_encoder
from r1router_jax.retrieval.encoders.batched_encoder import Embedder, Items

# Of M-BEIR, for Wikipedia: to queries without a picture, and with one.
INSTRUCTIONS = (
  "Find a Wikipedia image that answers this question.",
  "Retrieve a Wikipedia image-description pair that provides evidence for "
  "the question of this image.",
)


class Picture:
  """The picture encoder; an item without a picture has the vector 0."""

  def __init__(self, params: dict, fingerprint: str):
    self.width, self.fingerprint = small_image_encoder.WIDTH, fingerprint
    self._encode = batched_encoder.Encoder(
      small_image_encoder.PictureEncoder().apply, params, self.width
    )
    self.devices = self._encode.devices

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]:
    def read(item):
      return (
        images.square(images.load(item.image), small_image_encoder.SIDE) / 255
      )

    return _shown(self._encode, items, read, small_image_encoder.SIDE)


class ClipFusion:
  """CLIP as UniIR trained it; see the head of this module.

  Args:
    config: of the CLIP.
    params: its parameters.
    tokenizer: of its words, with their start and end.
    fingerprint: of its weights.
  """

  def __init__(
    self,
    config: clip.ClipConfig,
    params: dict,
    tokenizer: tokenizers.Tokenizer,
    fingerprint: str,
  ):
    self.width, self.fingerprint = config.width, fingerprint
    self._side, self._tokenizer = config.side, tokenizer
    self._tokenizer.no_padding()
    self._tokenizer.enable_truncation(config.tokens)
    self._picture, self._text = (
      batched_encoder.Encoder(
        functools.partial(
          clip.Clip(config, batched_encoder.dtype()).apply, method=method
        ),
        params,
        config.width,
      )
      for method in ("picture", "text")
    )
    self.devices = self._text.devices

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]:
    def read(item):
      return images.normalise(
        images.centre(images.load(item.image), self._side),
        images.MEAN,
        images.STD,
      )

    vectors = _shown(self._picture, items, read, self._side)
    texts = [_clean(_said(item)) for item in items]
    said = np.flatnonzero([bool(text) for text in texts])
    tokens = [
      encoding.ids
      for encoding in self._tokenizer.encode_batch([texts[i] for i in said])
    ]
    longest = self._tokenizer.truncation["max_length"]
    vectors[said] += self._text(
      [len(t) for t in tokens],
      lambda members, rows, length: (
        batched_encoder.padded(tokens, members, rows, min(length, longest)),
      ),
      batched_encoder.rows_for(items),
    )
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, 1e-12)


class PictureCaption:
  """Pictures and captions side by side; see the head of this module."""

  def __init__(self, look: Picture, read: Embedder):
    self._picture, self._text = look, read
    self.width = self._picture.width + self._text.width
    self.fingerprint = self._picture.fingerprint + "+" + self._text.fingerprint
    self.devices = self._picture.devices

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]:
    words = np.zeros((len(items), self._text.width), np.float32)
    read = np.flatnonzero(
      [isinstance(item, Passage) or not item.image for item in items]
    )
    words[read] = self._text([items[i] for i in read])
    return np.concatenate([self._picture(items), words], axis=1)


def _shown(
  encode: batched_encoder.Encoder,
  items: Items,
  read: Callable[[Query | Passage], np.ndarray],
  side: int,
) -> Float32[np.ndarray, "n E"]:
  """Vectors of pictures; 0 where an item has none."""
  shown = np.flatnonzero([bool(item.image) for item in items])

  def fill(members, rows, _):
    pixels = np.zeros((rows, side, side, 3), np.float32)
    for row, member in enumerate(members):
      pixels[row] = read(items[shown[member]])
    return (pixels,)

  vectors = encode([1] * len(shown), fill, batched_encoder.rows_for(items))
  whole = np.zeros((len(items), vectors.shape[1]), np.float32)
  whole[shown] = vectors
  return whole


def _said(item: Query | Passage) -> str:
  """A text as UniIR reads it, after an instruction where it asks."""
  text = item.text
  if isinstance(item, Query):
    text = f"{INSTRUCTIONS[bool(item.image)]} {text}"
  return sentence(text)


def sentence(text: str) -> str:
  """UniIR's cleaning: one sentence, with a capital and a full stop."""
  text = text.replace("\r", "").strip().strip('"')
  text = text[:1].upper() + text[1:]
  return text if not text or text.endswith((".", "?", "!")) else text + "."


def _clean(text: str) -> str:
  """CLIP's cleaning, but for the case, which its tokenizer lowers."""
  text = html.unescape(html.unescape(ftfy.fix_text(text)))
  return " ".join(text.split())
