import time

import numpy as np
import pytest

from r1router_jax.common.records import Passage
from r1router_jax.retrieval import build_cost
from r1router_jax.retrieval.index import factory


def test_the_peak_is_seen():
  before = build_cost.held()
  with build_cost.Peak() as peak:
    made = np.ones(30_000_000)
    time.sleep(0.05)
    del made
    time.sleep(0.05)
  assert 230e6 < peak.bytes - before < 270e6
  assert build_cost.held() - before < 60e6


class Greedy:
  """Holds so many bytes for each item."""

  width, fingerprint, devices = 3, "", ()

  def __init__(self, item):
    self.item, self.calls = item, []

  def __call__(self, items):
    self.calls.append(len(items))
    made = np.ones(len(items) * self.item // 8)
    time.sleep(0.05)
    return np.zeros((len(items), 3), np.float32) * made[0]


def test_a_trial_foretells_a_part():
  embed = Greedy(500_000)
  passages = [Passage(str(i), "text", "x") for i in range(128)]
  trial = build_cost.try_out(embed, passages, 1024)
  assert 0.8 < (trial.peak - trial.held) / (1024 * 500_000) < 1.2
  assert 0.05 / 128 < trial.seconds < 0.2 / 128
  assert embed.calls == [32, 128] * 2


@pytest.mark.parametrize(
  ("rows", "kind"), [(3000, "auto"), (3000, "exact"), (30_000, "scann")]
)
def test_disk_is_what_is_written(tmp_path, rows, kind):
  if kind == "scann":
    pytest.importorskip("scann")
  vectors = np.random.default_rng(0).normal(size=(rows, 16)).astype(np.float32)
  np.save(tmp_path / "vectors.npy", vectors)
  factory.save(factory.build(vectors, kind), str(tmp_path))
  written = sum(
    path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()
  )
  assert build_cost.disk(rows, 16, kind)[0] == pytest.approx(written, rel=0.1)
