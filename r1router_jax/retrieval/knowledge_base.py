"""What every knowledge base does: it finds passages, and remembers them.

The same sub-questions come again and again, within a batch and over a run.  A
query is looked for once; of what was found, what was asked for longest ago is
forgotten first.
"""

import abc
import collections
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from r1router_jax.common.records import Passage, Query

REMEMBERED, TIMES = 100_000, 10_000  # Answers, and durations of searches.


class KnowledgeBase(abc.ABC):
  """Answers queries with passages; threads may share it.

  Args:
    meta: what tells its passages and searching from any other's.

  Attributes:
    together: whether all hosts must search it at the same time.
  """

  together = False

  def __init__(self, meta: Mapping[str, Any]):
    self.meta = dict(meta)
    self._answers: collections.OrderedDict = collections.OrderedDict()
    self._lock = threading.Lock()
    self._age = 0  # Of the passages, see `_forget`.
    self._asked = self._known = 0
    self._seconds: collections.deque = collections.deque(maxlen=TIMES)

  @abc.abstractmethod
  def __len__(self) -> int:
    """How many passages there are."""

  @property
  @abc.abstractmethod
  def devices(self) -> Sequence[jax.Device]:
    """Those that it searches with."""

  @abc.abstractmethod
  def _find(self, queries: Sequence[Query], k: int) -> Sequence[Any]:
    """What is kept of the answer to each query, all different."""

  @abc.abstractmethod
  def _read(self, found: Any) -> list[Passage]:
    """The passages of what is kept."""

  def search(self, queries: Sequence[Query], k: int) -> list[list[Passage]]:
    """For each query the k best passages, best first, with their scores."""
    asked = dict.fromkeys((query, k) for query in queries)
    with self._lock:
      age, known = self._age, self._answers
      for each in asked:
        if each in known:
          known.move_to_end(each)
          asked[each] = known[each]
    new = [each for each, found in asked.items() if found is None]
    if new or self.together:
      start = time.perf_counter()
      answers = self._find([query for query, _ in new], k)
      asked.update(zip(new, answers, strict=True))
      seconds = time.perf_counter() - start
    with self._lock:
      self._asked += len(queries)
      self._known += len(queries) - len(new)
      if new:
        self._seconds.append(seconds)
      if age == self._age:
        known.update((each, asked[each]) for each in new)
        for each in [*itertools.islice(known, max(0, len(known) - REMEMBERED))]:
          del known[each]
    return [self._read(asked[query, k]) for query in queries]

  def _forget(self) -> None:
    """Its passages have changed.  To be called with the lock held."""
    self._age += 1
    self._answers.clear()

  def report(self) -> dict[str, float]:
    """Of the searches since the last report.

    Returns:
      "queries"; "remembered", their share that was not looked for; and, where
      others were, percentiles of a search, "p50_ms", "p95_ms" and "p99_ms".
    """
    with self._lock:
      asked, known, seconds = self._asked, self._known, [*self._seconds]
      self._asked = self._known = 0
      self._seconds.clear()
    found = dict(queries=float(asked), remembered=known / max(1, asked))
    if seconds:
      found |= {
        f"p{percent}_ms": float(np.percentile(seconds, percent)) * 1000
        for percent in (50, 95, 99)
      }
    return found
