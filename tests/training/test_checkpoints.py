"""The newest state that is whole comes back, whatever befell the disk."""

import multiprocessing
import pathlib

import jax
import numpy as np
import optax
import pytest

from r1router_jax.training import checkpoints


def params():
  rng = np.random.default_rng(0)
  return {
    "layers": {"q": {"w": rng.normal(size=(2, 3, 4)).astype(np.float32)}},
    "embed": rng.normal(size=(5, 3)).astype(np.float32),
  }


def assert_equal(got, wanted):
  assert jax.tree.structure(got) == jax.tree.structure(wanted)
  jax.tree.map(np.testing.assert_array_equal, got, wanted)


def state(step):
  tree = jax.tree.map(lambda x: x + step, params())
  return step, tree, optax.adamw(1e-3).init(tree)


def save(workdir, *steps):
  with checkpoints.Checkpoints(workdir) as saved:
    for step in steps:
      saved.save(step, jax.tree.map(np.asarray, state(step)), {"n": step})


def restored(workdir):
  with checkpoints.Checkpoints(workdir) as saved:
    return saved.restore(state(0))


def test_the_newest_state_comes_back(tmp_path):
  assert restored(tmp_path) == (None, {})  # Nothing was saved yet.
  save(tmp_path, 10, 20, 30, 40)
  found, about = restored(tmp_path)
  assert_equal(found, state(40))
  assert about == {"n": 40}
  kept = {p.name for p in (tmp_path / "checkpoints").iterdir()}
  assert kept == {"20", "30", "40"}


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize(
  "harm",
  [
    flip,
    pathlib.Path.unlink,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes()[:-9]),
    lambda path: path.write_bytes(b"x" * 99),
  ],
  ids=["flipped", "deleted", "empty", "truncated", "garbage"],
)
def test_a_damaged_state_gives_way_to_the_one_before(tmp_path, harm, caplog):
  save(tmp_path, 1, 2)
  files = [
    f for f in (tmp_path / "checkpoints" / "2").rglob("*") if f.is_file()
  ]
  harm(max(files, key=lambda f: f.stat().st_size))  # The numbers.
  with checkpoints.Checkpoints(tmp_path) as saved:
    found, about = saved.restore(state(0))
    assert_equal(found, state(1))
    assert about == {"n": 1}
    assert "Checkpoint 2 of" in caplog.text and "checkpoint 1 i" in caplog.text
    saved.save(2, jax.tree.map(np.asarray, state(2)), {"n": 3})
  assert restored(tmp_path)[1] == {"n": 3}


def test_never_from_scratch_where_there_was_something(tmp_path):
  save(tmp_path, 1, 2)
  with (
    checkpoints.Checkpoints(tmp_path) as saved,
    pytest.raises(
      ValueError, match=r"None of the checkpoints \[1, 2\] .* another workdir"
    ),
  ):
    saved.restore(state(0)[1])
  assert_equal(restored(tmp_path)[0], state(2))  # And all are still there.


@pytest.mark.parametrize("dtype", [np.float32, np.int32, bool, "bfloat16"])
def test_a_checksum_is_the_sum_that_it_says(dtype):
  rng = np.random.default_rng(0)
  x = rng.integers(0, 2, (3, 4, 5)).astype(dtype)
  bits = {4: np.uint32, 2: np.uint16, 1: np.uint8}[x.itemsize]
  slow = (
    sum((2 * i + 1) * int(b) for i, b in enumerate(x.view(bits).reshape(-1)))
    % 2**32
  )
  assert np.asarray(checkpoints.checksums([x])).tolist() == [slow]
  split = jax.device_put(
    x.repeat(8, 0), jax.NamedSharding(jax.make_mesh((8,), ("d",)), jax.P("d"))
  )
  np.testing.assert_array_equal(
    checkpoints.checksums(split), checkpoints.checksums(x.repeat(8, 0))
  )


def _work_in(workdir, ready, leave):
  with checkpoints.Checkpoints(workdir):
    ready.set()
    leave.wait(60)


def test_one_run_owns_a_workdir(tmp_path):
  spawn = multiprocessing.get_context("spawn")
  ready, leave = spawn.Event(), spawn.Event()
  other = spawn.Process(target=_work_in, args=(tmp_path, ready, leave))
  other.start()
  assert ready.wait(60)
  with pytest.raises(ValueError, match=f"in use by process {other.pid} on"):
    checkpoints.Checkpoints(tmp_path)
  other.kill()  # A lock does not outlive its owner.
  other.join()
  save(tmp_path, 1)
