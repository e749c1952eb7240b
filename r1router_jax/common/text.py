"""Cleaning of untrusted text for terminals and web pages."""

import re
import unicodedata

# Terminal commands: ESC or its 8-bit form, and the characters that follow it.
_ANSI = re.compile(
  r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"
)

# Unicode categories control, format (with bidirectional marks) and surrogate.
_INVISIBLE = ("Cc", "Cf", "Cs")


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
