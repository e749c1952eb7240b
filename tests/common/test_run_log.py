"""Telemetry: what is written can be read, and harms nobody's terminal."""

import json
import math
import re
import sys
import types
import unicodedata

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from r1router_jax.common import progress, run_log
from r1router_jax.common import text as text_lib


def strict(text):
  def refuse(name):
    raise ValueError(name)

  return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("bucket", [False, True])
def test_a_line_per_step(tmp_path, bucket):
  log = run_log.Telemetry(tmp_path / "new" / "run")
  log._metrics._bucket = bucket
  log.write(1, {"loss": jnp.float32(0.5), "reward": np.float64(0.25), "n": 3})
  log.write(2, {"loss": np.ones((1,)).mean()})
  lines = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().split("\n")
  assert [strict(line) for line in lines[:-1]] == [
    {"step": 1, "loss": 0.5, "reward": 0.25, "n": 3},
    {"step": 2, "loss": 1.0},
  ]
  assert run_log.read(tmp_path / "new" / "run") == [
    strict(line) for line in lines[:-1]
  ]


def test_not_finite_is_null_and_counted(tmp_path):
  log = run_log.Telemetry(tmp_path)
  log.write(1, {"a": math.nan, "b": jnp.inf, "c": -math.inf, "d": 1.0})
  assert log.not_finite == 3
  line = strict((tmp_path / "metrics.jsonl").read_text())
  assert line == {"step": 1, "a": None, "b": None, "c": None, "d": 1.0}


@pytest.mark.parametrize("value", ["x", np.zeros(2), None, [1, 2]])
def test_a_scalar_is_one_number(tmp_path, value):
  with pytest.raises(ValueError, match="'loss' is not one number"):
    run_log.Telemetry(tmp_path).write(1, {"loss": value})
  assert run_log.read(tmp_path) == []


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_killed_run_goes_on(tmp_path, cut):
  first = run_log.Telemetry(tmp_path)
  for step in (1, 2, 3):
    first.write(step, {"loss": step})
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text()[:-cut])
  resumed = run_log.Telemetry(tmp_path, after=1)
  for step in (2, 3, 4):
    resumed.write(step, {"loss": 10 * step})
  lines = [strict(line) for line in path.read_text().splitlines()]
  assert [line["loss"] for line in lines] == [1, 20, 30, 40]
  assert run_log.read(tmp_path) == lines


def test_read_of_nothing_is_empty(tmp_path):
  assert run_log.read(tmp_path) == []


def test_phases_take_their_part_of_the_whole(tmp_path, monkeypatch):
  clock = iter([0.0, 10.0])
  monkeypatch.setattr(
    run_log,
    "time",
    types.SimpleNamespace(perf_counter=lambda: next(clock), time=lambda: 0.0),
  )
  log = run_log.Telemetry(tmp_path)
  with log.timed("data"):
    pass
  log.spent(dict(rollout=7.0, reward=2.0), within="data")
  log.write(1, {})
  assert (
    log.lines
    == run_log.read(tmp_path)
    == [
      {
        "step": 1,
        "seconds/data": 1.0,
        "seconds/rollout": 7.0,
        "seconds/reward": 2.0,
      }
    ]
  )


def test_times_go_with_the_next_line(tmp_path, monkeypatch):
  clock = iter([0.0, 1.0, 5.0, 5.5, 7.0, 9.0])
  monkeypatch.setattr(
    run_log,
    "time",
    types.SimpleNamespace(perf_counter=lambda: next(clock), time=lambda: 0.0),
  )
  log = run_log.Telemetry(tmp_path)
  for _ in range(2):
    with log.timed("rollout"):
      pass
  log.write(1, {})
  with pytest.raises(KeyError), log.timed("update"):
    raise KeyError
  log.write(2, {})
  assert run_log.read(tmp_path) == [
    {"step": 1, "seconds/rollout": 1.5},
    {"step": 2, "seconds/update": 2.0},
  ]


def test_other_processes_are_silent(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  log = run_log.Telemetry(tmp_path, wandb="routers")
  log.write(1, {"loss": 1.0})
  log.sample(1, [group(1)])
  assert list(progress.progress(range(3), "x", every=0.0)) == [0, 1, 2]
  assert not list(tmp_path.iterdir())
  assert capsys.readouterr() == ("", "")


# ---- TensorBoard, Weights & Biases.


def seen_by_tensorboard(workdir):
  """{tag: {step: value}}, as TensorBoard itself reads it."""
  found = event_accumulator.EventAccumulator(str(workdir / "tensorboard"))
  found.Reload()
  points = {
    tag: [(each.step, each.value) for each in found.Scalars(tag)]
    for tag in found.Tags()["scalars"]
  }
  for tag, line in points.items():
    assert len(dict(line)) == len(line), tag  # No step twice.
  return {tag: dict(line) for tag, line in points.items()}


def test_tensorboard_sees_what_the_file_holds(tmp_path):
  log = run_log.Telemetry(tmp_path)
  for step in (5, 10):
    log.write(step, {"loss": 1 / step, "reward/total": step, "bad": math.nan})
    # Nothing waits to be written: a run may be killed at any time.
    assert step in seen_by_tensorboard(tmp_path)["loss"]
  seen = seen_by_tensorboard(tmp_path)
  assert seen == {
    "loss": {5: np.float32(0.2), 10: np.float32(0.1)},
    "reward/total": {5: 5.0, 10: 10.0},
  }


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_tensorboard_sees_no_ghosts_of_a_killed_run(tmp_path, after):
  """Also where a run is started thrice within a second."""
  first = run_log.Telemetry(tmp_path)
  for step in (1, 2, 3):
    first.write(step, {"loss": step, "gone": 0.0})
  for scale in (10, 100):
    resumed = run_log.Telemetry(tmp_path, after=after)
    for step in range(after + 1, 5):
      resumed.write(step, {"loss": scale * step})
  seen = seen_by_tensorboard(tmp_path)
  assert seen["loss"] == {
    line["step"]: line["loss"] for line in run_log.read(tmp_path)
  }
  assert seen["loss"] == {
    step: step if step <= after else 100 * step for step in (1, 2, 3, 4)
  }
  assert set(seen.get("gone", ())) == set(range(1, after + 1))


def test_wandb_that_is_not_installed(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(
    ValueError,
    match="config.wandb is 'routers', and wandb is not installed: pip install",
  ):
    run_log.Telemetry(tmp_path, wandb="routers")


@pytest.mark.slow
def test_wandb_goes_on_with_its_run(tmp_path, monkeypatch):
  wandb = pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  names = []
  for after in (0, 2, 0):
    log = run_log.Telemetry(tmp_path, after=after, wandb="routers")
    names.append(log._wandb.id)
    log.write(after + 1, {"loss": 0.5, "bad": math.nan})
    assert log._wandb.summary["loss"] == 0.5
    assert "bad" not in log._wandb.summary.keys()
    wandb.finish()
  assert names[0] == names[1] != names[2]
  assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 3


# ---- Samples.


def group(n):
  return dict(
    kind="plan",
    question="Who?\x1b[2J",
    responses=[f"a{n}", "b\r"],
    rewards=[0.9, 0.1],
  )


@pytest.mark.parametrize("cut", [0, 1, 30, 80])
def test_samples_of_a_killed_run(tmp_path, cut):
  first = run_log.Telemetry(tmp_path)
  assert run_log.read_samples(tmp_path) == []
  for step in (5, 10):
    first.sample(step, [group(1), group(2)])
  path = tmp_path / "samples.jsonl"
  path.write_text(path.read_text()[: len(path.read_text()) - cut])
  resumed = run_log.Telemetry(tmp_path, after=5)
  resumed.sample(10, [group(3)])
  lines = [strict(line) for line in path.read_text().splitlines()]
  assert (
    lines
    == run_log.read_samples(tmp_path)
    == [dict(group(1), step=5), dict(group(2), step=5), dict(group(3), step=10)]
  )


def test_the_log_has_an_excerpt(tmp_path, caplog):
  with caplog.at_level("INFO", logger="absl"):
    run_log.Telemetry(tmp_path).sample(5, [group("x" * 500)])
  (line,) = (each.getMessage() for each in caplog.records)
  assert line == f"5, plan, Who?: 0.90 for a{'x' * 119}…; 0.10 for b"


# ---- Progress.


def test_plain_progress(capsys, monkeypatch):
  clock = iter([0.0, 4.0, 12.0, 13.0, 75.0, 75.0])
  monkeypatch.setattr(
    run_log, "time", types.SimpleNamespace(monotonic=lambda: next(clock))
  )
  assert list(progress.progress(range(4), "sft")) == [0, 1, 2, 3]
  assert capsys.readouterr().err.split("\n") == [
    "sft: 2 of 4 (50%), 12 s, 0.167/s, 12 s left",
    "sft: 4 of 4 (100%), 1 min 15 s, 0.0533/s",
    "",
  ]


def test_progress_without_a_total(capsys):
  assert list(progress.progress(iter("ab"), "read")) == ["a", "b"]
  assert re.fullmatch(r"read: 2, 0 s, \S+/s\n", capsys.readouterr().err)


def test_progress_is_a_bar_on_a_terminal(capsys, monkeypatch):
  monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
  assert list(progress.progress([1, 2], "sft")) == [1, 2]
  error = capsys.readouterr().err
  assert "\r" in error
  assert "2/2" in error


# ---- Cleaning.


@pytest.mark.parametrize(
  "hostile, shown",
  [
    ("\x1b]0;pwn\x07title", "title"),
    ("\x1b[31mred\x1b[0m", "red"),
    ("\x9b2Jgone", "gone"),
    ("\x1bcreset", "creset"),
    ("real\rfake", "real fake"),
    ("one\nI0101 forged line", "one I0101 forged line"),
    ("a\u2028b\u0085c", "a b c"),
    ("user\u202etxt.exe", "usertxt.exe"),
    ("\ud800 half", "half"),
    ("N'Djamena, Côte d'Ivoire 中文", "N'Djamena, Côte d'Ivoire 中文"),
  ],
)
def test_clean(hostile, shown):
  assert text_lib.clean(hostile) == shown


@hypothesis.given(st.text() | st.text("\x1b[]\x07\x9b0;m\\\n\u202ea"))
def test_clean_text_is_one_harmless_line(text):
  shown = text_lib.clean(text)
  categories = {unicodedata.category(letter) for letter in shown}
  assert not categories & {"Cc", "Cf", "Cs", "Zl", "Zp"}
  assert text_lib.clean(shown) == shown


def test_clean_text_is_short():
  assert text_lib.clean("x" * 10**6) == "x" * 2000 + "…"
  assert text_lib.clean("\x1b]" * 10**5, limit=3) == "]]]…"
