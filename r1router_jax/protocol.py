"""Prompts and parser of the routing protocol (interface; being filled in)."""

import dataclasses

from r1router_jax.records import Answer, Malformed, Passage, Plan  # noqa: F401


@dataclasses.dataclass(frozen=True)
class Segment:
  """A piece of a user turn.

  Attributes:
    text: the piece.
    source: "template" (ours: may hold control tokens), "question" (untrusted)
      or "passage" (untrusted, and the first to be cut where a prompt is long).
  """

  text: str
  source: str


@dataclasses.dataclass(frozen=True)
class Conversation:
  """One prompt: a system turn, a user turn, and at most one picture.

  `image` is the path of the picture, or "".  The picture stands where
  `protocol.style.image_first` says: before or after the text of the user turn.
  """

  kind: str  # One of records.KINDS.
  system: str
  user: tuple[Segment, ...]
  image: str = ""
