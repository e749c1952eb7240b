"""Passages that are added, replaced and taken away while others search.

What was built stays as it is.  Beside it lie the added passages with an exact
index, and the rows that are gone: those are never found.  Nothing that another
thread reads is ever written.

Axes:  n queries   N rows that were built   A added   E width   k neighbours
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Int

from r1router_jax.common.records import Passage
from r1router_jax.retrieval.encoders import batched_encoder
from r1router_jax.retrieval.index.exact import ExactIndex, Found, Index, best


@dataclasses.dataclass(frozen=True)
class Changed:
  """Passages by row: those that were built, and then those added.

  Attributes:
    built: as they were.
    rows: of their ids.
    added: in their order, also those that are gone again.
    vectors: of those added.
    gone: rows that are not found any more.
  """

  built: Sequence[Passage]
  rows: dict[str, int]
  added: tuple[Passage, ...]
  vectors: Float32[np.ndarray, "A E"]
  gone: Int[np.ndarray, " G"]

  def __len__(self) -> int:
    return len(self.built) + len(self.added) - len(self.gone)

  def __getitem__(self, row: int) -> Passage:
    return (
      self.built[row]
      if row < len(self.built)
      else (self.added[row - len(self.built)])
    )

  @property
  def pictures(self) -> str:
    """The folder that pictures of those built are named below."""
    return self.built.pictures

  def over(self, index: Index) -> "ChangedIndex":
    """An index of these, from the one of those built or of a former change."""
    return ChangedIndex(
      getattr(index, "built", index), ExactIndex(self.vectors), self.gone
    )


class ChangedIndex:
  """An `Index` less some rows, with others added.

  Args:
    built: the index as it was.
    added: of the rows behind its.
    gone: rows of both.
  """

  def __init__(
    self, built: Index, added: ExactIndex, gone: Int[np.ndarray, " G"]
  ):
    self.built, self._added, self._gone = built, added, gone
    self.rows, self.width = built.rows + added.rows, built.width

  def search(self, vectors: Float[np.ndarray, "n E"], k: int) -> Found:
    """The k nearest rows that are left."""
    parts = [self._left(self.built, 0, vectors, k)]
    if self._added.rows:
      parts.append(self._left(self._added, self.built.rows, vectors, k))
    return best(parts, k)

  def _left(
    self, index: Index, first: int, vectors: np.ndarray, k: int
  ) -> Found:
    """Asks for more rows until k of them are left, or no more come."""
    most = k
    while True:
      scores, rows = index.search(vectors, most)
      rows = np.where(rows < 0, -1, rows + first)
      gone = np.isin(rows, self._gone)
      enough = (rows < 0).any(axis=1) | ((~gone).sum(axis=1) >= k)
      if most >= index.rows or enough.all():
        break
      most = min(2 * most, index.rows)
    scores, rows = np.where(gone, -np.inf, scores), np.where(gone, -1, rows)
    return best([(scores, rows)], k)


def changed(
  passages: Sequence[Passage] | Changed,
  upserts: Sequence[Passage],
  deletes: Sequence[str],
  embed: batched_encoder.Embedder,
) -> Changed:
  """`passages` after a change.

  Args:
    passages: as they are; all are read at the first change, for their ids.
    upserts: to be added, in the place of those with the same ids.
    deletes: ids of those to be taken away.
    embed: to vectors.

  Raises:
    KeyError: where no passage has an id in `deletes`.
  """
  old = (
    passages
    if isinstance(passages, Changed)
    else Changed(
      passages,
      {passage.id: row for row, passage in enumerate(passages)},
      (),
      np.zeros((0, embed.width), np.float32),
      np.zeros(0, np.int64),
    )
  )
  rows = dict(old.rows)
  new = {passage.id: passage for passage in upserts}
  gone = [rows.pop(name) for name in deletes] + [
    rows.pop(name) for name in new if name in rows
  ]
  first = len(old.built) + len(old.added)
  rows.update((name, first + i) for i, name in enumerate(new))
  return dataclasses.replace(
    old,
    rows=rows,
    added=(*old.added, *new.values()),
    vectors=np.concatenate([old.vectors, embed([*new.values()])]),
    gone=np.concatenate([old.gone, np.array(gone, np.int64)]),
  )
