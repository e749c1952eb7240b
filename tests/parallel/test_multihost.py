"""Who joins a job of many processes, and what is its share."""

import os

import jax
import pytest

from r1router_jax.parallel import multihost
from tests import two_processes


@pytest.fixture
def initialize(monkeypatch):
  """The calls of `jax.distributed.initialize`, which is not run."""
  calls = []
  monkeypatch.setattr(
    jax.distributed, "initialize", lambda *a, **k: calls.append((a, k))
  )
  for name in list(os.environ):
    if name.startswith(("SLURM_", "TPU_", "MEGASCALE_", "JAX_")):
      monkeypatch.delenv(name)
  return calls


SLURM = dict(SLURM_NTASKS="2", SLURM_STEP_NODELIST="n[1-2]", SLURM_PROCID="0")


@pytest.mark.parametrize(
  "variables, joins",
  [
    ({}, False),
    (SLURM, True),
    (dict(SLURM, SLURM_NTASKS="1"), False),
    (dict(SLURM_NTASKS="2"), False),  # Allocated, but not started by srun.
    (dict(TPU_WORKER_HOSTNAMES="a,b", TPU_ML_PLATFORM="JAX"), True),
    (dict(TPU_WORKER_HOSTNAMES="localhost", TPU_ML_PLATFORM="JAX"), False),
    (dict(TPU_WORKER_HOSTNAMES="a", MEGASCALE_NUM_SLICES="2"), True),
    (dict(TPU_ML_PLATFORM="JAX"), True),  # Its metadata server will tell.
  ],
)
def test_who_joins(initialize, monkeypatch, variables, joins):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  multihost.join_pod()
  assert initialize == [((), {})] * joins


def test_a_lone_tpu_goes_on(initialize, monkeypatch):
  def fails():
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(jax.distributed, "initialize", fails)
  monkeypatch.setenv("TPU_ML_PLATFORM", "JAX")
  multihost.join_pod()
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
  with pytest.raises(ValueError):
    multihost.join_pod()


def test_half_a_description_of_the_group(initialize, monkeypatch):
  monkeypatch.setenv(multihost.PROCESSES, "2")
  with pytest.raises(ValueError, match="Set all three"):
    multihost.join_pod()


CHILD = """
import jax, numpy as np
from r1router_jax import parallel, pods
pods.join_pod()
pods.join_pod()
first = 2 * jax.process_index()
total, w = jax.pmap(
    lambda w, x: (jax.lax.psum(w * x.sum(), parallel.DATA), w),
    axis_name=parallel.DATA, in_axes=(None, 0), out_axes=None)(
        parallel.born(lambda w: w, parallel.local_mesh(),
                      {"scale": np.float32(3)})["scale"],
        np.arange(first, first + 2, dtype=np.float32))
print("total", float(total), jax.process_count(), float(w),
      pods.agreed(True), pods.agreed(jax.process_index() == 0),
      pods.mine(np.arange(5)).tolist(), pods.mine(np.arange(1)),
      pods.most([first, 5 - first, 4]))
"""


@pytest.mark.slow
def test_two_processes_make_one_job(tmp_path):
  first, second = two_processes.run(CHILD, tmp_path)
  assert "total 18.0 2 3.0 True False [0, 2, 4] [0] [2, 5, 4]" in first
  assert "total 18.0 2 3.0 True False [1, 3] [0] [2, 5, 4]" in second
