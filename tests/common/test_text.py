"""Text of strangers, made safe for a terminal and for one line of a log."""

import json
import unicodedata

import hypothesis
import hypothesis.strategies as st
import pytest

from r1router_jax.common.text import mend_json, mend_text, sanitize_text


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


@pytest.mark.parametrize(
  "text, count",
  [("", 0), ("é 中 \U0001f600", 0), ("\ud800", 1), ("a\udcffb\ude00", 2)],
)
def test_halves_of_surrogate_pairs_are_replaced_and_counted(
  text, count, caplog
):
  mended = mend_text(text, "here")
  assert mended == "".join(
    "\ufffd" if "\ud800" <= c < "\ue000" else c for c in text
  )
  # Python's own reading of JSON, which leaves halves as they are.
  body = json.dumps([text, "\\ud800", "\ufffd"]).encode()
  assert json.loads(mend_json(body, "there")) == [mended, "\\ud800", "\ufffd"]
  named = [m for m in caplog.messages if "halves" in m]
  told = f"{count} halves of surrogate pairs became U+FFFD."
  assert named == ([f"here: {told}", f"there: {told}"] if count else [])
