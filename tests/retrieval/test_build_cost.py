"""The estimated cost of a build agrees with what is measured."""

import time
import tracemalloc

import numpy as np
import pytest

from r1router_jax.common.records import Passage
from r1router_jax.retrieval import build_cost
from r1router_jax.retrieval.index import bm25, factory

# Long enough for the thread that samples the memory to wake several times.
SAMPLING_SECONDS = 0.05


def test_peak_memory_is_noticed():
  before = build_cost.resident_bytes()
  with build_cost.watch_memory() as peak:
    array = np.ones(30_000_000)
    time.sleep(SAMPLING_SECONDS)
    del array
    time.sleep(SAMPLING_SECONDS)
  assert 230e6 < peak[0] - before < 270e6
  assert build_cost.resident_bytes() - before < 60e6


class GreedyEmbedder:
  """An embedder that holds `item_bytes` of memory for each item."""

  width, fingerprint, devices = 3, "", ()

  def __init__(self, item_bytes):
    self.item_bytes, self.batch_sizes = item_bytes, []

  def __call__(self, items):
    self.batch_sizes.append(len(items))
    array = np.ones(len(items) * self.item_bytes // 8)
    time.sleep(SAMPLING_SECONDS)
    return np.zeros((len(items), 3), np.float32) * array[0]


def test_trial_predicts_the_memory_of_a_chunk():
  embed = GreedyEmbedder(500_000)
  passages = [Passage(str(i), "text", "x") for i in range(128)]
  trial = build_cost.measure_embedding(embed, passages, 1024)
  chunk_bytes = trial.peak_bytes - trial.resident_bytes
  assert 0.8 < chunk_bytes / (1024 * 500_000) < 1.2
  # The embedder sleeps at least that long.
  assert trial.seconds_per_row >= SAMPLING_SECONDS / 128
  assert embed.batch_sizes == [32, 128] * 2


@pytest.mark.parametrize(
  ("rows", "kind"), [(3000, "auto"), (3000, "exact"), (30_000, "scann")]
)
def test_estimated_disk_space_is_what_is_written(tmp_path, rows, kind):
  if kind == "scann":
    pytest.importorskip("scann")
  vectors = np.random.default_rng(0).normal(size=(rows, 16)).astype(np.float32)
  np.save(tmp_path / "vectors.npy", vectors)
  factory.save_index(factory.build_index(vectors, kind), str(tmp_path))
  files = [path for path in tmp_path.rglob("*") if path.is_file()]
  written = sum(path.stat().st_size for path in files)
  estimated, _ = build_cost.estimate_disk_bytes(rows, 16, kind)
  assert estimated == pytest.approx(written, rel=0.1)


def test_estimated_cost_of_words_is_near_what_they_take(tmp_path):
  ranks = np.random.default_rng(0).zipf(1.15, (4000, 100)) % 20_000
  texts = [" ".join(f"word{rank}" for rank in line) for line in ranks.tolist()]
  bm25.Bm25Index.from_texts(["a trial"])  # Imports what it needs.
  tracemalloc.start()
  bm25.Bm25Index.from_texts(texts).save(str(tmp_path))
  _, memory = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  disk = sum(x.stat().st_size for x in tmp_path.rglob("*") if x.is_file())
  word_bytes = sum(map(len, texts))
  estimated = build_cost.estimate_index_memory(0, 8, "exact", word_bytes)
  assert 0.5 < estimated / memory < 2
  for without, all_bytes in zip(
    build_cost.estimate_disk_bytes(4000, 8, "exact"),
    build_cost.estimate_disk_bytes(4000, 8, "exact", word_bytes),
    strict=True,
  ):
    assert 0.5 < (all_bytes - without) / disk < 2
