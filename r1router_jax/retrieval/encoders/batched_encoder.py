"""Run an embedding model over any number of items, with few compiled shapes.

Batches have (rows, tokens) from `BATCH_SIZES` x `BUCKET_LENGTHS`, so that few
shapes are compiled.  Items are sorted by length, so that little is padding.
Batches of queries always have the same number of rows, so that the vector of a
query depends, not even by a rounding, on which other queries are embedded with
it: a resumed run embeds other queries together.  The rows of a batch are split
over the devices, each of which holds all weights, and no batch waits for the
one before it.  Matrix products are in bfloat16, except on CPUs.

Axes:  n items   E width of a vector
"""

import contextlib
import contextvars
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float32, Int32

from r1router_jax.common import tokenizer_file
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Passage, Query
from r1router_jax.parallel import mesh

BATCH_SIZES = (8, 32, 128)  # Rows of a batch.

BUCKET_LENGTHS = (16, 32, 64, 128, 256, 512)  # Tokens of a row.

MAX_BATCH_TOKENS = 4096  # Rows times tokens.

# Special tokens of Open-WikiTable's table tokenizer, in the order of their ids.
TABLE_MARKERS = ("[Title]", "[Section title]", "[Caption]", "[Table name]")
TABLE_MARKERS += ("[Header]", "[Rows]", "[Row]", "[sep]")

# Any of the markers; [sep] has been replaced before.
_TABLE_MARKER = re.compile("|".join(map(re.escape, TABLE_MARKERS)))

Items = Sequence[Query | Passage]

# Ids of the passages that were cut within a block of `collect_cut`.
_CUT_IDS: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar(
  "cut_ids", default=None
)

# (items of a batch, its rows, its tokens) -> arrays with that many rows.
MakeArrays = Callable[[np.ndarray, int, int], tuple[np.ndarray, ...]]


def compute_dtype() -> Any:
  """Return the dtype of matrix products on this process's devices."""
  return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


@runtime_checkable
class Embedder(Protocol):
  """A function from queries or passages to vectors."""

  width: int
  fingerprint: str  # A digest of all that vectors depend on.
  devices: Sequence[jax.Device]  # That it computes on, if any.

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]:
    """Return the vector of each item."""
    ...


def replace_table_markers(text: str) -> str:
  """Replace the markers of a flattened table by punctuation."""
  return _TABLE_MARKER.sub(". ", text.replace("[sep]", ", "))


@contextlib.contextmanager
def collect_cut() -> Iterator[list[str]]:
  """Collect the ids of passages too long for the encoder, within the block."""
  ids: list[str] = []
  token = _CUT_IDS.set(ids)
  try:
    yield ids
  finally:
    _CUT_IDS.reset(token)


def note_cut(items: Items) -> None:
  """Note that an encoder does not read the ends of these items' texts."""
  ids = _CUT_IDS.get()
  if ids is not None:
    ids += [item.id for item in items if isinstance(item, Passage)]


def encode_tokens(
  tokenizer: tokenizers.Tokenizer, items: Items, texts: Sequence[str]
) -> list[list[int]]:
  """Return the tokens of items' texts, cut as the tokenizer was told to."""
  encodings = tokenizer.encode_batch(texts)
  pairs = zip(items, encodings, strict=True)
  note_cut([item for item, encoding in pairs if encoding.overflowing])
  return [encoding.ids for encoding in encodings]


class BatchedEncoder:
  """A model that encodes items in batches on all devices of this process.

  `apply` makes of ({"params": params}, *arrays) a vector for each row of the
  arrays.
  """

  def __init__(self, apply: Callable, params: dict, width: int):
    self._mesh, self._width = mesh.local_mesh(), width
    self.devices = tuple(self._mesh.devices.flat)
    self._params = jax.device_put(params, self._sharding())
    self._apply = jax.jit(apply)

  def __call__(
    self,
    lengths: Sequence[int],
    make_arrays: MakeArrays,
    batch_sizes: Sequence[int] = BATCH_SIZES,
  ) -> Float32[np.ndarray, "n E"]:
    """Return the vectors of items that have these numbers of tokens.

    In the arrays of a batch, rows beyond its items may hold anything.  A batch
    has one of `batch_sizes` rows.
    """
    # Start all batches before waiting for the first: dispatch is asynchronous.
    started = []
    for members, rows, length in split_batches(lengths, batch_sizes):
      arrays = make_arrays(members, rows, length)
      arrays = jax.device_put(arrays, self._sharding(rows))
      started.append((members, self._apply({"params": self._params}, *arrays)))
    # Collect the vectors in the order of the items.
    vectors = np.zeros((len(lengths), self._width), np.float32)
    for members, out in started:
      vectors[members] = np.asarray(out)[: len(members)]
    return vectors

  def encode_texts(
    self,
    tokens: Sequence[Sequence[int]],
    batch_sizes: Sequence[int] = BATCH_SIZES,
    segments: Sequence[Sequence[int]] | None = None,
  ) -> Float32[np.ndarray, "n E"]:
    """Return the vectors of texts, given their tokens and segments, if any."""

    def make_arrays(members, rows, length):
      ids = pad_tokens(tokens, members, rows, length)
      # Rows beyond the items have no tokens.
      counts = np.zeros(rows, int)
      counts[: len(members)] = [len(tokens[member]) for member in members]
      mask = np.arange(length) < counts[:, None]
      if segments is None:
        return ids, mask
      return ids, mask, pad_tokens(segments, members, rows, length)

    return self([len(t) for t in tokens], make_arrays, batch_sizes)

  def _sharding(self, rows: int = 0) -> NamedSharding:
    """Return a sharding by rows if they divide evenly, else replication."""
    # Without rows, as for parameters, every device holds everything.
    axis = mesh.DATA if rows and rows % self._mesh.size == 0 else None
    return NamedSharding(self._mesh, PartitionSpec(axis))


def load_tokenizer(weights: str) -> tokenizers.Tokenizer:
  """Load the tokenizer in a folder of weights, or raise a UserError."""
  path = os.path.join(weights, "tokenizer.json")
  if not os.path.isfile(path):
    message = f"{path} does not exist.  Put that of the model there, beside"
    raise UserError(f"{message} model.safetensors.")
  return tokenizer_file.read_tokenizer(path)[1]


def batch_sizes_for(items: Items) -> Sequence[int]:
  """Return the numbers of rows that a batch of these items may have."""
  # One size for queries makes their vectors bit-equal in any company.
  queries = any(isinstance(item, Query) for item in items)
  return BATCH_SIZES[:1] if queries else BATCH_SIZES


def split_batches(
  lengths: Sequence[int], batch_sizes: Sequence[int] = BATCH_SIZES
) -> Iterator[tuple[np.ndarray, int, int]]:
  """Yield (indices of the items, rows, tokens) of each batch."""
  # Sort by length, and find the bucket of each item.
  order = np.argsort(lengths, kind="stable")
  buckets = np.searchsorted(BUCKET_LENGTHS, np.asarray(lengths)[order])
  for bucket, length in enumerate(BUCKET_LENGTHS):
    members = order[buckets == bucket]
    sizes = [rows for rows in batch_sizes if rows * length <= MAX_BATCH_TOKENS]
    while len(members):
      # Take the largest batch that the items fill, else the smallest batch.
      rows = max((r for r in sizes if r <= len(members)), default=sizes[0])
      yield members[:rows], rows, length
      members = members[rows:]


def pad_tokens(
  tokens: Sequence[Sequence[int]], members: np.ndarray, rows: int, length: int
) -> Int32[np.ndarray, "rows length"]:
  """Return the token ids of the texts `members`, padded with 0."""
  # Rows beyond the items stay all padding.
  ids = np.zeros((rows, length), np.int32)
  for row, member in enumerate(members):
    ids[row, : len(tokens[member])] = tokens[member]
  return ids
