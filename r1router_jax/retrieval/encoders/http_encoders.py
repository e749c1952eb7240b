"""Embedders of texts that another process runs, behind HTTP.

Two schemas are spoken:

  openai  POST {base}/embeddings {"model", "input": [str]}
          -> {"data": [{"index", "embedding"}]}, in any order
  tei     POST {base}/embed {"inputs": [str], "truncate": true} -> [[number]]

the first by OpenAI and by vLLM, llama.cpp and many others, the second by
text-embeddings-inference.  Their `--weights` are the address, for openai with
the model's name: http://host:port/v1#model.  A key for openai is read from the
variable OPENAI_API_KEY.

Nothing is known of the weights behind an address, so an endpoint is known by
what it answers to a few texts: by the greatest number of each vector, and where
it stands, which other roundings do not change.

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
from r1router_jax.common.row_files import Fault
from r1router_jax.retrieval.encoders import batched_encoder

KEY = "OPENAI_API_KEY"

TEXTS = 32  # Of a request; the default limit of text-embeddings-inference.

_PROBES = (
  "which country is this?",
  "[Header]Country[Rows][Row]Chad",
  "A green field under a white sky.",
  "1234.5",
  "die Hauptstadt",
  "the quick brown fox jumps over the lazy dog",
)


class Endpoint:
  """An `Embedder` of texts at an address.

  Args:
    at: who answers.
    path: that is asked.
    ask: texts to the body of a request.
    vectors: an answer to its vectors, one for each text, in their order;
      raises where it has another form.
    known: what is known of it, beside its answers.

  Raises:
    service.RetrievalError: where nobody answers, or no vectors come.
  """

  devices = ()

  def __init__(
    self,
    at: http_client.Service,
    path: str,
    ask: Callable[[Sequence[str]], Any],
    vectors: Callable[[Any], list],
    known: str = "",
  ):
    self._service, self._path, self._ask = at, path, ask
    self._vectors, self.width = vectors, 0
    probes = self._embed(_PROBES)
    self.width = probes.shape[1]
    top = np.abs(probes).argmax(axis=1)
    signs = np.sign(probes[np.arange(len(top)), top]).astype(int)
    self.fingerprint = hashlib.sha256(
      repr((known, self.width, top.tolist(), signs.tolist())).encode()
    ).hexdigest()[:16]

  def __call__(
    self, items: batched_encoder.Items
  ) -> Float32[np.ndarray, "n E"]:
    shown = [item.image for item in items if item.image]
    if shown:
      raise ValueError(
        f"{self._service.address} embeds texts alone, and was given the "
        f"picture {shown[0]!a}.  Build the image knowledge base with "
        "--embedder=picture_caption or clip_sf."
      )
    return self._embed([batched_encoder.text_of(item) for item in items])

  def _embed(self, texts: Sequence[str]) -> Float32[np.ndarray, "n E"]:
    parts = [texts[i : i + TEXTS] for i in range(0, len(texts), TEXTS)]
    found = self._service.post(
      self._path,
      [self._ask(part) for part in parts],
      lambda number, answer: self._read(answer, len(parts[number])),
    )
    if not found:
      return np.zeros((0, self.width), np.float32)
    return np.concatenate(found)

  def _read(self, answer: Any, count: int) -> Float32[np.ndarray, "n E"]:
    cure = "See that an embedding model answers there, the same as before"
    try:
      vectors = np.array(self._vectors(answer), np.float32)
    except (TypeError, ValueError, KeyError, AttributeError):
      raise Fault("the answer holds no vectors of one width", cure) from None
    width = self.width or vectors.size // count
    if vectors.shape != (count, width) or not width:
      raise Fault(
        f"vectors of shape {vectors.shape} came, wanted {(count, width)}", cure
      )
    if not np.isfinite(vectors).all():
      raise Fault("a vector is not finite", cure)
    return vectors


def openai(weights: str = "") -> Endpoint:
  """An endpoint of OpenAI's schema: `weights` is its address#model."""
  address, _, model = weights.partition("#")
  if not model:
    raise ValueError(
      f"--weights={weights!a} names no model.  Write the address and the "
      "name, as in http://127.0.0.1:8000/v1#model."
    )
  at = http_client.Service(address, authorisation(address))
  return Endpoint(
    at,
    "/embeddings",
    lambda texts: dict(model=model, input=list(texts)),
    _in_order,
    model,
  )


def tei(weights: str = "") -> Endpoint:
  """An endpoint of text-embeddings-inference: `weights` is its address."""
  return Endpoint(
    http_client.Service(weights),
    "/embed",
    lambda texts: dict(inputs=list(texts), truncate=True),
    lambda answer: answer,
  )


def authorisation(address: str) -> Mapping[str, str]:
  """The header with the key, if there is one."""
  key = os.environ.get(KEY, "")
  if not key:
    return {}
  if address.startswith("http://") and not http_client.is_loopback(address):
    logging.warning(
      "%s is sent the key in %s unencrypted; write https, or unset it.",
      address,
      KEY,
    )
  return {"Authorization": f"Bearer {key}"}


def _in_order(answer: Mapping[str, Any]) -> list:
  """The vectors of OpenAI's schema by their number."""
  rows = {row["index"]: row["embedding"] for row in answer["data"]}
  if len(rows) != len(answer["data"]):
    raise ValueError("a number occurs twice")
  return [rows[number] for number in range(len(rows))]
