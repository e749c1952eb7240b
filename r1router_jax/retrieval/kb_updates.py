"""Passages that are added, replaced and deleted while others search.

The base, that is the passages and the index that `build_kb` wrote, stays as it
is.  Added passages stand behind it in an exact index of their own, and deleted
rows are left out of every result.  An update makes new objects and never writes
to what another thread may read.

Axes:  n queries   A rows added   D rows deleted   E width   k neighbours
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Int

from r1router_jax.common.records import Passage
from r1router_jax.retrieval.encoders.batched_encoder import Embedder
from r1router_jax.retrieval.index import exact


@dataclasses.dataclass(frozen=True)
class UpdatedPassages:
  """Passages by row: first those of the base, then those added."""

  base: Sequence[Passage]
  row_by_id: dict[str, int]  # Of each passage that is not deleted.
  added: tuple[Passage, ...]  # In their order, also those deleted since.
  vectors: Float32[np.ndarray, "A E"]  # Of the added passages.
  deleted: Int[np.ndarray, " D"]  # Rows that must not be found.

  def __len__(self) -> int:
    return len(self.base) + len(self.added) - len(self.deleted)

  def __getitem__(self, row: int) -> Passage:
    if row < len(self.base):
      return self.base[row]
    return self.added[row - len(self.base)]

  @property
  def image_folder(self) -> str:
    """Return the folder that images of the base are relative to."""
    return self.base.image_folder

  def make_index(self, index: exact.Index) -> "UpdatedIndex":
    """Return an index, given that of the base or of former passages."""
    # Updates do not nest: each index is made of the base and all changes.
    base_index = index.base if isinstance(index, UpdatedIndex) else index
    return UpdatedIndex(
      base_index, exact.ExactIndex(self.vectors), self.deleted
    )


class UpdatedIndex:
  """An `Index` of a base, without deleted rows and with others behind it."""

  def __init__(
    self,
    base: exact.Index,
    added: exact.ExactIndex,
    deleted: Int[np.ndarray, " D"],
  ):
    self.base, self._added, self._deleted = base, added, deleted
    self.rows, self.width = base.rows + added.rows, base.width

  def search(
    self, vectors: Float[np.ndarray, "n E"], k: int
  ) -> exact.SearchResult:
    """Return the k nearest rows that are not deleted."""
    # Rows of `added` follow those of the base.
    parts = [(self.base, 0), (self._added, self.base.rows)]
    results = [
      self._search_remaining(index, first_row, vectors, k)
      for index, first_row in parts
      if index.rows
    ]
    return exact.merge_top_k(results, k)

  def _search_remaining(
    self, index: exact.Index, first_row: int, vectors: np.ndarray, k: int
  ) -> exact.SearchResult:
    """Search for ever more rows until k that are not deleted are found."""
    depth = k
    while True:
      scores, rows = index.search(vectors, depth)
      rows = np.where(rows < 0, -1, rows + first_row)
      deleted = np.isin(rows, self._deleted)
      # A row of -1 says that the index has no more to give for the query.
      enough = (rows < 0).any(axis=1) | ((~deleted).sum(axis=1) >= k)
      if depth >= index.rows or enough.all():
        break
      # Doubling bounds the work of all tries by twice that of the last.
      depth = min(2 * depth, index.rows)
    # Deleted rows become padding, which sorts last.
    scores = np.where(deleted, -np.inf, scores)
    return exact.merge_top_k([(scores, np.where(deleted, -1, rows))], k)


def apply_updates(
  passages: Sequence[Passage] | UpdatedPassages,
  upserts: Sequence[Passage],
  deletes: Sequence[str],
  embed: Embedder,
) -> UpdatedPassages:
  """Return `passages` after an update.

  Each passage of `upserts` replaces that with the same id, if there is one.  A
  KeyError is raised if no passage has an id in `deletes`.  The first update
  reads all passages, to learn their ids.
  """
  # The first update: nothing is added or deleted yet.
  old = passages
  if not isinstance(old, UpdatedPassages):
    old = UpdatedPassages(
      base=passages,
      row_by_id={passage.id: row for row, passage in enumerate(passages)},
      added=(),
      vectors=np.zeros((0, embed.width), np.float32),
      deleted=np.zeros(0, np.int64),
    )
  row_by_id = dict(old.row_by_id)
  new = {passage.id: passage for passage in upserts}

  # A replaced passage is a deleted row and an added one.
  deleted = [row_by_id.pop(name) for name in deletes]
  deleted += [row_by_id.pop(name) for name in new if name in row_by_id]
  first_row = len(old.base) + len(old.added)
  row_by_id.update((name, first_row + i) for i, name in enumerate(new))
  # New objects throughout: a search may still use those of `old`.
  return UpdatedPassages(
    base=old.base,
    row_by_id=row_by_id,
    added=(*old.added, *new.values()),
    vectors=np.concatenate([old.vectors, embed(list(new.values()))]),
    deleted=np.concatenate([old.deleted, np.array(deleted, np.int64)]),
  )
