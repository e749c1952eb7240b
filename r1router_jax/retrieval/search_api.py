r"""What a knowledge base's clients and server send each other, as JSON.

The schema is that of Search-R1's retrieval server, so that ours (serve_kb.py)
serves Search-R1's users, and theirs serves us:

  POST /retrieve  {"queries": [str], "topk": k, "return_scores": true}
    -> {"result": [[{"document": {"id", "contents"}, "score"}]]}

with bare documents where no scores are wanted.  Contents are `"title"\ntext`;
our passages have their title in the text, and so an empty one there.  Ours adds
what only our client reads: "images" of the queries, in base64, the "image" of a
document, relative to the pictures' folder, and "version", a digest of

  GET /health  -> {"kb", "rows", "embedder", "fingerprint", "format",
                   "passages", "source", "version"}

so that a server that comes back with other passages is noticed.

Source: github.com/PeterGriffinJin/Search-R1, search_r1/search.
"""

import base64
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NoReturn

from r1router_jax.common import row_files
from r1router_jax.common.records import Passage
from r1router_jax.retrieval.corpora import sources

BODY = 4 << 20  # Bytes of a request,

PICTURES_BODY = 32 << 20  # and of one to an image knowledge base.

QUERIES = 4096  # Of a request, as whole batches of rollouts,

LENGTH = 8192  # each of so many characters,

PICTURES = 128  # and so many pictures.

TOPK, MOST = 3, 1000  # Passages of each, unless told otherwise, and at most,

PASSAGES = 1 << 17  # and of all of them.

# Of meta.json, what a server says of itself.
_SAID = ("kb", "rows", "embedder", "fingerprint", "format", "passages")

_TITLED = re.compile(r'"(.*)"\n')


class Refused(Exception):
  """A request that is not answered, with the status that says so."""

  def __init__(self, status: HTTPStatus, message: str):
    super().__init__(message)
    self.status = status


@dataclasses.dataclass(frozen=True)
class Request:
  """What is asked.

  Attributes:
    texts: of the queries.
    pictures: of the queries, as files, or empty.
    k: passages for each.
    scores: whether they are wanted.
  """

  texts: Sequence[str]
  pictures: Sequence[bytes]
  k: int
  scores: bool


def card(meta: Mapping[str, Any]) -> dict[str, Any]:
  """What a server says of the knowledge base with this meta.json."""
  said = {name: meta[name] for name in _SAID}
  said["source"] = sources.WORLD if meta["source"] == sources.WORLD else ""
  return said | dict(
    version=hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
  )


def document(passage: Passage, image: str) -> dict[str, str]:
  """A passage as it is served, with the name of its picture, or ""."""
  return dict(id=passage.id, contents=f'""\n{passage.text}') | (
    {"image": image} if image else {}
  )


def text(contents: str) -> str:
  """A document's contents as a passage has them: headed by the title."""
  titled = _TITLED.match(contents)
  if titled is None:
    return contents
  title, rest = titled[1], contents[titled.end() :]
  return f"{title} {rest}" if title else rest


def read(body: bytes, kb: str) -> Request:
  """The request in a body, to a knowledge base of kind `kb`.

  Raises:
    Refused: where it is none that can be answered.
  """
  try:
    asked = row_files.parse(body)
  except row_files.Fault as fault:
    _refuse(f"{fault.args[0]}; {fault.args[1]}")
  if not isinstance(asked, dict):
    _refuse('send an object: {"queries": ["a"], "topk": 3}')
  texts, k = asked.get("queries"), asked.get("topk")
  if not (
    isinstance(texts, list)
    and len(texts) <= QUERIES
    and all(
      isinstance(text, str) and len(text) <= LENGTH and _whole(text)
      for text in texts
    )
  ):
    _refuse(
      f'"queries" should be a list of at most {QUERIES} strings, each of '
      f"at most {LENGTH} whole characters"
    )
  k = TOPK if k is None else k
  if type(k) is not int or not 0 < k <= MOST:
    _refuse(f'"topk" should be a whole number from 1 to {MOST}')
  if k * len(texts) > PASSAGES:
    _refuse(f'"topk" times "queries" should be at most {PASSAGES}')
  scores = asked.get("return_scores", False)
  if not isinstance(scores, bool):
    _refuse('"return_scores" should be true or false')
  return Request(texts, _pictures(asked, len(texts), kb), k, scores)


def _pictures(asked: dict, count: int, kb: str) -> Sequence[bytes]:
  shown = asked.get("images", [""] * count)
  if not (
    isinstance(shown, list)
    and len(shown) == count
    and all(isinstance(picture, str) for picture in shown)
  ):
    _refuse(
      '"images" should be a list of base64 strings, "" for none, one for '
      "each of the queries"
    )
  if kb != "image" and any(shown):
    _refuse(f"the {kb} knowledge base has no use for pictures")
  if len(set(shown)) > PICTURES:
    _refuse(f'"images" should hold at most {PICTURES} pictures')
  try:
    return [base64.b64decode(picture, validate=True) for picture in shown]
  except ValueError as error:
    _refuse(f'"images" should be base64 ({error})')


def _refuse(said: str) -> NoReturn:
  raise Refused(HTTPStatus.BAD_REQUEST, said)


def _whole(text: str) -> bool:
  """Whether it has no half of a surrogate pair, which no tokenizer takes."""
  return not any("\ud800" <= c <= "\udfff" for c in text)
