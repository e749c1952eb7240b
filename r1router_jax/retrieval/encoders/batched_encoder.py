"""Models that embed, on this host's devices: any number of items, few shapes.

Batches have (rows, tokens) from `ROWS` x `TOKENS`, so that little is compiled;
items are sorted by length, so that little is padding.  Batches of queries have
always as many rows, so that a query's vector does not depend, not by a
rounding, on what else is asked: a resumed run asks for others at a time.  The
rows of a batch are split over the devices, each of which holds all weights, and
no batch waits for the one before it.  Products are in bfloat16, except on CPUs.

Axes:  n items   E width of a vector
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float32, Int32

from r1router_jax.common.records import Passage, Query
from r1router_jax.parallel import mesh

ROWS = (8, 32, 128)  # Texts or pictures in a batch,

TOKENS = (16, 32, 64, 128, 256, 512)  # and tokens of its texts,

BATCH_TOKENS = 4096  # but never more than so many in all.


# Of Open-WikiTable's table tokenizer, in the order of their ids.
TABLE_MARKS = (
  "[Title]",
  "[Section title]",
  "[Caption]",
  "[Table name]",
  "[Header]",
  "[Rows]",
  "[Row]",
  "[sep]",
)

_MARK = re.compile("|".join(map(re.escape, TABLE_MARKS)))


def dtype() -> Any:
  """Of matrix products."""
  return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


Items = Sequence[Query | Passage]


@runtime_checkable
class Embedder(Protocol):
  """Queries or passages to vectors.

  Attributes:
    width: E.
    fingerprint: differs where weights differ.
    devices: that it computes on, if any.
  """

  width: int
  fingerprint: str
  devices: Sequence[jax.Device]

  def __call__(self, items: Items) -> Float32[np.ndarray, "n E"]: ...


def text_of(item: Query | Passage, marks: bool = False) -> str:
  """What a model of texts reads of an item.

  Args:
    item: whatever is to be embedded.
    marks: whether the model was trained on the marks of flattened tables.  Else
      it reads punctuation in their place, which finds far more.
  """
  if isinstance(item, Query):  # The original lower-cases these alone.
    return item.text.lower().strip()
  if item.kb == "table" and not marks:
    return without_marks(item.text)
  return item.text


def without_marks(text: str) -> str:
  """A passage with punctuation in place of the marks of tables."""
  return _MARK.sub(". ", text.replace("[sep]", ", "))


class Encoder:
  """A model over items.

  Args:
    apply: ({"params": params}, *arrays) -> vectors, a row per row of arrays.
    params: of the model.
    width: E.
  """

  def __init__(self, apply: Callable, params: dict, width: int):
    self._mesh, self._width = mesh.local_mesh(), width
    self.devices = tuple(self._mesh.devices.flat)
    self._params = jax.device_put(params, self._on())
    self._apply = jax.jit(apply)

  def __call__(
    self,
    lengths: Sequence[int],
    fill: Callable[[np.ndarray, int, int], tuple[np.ndarray, ...]],
    choice: Sequence[int] = ROWS,
  ) -> Float32[np.ndarray, "n E"]:
    """The vector of each item.

    Args:
      lengths: of the items, in tokens.
      fill: (items of a batch, its rows, its tokens) -> its arrays; rows beyond
        the items hold anything.
      choice: of rows of a batch.
    """
    made = [
      (
        members,
        self._apply(
          {"params": self._params},
          *jax.device_put(fill(members, rows, length), self._on(rows)),
        ),
      )
      for members, rows, length in batches(lengths, choice)
    ]
    vectors = np.zeros((len(lengths), self._width), np.float32)
    for members, out in made:
      vectors[members] = np.asarray(out)[: len(members)]
    return vectors

  def _on(self, rows: int = 0) -> NamedSharding:
    """Split by rows, where there are some and they divide; else whole."""
    split = rows and rows % self._mesh.size == 0
    return NamedSharding(
      self._mesh, PartitionSpec(mesh.DATA if split else None)
    )


def rows_for(items: Items) -> Sequence[int]:
  """Rows that batches of items may have."""
  return ROWS[:1] if any(isinstance(item, Query) for item in items) else ROWS


def batches(
  lengths: Sequence[int], choice: Sequence[int] = ROWS
) -> Iterator[tuple[np.ndarray, int, int]]:
  """Members of each batch, with the batch's rows and tokens."""
  order = np.argsort(lengths, kind="stable")
  buckets = np.searchsorted(TOKENS, np.asarray(lengths)[order])
  for bucket, length in enumerate(TOKENS):
    members = order[buckets == bucket]
    sizes = [rows for rows in choice if rows * length <= BATCH_TOKENS]
    while len(members):
      rows = max((r for r in sizes if r <= len(members)), default=sizes[0])
      yield members[:rows], rows, length
      members = members[rows:]


def padded(
  tokens: Sequence[Sequence[int]], members: np.ndarray, rows: int, length: int
) -> Int32[np.ndarray, "rows length"]:
  """The tokens of some texts, padded with 0."""
  ids = np.zeros((rows, length), np.int32)
  for row, member in enumerate(members):
    ids[row, : len(tokens[member])] = tokens[member]
  return ids
