"""Progress on a terminal and in a log file."""

import re
import types

from r1router_jax.common import progress


def test_progress_in_plain_lines(capsys, monkeypatch):
  # Start, each of four items, and the end.
  clock = iter([0.0, 4.0, 12.0, 13.0, 75.0, 75.0])
  monkeypatch.setattr(
    progress, "time", types.SimpleNamespace(monotonic=lambda: next(clock))
  )
  assert list(progress.show_progress(range(4), "sft")) == [0, 1, 2, 3]
  assert capsys.readouterr().err.split("\n") == [
    "sft: 2 of 4 (50%), 12 s, 0.167/s, 12 s left",
    "sft: 4 of 4 (100%), 1 min 15 s, 0.0533/s",
    "",
  ]


def test_progress_without_a_total(capsys):
  assert list(progress.show_progress(iter("ab"), "read")) == ["a", "b"]
  assert re.fullmatch(r"read: 2, 0 s, \S+/s\n", capsys.readouterr().err)


def test_progress_is_a_bar_on_a_terminal(capsys, monkeypatch):
  monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
  assert list(progress.show_progress([1, 2], "sft")) == [1, 2]
  error = capsys.readouterr().err
  assert "\r" in error
  assert "2/2" in error
