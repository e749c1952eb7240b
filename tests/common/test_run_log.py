"""The run log: scalars, times and samples, written once and readable."""

import contextlib
import json
import math
import sys
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from r1router_jax.common import progress, run_log


def parse_strictly(text):
  """Parse JSON, without the NaN that Python's parser would accept."""

  def refuse(name):
    raise ValueError(name)

  return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("bucket", [False, True])
def test_each_step_is_one_line(tmp_path, bucket):
  log = run_log.RunLog(tmp_path / "new" / "run")
  log._metrics._in_bucket = bucket  # Written as a whole, not appended to.
  log.write_scalars(
    1, {"loss": jnp.float32(0.5), "reward": np.float64(0.25), "n": 3}
  )
  log.write_scalars(2, {"loss": np.ones((1,)).mean()})
  lines = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().split("\n")
  assert [parse_strictly(line) for line in lines[:-1]] == [
    {"step": 1, "loss": 0.5, "reward": 0.25, "n": 3},
    {"step": 2, "loss": 1.0},
  ]
  assert run_log.read_metrics(tmp_path / "new" / "run") == [
    parse_strictly(line) for line in lines[:-1]
  ]


def test_number_that_is_not_finite_is_null_with_a_warning(tmp_path, caplog):
  log = run_log.RunLog(tmp_path)
  scalars = {"a": math.nan, "b": jnp.inf, "c": -math.inf, "d": 1.0}
  with caplog.at_level("WARNING", logger="absl"):
    log.write_scalars(1, scalars)
  assert [record.getMessage() for record in caplog.records] == [
    "a is nan; written as null.",
    "b is inf; written as null.",
    "c is -inf; written as null.",
  ]
  line = parse_strictly((tmp_path / "metrics.jsonl").read_text())
  assert line == {"step": 1, "a": None, "b": None, "c": None, "d": 1.0}


@pytest.mark.parametrize("value", ["x", np.zeros(2), None, [1, 2]])
def test_scalar_that_is_not_one_number_is_rejected(tmp_path, value):
  with pytest.raises(ValueError, match="'loss' is not one number"):
    run_log.RunLog(tmp_path).write_scalars(1, {"loss": value})
  assert run_log.read_metrics(tmp_path) == []


@pytest.mark.parametrize("cut", range(1, 30))
def test_killed_run_continues_without_torn_or_later_lines(tmp_path, cut):
  first = run_log.RunLog(tmp_path)
  for step in (1, 2, 3):
    first.write_scalars(step, {"loss": step})
  path = tmp_path / "metrics.jsonl"
  # Half a line at the end, as of a killed process.
  path.write_text(path.read_text()[:-cut])
  # The newest checkpoint is that of step 1.
  resumed = run_log.RunLog(tmp_path, after=1)
  for step in (2, 3, 4):
    resumed.write_scalars(step, {"loss": 10 * step})
  lines = [parse_strictly(line) for line in path.read_text().splitlines()]
  assert [line["loss"] for line in lines] == [1, 20, 30, 40]
  assert run_log.read_metrics(tmp_path) == lines


def test_metrics_of_a_new_run_are_empty(tmp_path):
  assert run_log.read_metrics(tmp_path) == []


def set_clock(monkeypatch, *seconds):
  """Let the log read these times, one after the other."""
  clock = iter(seconds)
  monkeypatch.setattr(
    run_log,
    "time",
    types.SimpleNamespace(perf_counter=lambda: next(clock), time=lambda: 0.0),
  )


def test_attributed_seconds_are_taken_from_the_outer_phase(
  tmp_path, monkeypatch
):
  set_clock(monkeypatch, 0.0, 10.0)
  log = run_log.RunLog(tmp_path)
  with log.time_phase("data"):
    pass
  log.attribute_seconds(dict(rollout=7.0, reward=2.0), within="data")
  wanted = {
    "step": 1,
    "seconds/data": 1.0,
    "seconds/rollout": 7.0,
    "seconds/reward": 2.0,
  }
  assert log.write_scalars(1, {}) == wanted
  assert run_log.read_metrics(tmp_path) == [wanted]


def test_timed_seconds_go_with_the_next_line(tmp_path, monkeypatch):
  set_clock(monkeypatch, 0.0, 1.0, 5.0, 5.5, 7.0, 9.0)
  log = run_log.RunLog(tmp_path)
  for _ in range(2):
    with log.time_phase("rollout"):
      pass
  log.write_scalars(1, {})
  with pytest.raises(KeyError), log.time_phase("update"):
    raise KeyError
  log.write_scalars(2, {})
  assert run_log.read_metrics(tmp_path) == [
    {"step": 1, "seconds/rollout": 1.5},
    {"step": 2, "seconds/update": 2.0},
  ]


def test_only_process_0_writes(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  log = run_log.RunLog(tmp_path, wandb="routers")
  log.write_scalars(1, {"loss": 1.0})
  log.write_samples(1, [make_group(1)])
  assert list(progress.show_progress(range(3), "x")) == [0, 1, 2]
  # Nothing is written, and nothing is shown.
  assert not list(tmp_path.iterdir())
  assert capsys.readouterr() == ("", "")


# ---- TensorBoard, Weights & Biases.


def read_tensorboard(workdir):
  """Return {tag: {step: value}}, as TensorBoard itself reads the files."""
  found = event_accumulator.EventAccumulator(str(workdir / "tensorboard"))
  # TensorBoard reads all event files and drops what newer ones replace.
  found.Reload()
  points = {
    tag: [(each.step, each.value) for each in found.Scalars(tag)]
    for tag in found.Tags()["scalars"]
  }
  for tag, line in points.items():
    assert len(dict(line)) == len(line), tag  # No step twice.
  return {tag: dict(line) for tag, line in points.items()}


def test_tensorboard_has_the_scalars_of_the_file(tmp_path):
  log = run_log.RunLog(tmp_path)
  for step in (5, 10):
    log.write_scalars(
      step, {"loss": 1 / step, "reward/total": step, "bad": math.nan}
    )
    # Nothing is buffered: a run may be killed at any time.
    assert step in read_tensorboard(tmp_path)["loss"]
  seen = read_tensorboard(tmp_path)
  assert seen == {
    "loss": {5: np.float32(0.2), 10: np.float32(0.1)},
    "reward/total": {5: 5.0, 10: 10.0},
  }


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_tensorboard_drops_later_points_of_a_killed_run(tmp_path, after):
  """Even if the run is started three times within one second."""
  first = run_log.RunLog(tmp_path)
  for step in (1, 2, 3):
    first.write_scalars(step, {"loss": step, "gone": 0.0})
  for scale in (10, 100):
    resumed = run_log.RunLog(tmp_path, after=after)
    for step in range(after + 1, 5):
      resumed.write_scalars(step, {"loss": scale * step})
  seen = read_tensorboard(tmp_path)
  assert seen["loss"] == {
    line["step"]: line["loss"] for line in run_log.read_metrics(tmp_path)
  }
  assert seen["loss"] == {
    step: step if step <= after else 100 * step for step in (1, 2, 3, 4)
  }
  assert set(seen.get("gone", ())) == set(range(1, after + 1))


@pytest.mark.parametrize(
  "clocks",
  [
    (1.79e9, 1.79e9 + 100, 1.79e9 + 200),
    (1.79e9, 1.79e9, 1.79e9),
    (1.79e9, 1.79e9 - 60, 1.79e9 - 30),
    (1.79e9, 1000.0, 0.0),  # A machine without a clock.
    (1.79e9, 1.01e10, 1.79e9),
  ],
)
@pytest.mark.parametrize("after", [0, 3])
def test_tensorboard_reads_the_newest_points_whatever_the_clock_says(
  tmp_path, monkeypatch, clocks, after
):
  for start, clock in enumerate(clocks):
    monkeypatch.setattr("time.time", lambda clock=clock: clock)
    log = run_log.RunLog(tmp_path, after=after if start else 0)
    for step in range(after + 1 if start else 1, 7):
      log.write_scalars(step, {"loss": 100 * start + step})
  monkeypatch.undo()
  seen = read_tensorboard(tmp_path)["loss"]
  assert seen == {s: s if s <= after else 200 + s for s in range(1, 7)}


def test_missing_wandb_is_rejected(tmp_path, monkeypatch):
  # An import of wandb fails from here on.
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(
    ValueError,
    match="config.wandb is 'routers', and wandb is not installed: pip install",
  ):
    run_log.RunLog(tmp_path, wandb="routers")


@pytest.mark.parametrize(
  "error, code", [(None, 0), (ValueError, 1), (KeyboardInterrupt, 1)]
)
def test_wandb_gets_options_and_all_lines(tmp_path, monkeypatch, error, code):
  """A stand-in, which keeps what it was sent."""
  run = mock.MagicMock()
  fake = types.SimpleNamespace(init=mock.Mock(return_value=run))
  monkeypatch.setitem(sys.modules, "wandb", fake)
  log = run_log.RunLog(tmp_path, wandb="routers")
  log.write_options(dict(seed=3))
  with contextlib.suppress(ValueError, KeyboardInterrupt):
    with contextlib.ExitStack() as ends:
      ends.push(log.finish)
      log.write_scalars(1, {"loss": 0.5})
      assert not run.finish.called
      if error:
        raise error
  assert run.config.update.call_args.args == (dict(seed=3),)
  assert run.log.call_args.args == ({"loss": 0.5},)
  run.finish.assert_called_once_with(exit_code=code)


def test_options_are_written_by_process_0_alone(tmp_path, monkeypatch):
  run_log.RunLog(tmp_path).write_options(dict(seed=3, names=["a"]))
  path = tmp_path / "config.json"
  assert parse_strictly(path.read_text()) == dict(seed=3, names=["a"])
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  run_log.RunLog(tmp_path).write_options(dict(seed=4))
  assert parse_strictly(path.read_text())["seed"] == 3


@pytest.mark.slow
def test_wandb_resumes_the_run_of_the_folder(tmp_path, monkeypatch):
  wandb = pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  names = []
  for after in (0, 2, 0):
    log = run_log.RunLog(tmp_path, after=after, wandb="routers")
    names.append(log._wandb.id)
    log.write_scalars(after + 1, {"loss": 0.5, "bad": math.nan})
    assert log._wandb.summary["loss"] == 0.5
    assert "bad" not in log._wandb.summary.keys()
    wandb.finish()
  # The third one starts anew, after step 0.
  assert names[0] == names[1] != names[2]
  assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 3


# ---- Samples.


def make_group(n):
  return dict(
    id=f"q/{n}",
    kind="plan",
    question="Who?\x1b[2J",
    history=[["Where?", "Here"]],
    sub_question="",
    gold=["Ann"],
    responses=[f"a{n}", "b\r"],
    rewards=[0.9, 0.1],
    advantages=[1.0, -1.0],
  )


@pytest.mark.parametrize("cut", [0, 1, 30, 80])
def test_samples_of_a_killed_run_are_cut_at_the_checkpoint(tmp_path, cut):
  first = run_log.RunLog(tmp_path)
  assert run_log.read_samples(tmp_path) == []
  for step in (5, 10):
    first.write_samples(step, [make_group(1), make_group(2)])
  path = tmp_path / "samples.jsonl"
  path.write_text(path.read_text()[: len(path.read_text()) - cut])
  resumed = run_log.RunLog(tmp_path, after=5)
  resumed.write_samples(10, [make_group(3)])
  lines = [parse_strictly(line) for line in path.read_text().splitlines()]
  assert (
    lines
    == run_log.read_samples(tmp_path)
    == [
      dict(make_group(1), step=5),
      dict(make_group(2), step=5),
      dict(make_group(3), step=10),
    ]
  )


def test_samples_are_logged_as_excerpts(tmp_path, caplog):
  with caplog.at_level("INFO", logger="absl"):
    run_log.RunLog(tmp_path).write_samples(5, [make_group("x" * 500)])
  (line,) = (each.getMessage() for each in caplog.records)
  assert line == f"5, plan, Who?: 0.90 for a{'x' * 119}…; 0.10 for b"


SCALARS = b"".join(b'{"step": %d, "loss": 0.5}\n' % n for n in range(1, 6))
ODD_LINES = [
  b'{"step": 3, "lo',
  b"\xff\xfe\x00binary",
  b'{"step": "x", "loss": 1}',
  b'{"step": null}',
  b'{"step": [1]}',
  b'{"step": -5}',
  b'{"step": 1.5}',
  b'{"step": 1, "loss": NaN}',
  b'{"step": 1, "loss": Infinity}',
  b'{"step": 1, "loss": "<b>"}',
  b'{"step": 1, "loss": 1' + b"0" * 400 + b"}",
  b"[" * 100_000,
  b"7",
]


@pytest.mark.parametrize("line", ODD_LINES, ids=range(len(ODD_LINES)))
def test_odd_line_of_scalars_is_named_and_dropped(tmp_path, caplog, line):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(line + b"\n" + SCALARS)
  log = run_log.RunLog(tmp_path, after=3)
  assert "metrics.jsonl: 1 damaged lines (1)" in caplog.text
  assert [kept["step"] for kept in log.kept_lines] == [1, 2, 3]
  log.write_scalars(4, {"loss": 1.0})
  assert path.read_bytes().count(b"\n") == 4
  assert [x["step"] for x in run_log.read_metrics(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
  "change",
  [
    dict(responses="a"),
    dict(rewards=[1.0]),
    dict(rewards=["<b>", 1.0]),
    dict(history=[["a"]]),
    dict(gold=None),
    dict(kind=5),
  ],
)
def test_odd_group_of_samples_is_not_shown(tmp_path, caplog, change):
  groups = [dict(make_group(n), step=n) for n in (1, 2)]
  lines = [json.dumps(groups[0] | change), json.dumps(groups[1])]
  (tmp_path / "samples.jsonl").write_text("\n".join(lines))
  assert run_log.read_samples(tmp_path) == groups[1:]
  assert "samples.jsonl: 1 damaged lines (1)" in caplog.text
