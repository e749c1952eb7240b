"""Which processes join a distributed job, and what they agree on."""

import os

import jax
import pytest

from r1router_jax.parallel import multihost
from tests import two_processes


@pytest.fixture
def initialize(monkeypatch):
  """Record the calls of `jax.distributed.initialize` instead of running it."""
  calls = []
  monkeypatch.setattr(
    jax.distributed, "initialize", lambda *a, **k: calls.append((a, k))
  )
  # The machine that runs the tests may be in such a job itself.
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
    # Allocated, but not started by srun.
    (dict(SLURM_NTASKS="2"), False),
    (dict(TPU_WORKER_HOSTNAMES="a,b", TPU_ML_PLATFORM="JAX"), True),
    (dict(TPU_WORKER_HOSTNAMES="localhost", TPU_ML_PLATFORM="JAX"), False),
    (dict(TPU_WORKER_HOSTNAMES="a", MEGASCALE_NUM_SLICES="2"), True),
    # Its metadata server knows the other hosts.
    (dict(TPU_ML_PLATFORM="JAX"), True),
  ],
)
def test_environment_decides_who_joins(
  initialize, monkeypatch, variables, joins
):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  multihost.initialize_distributed()
  assert initialize == [((), {})] * joins


def test_tpu_without_other_hosts_runs_alone(initialize, monkeypatch):
  def fails():
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(jax.distributed, "initialize", fails)
  monkeypatch.setenv("TPU_ML_PLATFORM", "JAX")
  multihost.initialize_distributed()
  # A TPU with other hosts must not go on without them.
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
  with pytest.raises(ValueError):
    multihost.initialize_distributed()


def test_incomplete_variables_are_rejected(initialize, monkeypatch):
  monkeypatch.setenv(multihost.NUM_PROCESSES_VAR, "2")
  with pytest.raises(ValueError, match="Set all three"):
    multihost.initialize_distributed()


CHILD = """
import jax, numpy as np
from r1router_jax.parallel import mesh, multihost
multihost.initialize_distributed()
multihost.initialize_distributed()
first = 2 * jax.process_index()
weight = mesh.init_sharded(
    lambda w: w, mesh.local_mesh(), {"scale": np.float32(3)})["scale"]
total, weight = jax.pmap(
    lambda w, x: (jax.lax.psum(w * x.sum(), mesh.DATA), w),
    axis_name=mesh.DATA, in_axes=(None, 0), out_axes=None)(
        weight, np.arange(first, first + 2, dtype=np.float32))
print("total", float(total), jax.process_count(), float(weight),
      multihost.all_hosts_agree(True),
      multihost.all_hosts_agree(jax.process_index() == 0),
      multihost.local_slice(np.arange(5)).tolist(),
      multihost.max_over_hosts([first, 5 - first, 4]))
"""


@pytest.mark.slow
def test_two_processes_make_one_job(tmp_path):
  first, second = two_processes.run_two_processes(CHILD, tmp_path)
  assert "total 18.0 2 3.0 True False [0, 2, 4] [2, 5, 4]" in first
  assert "total 18.0 2 3.0 True False [1, 3] [2, 5, 4]" in second
