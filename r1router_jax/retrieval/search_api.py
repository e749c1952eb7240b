r"""The JSON that clients and servers of knowledge bases exchange.

The schema is that of Search-R1's retrieval server, so serve_kb.py can serve
users of Search-R1, and remote_kb.py can use a server of Search-R1:

  POST /retrieve  {"queries": [str], "topk": k, "return_scores": true}
    -> {"result": [[{"document": {"id", "contents"}, "score"}]]}

The result holds bare documents if no scores are wanted.  Contents are
`"title"\ntext`; passages of this package have their title in the text, and so
an empty one there.  Three things are added, which only this package's client
uses: "images" of the queries, in base64; the "image" of a document, relative to
the folder of images; and "version", a digest of all that answers depend on, in

  GET /health  -> {"kb", "rows", "embedder", "fingerprint", "format",
                   "passages", "source", "version"}

by which a client notices that a server has other passages, or another search.

Source: github.com/PeterGriffinJin/Search-R1, search_r1/search.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from r1router_jax.common import row_files
from r1router_jax.common.errors import UserError
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
# Keys of meta.json that change answers, but are there only if set.
_OPTION_KEYS = ("hybrid", "imported", "rerank_fingerprint", "shards")
_OPTION_KEYS += ("tokenizer", "words")

_TITLE = re.compile(r'\A"(.*)"\n')

_Text = Annotated[str, msgspec.Meta(max_length=MAX_QUERY_CHARS)]


class SearchRequest(msgspec.Struct):
  """The body of POST /retrieve, see the top of this module."""

  queries: Annotated[list[_Text], msgspec.Meta(max_length=MAX_QUERIES)]
  # The number of passages for each query.
  topk: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOP_K)] | None = None
  return_scores: bool = False
  # The file of each query's image, b"" for none.
  images: list[bytes] | msgspec.UnsetType = msgspec.UNSET

  def __post_init__(self):
    # What types cannot say; msgspec reports a ValueError like its own.
    if self.topk is None:
      self.topk = DEFAULT_TOP_K
    if self.images is msgspec.UNSET:
      self.images = [b""] * len(self.queries)
    if self.topk * len(self.queries) > MAX_PASSAGES:
      raise ValueError(f'"topk" times "queries" is more than {MAX_PASSAGES}')
    counts = len(self.images), len(self.queries)
    if counts[0] != counts[1]:
      message = '"images" has %d items for %d "queries"; send "" for a query '
      raise ValueError(f"{message % counts}without one")
    # The same image is embedded once, so distinct ones count.
    if len(set(self.images)) > MAX_IMAGES:
      raise ValueError(f'"images" holds more than {MAX_IMAGES} images')


def parse_request(body: bytes, kind: str) -> SearchRequest:
  """Return the request to a knowledge base in the body of a POST.

  Raises a UserError if the body, which anyone may have sent, is invalid.
  """
  try:
    request = msgspec.convert(row_files.parse_json(body), SearchRequest)
  except msgspec.ValidationError as error:
    example = '{"queries": ["a"], "topk": 3}'
    raise UserError(f"{error}; send an object such as {example}") from None
  if kind != "image" and any(request.images):
    message = f"the {kind} knowledge base has no use for images"
    raise UserError(f'{message}; leave out "images"')
  return request


def describe_kb(meta: Mapping[str, Any], index_name: str) -> dict[str, Any]:
  """Return what GET /health says, from meta.json and the index's class."""
  # The order of keys is part of the digest.
  health = {name: meta[name] for name in _HEALTH_KEYS}
  # A path of the server's disk is nobody else's business.
  is_georouter = meta["source"] == sources.GEOROUTER
  health["source"] = sources.GEOROUTER if is_georouter else ""
  # Plain exact search adds nothing, and has the version that it always had.
  options = {name: meta[name] for name in _OPTION_KEYS if name in meta}
  if index_name != "ExactIndex":
    options["index"] = index_name
  digest = hashlib.sha256(json.dumps(health | options).encode()).hexdigest()
  return health | {"version": digest[:16]}


def passage_text(contents: str) -> str:
  """Return a document's contents as a passage's text, with the title in it."""
  # Search-R1 quotes the title on a line of its own.
  return _TITLE.sub(lambda title: title[1] and f"{title[1]} ", contents, 1)
