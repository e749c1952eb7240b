"""Embed texts with a model that another process serves over HTTP.

Two APIs are supported:

  openai  POST {base}/embeddings {"model", "input": [str]}
          -> {"data": [{"index", "embedding"}]}, in any order
  tei     POST {base}/embed {"inputs": [str], "truncate": true} -> [[number]]

OpenAI, vLLM, llama.cpp and many others speak the first, Hugging Face's
text-embeddings-inference the second.  `--weights` is the address, for openai
followed by the name of the model: http://host:port/v1#model.  The API key for
openai is read from the environment variable OPENAI_API_KEY.

Vectors are scaled to length 1, so that their inner product, by which passages
are searched, is the cosine.  openai_raw and tei_raw keep them as they come.

An address does not tell which weights are behind it, so the fingerprint is made
of answers to a few texts: the position and the sign of the largest number of
each vector, which do not change with the rounding of another batch or device.

Axes:  n items   E width
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from absl import logging
from jaxtyping import Float32

from r1router_jax.common import http_client
from r1router_jax.common.errors import UserError
from r1router_jax.retrieval.encoders import batched_encoder

_SERVICE = "an embedding model, the same as before,"

# Texts of one request: the default limit of text-embeddings-inference.
TEXTS_PER_REQUEST = 32

# Limits of an answer: of a vector's width, and of the bytes of a number in it.
MAX_WIDTH, MAX_NUMBER_BYTES = 1 << 16, 64

# Texts of several kinds, whose vectors tell models apart.
PROBE_TEXTS = (
  "which country is this?",
  "[Header]Country[Rows][Row]Chad",
  "A green field under a white sky.",
  "1234.5",
  "die Hauptstadt",
  "the quick brown fox jumps over the lazy dog",
)


class _OpenAIVector(msgspec.Struct):
  index: int  # Of the text.
  embedding: list[float]


class _OpenAIVectors(msgspec.Struct):
  """The answer of OpenAI's API."""

  data: list[_OpenAIVector]


class HttpEncoder:
  """An `Embedder` of texts at an address.

  Args:
    client: client of the service.
    path: path that requests are sent to.
    schema: type of an answer, for msgspec.
    make_body: makes the body of a request from texts.
    list_vectors: makes the vectors from an answer, in the order of the texts.
    identity: name of the model; with the answers to `PROBE_TEXTS`, it makes the
      fingerprint.
    normalize: whether vectors are scaled to length 1.

  Raises:
    RemoteServiceError: nobody answers, or the answers hold no vectors.
  """

  devices = ()  # None of this process.

  def __init__(
    self,
    client: http_client.JsonHttpClient,
    path: str,
    schema: Any,
    make_body: Callable[[Sequence[str]], Any],
    list_vectors: Callable[[Any], list],
    identity: str,
    normalize: bool,
  ):
    self._client, self._path, self._schema = client, path, schema
    self._make_body, self._list_vectors = make_body, list_vectors
    self._normalize = normalize
    self.width = 0  # Unknown; the answer to the probes tells.
    (probes,) = self._request_vectors([PROBE_TEXTS])
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
    """Return the vector of each item's text.

    A text that the server refuses alone is taken for too long, and halved until
    it is accepted; the log names such items.
    """
    images = [item.image for item in items if item.image]
    if images:
      raise UserError(
        f"{self._client.address} embeds texts alone, and was given the "
        f"image {images[0]!a}.  Build the image knowledge base with "
        "--embedder=image_caption or clip_sf."
      )
    texts = [batched_encoder.embedding_text(item) for item in items]
    vectors, short = np.zeros((len(texts), self.width), np.float32), list(texts)
    rows, size = range(len(texts)), TEXTS_PER_REQUEST
    parts = [rows[i : i + size] for i in rows[::size]]
    while parts:
      found = self._request_vectors([[short[i] for i in p] for p in parts])
      refused = []
      for part, answer in zip(parts, found, strict=True):
        if not isinstance(answer, http_client.RemoteServiceError):
          vectors[part] = answer
        elif len(part) > 1:
          half = len(part) // 2
          refused += [part[:half], part[half:]]
        elif short[part[0]]:
          short[part[0]] = short[part[0]][: len(short[part[0]]) // 2]
          refused.append(part)
        else:
          raise answer  # Even the empty text is refused.
      parts = refused
    self._log_cut([i for i in rows if short[i] != texts[i]], items, short)
    return vectors

  def _request_vectors(self, parts: Sequence[Sequence[str]]) -> list:
    """Return the vectors of each part's texts, or the error of a refusal."""

    def keep_refusal(_: int, error: http_client.RemoteServiceError) -> Any:
      # Before the first answer the request itself is wrong, and no text.
      if not self.width or error.status not in http_client.BODY_ERROR_STATUSES:
        raise error
      return error

    numbers = (self.width or MAX_WIDTH) * max(map(len, parts), default=0)
    return self._client.post(
      self._path,
      [self._make_body(part) for part in parts],
      self._schema,
      lambda number, answer: self._check_vectors(answer, len(parts[number])),
      max_bytes=(1 << 16) + numbers * MAX_NUMBER_BYTES,
      on_error=keep_refusal,
    )

  def _check_vectors(
    self, answer: Any, count: int
  ) -> Float32[np.ndarray, "n E"]:
    """Return the `count` vectors of an answer, or raise UnusableAnswer."""
    rows = self._list_vectors(answer)
    # The first answer decides the width; all others must agree.
    width = self.width or len(rows[0] if rows else [])
    if (
      len(rows) != count or any(len(row) != width for row in rows) or not width
    ):
      raise http_client.UnusableAnswer(
        f"{len(rows)} vectors of widths {sorted({*map(len, rows)})[:5]} came, "
        f"wanted {count} of one width, {self.width or 'above 0'}"
      )
    vectors = np.array(rows, np.float64)
    if np.abs(vectors).max() > np.finfo(np.float32).max:
      raise http_client.UnusableAnswer("a number is too large for float32")
    if self._normalize:
      lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
      vectors /= np.where(lengths > 0, lengths, 1)
    return vectors.astype(np.float32)

  def _log_cut(
    self, cut: Sequence[int], items: batched_encoder.Items, texts: Sequence[str]
  ) -> None:
    """Log which items the server took only the beginning of."""
    names = [
      f"{getattr(items[i], 'id', 'a query')!a:.60} ({len(texts[i])} characters)"
      for i in cut[:5]
    ]
    if cut:
      text = "%s: %d texts are too long and only their beginnings embedded: %s."
      logging.warning(text, self._client.address, len(cut), ", ".join(names))


def openai_encoder(weights: str = "", normalize: bool = True) -> HttpEncoder:
  """Return an encoder behind OpenAI's API; `weights` is its address#model."""
  # The part after # names the model, which every request repeats.
  address, _, model = weights.partition("#")
  if not model:
    raise UserError(
      f"--weights={weights!a} names no model.  Write the address and the "
      "name, as in http://127.0.0.1:8000/v1#model."
    )
  headers = http_client.authorization_header(address)
  return HttpEncoder(
    http_client.JsonHttpClient(address, _SERVICE, headers),
    "/embeddings",
    _OpenAIVectors,
    lambda texts: dict(model=model, input=list(texts)),
    _sort_openai_vectors,
    model,
    normalize,
  )


def tei_encoder(weights: str = "", normalize: bool = True) -> HttpEncoder:
  """Return an encoder behind text-embeddings-inference at address `weights`."""
  return HttpEncoder(
    http_client.JsonHttpClient(weights, _SERVICE),
    "/embed",
    list[list[float]],
    lambda texts: dict(inputs=list(texts), truncate=True),
    lambda answer: answer,
    "",
    normalize,
  )


def _sort_openai_vectors(answer: _OpenAIVectors) -> list[list[float]]:
  """Return the vectors of an OpenAI answer in the order of the texts."""
  # The API allows any order, and each row names its text.
  rows = sorted(answer.data, key=lambda row: row.index)
  if [row.index for row in rows] != list(range(len(rows))):
    raise http_client.UnusableAnswer("the vectors are not numbered from 0 on")
  return [row.embedding for row in rows]
