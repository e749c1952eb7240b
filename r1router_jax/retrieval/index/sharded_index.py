"""An index in several shards, on one host or over the hosts of a job.

Each shard holds a range of rows.  One host searches all shards; of several
hosts, each searches its own shards for the queries of all:

  queries of all hosts (all_gather) -> k nearest of this host's rows
  -> results of all hosts (all_gather) -> the k nearest of them

So all hosts must search at the same time and equally often; each may bring any
number of queries, also none.

Axes:  H hosts   n queries   E width   k neighbours
"""

import itertools
import os
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from r1router_jax.common.errors import UserError
from r1router_jax.parallel import multihost
from r1router_jax.retrieval.index.exact import (
  Index,
  SearchResult,
  merge_top_k,
)

KIND = "shards"
Shards = Sequence[tuple[int, Index]]


class ShardedIndex:
  """An `Index` over this host's shards, each with its first row.

  If it is `collective`, other hosts hold others of the `rows`.
  """

  def __init__(self, shards: Shards, rows: int, collective: bool):
    self.rows, self.width = rows, shards[0][1].width
    self.collective, self._shards = collective, shards

  def search(self, vectors: Float[np.ndarray, "n E"], k: int) -> SearchResult:
    """Return the k nearest rows of all shards."""
    if not self.collective:
      return self._search_own_shards(vectors, k)
    count = len(vectors)
    # Every host takes part, also without a query of its own.
    (max_count,) = multihost.max_over_hosts([count])
    if not max_count:  # No host has a query.
      return self._search_own_shards(vectors, k)

    # all_gather needs equal shapes, so each host pads its queries.
    padded = np.zeros((max_count, self.width), np.float32)
    padded[:count] = vectors
    queries = multihost_utils.process_allgather(padded)  # [H, n, E]
    scores, rows = self._search_own_shards(queries.reshape(-1, self.width), k)
    all_scores, all_rows = multihost_utils.process_allgather(
      (scores.reshape(-1, max_count, k), rows.reshape(-1, max_count, k))
    )  # [H, H, n, k]: searching host, asking host.

    # Keep what every host found for this host's queries.
    host = jax.process_index()
    results = [
      (scores[host, :count], rows[host, :count])
      for scores, rows in zip(all_scores, all_rows, strict=True)
    ]
    return merge_top_k(results, k)

  def measure_recall(self) -> float:
    """Return the recall of the worst shard."""
    return min(shard.measure_recall() for _, shard in self._shards)

  def save(self, folder: str) -> dict:
    """Write all shards; return what index.json keeps."""
    # The keys "parts", "first" and "card" are those of index.json on disk.
    parts = []
    for number, (first_row, shard) in enumerate(self._shards):
      shard_folder = _shard_folder(folder, number)
      os.makedirs(shard_folder, exist_ok=True)
      parts.append({"first": first_row, "card": shard.save(shard_folder)})
    shape = {"rows": self.rows, "width": self.width}
    return {"kind": KIND, **shape, "parts": parts}

  @classmethod
  def load(
    cls,
    folder: str,
    metadata: dict,
    open_shard: Callable[[str, dict, range], Index],
  ) -> "ShardedIndex":
    """Load this host's shards of an index, given what `save` returned.

    `open_shard` opens the index in a folder, given its metadata and the range
    of its rows.  Raises a UserError if there are fewer shards than hosts.
    """
    hosts, parts = jax.process_count(), metadata["parts"]
    if len(parts) < hosts:
      raise UserError(
        f"{folder} has {len(parts)} shards for {hosts} hosts.  Build it "
        f"again with --shards={hosts} or more."
      )
    shards = []
    # Host h opens shards h, h + hosts, h + 2 hosts, ...
    for number in range(jax.process_index(), len(parts), hosts):
      first_row, card = parts[number]["first"], parts[number]["card"]
      rows = range(first_row, first_row + card["rows"])
      part = _shard_folder(folder, number)
      shards.append((first_row, open_shard(part, card, rows)))
    return cls(shards, metadata["rows"], hosts > 1)

  def _search_own_shards(self, vectors: np.ndarray, k: int) -> SearchResult:
    results = []
    for first_row, shard in self._shards:
      # A shard counts its rows from 0; -1 stays padding.
      scores, rows = shard.search(vectors, k)
      results.append((scores, np.where(rows < 0, -1, rows + first_row)))
    return merge_top_k(results, k)


def _shard_folder(folder: str, number: int) -> str:
  """Return the folder of a shard."""
  return os.path.join(folder, KIND, f"{number:03d}")


def split_rows(rows: int, num_shards: int) -> list[range]:
  """Return the rows of each shard; their numbers differ by at most one."""
  if not 0 < num_shards <= rows:
    raise UserError(
      f"--shards={num_shards} of {rows} rows: choose from 1 to as many as rows."
    )
  edges = [rows * i // num_shards for i in range(num_shards + 1)]
  return [range(*pair) for pair in itertools.pairwise(edges)]
