"""Embed texts with a model that another process serves over HTTP.

Two APIs are supported:

  openai  POST {base}/embeddings {"model", "input": [str]}
          -> {"data": [{"index", "embedding"}]}, in any order
  tei     POST {base}/embed {"inputs": [str], "truncate": true} -> [[number]]

OpenAI, vLLM, llama.cpp and many others speak the first, Hugging Face's
text-embeddings-inference the second.  `--weights` is the address, for openai
followed by the name of the model: http://host:port/v1#model.  The API key for
openai is read from the environment variable OPENAI_API_KEY.

An address does not tell which weights are behind it, so the fingerprint is made
of answers to a few texts: the position and the sign of the largest number of
each vector, which do not change with the rounding of another batch or device.

Axes:  n items   E width
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float32

from r1router_jax.common import http_client
from r1router_jax.common.errors import UserError
from r1router_jax.common.row_files import RowError
from r1router_jax.retrieval.encoders import batched_encoder

API_KEY_VARIABLE = "OPENAI_API_KEY"

# Texts of one request: the default limit of text-embeddings-inference.
TEXTS_PER_REQUEST = 32

# Texts of several kinds, whose vectors tell models apart.
PROBE_TEXTS = (
  "which country is this?",
  "[Header]Country[Rows][Row]Chad",
  "A green field under a white sky.",
  "1234.5",
  "die Hauptstadt",
  "the quick brown fox jumps over the lazy dog",
)


class HttpEncoder:
  """An `Embedder` of texts at an address.

  Args:
    client: client of the service.
    path: path that requests are sent to.
    make_body: makes the body of a request from texts.
    parse_vectors: makes the vectors from an answer, one for each text, in their
      order; raises if the answer has another form.
    identity: name of the model; with the answers to `PROBE_TEXTS`, it makes the
      fingerprint.

  Raises:
    RemoteServiceError: nobody answers, or the answers hold no vectors.
  """

  devices = ()  # None of this process.

  def __init__(
    self,
    client: http_client.JsonHttpClient,
    path: str,
    make_body: Callable[[Sequence[str]], Any],
    parse_vectors: Callable[[Any], list],
    identity: str = "",
  ):
    self._client, self._path = client, path
    self._make_body, self._parse_vectors = make_body, parse_vectors
    self.width = 0  # Unknown; the answer to the probes tells.
    probes = self._embed_texts(PROBE_TEXTS)
    self.width = probes.shape[1]
    # Rounding moves values a little, but neither the largest nor its sign.
    top = np.abs(probes).argmax(axis=1)
    signs = np.sign(probes[np.arange(len(top)), top]).astype(int)
    self.fingerprint = hashlib.sha256(
      repr((identity, self.width, top.tolist(), signs.tolist())).encode()
    ).hexdigest()[:16]

  def __call__(
    self, items: batched_encoder.Items
  ) -> Float32[np.ndarray, "n E"]:
    """Return the vector of each item's text."""
    images = [item.image for item in items if item.image]
    if images:
      raise UserError(
        f"{self._client.address} embeds texts alone, and was given the "
        f"image {images[0]!a}.  Build the image knowledge base with "
        "--embedder=image_caption or clip_sf."
      )
    texts = [batched_encoder.embedding_text(item) for item in items]
    return self._embed_texts(texts)

  def _embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "n E"]:
    """Return the vector of each text."""
    # Requests are sent several at a time; answers return in their order.
    starts = range(0, len(texts), TEXTS_PER_REQUEST)
    parts = [texts[i : i + TEXTS_PER_REQUEST] for i in starts]
    vectors = self._client.post(
      self._path,
      [self._make_body(part) for part in parts],
      lambda number, answer: self._check_vectors(answer, len(parts[number])),
    )
    # np.concatenate needs at least one array.
    if not vectors:
      return np.zeros((0, self.width), np.float32)
    return np.concatenate(vectors)

  def _check_vectors(
    self, answer: Any, count: int
  ) -> Float32[np.ndarray, "n E"]:
    """Return the `count` vectors of an answer, or raise RowError."""
    cure = "See that an embedding model answers there, the same as before"
    try:
      vectors = np.array(self._parse_vectors(answer), np.float32)
    except (TypeError, ValueError, KeyError, AttributeError):
      raise RowError("the answer holds no vectors of one width", cure) from None
    # The first answer decides the width; all others must agree.
    width = self.width or vectors.size // count
    if vectors.shape != (count, width) or not width:
      raise RowError(
        f"vectors of shape {vectors.shape} came, wanted {(count, width)}", cure
      )
    if not np.isfinite(vectors).all():
      raise RowError("a vector is not finite", cure)
    return vectors


def openai_encoder(weights: str = "") -> HttpEncoder:
  """Return an encoder behind OpenAI's API; `weights` is its address#model."""
  # The part after # names the model, which every request repeats.
  address, _, model = weights.partition("#")
  if not model:
    raise UserError(
      f"--weights={weights!a} names no model.  Write the address and the "
      "name, as in http://127.0.0.1:8000/v1#model."
    )
  return HttpEncoder(
    http_client.JsonHttpClient(address, authorization_header(address)),
    "/embeddings",
    lambda texts: dict(model=model, input=list(texts)),
    _sort_openai_vectors,
    model,
  )


def tei_encoder(weights: str = "") -> HttpEncoder:
  """Return an encoder behind text-embeddings-inference at address `weights`."""
  return HttpEncoder(
    http_client.JsonHttpClient(weights),
    "/embed",
    lambda texts: dict(inputs=list(texts), truncate=True),
    lambda answer: answer,
  )


def authorization_header(address: str) -> Mapping[str, str]:
  """Return the header with the API key, or no header if there is no key."""
  key = os.environ.get(API_KEY_VARIABLE, "")
  if not key:
    return {}
  # Plain HTTP is no risk inside this machine.
  if address.startswith("http://") and not http_client.is_loopback(address):
    advice = f"{API_KEY_VARIABLE} unencrypted; write https, or unset it."
    logging.warning("%s is sent the key in %s", address, advice)
  return {"Authorization": f"Bearer {key}"}


def _sort_openai_vectors(answer: Mapping[str, Any]) -> list:
  """Return the vectors of an OpenAI answer in the order of the texts."""
  # The API allows any order, and each row names its text.
  vectors = {row["index"]: row["embedding"] for row in answer["data"]}
  if len(vectors) != len(answer["data"]):
    raise UserError("a number occurs twice")
  return [vectors[number] for number in range(len(vectors))]
