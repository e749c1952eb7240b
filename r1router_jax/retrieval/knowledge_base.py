"""The interface of all knowledge bases, with a cache of search results.

Within a batch and over a run, the policy asks the same sub-questions again and
again.  Each distinct query is searched once; when the cache is full, the least
recently used results are dropped first.
"""

import abc
import collections
import contextlib
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import cachetools
import jax
import numpy as np

from r1router_jax.common.records import Passage, Query

CACHE_BYTES = 256 << 20  # For results, of which one takes about a KB.
_OBJECT_BYTES = 500  # Of the objects of a query and its result, or a passage.
LATENCY_WINDOW = 10_000  # Latest searches that percentiles are taken from.


class KnowledgeBase(abc.ABC):
  """A set of passages that queries can be searched in; threads may share it.

  `meta` identifies its passages and its way of searching.
  """

  collective = False  # Whether all hosts must search at the same time.
  image_folder = ""  # That images of passages are in, if they have any.

  def __init__(self, meta: Mapping[str, Any]):
    self.meta = dict(meta)
    # (query, result) by (query, k).  It does not refer to this object, whose
    # files are given up with the last other reference to it.
    self._cache = cachetools.LRUCache(CACHE_BYTES, self._count_bytes)
    self._lock = threading.Lock()
    # Metrics since `pop_search_metrics` was last called.
    self._num_queries = self._num_remembered = 0
    self._latencies = collections.deque(maxlen=LATENCY_WINDOW)

  @abc.abstractmethod
  def __len__(self) -> int:
    """Return the number of passages."""

  @property
  @abc.abstractmethod
  def devices(self) -> Sequence[jax.Device]:
    """Return the devices that a search runs on."""

  @abc.abstractmethod
  def _search_uncached(self, queries: Sequence[Query], k: int) -> Sequence[Any]:
    """Search distinct queries; return one cacheable result for each."""

  @abc.abstractmethod
  def _to_passages(self, result: Any) -> list[Passage]:
    """Return the passages of a cached result, as objects of the caller."""

  def search(self, queries: Sequence[Query], k: int) -> list[list[Passage]]:
    """Return the k best passages of each query, best first, with scores."""
    # 1. Take what is cached.  A query that comes twice is searched once.
    with self._lock:
      cached = [self._cache.get((each, k), (each, None)) for each in queries]
    results = dict(cached)

    # 2. Search the rest, without the lock, so that threads search side by side.
    # A collective search needs this host even if it has nothing to ask.
    new = [query for query, result in results.items() if result is None]
    if new or self.collective:
      start = time.perf_counter()
      results.update(zip(new, self._search_uncached(new, k), strict=True))
      seconds = time.perf_counter() - start

    # 3. Keep the new results.
    with self._lock:
      self._num_queries += len(queries)
      self._num_remembered += len(queries) - len(new)
      # Searches that the cache answers say nothing about latency.
      if new:
        self._latencies.append(seconds)
      for query in new:
        # A result that is larger than the whole cache is not kept.
        with contextlib.suppress(ValueError):
          self._cache[query, k] = query, results[query]
    return [self._to_passages(results[query]) for query in queries]

  @staticmethod
  def _result_bytes(result: Any) -> int:
    """Return about how much memory a result takes: here, of passages."""
    texts = (passage.text for passage in result)
    return sum(_OBJECT_BYTES + sys.getsizeof(text) for text in texts)

  @classmethod
  def _count_bytes(cls, entry: tuple[Query, Any]) -> int:
    num_bytes = _OBJECT_BYTES + sys.getsizeof(entry[0].text)
    return num_bytes + cls._result_bytes(entry[1])

  def pop_search_metrics(self) -> dict[str, float]:
    """Return the metrics of the searches since the last call.

    These are the number of "queries", the share "remembered" by the cache, and,
    unless that is all, percentiles of the duration of a search: "p50_ms" etc.
    """
    with self._lock:
      # Taken under the lock; percentiles are computed without it.
      count, remembered = self._num_queries, self._num_remembered
      latencies = list(self._latencies)
      self._num_queries = self._num_remembered = 0
      self._latencies.clear()
    metrics = dict(queries=float(count), remembered=remembered / max(1, count))
    if latencies:
      percentiles = np.percentile(latencies, (50, 95, 99))
      names = ("p50_ms", "p95_ms", "p99_ms")
      metrics |= zip(names, (1000 * percentiles).tolist(), strict=True)
    return metrics
