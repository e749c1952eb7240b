"""Parallel strategies: one update is the same, however devices are used."""

import jax
import numpy as np
import pytest

from r1router_jax.parallel import strategy
from tests import two_processes
from tests.parallel import update_cases


@pytest.mark.slow
@pytest.mark.parametrize(
  "kind, mesh, micro_batch_size",
  [
    ("pmap", dict(data=-1), 0),
    ("fsdp", dict(data=2, fsdp=2, tensor=2), 2),
    ("fsdp", dict(data=1, fsdp=2, tensor=4), 1),
  ],
)
def test_update_has_the_gradient_of_one_device(kind, mesh, micro_batch_size):
  gradient, metrics = update_cases.run_update(kind, mesh, micro_batch_size)
  assert np.abs(gradient["layers"]["q"]["w"]).max() > 1e-3
  assert_update_of_one_device(jax.tree.leaves(gradient), metrics)


def assert_update_of_one_device(gradient, metrics):
  """Assert that leaves of a gradient, and metrics, are as on one device."""
  expected_gradient, expected = update_cases.run_on_one_device()
  assert metrics.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5)
  # Sums in another order are rounded in another way.
  wanted = jax.tree.leaves(expected_gradient)
  for ours, theirs in zip(gradient, map(np.asarray, wanted), strict=True):
    np.testing.assert_allclose(
      ours, theirs, rtol=1e-3, atol=1e-5 * np.abs(theirs).max()
    )


CHILD = """
import sys
import jax, numpy as np
from r1router_jax.parallel import multihost
multihost.initialize_distributed()
from tests.parallel import update_cases
gradient, metrics = update_cases.run_update("pmap", dict(data=4), 0)
np.savez(f"{sys.argv[1]}/{jax.process_index()}.npz",
         *jax.tree.leaves(gradient), **metrics)
"""


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tmp_path):
  """Under pmap; tests/test_train.py trains under fsdp on two hosts."""
  two_processes.run_two_processes(CHILD, tmp_path, str(tmp_path), timeout=400)
  for host in range(2):
    with np.load(tmp_path / f"{host}.npz") as saved:
      found = dict(saved)
    leaves = [found.pop(name) for name in list(found) if name[:4] == "arr_"]
    assert_update_of_one_device(leaves, found)


@pytest.mark.parametrize(
  "kind, mesh, rollout_mesh, message",
  [
    ("fsdp", dict(data=3), {}, "config.mesh .*does not tile 8 devices"),
    ("pmap", dict(data=4, fsdp=2), {}, "'pmap' keeps them whole .*'fsdp'"),
    ("fsdp", dict(data=8), dict(data=3), "config.rollout_mesh .*not tile"),
    ("ddp", dict(data=8), {}, "config.parallel is 'ddp'"),
  ],
)
def test_impossible_strategy_is_rejected(kind, mesh, rollout_mesh, message):
  with pytest.raises(ValueError, match=message):
    strategy.make_strategy(kind, mesh, rollout_mesh or dict(data=-1))
