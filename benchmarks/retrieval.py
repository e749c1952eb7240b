r"""Compares our index with faiss's on the same vectors in one process.

  bash launch/benchmark.sh retrieval [--rows=100000] [--widths=384,1024]

--rows is 20,000 or more: with fewer, our index would be exact, too.

Vectors are MiniLM's of GeoRouter's passages, and of the passages in R1-Router's
rows where --reference names such files.  More are made up to --rows: each new
vector lies between a real one and one of its neighbours, with noise of the
covariance of all.  Wider vectors are a fixed random tanh layer of these.
Queries are GeoRouter's sub-questions, none of which is a row.

  flat    faiss's exact search, which R1-Router uses
  ivfpq   faiss's fastest: IVF, 4-bit codes, exact scores for the best; the
          better of two code sizes
  ours    `retrieval.index`

Each approximate index searches more and more of its lists or leaves, until it
finds 0.95 and 0.99 of the ten nearest rows.  Systems are timed in turn, round
by round; figures are medians.  A first JSON line for each width is about our
index as it is built:

  leaves            number of leaves that it searches unless told otherwise
  estimated_recall  recall that it measured when it was built
  query_recall      recall for the queries

Then there is a line for each width, recall, batch size and system:

  breadth     number of lists or leaves that were searched
  recall      recall that this gave
  per_cpu_s   queries per second of all threads' time
  per_s       queries per second
  of_flat, of_ivfpq, of_ivfpq_cpu
              per_s, or per_cpu_s, as a multiple of these systems' (one thread
              for single queries)
"""

import argparse
import dataclasses
import os
import statistics
import time
from typing import Protocol

import common
import faiss
import numpy as np

from r1router_jax.common.records import Passage, Query
from r1router_jax.data import georouter, r1_router_rows
from r1router_jax.retrieval.encoders import registry
from r1router_jax.retrieval.index import exact, factory

RECALLS = (0.95, 0.99)

K = 10  # Nearest rows that are searched for.

# Numbers of lists or leaves to try, until one reaches the recall.
BREADTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 400)

ROUNDS = 5

BATCH_SIZES = (64, 1)

SINGLE_QUERIES = 200  # Queries that are timed one by one.


class System(Protocol):
  """An index under test."""

  def search(self, queries: np.ndarray, breadth: int) -> np.ndarray:
    """Return the nearest rows of each query, [n, K].

    Args:
      queries: vectors, [n, E].
      breadth: number of lists or leaves to search; 0 for the default.
    """
    ...


class FaissIndex:
  """An index of faiss; the default breadth is for exact search alone."""

  def __init__(self, vectors: np.ndarray, kind: str):
    self._index = faiss.index_factory(
      vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT
    )
    self._index.train(vectors)
    self._index.add(vectors)

  def search(self, queries: np.ndarray, breadth: int) -> np.ndarray:
    """Implement `System.search`."""
    # Its threads cost a single query more than they save.
    faiss.omp_set_num_threads(1 if len(queries) == 1 else os.cpu_count())
    # An index without lists takes no parameters.
    if not breadth:
      return self._index.search(queries, K)[1]
    params = faiss.IndexRefineSearchParameters(
      k_factor=10, base_index_params=faiss.SearchParametersIVF(nprobe=breadth)
    )
    return self._index.search(queries, K, params=params)[1]


class OurIndex:
  """The index that `retrieval.index.factory` chooses for the vectors."""

  def __init__(self, vectors: np.ndarray):
    self.index = factory.build_index(vectors)

  def search(self, queries: np.ndarray, breadth: int) -> np.ndarray:
    """Implement `System.search`."""
    leaves = breadth or self.index.leaves
    return dataclasses.replace(self.index, leaves=leaves).search(queries, K)[1]


def load_passages(reference: str) -> list[Passage]:
  """Return the passages to embed, each text once."""
  found = []
  for kind in ("text", "image", "table"):
    found += georouter.load_passages(kind)
  if reference:
    for row in r1_router_rows.load_rows(reference, ""):
      for step in row.steps:
        found += step.passages
  return list({passage.text: passage for passage in found}.values())


def load_queries() -> list[Query]:
  """Return the first 1,024 sub-questions of the test split, in order."""
  sub_questions = {
    hop.sub_question
    for question in georouter.load_questions("test")
    for hop in question.hops
  }
  return [Query(text) for text in sorted(sub_questions)][:1024]


def add_vectors(
  real: np.ndarray, rows: int, rng: np.random.Generator
) -> np.ndarray:
  """Return `rows` vectors of length 1, the real ones and others among them."""
  if rows <= len(real):
    return real[:rows]
  # 1. A point between a vector and one of its ten neighbours.
  _, near = exact.ExactIndex(real).search(real, 11)
  origin = rng.integers(len(real), size=rows - len(real))
  neighbour = near[origin, rng.integers(1, 11, len(origin))]
  share = rng.uniform(0.2, 0.8, (len(origin), 1)).astype(np.float32)
  between = share * real[origin] + (1 - share) * real[neighbour]
  # 2. Noise of the covariance of all; the small diagonal keeps it regular.
  covariance = np.cov(real.T) + 1e-6 * np.eye(real.shape[1])
  root = np.linalg.cholesky(covariance).astype(np.float32)
  noise = rng.normal(size=between.shape).astype(np.float32) @ root.T
  vectors = np.concatenate([real, between + 0.3 * noise])
  return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def widen_vectors(vectors: np.ndarray, width: int) -> np.ndarray:
  """Apply a fixed random layer to vectors; neighbours remain neighbours."""
  if width == vectors.shape[1]:
    return vectors
  # The same layer for rows and queries.
  weights = np.random.default_rng(7).normal(size=(vectors.shape[1], width))
  wide = np.tanh(vectors @ weights.astype(np.float32))
  return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def recall_at_k(found: np.ndarray, wanted: np.ndarray) -> float:
  """Return the share of the wanted rows that were found, both [n, K]."""
  return float((found[:, :, None] == wanted[:, None, :]).any(axis=1).mean())


def find_breadth(
  system: System, queries: np.ndarray, wanted: np.ndarray, target: float
) -> tuple[int, float]:
  """Return the least breadth that reaches the recall, and its recall.

  If none reaches it, these are the largest breadth and its recall.
  """
  for breadth in BREADTHS:
    recall = recall_at_k(system.search(queries, breadth), wanted)
    if recall >= target:
      break
  return breadth, recall


def time_search(
  system: System, queries: np.ndarray, breadth: int, batch_size: int
) -> tuple[float, float]:
  """Return queries per second, and per second of all threads' time."""
  # Single queries take long, so there are fewer.  Batches are full.
  count = len(queries) if batch_size > 1 else SINGLE_QUERIES
  count -= count % batch_size
  wall, cpu = time.perf_counter(), time.process_time()
  for start in range(0, count, batch_size):
    system.search(queries[start : start + batch_size], breadth)
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  return count / wall, count / cpu


def median_speeds(
  systems: dict[str, System],
  breadths: dict[str, int],
  queries: np.ndarray,
  batch_size: int,
) -> dict[str, list[float]]:
  """Return the medians of what `time_search` returns, by system."""
  rounds = {name: [] for name in systems}
  for _ in range(ROUNDS):
    # In turn, so that a busy moment of the machine meets all of them.
    for name, system in systems.items():
      speeds = time_search(system, queries, breadths[name], batch_size)
      rounds[name].append(speeds)
  return {
    name: [statistics.median(values) for values in zip(*speeds, strict=True)]
    for name, speeds in rounds.items()
  }


def build_ours(vectors: np.ndarray, queries: np.ndarray) -> OurIndex:
  """Build our index, and print a line about it."""
  start = time.perf_counter()
  ours = OurIndex(vectors)
  seconds = time.perf_counter() - start
  _, wanted = exact.ExactIndex(vectors).search(queries, K)
  common.print_row(
    width=vectors.shape[1],
    rows=len(vectors),
    build_s=round(seconds, 1),
    leaves=ours.index.leaves,
    estimated_recall=round(ours.index.measure_recall(), 3),
    query_recall=round(recall_at_k(ours.search(queries, 0), wanted), 3),
  )
  return ours


def compare_systems(vectors: np.ndarray, queries: np.ndarray) -> None:
  """Build all indices of the vectors, and print their speeds."""
  width, lists = vectors.shape[1], 4 * int(len(vectors) ** 0.5)
  systems = {
    "ours": build_ours(vectors, queries),
    "flat": FaissIndex(vectors, "Flat"),
  }
  # Codes of two sizes; the faster one at each recall counts.
  for codes in (width // 2, width // 4):
    kind = f"IVF{lists},PQ{codes}x4fs,RFlat"
    systems[f"ivfpq{codes}"] = FaissIndex(vectors, kind)
  # Exact search tells which rows are the nearest.
  wanted = systems["flat"].search(queries, 0)
  for target in RECALLS:
    # Exact search has no breadth.
    breadths, recalls = {"flat": 0}, {"flat": 1.0}
    for name, system in systems.items():
      if name != "flat":
        breadths[name], recalls[name] = find_breadth(
          system, queries, wanted, target
        )
    candidates = [
      name
      for name, recall in recalls.items()
      if name.startswith("ivfpq") and recall >= target
    ]
    for batch_size in BATCH_SIZES:
      speeds = median_speeds(systems, breadths, queries, batch_size)
      best = max(candidates, key=lambda name: speeds[name][0])
      for name in ("flat", best, "ours"):
        per_s, per_cpu_s = speeds[name]
        common.print_row(
          width=width,
          target=target,
          batch=batch_size,
          system=name,
          breadth=breadths[name],
          recall=round(recalls[name], 3),
          per_cpu_s=round(per_cpu_s),
          per_s=round(per_s),
          of_flat=round(per_s / speeds["flat"][0], 2),
          of_ivfpq=round(per_s / speeds[best][0], 2),
          of_ivfpq_cpu=round(per_cpu_s / speeds[best][1], 2),
        )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--rows", type=int, default=100_000)
  parser.add_argument(
    "--widths", type=common.split_numbers, default=[384, 1024]
  )
  parser.add_argument("--reference", default="")
  args = parser.parse_args()
  embed = registry.get_embedder("minilm")
  real = embed(load_passages(args.reference))
  queries = embed(load_queries())
  vectors = add_vectors(real, args.rows, np.random.default_rng(0))
  for width in args.widths:
    compare_systems(
      widen_vectors(vectors, width), widen_vectors(queries, width)
    )


if __name__ == "__main__":
  main()
