"""One index in several parts, on one host or over the hosts of a job.

Each part holds a range of rows.  On one host all parts are searched, on many
each host searches its own for the queries of all:

  queries of all hosts (all_gather) -> k nearest of this host's rows
  -> answers of all hosts (all_gather) -> the k nearest of them

So all hosts search together, the same number of times, with as many queries as
each has, also none.

Axes:  H hosts   n queries   E width   k neighbours
"""

import os
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from r1router_jax.parallel import multihost
from r1router_jax.retrieval.index.exact import Found, Stored, best

KIND = "shards"


class Shards:
  """An `Index` over parts.

  Args:
    parts: this host's, each with its first row.
    rows: of all parts of all hosts.
    apart: whether other hosts hold other parts.
  """

  def __init__(
    self, parts: Sequence[tuple[int, Stored]], rows: int, apart: bool
  ):
    self.rows, self.width = rows, parts[0][1].width
    self.together = apart
    self._parts = parts

  def search(self, vectors: Float[np.ndarray, "n E"], k: int) -> Found:
    """The k nearest rows of all parts."""
    count = len(vectors)
    (most,) = multihost.most([count]) if self.together else (0,)
    if not most:
      return self._here(vectors, k)
    padded = np.zeros((most, self.width), np.float32)
    padded[:count] = vectors
    asked = multihost_utils.process_allgather(padded)  # [H, n, E]
    scores, rows = self._here(asked.reshape(-1, self.width), k)
    answers = multihost_utils.process_allgather(
      (scores.reshape(-1, most, k), rows.reshape(-1, most, k))
    )
    mine = jax.process_index()
    return best(
      [
        (scores[mine, :count], rows[mine, :count])
        for scores, rows in zip(*answers, strict=True)
      ],
      k,
    )

  def recall(self) -> float:
    """Share of the ten nearest rows that is found, in the worst part."""
    return min(part.recall() for _, part in self._parts)

  def save(self, folder: str) -> dict:
    """Writes all parts; what `load` must know."""
    cards = []
    for number, (first, part) in enumerate(self._parts):
      place = _place(folder, number)
      os.makedirs(place, exist_ok=True)
      cards.append(dict(first=first, card=part.save(place)))
    return dict(kind=KIND, rows=self.rows, width=self.width, parts=cards)

  @classmethod
  def load(
    cls, folder: str, card: dict, opened: Callable[[str, dict, range], Stored]
  ) -> "Shards":
    """This host's parts of what `save` wrote to `folder`.

    Args:
      folder: of the index.
      card: what `save` returned.
      opened: (folder, card, rows) of a part to its index.

    Raises:
      ValueError: where there are fewer parts than hosts.
    """
    hosts, parts = jax.process_count(), card["parts"]
    if len(parts) < hosts:
      raise ValueError(
        f"{folder} has {len(parts)} shards for {hosts} hosts.  Build it "
        f"again with --shards={hosts} or more."
      )
    mine = range(jax.process_index(), len(parts), hosts)
    return cls(
      [
        (
          parts[i]["first"],
          opened(
            _place(folder, i),
            parts[i]["card"],
            range(
              parts[i]["first"], parts[i]["first"] + parts[i]["card"]["rows"]
            ),
          ),
        )
        for i in mine
      ],
      card["rows"],
      hosts > 1,
    )

  def _here(self, vectors: np.ndarray, k: int) -> Found:
    found = []
    for first, part in self._parts:
      scores, rows = part.search(vectors, k)
      found.append((scores, np.where(rows < 0, -1, rows + first)))
    return best(found, k)


def _place(folder: str, number: int) -> str:
  return os.path.join(folder, KIND, f"{number:03d}")


def ranges(rows: int, parts: int) -> list[range]:
  """The rows of each part, as even as can be.

  Raises:
    ValueError: where there are fewer rows than parts.
  """
  if not 0 < parts <= rows:
    raise ValueError(
      f"--shards={parts} of {rows} rows: choose from 1 to as many as rows."
    )
  edges = [rows * i // parts for i in range(parts + 1)]
  return [range(*pair) for pair in zip(edges, edges[1:], strict=False)]
