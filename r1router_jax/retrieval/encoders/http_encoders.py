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
of answers to a few texts: position and sign of each vector's largest number,
which the rounding of another batch or device does not change.

Axes:  n items   E width
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from absl import logging
from jaxtyping import Float32

from r1router_jax.common import http_client
from r1router_jax.common.errors import UserError
from r1router_jax.common.http_client import JsonHttpClient
from r1router_jax.retrieval.encoders import batched_encoder, text_encoders

_SERVICE = "an embedding model, the same as before,"

# Texts of one request: the default limit of text-embeddings-inference.
TEXTS_PER_REQUEST = 32
# Limits of an answer: of a vector's width, and of the bytes of a number in it.
MAX_WIDTH, MAX_NUMBER_BYTES = 1 << 16, 64

# Whether texts are lower-cased is the server's to decide.
_AS_IT_IS = text_encoders.TextEncoder()

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
  data: list[_OpenAIVector]


class _Api(NamedTuple):
  path: str  # Of requests.
  schema: Any  # Type of an answer, for msgspec.
  texts_key: str  # Of the texts in a request.
  fields: dict[str, Any]  # The others of a request.


class HttpEncoder:
  """An `Embedder` of texts at an address.

  Raises a RemoteServiceError if nobody answers, or the answers hold no vectors.
  """

  devices = ()  # None of this process.

  def __init__(self, client: JsonHttpClient, api: _Api, normalize: bool):
    self._client, self._api, self._normalize = client, api, normalize
    self.width = 0  # Unknown; the answer to the probes tells.
    (probes,) = self._request_vectors([PROBE_TEXTS])
    self.width = probes.shape[1]
    top = np.abs(probes).argmax(axis=1)
    signs = np.sign(probes[np.arange(len(top)), top]).astype(int)
    model = api.fields.get("model", "")
    identity = model, self.width, top.tolist(), signs.tolist()
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()
    self.fingerprint = digest[:16]

  def __call__(
    self, items: batched_encoder.Items
  ) -> Float32[np.ndarray, "n E"]:
    """Return the vector of each item's text.

    A text that the server refuses alone is taken for too long, and halved until
    it is accepted; the log names such items.
    """
    images = [item.image for item in items if item.image]
    if images:
      fault = f"{self._client.address} embeds texts alone, not {images[0]!a}"
      cure = "Build the image knowledge base with --embedder=image_caption"
      raise UserError(f"{fault}.  {cure} or clip_sf.")
    texts = [_AS_IT_IS.read_text(item) for item in items]
    vectors, short = np.zeros((len(texts), self.width), np.float32), list(texts)
    rows, size = range(len(texts)), TEXTS_PER_REQUEST
    # The rows of each request; those of refused ones are asked for anew.
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
    cut = [row for row in rows if short[row] != texts[row]]
    if cut:
      names = [getattr(items[row], "id", "a query") for row in cut[:5]]
      text = "%s: %d texts are too long for it, and cut to be embedded: %a"
      logging.warning(text, self._client.address, len(cut), names)
      batched_encoder.note_cut([items[row] for row in cut])
    return vectors

  def _request_vectors(self, parts: Sequence[Sequence[str]]) -> list:
    """Return the vectors of each part's texts, or the error of a refusal."""
    key = self._api.texts_key
    numbers = (self.width or MAX_WIDTH) * max(map(len, parts), default=0)
    return self._client.post(
      self._api.path,
      [{key: list(part)} | self._api.fields for part in parts],
      self._api.schema,
      lambda number, answer: self._check_vectors(answer, len(parts[number])),
      max_bytes=(1 << 16) + numbers * MAX_NUMBER_BYTES,
      # Before the first answer the request itself is wrong, and no text.
      keep_errors=http_client.BODY_ERROR_STATUSES if self.width else (),
    )

  def _check_vectors(
    self, answer: Any, count: int
  ) -> Float32[np.ndarray, "n E"]:
    """Return the `count` vectors of an answer, or raise UnusableAnswer."""
    rows = answer
    if isinstance(answer, _OpenAIVectors):
      # The API allows any order, and each row names its text.
      found = sorted(answer.data, key=lambda row: row.index)
      if [row.index for row in found] != list(range(len(found))):
        message = "the vectors are not numbered from 0 on"
        raise http_client.UnusableAnswer(message)
      rows = [row.embedding for row in found]
    widths = sorted({len(row) for row in rows})
    # The first answer decides the width; all others must agree.
    wanted = [self.width] if self.width else widths[:1]
    if len(rows) != count or widths != wanted or widths == [0]:
      came = f"{len(rows)} vectors of widths {widths[:5]} came"
      wanted = f"{count} of one width, {self.width or 'above 0'}"
      raise http_client.UnusableAnswer(f"{came}, wanted {wanted}")
    vectors = np.array(rows, np.float64)
    if np.abs(vectors).max() > np.finfo(np.float32).max:
      raise http_client.UnusableAnswer("a number is too large for float32")
    if self._normalize:
      lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
      vectors /= np.where(lengths > 0, lengths, 1)
    return vectors.astype(np.float32)


def openai_encoder(weights: str = "", normalize: bool = True) -> HttpEncoder:
  """Return an encoder behind OpenAI's API; `weights` is its address#model."""
  address, _, model = weights.partition("#")
  if not model:
    cure = "Write address and name, as in http://127.0.0.1:8000/v1#model."
    raise UserError(f"--weights={weights!a} names no model.  {cure}")
  headers = http_client.authorization_header(address)
  client = JsonHttpClient(address, _SERVICE, headers)
  api = _Api("/embeddings", _OpenAIVectors, "input", {"model": model})
  return HttpEncoder(client, api, normalize)


def tei_encoder(weights: str = "", normalize: bool = True) -> HttpEncoder:
  """Return an encoder behind text-embeddings-inference at address `weights`."""
  client = JsonHttpClient(weights, _SERVICE)
  api = _Api("/embed", list[list[float]], "inputs", {"truncate": True})
  return HttpEncoder(client, api, normalize)
