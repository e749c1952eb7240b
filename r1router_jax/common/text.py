"""Cleans untrusted text for terminals and pages."""

import re
import unicodedata

# Terminal commands: ESC or its 8-bit twin, with what belongs to it.
_ANSI = re.compile(
  r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"
)

_UNSEEN = ("Cc", "Cf", "Cs")  # Control, format (with bidi) and surrogates.


def clean(text: str, limit: int = 2000) -> str:
  """Text made by a model or a knowledge base as one harmless line of a log.

  Terminal commands, control, format and bidirectional characters are dropped,
  runs of white space become one space, what exceeds `limit` is cut.
  """
  text = " ".join(_ANSI.sub("", text).split())
  seen = "".join(c for c in text if unicodedata.category(c) not in _UNSEEN)
  seen = " ".join(seen.split())
  return seen if len(seen) <= limit else seen[:limit] + "…"
