"""A run whose knowledge bases are served by a process that dies meanwhile."""

import threading

import jax
import numpy as np
import pytest

from r1router_jax.common import http_client
from r1router_jax.retrieval import remote_kb
from r1router_jax.retrieval.retriever import KINDS
from r1router_jax.train import train
from tests.retrieval import kb_servers
from tests.test_train import config, scalars

STEPS = 3


@pytest.fixture(scope="module")
def servers():
  """Processes that serve the three; all end with the tests."""
  started = []

  def start(ports=None):
    started.append(kb_servers.process(list(KINDS), ports))
    return started[-1]

  yield start
  for child, _ in started:
    child.kill()


def run(addresses, workdir):
  where = ",".join(
    f"{kb}={at}" for kb, at in zip(KINDS, addresses, strict=True)
  )
  return train(
    config(
      "step_grpo",
      **{
        "total_steps": STEPS,
        "every.checkpoint": 50,
        "data.kb": where,
        "data.batch_rows": 1,
        "step_grpo.learn_rows": 1,
        "step_grpo.rollouts": "online",
        "step_grpo.rename": 0.0,
      },
    ),
    workdir,
  )


def ports(addresses):
  return [int(at.rsplit(":", 1)[1]) for at in addresses]


def killed_at(monkeypatch, search, child, then=lambda: None):
  """Kills the server when so many searches were made."""
  made, find = [], remote_kb.RemoteKB._find

  def counted(self, queries, k):
    made.append(queries)
    if len(made) == search:
      child.kill()
      child.wait()
      then()
    return find(self, queries, k)

  monkeypatch.setattr(remote_kb.RemoteKB, "_find", counted)
  return made


@pytest.fixture(scope="module")
def whole(servers, tmp_path_factory):
  """A run that nothing happens to."""
  workdir = tmp_path_factory.mktemp("whole")
  _, addresses = servers()
  return run(addresses, workdir), scalars(workdir)


def same(trained, workdir, whole):
  for here, there in zip(scalars(workdir), whole[1], strict=True):
    assert here == there
  jax.tree.map(np.testing.assert_array_equal, trained.params, whole[0].params)


@pytest.mark.long
def test_a_server_that_comes_back_costs_nothing(
  servers, whole, tmp_path, monkeypatch
):
  child, addresses = servers()
  made = killed_at(
    monkeypatch,
    4,
    child,
    lambda: threading.Timer(1, servers, [ports(addresses)]).start(),
  )
  same(run(addresses, tmp_path), tmp_path, whole)
  assert len(made) > 4


@pytest.mark.long
def test_one_that_stays_dead_ends_the_run_with_a_checkpoint(
  servers, whole, tmp_path, monkeypatch
):
  child, addresses = servers()
  monkeypatch.setattr(http_client, "DEADLINE", 2.0)

  with monkeypatch.context() as patch:
    killed_at(patch, 8, child)
    with pytest.raises(
      http_client.RetrievalError, match="same command goes on"
    ):
      run(addresses, tmp_path)
  done = len(scalars(tmp_path))
  assert 0 < done < STEPS
  servers(ports(addresses))
  same(run(addresses, tmp_path), tmp_path, whole)
