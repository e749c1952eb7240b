"""The newest whole state is restored, whatever happened to the disk."""

import errno
import json
import multiprocessing
import pathlib
import re
import resource
import shutil

import jax
import numpy as np
import optax
import pytest

from r1router_jax.common.errors import UserError
from r1router_jax.training import checkpoints


def make_params():
  rng = np.random.default_rng(0)
  return {
    "layers": {"q": {"w": rng.normal(size=(2, 3, 4)).astype(np.float32)}},
    "embed": rng.normal(size=(5, 3)).astype(np.float32),
  }


def assert_equal(got, wanted):
  assert jax.tree.structure(got) == jax.tree.structure(wanted)
  jax.tree.map(np.testing.assert_array_equal, got, wanted)


def make_state(step):
  # A state with parameters and an optimizer, different at each step.
  tree = jax.tree.map(lambda x: x + step, make_params())
  return step, tree, optax.adamw(1e-3).init(tree)


def save_states(workdir, *steps):
  with checkpoints.Checkpoints(workdir) as saved:
    for step in steps:
      saved.save(step, jax.tree.map(np.asarray, make_state(step)), {"n": step})


def restore_newest(workdir):
  with checkpoints.Checkpoints(workdir) as saved:
    return saved.restore(make_state(0))


def test_newest_state_is_restored(tmp_path):
  assert restore_newest(tmp_path) == (None, {})  # Nothing was saved yet.
  save_states(tmp_path, 10, 20, 30, 40)
  found, metadata = restore_newest(tmp_path)
  assert_equal(found, make_state(40))
  assert metadata == {"n": 40}
  # The three newest remain.
  kept = {p.name for p in (tmp_path / "checkpoints").iterdir()}
  assert kept == {"20", "30", "40"}


def flip_bit(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize(
  "harm",
  [
    flip_bit,
    pathlib.Path.unlink,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes()[:-9]),
    lambda path: path.write_bytes(b"x" * 99),
  ],
  ids=["flipped", "deleted", "empty", "truncated", "garbage"],
)
def test_damaged_state_is_replaced_by_the_one_before(tmp_path, harm, caplog):
  save_states(tmp_path, 1, 2)
  files = [
    f for f in (tmp_path / "checkpoints" / "2").rglob("*") if f.is_file()
  ]
  # The largest file holds the numbers.
  harm(max(files, key=lambda f: f.stat().st_size))  # The numbers.
  with checkpoints.Checkpoints(tmp_path) as saved:
    found, metadata = saved.restore(make_state(0))
    assert_equal(found, make_state(1))
    assert metadata == {"n": 1}
    assert "Checkpoint 2 of" in caplog.text and "checkpoint 1 i" in caplog.text
    saved.save(2, jax.tree.map(np.asarray, make_state(2)), {"n": 3})
  assert restore_newest(tmp_path)[1] == {"n": 3}


def about_file(workdir, step):
  return workdir / "checkpoints" / str(step) / "about" / "metadata"


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp("saved")
  save_states(folder, 1, 2)
  return folder


@pytest.fixture
def workdir(two_saved, tmp_path):
  """A folder with the states of steps 1 and 2."""
  return shutil.copytree(two_saved, tmp_path / "run")


@pytest.mark.parametrize("number", range(12))
def test_flipped_bit_of_metadata_is_found(workdir, number):
  path = about_file(workdir, 2)
  data = bytearray(path.read_bytes())
  bits = np.random.default_rng(number).integers((len(data), 8))
  data[bits[0]] ^= 1 << bits[1]
  path.write_bytes(data)
  _, metadata = restore_newest(workdir)
  assert metadata == {"n": 1}


@pytest.mark.parametrize(
  "change",
  [
    dict(n=3),
    dict(checksums=[0] * 9),
    dict(digest="0" * 64),
    dict(digest=None),  # As of an older version.
    dict(more=1),
  ],
)
def test_changed_metadata_is_found(workdir, change, caplog):
  path = about_file(workdir, 2)
  about = json.loads(path.read_text()) | change
  about = {name: value for name, value in about.items() if value is not None}
  path.write_text(json.dumps(about))
  assert restore_newest(workdir)[1] == {"n": 1}
  assert "its metadata was changed, or is of an older" in caplog.text


def test_state_of_another_step_is_found(workdir):
  folder = workdir / "checkpoints"
  (folder / "2").rename(folder / "6")
  assert restore_newest(workdir)[1] == {"n": 1}


@pytest.mark.parametrize(
  "make",
  [
    lambda folder: (folder / "99999999").mkdir(),
    lambda folder: (folder / "latest").mkdir(),
    lambda folder: (folder / "7").write_text("x"),
    lambda folder: (folder / "3.orbax-checkpoint-tmp-1").mkdir(),
    lambda folder: (folder / "8").symlink_to(folder.parent.parent),
    lambda folder: (folder / "8").symlink_to(folder / "nowhere"),
  ],
  ids="empty,named,file,unfinished,link,dangling".split(","),
)
def test_what_is_no_state_is_passed_over(workdir, make):
  make(workdir / "checkpoints")
  assert restore_newest(workdir)[1] == {"n": 2}


@pytest.mark.parametrize(
  "error",
  [
    OSError(5, "Input/output error"),
    OSError(116, "Stale file handle"),
    MemoryError("cannot allocate"),
    RuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
  ],
  ids=lambda error: str(error)[:20],
)
@pytest.mark.parametrize("fails", [1, 99])
def test_state_that_cannot_be_read_is_not_lost(
  workdir, monkeypatch, error, fails
):
  before = about_file(workdir, 2).read_bytes()
  with checkpoints.Checkpoints(workdir) as saved:
    restore, tries = saved._manager.restore, []

    def failing_restore(step, **options):
      tries.append(step)
      if step == 2 and len(tries) <= fails:
        raise error
      return restore(step, **options)

    monkeypatch.setattr(saved._manager, "restore", failing_restore)
    _, metadata = saved.restore(make_state(0))
  # Once may be chance; if it fails again, the state is kept aside.
  assert metadata == {"n": 2 if fails == 1 else 1}
  if fails > 1:
    (kept,) = (workdir / "damaged").iterdir()
    assert (kept / "about" / "metadata").read_bytes() == before


@pytest.mark.parametrize("step", [3, 4, 5])
def test_state_that_is_not_the_newest_is_not_saved_silently(tmp_path, step):
  save_states(tmp_path, 5)
  with checkpoints.Checkpoints(tmp_path) as saved:
    with pytest.raises(UserError, match=f"Step {step} is not saved: 5 is the"):
      saved.save(step, make_state(step), {"n": step})
  assert restore_newest(tmp_path)[1] == {"n": 5}


@pytest.fixture
def limit_files():
  """Return a function that limits the bytes of each file that is written."""
  old, most = resource.getrlimit(resource.RLIMIT_FSIZE)
  yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
  resource.setrlimit(resource.RLIMIT_FSIZE, (old, most))


def make_large_state(step):
  # Noise, which is not compressed.
  return {"w": np.random.default_rng(step).normal(size=100_000)}


@pytest.mark.parametrize("is_last", [False, True])
def test_full_disk_is_an_error_of_the_system(tmp_path, limit_files, is_last):
  with (
    pytest.raises(OSError, match="the same command goes on") as caught,
    checkpoints.Checkpoints(tmp_path) as saved,
  ):
    saved.save(1, make_large_state(1), {"n": 1})
    saved._manager.wait_until_finished()
    limit_files(1 << 16)
    saved.save(2, make_large_state(2), {"n": 2})
    # It is written in the background, so that this finds the fault.
    if not is_last:
      saved.save(3, make_large_state(3), {"n": 3})
  assert caught.value.errno == errno.EFBIG
  assert caught.value.filename == str(tmp_path / "checkpoints")
  limit_files(resource.RLIM_INFINITY)
  with checkpoints.Checkpoints(tmp_path) as saved:
    found, metadata = saved.restore(make_large_state(0))
    assert_equal(found, make_large_state(1))
    assert metadata == {"n": 1}
    saved.save(2, make_large_state(2), {"n": 2})
  assert (tmp_path / "checkpoints/2").is_dir()


@pytest.mark.parametrize(
  "error, code",
  [
    # As TensorStore words it.
    (
      ValueError(
        "RESOURCE_EXHAUSTED: Failed writing: Failed to write 9 bytes to file "
        "4: No space left on device [os_error_code='28']"
      ),
      errno.ENOSPC,
    ),
    (ValueError("Failed to open [os_error_code='30'] [x='1']"), errno.EROFS),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), errno.EDQUOT),
    (ValueError("of another kind"), None),
    (OSError("of a bucket"), None),
  ],
)
def test_errors_of_the_disk_keep_their_number(
  tmp_path, monkeypatch, error, code
):
  def fail(*_, **options):
    raise error

  with checkpoints.Checkpoints(tmp_path) as saved:
    monkeypatch.setattr(saved._manager, "save", fail)
    with pytest.raises((OSError, ValueError)) as caught:
      saved.save(1, make_large_state(1), {})
  if code is None:
    assert caught.value is error
  else:
    assert caught.value.errno == code and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_state_that_is_not_finite_is_not_saved(tmp_path, number):
  save_states(tmp_path, 1)
  step, params, opt = make_state(2)
  params["embed"][1, 2] = number
  with checkpoints.Checkpoints(tmp_path) as saved:
    with pytest.raises(FloatingPointError, match=re.escape("2 is not finite")):
      saved.save(2, (step, params, opt), {"n": 2})
  assert restore_newest(tmp_path)[1] == {"n": 1}


def test_run_does_not_start_anew_if_all_states_are_damaged(tmp_path):
  save_states(tmp_path, 1, 2)
  with (
    checkpoints.Checkpoints(tmp_path) as saved,
    pytest.raises(
      ValueError, match=r"None of the checkpoints \[1, 2\] .* another workdir"
    ),
  ):
    saved.restore(make_state(0)[1])
  assert_equal(
    restore_newest(tmp_path)[0], make_state(2)
  )  # And all are still there.


@pytest.mark.parametrize("dtype", [np.float32, np.int32, bool, "bfloat16"])
def test_checksum_is_its_formula_on_any_devices(dtype):
  rng = np.random.default_rng(0)
  x = rng.integers(0, 2, (3, 4, 5)).astype(dtype)
  # The oracle: the sum in Python's integers.
  bits = {4: np.uint32, 2: np.uint16, 1: np.uint8}[x.itemsize]
  slow = (
    sum((2 * i + 1) * int(b) for i, b in enumerate(x.view(bits).reshape(-1)))
    % 2**32
  )
  assert np.asarray(checkpoints.leaf_checksums([x])).tolist() == [slow]
  # The same array over eight devices.
  split = jax.device_put(
    x.repeat(8, 0), jax.NamedSharding(jax.make_mesh((8,), ("d",)), jax.P("d"))
  )
  np.testing.assert_array_equal(
    checkpoints.leaf_checksums(split),
    checkpoints.leaf_checksums(x.repeat(8, 0)),
  )


def _hold_workdir(workdir, ready, leave):
  with checkpoints.Checkpoints(workdir):
    ready.set()
    leave.wait(60)


def test_workdir_belongs_to_one_process_at_a_time(tmp_path):
  # A forked process would inherit JAX's threads.
  spawn = multiprocessing.get_context("spawn")
  ready, leave = spawn.Event(), spawn.Event()
  other = spawn.Process(target=_hold_workdir, args=(tmp_path, ready, leave))
  other.start()
  assert ready.wait(60)
  with pytest.raises(ValueError, match=f"in use by process {other.pid} on"):
    checkpoints.Checkpoints(tmp_path)
  other.kill()  # A lock does not outlive its owner.
  other.join()
  save_states(tmp_path, 1)


@pytest.mark.parametrize("value", [3, 10**400, "x"])
def test_odd_notes_of_orbax_are_one_line(tmp_path, value):
  save_states(tmp_path, 10, 20)
  step = tmp_path / "checkpoints/20"
  path = step / "_CHECKPOINT_METADATA"
  notes = json.loads(path.read_text()) | dict(metrics=value)
  path.write_text(json.dumps(notes | dict(commit_timestamp_nsecs=value)))
  with pytest.raises(UserError, match="_CHECKPOINT_METADATA of a step is dam"):
    restore_newest(tmp_path)
  step.rename(tmp_path / "20")
  assert restore_newest(tmp_path)[1] == {"n": 10}
