r"""The JSON that clients and servers of knowledge bases exchange.

The schema is that of Search-R1's retrieval server, so serve_kb.py can serve
users of Search-R1, and remote_kb.py can use a server of Search-R1:

  POST /retrieve  {"queries": [str], "topk": k, "return_scores": true}
    -> {"result": [[{"document": {"id", "contents"}, "score"}]]}

The result holds bare documents if no scores are wanted.  Contents are
`"title"\ntext`; passages of this package have their title in the text, and so
an empty one there.  Three things are added, which only this package's client
uses: "images" of the queries, in base64; the "image" of a document, relative to
the folder of images; and "version", a digest of

  GET /health  -> {"kb", "rows", "embedder", "fingerprint", "format",
                   "passages", "source", "version"}

by which a client notices a server that comes back with other passages.

Source: github.com/PeterGriffinJin/Search-R1, search_r1/search.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from r1router_jax.common import row_files
from r1router_jax.common.records import Passage
from r1router_jax.retrieval.corpora import sources

# Limits of one request; anyone who reaches the port may send one.
MAX_BODY_BYTES, MAX_IMAGE_BODY_BYTES = 4 << 20, 32 << 20
# Search-R1 sends all rollouts of a batch at once.
MAX_QUERIES, MAX_QUERY_CHARS, MAX_IMAGES = 4096, 8192, 128
DEFAULT_TOP_K, MAX_TOP_K = 3, 1000
# Limit of the number of queries times "topk".
MAX_PASSAGES = 1 << 17

# Keys of meta.json that GET /health reveals.
_HEALTH_KEYS = ("kb", "rows", "embedder", "fingerprint", "format", "passages")

_TITLE = re.compile(r'"(.*)"\n')


class RequestError(Exception):
  """An invalid request: the message and status of the response."""

  def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST):
    super().__init__(message)
    self.status = status


class SearchRequest(NamedTuple):
  """A valid request to search."""

  texts: Sequence[str]  # Of each query.
  images: Sequence[bytes]  # The file of each query's image, empty for none.
  k: int  # Number of passages for each query.
  with_scores: bool  # Whether the response has scores.


def describe_kb(meta: Mapping[str, Any]) -> dict[str, Any]:
  """Return what GET /health says of the knowledge base with this meta.json."""
  # The order of keys is part of the digest.
  health = {name: meta[name] for name in _HEALTH_KEYS}
  # A path of the server's disk is nobody else's business.
  is_georouter = meta["source"] == sources.GEOROUTER
  health["source"] = sources.GEOROUTER if is_georouter else ""
  digest = hashlib.sha256(json.dumps(health).encode()).hexdigest()
  return health | {"version": digest[:16]}


def to_document(passage: Passage, image: str) -> dict[str, str]:
  """Return the document of a passage with the relative path of its image."""
  document = {"id": passage.id, "contents": f'""\n{passage.text}'}
  if image:
    document["image"] = image
  return document


def passage_text(contents: str) -> str:
  """Return a document's contents as a passage's text, with the title in it."""
  # Search-R1 quotes the title on a line of its own.
  match = _TITLE.match(contents)
  if match is None:
    return contents
  title, text = match[1], contents[match.end() :]
  return f"{title} {text}" if title else text


def parse_request(body: bytes, kind: str) -> SearchRequest:
  """Return the request to a knowledge base in the body of a POST.

  Raises a RequestError if the body, which anyone may have sent, is invalid.
  """
  # 1. The body is a JSON object.
  try:
    fields = row_files.parse_json(body)
  except row_files.RowError as error:
    raise RequestError("; ".join(error.args)) from None
  if not isinstance(fields, dict):
    raise RequestError('send an object: {"queries": ["a"], "topk": 3}')

  # 2. Queries, bounded in number and length.
  texts = fields.get("queries")
  if not (_is_string_list(texts, MAX_QUERIES) and all(map(_is_query, texts))):
    raise RequestError(
      f'"queries" should be a list of at most {MAX_QUERIES} strings, each of '
      f"at most {MAX_QUERY_CHARS} whole characters"
    )
  # 3. Number of passages.  A bool is an int to isinstance, but no number.
  k = fields.get("topk")
  k = DEFAULT_TOP_K if k is None else k
  if type(k) is not int or not 0 < k <= MAX_TOP_K:
    raise RequestError(f'"topk" should be a whole number from 1 to {MAX_TOP_K}')
  if k * len(texts) > MAX_PASSAGES:
    message = f'"topk" times "queries" should be at most {MAX_PASSAGES}'
    raise RequestError(message)
  # 4. Options.
  with_scores = fields.get("return_scores", False)
  if not isinstance(with_scores, bool):
    raise RequestError('"return_scores" should be true or false')
  # By default no query has an image.
  encoded = fields.get("images", [""] * len(texts))
  if not _is_string_list(encoded, len(texts)) or len(encoded) != len(texts):
    raise RequestError(
      '"images" should be a list of base64 strings, "" for none, one for '
      "each of the queries"
    )
  return SearchRequest(texts, _decode_images(encoded, kind), k, with_scores)


def _is_string_list(value: Any, max_len: int) -> bool:
  """Return whether a value is a list of at most `max_len` strings."""
  is_list = isinstance(value, list) and len(value) <= max_len
  return is_list and all(isinstance(item, str) for item in value)


def _is_query(text: str) -> bool:
  """Return whether a tokenizer takes a text."""
  if len(text) > MAX_QUERY_CHARS:
    return False
  # Half of a surrogate pair cannot be encoded.
  return not any("\ud800" <= char <= "\udfff" for char in text)


def _decode_images(encoded: Sequence[str], kind: str) -> Sequence[bytes]:
  """Return decoded images, b"" for none; raise a RequestError if invalid."""
  if kind != "image" and any(encoded):
    raise RequestError(f"the {kind} knowledge base has no use for images")
  # The same image is stored and embedded once, so distinct ones count.
  if len(set(encoded)) > MAX_IMAGES:
    raise RequestError(f'"images" should hold at most {MAX_IMAGES} images')
  try:
    return [base64.b64decode(image, validate=True) for image in encoded]
  except ValueError as error:
    raise RequestError(f'"images" should be base64 ({error})') from None
