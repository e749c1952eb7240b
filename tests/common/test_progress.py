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
    "sft:  50% 2/4 [00:12<00:12,  6.00s/it]",
    "sft: 100% 4/4 [01:15<00:00, 18.75s/it]",
    "",
  ]


def test_progress_without_a_total(capsys):
  assert list(progress.show_progress(iter("ab"), "read")) == ["a", "b"]
  error = capsys.readouterr().err
  assert re.fullmatch(r"read: 2it \[00:00, \S+it/s\]\n", error)


def test_progress_is_a_bar_on_a_terminal(capsys, monkeypatch):
  monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
  assert list(progress.show_progress([1, 2], "sft")) == [1, 2]
  error = capsys.readouterr().err
  assert "\r" in error
  assert "2/2" in error
