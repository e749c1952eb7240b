"""Embedders of items with images.

`ClipFusionEmbedder` is UniIR's score fusion: the vectors of an item's image and
of its text, in one space, are added.  `SiglipEmbedder` does so with vectors of
length 1, since its encoder was not trained on sums, and a query with an image
is its image alone.  `ImageCaptionEmbedder` fuses the scores of two encoders by
concatenating their vectors and zeroing one of a query's:

  passage              [image ; caption]
  query with an image  [image ; 0]
  query without one    [0 ; text]

The words of a query with an image do not count: in "which country is this?",
they say nothing about the answer.

Axes:  n items   E width
Source: arxiv.org/abs/2311.17136 (UniIR, score fusion).
"""

import functools
import html
import os
from collections.abc import Callable
from typing import Any

import ftfy
import msgspec
import numpy as np
import tokenizers
from jaxtyping import Float32
from PIL import Image

from r1router_jax.common import images, schema
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Passage, Query
from r1router_jax.models import clip, siglip, small_image_encoder
from r1router_jax.retrieval.encoders import batched_encoder, text_encoders
from r1router_jax.retrieval.encoders.batched_encoder import Embedder, Items

# SigLIP 2 was trained on texts in lower case; its config.json has the length.
SIGLIP_TEXT = text_encoders.TextEncoder(lowercase="all")
_PAD = "<pad>"  # The padding of its tokenizer.

# M-BEIR's Wikipedia instructions for queries without and with an image.
INSTRUCTIONS = (
  "Find a Wikipedia image that answers this question.",
  "Retrieve a Wikipedia image-description pair that provides evidence for "
  "the question of this image.",
)


class ImageEmbedder:
  """The small image encoder; an item without an image has the vector 0."""

  def __init__(self, params: dict, fingerprint: str):
    self.width, self.fingerprint = small_image_encoder.WIDTH, fingerprint
    self._encode = batched_encoder.BatchedEncoder(
      small_image_encoder.SmallImageEncoder().apply, params, self.width
    )
    self.devices = self._encode.devices

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]:
    """Return the vector of each item's image."""
    size = small_image_encoder.IMAGE_SIZE

    def load_pixels(path: str) -> np.ndarray:
      return images.stretch_to_square(images.load_image(path), size) / 255

    return _embed_images(self._encode, items, load_pixels, size)


class ClipFusionEmbedder:
  """CLIP as UniIR trained it: the sum of an item's image and text vectors.

  The tokenizer adds the start and end tokens.
  """

  def __init__(
    self,
    config: clip.ClipConfig,
    params: dict,
    tokenizer: tokenizers.Tokenizer,
    fingerprint: str,
  ):
    self.width, self.fingerprint = config.width, fingerprint
    self._config, self._tokenizer = config, tokenizer
    self._tokenizer.no_padding()
    self._tokenizer.enable_truncation(config.max_tokens)
    model = clip.Clip(config, batched_encoder.compute_dtype())
    towers = _make_tower_encoders(model, params)
    self._encode_image, self._encode_text = towers
    self.devices = self._encode_text.devices

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]:
    """Return a vector of length 1 of each item; 0 if the item is empty."""
    # Start with the vectors of the images, which are 0 where there is none.
    size = self._config.image_size

    def load_pixels(path: str) -> np.ndarray:
      image = images.center_crop(images.load_image(path), size)
      return images.normalize_pixels(image)

    vectors = _embed_images(self._encode_image, items, load_pixels, size)

    # Add the vectors of the texts that are not empty.
    texts = [_clean_text(_instructed_text(item)) for item in items]
    with_text = np.flatnonzero([bool(text) for text in texts])
    members = [items[i] for i in with_text], [texts[i] for i in with_text]
    tokens = batched_encoder.encode_tokens(self._tokenizer, *members)

    def make_arrays(members, rows, length):
      # The longest bucket may exceed the position table of CLIP.
      length = min(length, self._config.max_tokens)
      return (batched_encoder.pad_tokens(tokens, members, rows, length),)

    lengths = [len(t) for t in tokens]
    batch_sizes = batched_encoder.batch_sizes_for(items)
    vectors[with_text] += self._encode_text(lengths, make_arrays, batch_sizes)

    return _scale_to_one(vectors)


# Of red, green and blue.
_Means = tuple[schema.Finite, schema.Finite, schema.Finite]
_Deviations = tuple[schema.Positive, schema.Positive, schema.Positive]


class _Size(msgspec.Struct):
  height: schema.Size
  width: schema.Size


class SiglipPreprocessor(msgspec.Struct):
  """Says how images become pixels; the fields of preprocessor_config.json."""

  size: _Size
  resample: schema.int_range(0, 5) = Image.Resampling.BILINEAR.value
  image_mean: _Means = (0.5, 0.5, 0.5)
  image_std: _Deviations = (0.5, 0.5, 0.5)


class SiglipEmbedder:
  """SigLIP 2: the sum of the unit vectors of an item's image and text."""

  def __init__(
    self,
    config: siglip.SiglipConfig,
    params: dict,
    tokenizer: tokenizers.Tokenizer,
    fingerprint: str,
    preprocessor: SiglipPreprocessor,
  ):
    self.width, self.fingerprint = config.width, fingerprint
    self._config, self._preprocessor = config, preprocessor
    self._tokenizer, length = tokenizer, config.max_tokens
    self._tokenizer.enable_truncation(length)
    # Texts are padded to all positions, as in training.
    pad_id = tokenizer.token_to_id(_PAD)
    if pad_id is None:
      raise UserError(f"tokenizer.json has no {_PAD}.  Copy that of SigLIP 2.")
    self._tokenizer.enable_padding(length=length, pad_id=pad_id, pad_token=_PAD)
    model = siglip.Siglip(config, batched_encoder.compute_dtype())
    towers = _make_tower_encoders(model, params)
    self._encode_image, self._encode_text = towers
    self.devices = self._encode_text.devices

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]:
    """Return a vector of length 1 of each item; 0 if the item is empty."""
    size, c = self._config.image_size, self._preprocessor

    def load_pixels(path: str) -> np.ndarray:
      shown = images.load_image(path)
      shown = images.resize_image(shown, size, size, c.resample)
      return images.normalize_pixels(shown, c.image_mean, c.image_std)

    vectors = _embed_images(self._encode_image, items, load_pixels, size)
    vectors = _scale_to_one(vectors)

    # Add the texts that are not empty, of queries those without an image.
    texts = [SIGLIP_TEXT.read_text(item) for item in items]
    is_read = [isinstance(item, Passage) or not item.image for item in items]
    with_text = [i for i, text in enumerate(texts) if text and is_read[i]]
    members = [items[i] for i in with_text], [texts[i] for i in with_text]
    tokens = batched_encoder.encode_tokens(self._tokenizer, *members)

    def make_arrays(members, rows, _):
      # All texts have the length of the position table.
      length = self._config.max_tokens
      return (batched_encoder.pad_tokens(tokens, members, rows, length),)

    lengths = [len(t) for t in tokens]
    batch_sizes = batched_encoder.batch_sizes_for(items)
    found = self._encode_text(lengths, make_arrays, batch_sizes)
    vectors[with_text] += _scale_to_one(found)
    return _scale_to_one(vectors)


def load_siglip(weights: str) -> SiglipEmbedder:
  """Load the SigLIP 2 in the folder `weights`."""
  config = siglip.read_config(weights)
  side = config.image_size

  def parse(tree: dict[str, Any]) -> SiglipPreprocessor:
    found = schema.convert(tree, SiglipPreprocessor)
    steps = "do_resize", "do_rescale", "do_normalize"
    if skipped := [step for step in steps if tree.get(step, True) is not True]:
      raise UserError(f"{skipped[0]} is not true, and only true is known")
    if (found.size.height, found.size.width) != (side, side):
      raise UserError(f"size is not {side} x {side}, as config.json says")
    return found

  path = os.path.join(weights, "preprocessor_config.json")
  preprocessor = schema.read_json(path, parse, "Copy that of the model.")
  params = siglip.load_params(weights, config)
  tokenizer = batched_encoder.load_tokenizer(weights)
  data = (
    text_encoders.changed_fields(SIGLIP_TEXT),
    msgspec.to_builtins(preprocessor),
  )
  digest = text_encoders.digest_encoder(weights, *data)
  return SiglipEmbedder(config, params, tokenizer, digest, preprocessor)


class ImageCaptionEmbedder:
  """Concatenated vectors of images and captions; see the head of this module.

  `embed_texts` embeds captions, and queries without an image.
  """

  def __init__(self, embed_images: ImageEmbedder, embed_texts: Embedder):
    self._embed_images, self._embed_texts = embed_images, embed_texts
    self.width = embed_images.width + embed_texts.width
    self.fingerprint = embed_images.fingerprint + "+" + embed_texts.fingerprint
    self.devices = embed_images.devices

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]:
    """Return the concatenated vectors of each item."""
    # Captions of passages always count, texts of queries only without an image.
    text_vectors = np.zeros((len(items), self._embed_texts.width), np.float32)
    with_text = np.flatnonzero(
      [isinstance(item, Passage) or not item.image for item in items]
    )
    text_vectors[with_text] = self._embed_texts([items[i] for i in with_text])
    return np.concatenate([self._embed_images(items), text_vectors], axis=1)


def _make_tower_encoders(
  model: clip.Clip | siglip.Siglip, params: dict
) -> list[batched_encoder.BatchedEncoder]:
  """Return encoders of images and of texts by the towers of one model.

  Each has a program of its own, since few items need both.
  """
  return [
    batched_encoder.BatchedEncoder(
      functools.partial(model.apply, method=method), params, model.config.width
    )
    for method in ("encode_image", "encode_text")
  ]


def _scale_to_one(
  vectors: Float32[np.ndarray, "n E"],
) -> Float32[np.ndarray, "n E"]:
  """Scale vectors to length 1; the lower bound keeps 0 for an empty item."""
  norms = np.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors / np.maximum(norms, 1e-12)


def _embed_images(
  encode: batched_encoder.BatchedEncoder,
  items: Items,
  load_pixels: Callable[[str], np.ndarray],
  size: int,
) -> Float32[np.ndarray, "n E"]:
  """Return the vectors of the items' images, 0 where an item has none.

  `load_pixels` makes pixels [size size 3] from the path of an image.
  """
  with_image = np.flatnonzero([bool(item.image) for item in items])

  def make_arrays(members, rows, _):
    # Images are opened batch by batch, so few are in memory.
    pixels = np.zeros((rows, size, size, 3), np.float32)
    for row, member in enumerate(members):
      pixels[row] = load_pixels(items[with_image[member]].image)
    return (pixels,)

  # All images have the same size, so all are in the first bucket of lengths.
  found = encode(
    [1] * len(with_image), make_arrays, batched_encoder.batch_sizes_for(items)
  )
  # Spread the vectors over all items.
  vectors = np.zeros((len(items), found.shape[1]), np.float32)
  vectors[with_image] = found
  return vectors


def _instructed_text(item: Query | Passage) -> str:
  """Return an item's text as UniIR reads it: a query follows an instruction."""
  text = item.text
  if isinstance(item, Query):
    text = f"{INSTRUCTIONS[bool(item.image)]} {text}"
  return format_sentence(text)


def format_sentence(text: str) -> str:
  """Clean a text as UniIR does: one sentence with capital and full stop."""
  text = text.replace("\r", "").strip().strip('"')
  text = text[:1].upper() + text[1:]
  return text if not text or text.endswith((".", "?", "!")) else text + "."


def _clean_text(text: str) -> str:
  """Clean a text as CLIP does, but leave lower-casing to its tokenizer."""
  text = html.unescape(html.unescape(ftfy.fix_text(text)))
  return " ".join(text.split())
