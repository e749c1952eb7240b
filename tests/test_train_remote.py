"""Training runs whose knowledge bases are served by a process that dies."""

import threading

import jax
import numpy as np
import pytest

from r1router_jax.common import http_client
from r1router_jax.common.records import KBS
from r1router_jax.retrieval import remote_kb
from r1router_jax.train import train
from tests.retrieval import kb_servers
from tests.train_runs import load_config, read_scalars

STEPS = 3


@pytest.fixture(scope="module")
def start_servers():
  """Return a function that starts a process which serves all three."""
  started = []

  def start(ports=None):
    started.append(kb_servers.start_process(list(KBS), ports))
    return started[-1]

  yield start
  for process, _ in started:
    process.kill()


def train_online(addresses, workdir):
  """Train for a few iterations with served knowledge bases."""
  places = zip(KBS, addresses, strict=True)
  config = load_config(
    "step_grpo",
    **{
      "total_steps": STEPS,
      "checkpoint_every": 50,
      "data.kb_dir": ",".join(f"{kb}={address}" for kb, address in places),
      "data.prompts_per_shard": 1,
      "step_grpo.update_batch_size": 1,
      "step_grpo.rollout_mode": "online",
    },
  )
  return train(config, workdir)


def ports_of(addresses):
  return [int(address.rsplit(":", 1)[1]) for address in addresses]


def kill_at_search(monkeypatch, number, process, then=lambda: None):
  """Kill the server at a search, and return the list of all searches."""
  searches, search = [], remote_kb.RemoteKB._search_uncached

  def counting_search(self, queries, k):
    searches.append(queries)
    # Before this search is sent.
    if len(searches) == number:
      process.kill()
      process.wait()
      then()
    return search(self, queries, k)

  monkeypatch.setattr(remote_kb.RemoteKB, "_search_uncached", counting_search)
  return searches


@pytest.fixture(scope="module")
def undisturbed(start_servers, tmp_path_factory):
  """The policy and the scalars of a run whose server stays alive."""
  workdir = tmp_path_factory.mktemp("undisturbed")
  _, addresses = start_servers()
  return train_online(addresses, workdir), read_scalars(workdir)


def assert_same_run(trained, workdir, undisturbed):
  assert read_scalars(workdir) == undisturbed[1]
  jax.tree.map(
    np.testing.assert_array_equal, trained.params, undisturbed[0].params
  )


@pytest.mark.long
def test_server_that_comes_back_changes_nothing(
  start_servers, undisturbed, tmp_path, monkeypatch
):
  process, addresses = start_servers()
  # The server is back on the same ports after a second.
  restart = threading.Timer(1, start_servers, [ports_of(addresses)])
  searches = kill_at_search(monkeypatch, 4, process, restart.start)
  trained = train_online(addresses, tmp_path)
  assert_same_run(trained, tmp_path, undisturbed)
  assert len(searches) > 4


@pytest.mark.long
def test_server_that_stays_dead_ends_the_run_with_a_checkpoint(
  start_servers, undisturbed, tmp_path, monkeypatch
):
  process, addresses = start_servers()
  # Give up after two seconds instead of minutes.
  monkeypatch.setattr(http_client, "DEADLINE_SECONDS", 2.0)
  with monkeypatch.context() as patch:
    kill_at_search(patch, 8, process)
    with pytest.raises(
      http_client.RemoteServiceError, match="same command goes on"
    ):
      train_online(addresses, tmp_path)
  assert 0 < len(read_scalars(tmp_path)) < STEPS

  # The same command, with the servers back, ends like the undisturbed run.
  start_servers(ports_of(addresses))
  trained = train_online(addresses, tmp_path)
  assert_same_run(trained, tmp_path, undisturbed)
