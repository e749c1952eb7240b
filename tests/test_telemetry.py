"""Telemetry: what is written can be read, and harms nobody's terminal."""

import json
import math
import re
import types
import unicodedata

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax import telemetry


def strict(text):
  def refuse(name):
    raise ValueError(name)
  return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("bucket", [False, True])
def test_a_line_per_step(tmp_path, bucket):
  log = telemetry.Telemetry(tmp_path / "new" / "run")
  log._bucket = bucket
  log.write(1, {"loss": jnp.float32(0.5), "reward": np.float64(0.25), "n": 3})
  log.write(2, {"loss": np.ones((1,)).mean()})
  lines = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().split("\n")
  assert [strict(line) for line in lines[:-1]] == [
      {"step": 1, "loss": 0.5, "reward": 0.25, "n": 3},
      {"step": 2, "loss": 1.0}]
  assert telemetry.read(tmp_path / "new" / "run") == [
      strict(line) for line in lines[:-1]]


def test_not_finite_is_null_and_counted(tmp_path):
  log = telemetry.Telemetry(tmp_path)
  log.write(1, {"a": math.nan, "b": jnp.inf, "c": -math.inf, "d": 1.0})
  assert log.not_finite == 3
  line = strict((tmp_path / "metrics.jsonl").read_text())
  assert line == {"step": 1, "a": None, "b": None, "c": None, "d": 1.0}


@pytest.mark.parametrize("value", ["x", np.zeros(2), None, [1, 2]])
def test_a_scalar_is_one_number(tmp_path, value):
  with pytest.raises(ValueError, match="'loss' is not one number"):
    telemetry.Telemetry(tmp_path).write(1, {"loss": value})
  assert telemetry.read(tmp_path) == []


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_killed_run_goes_on(tmp_path, cut):
  first = telemetry.Telemetry(tmp_path)
  for step in (1, 2, 3):
    first.write(step, {"loss": step})
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text()[:-cut])
  resumed = telemetry.Telemetry(tmp_path, after=1)
  for step in (2, 3, 4):
    resumed.write(step, {"loss": 10 * step})
  lines = [strict(line) for line in path.read_text().splitlines()]
  assert [line["loss"] for line in lines] == [1, 20, 30, 40]
  assert telemetry.read(tmp_path) == lines


def test_read_of_nothing_is_empty(tmp_path):
  assert telemetry.read(tmp_path) == []


def test_times_go_with_the_next_line(tmp_path, monkeypatch):
  clock = iter([0.0, 1.0, 5.0, 5.5, 7.0, 9.0])
  monkeypatch.setattr(telemetry, "time", types.SimpleNamespace(
      perf_counter=lambda: next(clock)))
  log = telemetry.Telemetry(tmp_path)
  for _ in range(2):
    with log.timed("rollout"):
      pass
  log.write(1, {})
  with pytest.raises(KeyError), log.timed("update"):
    raise KeyError
  log.write(2, {})
  assert telemetry.read(tmp_path) == [
      {"step": 1, "seconds/rollout": 1.5}, {"step": 2, "seconds/update": 2.0}]


def test_other_processes_are_silent(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  telemetry.Telemetry(tmp_path).write(1, {"loss": 1.0})
  assert list(telemetry.progress(range(3), "x", every=0.0)) == [0, 1, 2]
  assert not list(tmp_path.iterdir())
  assert capsys.readouterr() == ("", "")


# ---- Progress.


def test_plain_progress(capsys, monkeypatch):
  clock = iter([0.0, 4.0, 12.0, 13.0, 75.0, 75.0])
  monkeypatch.setattr(telemetry, "time", types.SimpleNamespace(
      monotonic=lambda: next(clock)))
  assert list(telemetry.progress(range(4), "sft")) == [0, 1, 2, 3]
  assert capsys.readouterr().err.split("\n") == [
      "sft: 2 of 4 (50%), 12 s, 0.167/s, 12 s left",
      "sft: 4 of 4 (100%), 1 min 15 s, 0.0533/s",
      "sft: 4 of 4 (100%), 1 min 15 s, 0.0533/s", ""]


def test_progress_without_a_total(capsys):
  assert list(telemetry.progress(iter("ab"), "read")) == ["a", "b"]
  assert re.fullmatch(
      r"read: 2, 0 s, \S+/s\n", capsys.readouterr().err)


def test_progress_is_a_bar_on_a_terminal(capsys, monkeypatch):
  monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
  assert list(telemetry.progress([1, 2], "sft")) == [1, 2]
  error = capsys.readouterr().err
  assert "\r" in error
  assert "2/2" in error


# ---- Cleaning.


@pytest.mark.parametrize("hostile, shown", [
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
])
def test_clean(hostile, shown):
  assert telemetry.clean(hostile) == shown


@hypothesis.given(st.text() | st.text("\x1b[]\x07\x9b0;m\\\n\u202ea"))
def test_clean_text_is_one_harmless_line(text):
  shown = telemetry.clean(text)
  categories = {unicodedata.category(letter) for letter in shown}
  assert not categories & {"Cc", "Cf", "Cs", "Zl", "Zp"}
  assert telemetry.clean(shown) == shown


def test_clean_text_is_short():
  assert telemetry.clean("x" * 10**6) == "x" * 2000 + "…"
  assert telemetry.clean("\x1b]" * 10**5, limit=3) == "]]]…"
