"""Patterns of the wordings that no training question may have."""

import re

from r1router_jax.data.countries import phrases


def patterns():
  """A held-out wording of each field, as a whole question."""
  for _, _, _, sentences in phrases.PHRASES.values():
    for sentence in sentences:
      yield re.escape(sentence[1:].rstrip("?.")).replace(r"\{\}", ".+")
