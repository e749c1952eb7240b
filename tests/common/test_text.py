"""Text of strangers, made safe for a terminal and for one line of a log."""

import unicodedata

import hypothesis
import hypothesis.strategies as st
import pytest

from r1router_jax.common.text import sanitize_text


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
def test_sanitize_text_drops_control_characters(hostile, shown):
  assert sanitize_text(hostile) == shown


@hypothesis.given(st.text() | st.text("\x1b[]\x07\x9b0;m\\\n\u202ea"))
def test_sanitized_text_is_one_line_without_control_characters(text):
  shown = sanitize_text(text)
  categories = {unicodedata.category(letter) for letter in shown}
  assert not categories & {"Cc", "Cf", "Cs", "Zl", "Zp"}
  assert sanitize_text(shown) == shown


def test_sanitized_text_is_truncated():
  assert sanitize_text("x" * 10**6) == "x" * 2000 + "…"
  assert sanitize_text("\x1b]" * 10**5, limit=3) == "]]]…"
