r"""Our index beside faiss's, on the same vectors, in one process.

  bash launch/benchmark.sh retrieval [--rows=100000] [--widths=384,1024]

Vectors are MiniLM's of the embedded world's passages, and of the passages in
R1-Router's rows where --reference names such files, lifted to --rows: each new
vector lies between a real one and one of its neighbours, with noise of the
whole's covariance.  Wider ones are a fixed random tanh layer of these.  Queries
are sub-questions of the world, none of which is a row.

  flat    faiss's exact search, what R1-Router uses
  ivfpq   faiss's fastest: IVF, 4-bit codes, exact scores for the best; the
          better of two code sizes
  ours    `retrieval.index`

Each approximate index is asked with ever more lists or leaves, until it finds
0.95 and 0.99 of the ten nearest.  Rounds alternate between systems; figures are
medians.  A JSON line a width says how many leaves ours searches unless told
otherwise, what recall its probe promised, and what it kept for the queries;
then one a width, system, recall and batch:

  per_cpu_s   queries a second of all threads' time
  per_s       queries a second
  of_flat, of_ivfpq
              how many times per_s of these (one thread for single queries)
"""

import argparse
import itertools
import json
import os
import statistics
import time

import common
import faiss
import numpy as np

from r1router_jax.common.records import Passage, Query
from r1router_jax.data import georouter, r1_router_rows
from r1router_jax.retrieval.encoders import registry
from r1router_jax.retrieval.index import exact, factory

TARGETS = (0.95, 0.99)

KNOBS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 400)

ROUNDS = 5


def texts(reference: str) -> list[Passage]:
  """What is embedded."""
  found = [
    passage
    for kb in ("text", "image", "table")
    for passage in georouter.passages(kb)
  ]
  if reference:
    found += [
      passage
      for row in r1_router_rows.load(reference, "")
      for step in row.steps
      for passage in step.passages
    ]
  return list({passage.text: passage for passage in found}.values())


def lifted(
  real: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
  """`count` vectors of length 1 that lie as the real ones do."""
  _, near = exact.ExactIndex(real).search(real, 11)
  of = rng.integers(len(real), size=count - len(real))
  other = near[of, rng.integers(1, 11, len(of))]
  share = rng.uniform(0.2, 0.8, (len(of), 1)).astype(np.float32)
  root = np.linalg.cholesky(
    np.cov(real.T) + 1e-6 * np.eye(real.shape[1])
  ).astype(np.float32)
  noise = rng.normal(size=(len(of), real.shape[1])).astype(np.float32) @ root.T
  new = share * real[of] + (1 - share) * real[other] + 0.3 * noise
  whole = np.concatenate([real, new])
  return whole / np.linalg.norm(whole, axis=1, keepdims=True)


def widened(vectors: np.ndarray, width: int) -> np.ndarray:
  """A fixed random layer of the vectors; neighbours remain neighbours."""
  if width == vectors.shape[1]:
    return vectors
  weights = (
    np.random.default_rng(7)
    .normal(size=(vectors.shape[1], width))
    .astype(np.float32)
  )
  wide = np.tanh(vectors @ weights)
  return wide / np.linalg.norm(wide, axis=1, keepdims=True)


class Faiss:
  """A faiss index; its knob is the number of lists it looks into."""

  def __init__(self, vectors: np.ndarray, kind: str):
    self._index = faiss.index_factory(
      vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT
    )
    self._index.train(vectors)
    self._index.add(vectors)

  def search(self, queries: np.ndarray, knob: int) -> np.ndarray:
    # Its threads cost a single query more than they save.
    faiss.omp_set_num_threads(1 if len(queries) == 1 else os.cpu_count())
    if not knob:
      return self._index.search(queries, 10)[1]
    how = faiss.IndexRefineSearchParameters(
      k_factor=10, base_index_params=faiss.SearchParametersIVF(nprobe=knob)
    )
    return self._index.search(queries, 10, params=how)[1]


class Ours:
  """Our index; its knob is the number of leaves it looks into."""

  def __init__(self, vectors: np.ndarray):
    self.index = factory.build(vectors)
    self.leaves = self.index.leaves

  def search(self, queries: np.ndarray, knob: int) -> np.ndarray:
    return self.index.search(queries, 10, leaves=knob)[1]


def overlap(found: np.ndarray, wanted: np.ndarray) -> float:
  """Share of the wanted rows that were found, both [n, k]."""
  return float((found[:, :, None] == wanted[:, None, :]).any(axis=1).mean())


def cheapest(
  system, queries: np.ndarray, wanted: np.ndarray, target: float
) -> tuple[int, float]:
  """The first knob that reaches the recall, and the recall."""
  for knob in KNOBS:
    found = overlap(system.search(queries, knob), wanted)
    if found >= target:
      return knob, found
  return knob, found


def timed(
  system, queries: np.ndarray, knob: int, batch: int
) -> tuple[float, float]:
  """Queries a second, and a second of all threads' time."""
  count = len(queries) if batch > 1 else 200
  wall, cpu = time.perf_counter(), time.process_time()
  for at in range(0, count - batch + 1, batch):
    system.search(queries[at : at + batch], knob)
  asked = count // batch * batch
  return (
    asked / (time.perf_counter() - wall),
    asked / (time.process_time() - cpu),
  )


def compare(vectors: np.ndarray, queries: np.ndarray) -> None:
  width = vectors.shape[1]
  lists = 4 * int(len(vectors) ** 0.5)
  start = time.perf_counter()
  systems = {"ours": Ours(vectors)}
  print(
    json.dumps(
      dict(
        width=width,
        rows=len(vectors),
        build_s=round(time.perf_counter() - start, 1),
        leaves=systems["ours"].leaves,
        promised=round(systems["ours"].index.recall(), 3),
        kept=round(
          overlap(
            systems["ours"].search(queries, 0),
            exact.ExactIndex(vectors).search(queries, 10)[1],
          ),
          3,
        ),
      )
    ),
    flush=True,
  )
  systems["flat"] = Faiss(vectors, "Flat")
  for codes in (width // 2, width // 4):
    systems[f"ivfpq{codes}"] = Faiss(vectors, f"IVF{lists},PQ{codes}x4fs,RFlat")
  wanted = systems["flat"].search(queries, 0)
  for target in TARGETS:
    knobs = {
      name: cheapest(system, queries, wanted, target)
      if name != "flat"
      else (0, 1.0)
      for name, system in systems.items()
    }
    for batch in (64, 1):
      rounds = {name: [] for name in systems}
      for _, (name, system) in itertools.product(
        range(ROUNDS), systems.items()
      ):
        rounds[name].append(timed(system, queries, knobs[name][0], batch))
      medians = {
        name: [statistics.median(x) for x in zip(*seen, strict=True)]
        for name, seen in rounds.items()
      }
      best = max(
        (
          name
          for name in systems
          if name.startswith("ivfpq") and knobs[name][1] >= target
        ),
        key=lambda name: medians[name][0],
      )
      for name in ("flat", best, "ours"):
        per_s, per_cpu_s = medians[name]
        print(
          json.dumps(
            dict(
              width=width,
              target=target,
              batch=batch,
              system=name,
              knob=knobs[name][0],
              recall=round(knobs[name][1], 3),
              per_cpu_s=round(per_cpu_s),
              per_s=round(per_s),
              of_flat=round(per_s / medians["flat"][0], 2),
              of_ivfpq=round(per_s / medians[best][0], 2),
              of_ivfpq_cpu=round(per_cpu_s / medians[best][1], 2),
            )
          ),
          flush=True,
        )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--rows", type=int, default=100_000)
  parser.add_argument("--widths", type=common.numbers, default=[384, 1024])
  parser.add_argument("--reference", default="")
  asked = parser.parse_args()
  embed = registry.make("minilm")
  real = embed(texts(asked.reference))
  hops = {
    hop.sub_question
    for question in georouter.questions("test")
    for hop in question.hops
  }
  queries = embed([Query(text) for text in sorted(hops)][:1024])
  vectors = lifted(real, asked.rows, np.random.default_rng(0))
  for width in asked.widths:
    compare(widened(vectors, width), widened(queries, width))


if __name__ == "__main__":
  main()
