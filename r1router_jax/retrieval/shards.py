"""One index in several parts, on one host or over the hosts of a job.

Each part holds a range of rows.  On one host all parts are searched, on many
each host searches its own for the queries of all:

  queries of all hosts (all_gather) -> k nearest of this host's rows
  -> answers of all hosts (all_gather) -> the k nearest of them

So all hosts search together, the same number of times, with as many queries as
each has, also none.

Axes:  H hosts   n queries   E width   k neighbours
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from r1router_jax import pods
from r1router_jax.retrieval.index import Found, Index


class Shards:
  """An `Index` over parts.

  Args:
    parts: this host's, each with its first row.
    rows: of all parts of all hosts.
    apart: whether other hosts hold other parts.
  """

  def __init__(self, parts: Sequence[tuple[int, Index]], rows: int,
               apart: bool):
    self.rows, self.width = rows, parts[0][1].width
    self.together = apart
    self._parts = parts

  def search(self, vectors: Float[np.ndarray, "n E"], k: int) -> Found:
    """The k nearest rows of all parts."""
    count = len(vectors)
    (most,) = pods.most([count]) if self.together else (0,)
    if not most:
      return self._here(vectors, k)
    padded = np.zeros((most, self.width), np.float32)
    padded[:count] = vectors
    asked = multihost_utils.process_allgather(padded)  # [H, n, E]
    scores, rows = self._here(asked.reshape(-1, self.width), k)
    answers = multihost_utils.process_allgather(
        (scores.reshape(-1, most, k), rows.reshape(-1, most, k)))
    mine = jax.process_index()
    return best([(scores[mine, :count], rows[mine, :count])
                 for scores, rows in zip(*answers, strict=True)], k)

  def _here(self, vectors: np.ndarray, k: int) -> Found:
    found = []
    for first, part in self._parts:
      scores, rows = part.search(vectors, k)
      found.append((scores, np.where(rows < 0, -1, rows + first)))
    return best(found, k)


def best(found: Sequence[Found], k: int) -> Found:
  """The k best of several answers; equal scores come in the order of rows."""
  scores, rows = (np.concatenate(x, axis=1) for x in zip(*found, strict=True))
  order = np.lexsort((rows, -scores))[:, :k]
  return (np.take_along_axis(scores, order, 1),
          np.take_along_axis(rows, order, 1))


def ranges(rows: int, parts: int) -> list[range]:
  """The rows of each part, as even as can be.

  Raises:
    ValueError: where there are fewer rows than parts.
  """
  if not 0 < parts <= rows:
    raise ValueError(
        f"--shards={parts} of {rows} rows: choose from 1 to as many as rows.")
  edges = [rows * i // parts for i in range(parts + 1)]
  return [range(*pair) for pair in zip(edges, edges[1:], strict=False)]
