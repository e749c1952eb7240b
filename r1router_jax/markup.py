"""Untrusted text, cleaned and safe for a page."""

import html

from r1router_jax import telemetry

SHOWN = 220  # Characters of a passage or thought before it is folded.
KEPT = 4000  # Characters of it in the page.


def safe(text: str) -> str:
  """The text, fit for element content and quoted attributes."""
  return html.escape(telemetry.clean(text, limit=KEPT), quote=True)


def folded(text: str) -> str:
  """The text, whose tail unfolds at a touch where it is long."""
  text = telemetry.clean(text, limit=KEPT)
  head, tail = map(html.escape, (text[:SHOWN], text[SHOWN:]))
  if not tail:
    return head
  return f"<details><summary>{head}</summary>{tail}</details>"
