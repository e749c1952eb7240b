"""Cleaning of untrusted text: whole characters, harmless on a terminal."""

import re
import unicodedata

from absl import logging

# Half a surrogate pair; and in JSON, behind what is none.
HALF = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(
  rb"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F]..)"
)

# Terminal commands: ESC or its 8-bit form, and the characters that follow it.
_ANSI = re.compile(
  r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"
)

# Unicode categories control, format (with bidirectional marks) and surrogate.
_INVISIBLE = ("Cc", "Cf", "Cs")


def mend_text(text: str, source: str) -> str:
  """Return a text with U+FFFD for each half of a surrogate pair, and warn.

  Neither tokenizers nor UTF-8 take such halves; `source` is where it is from.
  """
  text, count = HALF.subn("\ufffd", text)
  _warn_of_halves(source, count)
  return text


def mend_json(body: bytes, source: str) -> bytes:
  """Do the same to JSON, in which halves are escaped."""
  mended = _ESCAPED_HALF.sub(lambda m: rb"\ufffd" if m[1] else m[0], body)
  count = mended.count(rb"\ufffd") - body.count(rb"\ufffd")
  _warn_of_halves(source, count)
  return mended


def _warn_of_halves(source: str, count: int) -> None:
  if count:
    text = "%s: %d halves of surrogate pairs became U+FFFD."
    logging.log_first_n(logging.WARNING, text, 100, source, count)


def sanitize_text(text: str, limit: int = 2000) -> str:
  """Return text from a model or a knowledge base as one harmless line.

  Terminal commands, control, format and bidirectional characters are dropped,
  and each run of white space becomes one space.  A text of more than `limit`
  characters is cut there and ends in "…".
  """
  text = " ".join(_ANSI.sub("", text).split())
  text = "".join(c for c in text if unicodedata.category(c) not in _INVISIBLE)
  # Two spaces may have become neighbours when a character was dropped.
  text = " ".join(text.split())
  return text if len(text) <= limit else text[:limit] + "…"
