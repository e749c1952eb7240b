"""What a prompt is made of: segments, ours and untrusted ones."""

import dataclasses
import re
import unicodedata


@dataclasses.dataclass(frozen=True)
class Segment:
  """A piece of a user turn.

  Attributes:
    text: the piece; of a picture, its path.
    source: "template" (ours: may hold control tokens), "question" (untrusted),
      "passage" (untrusted, and the first to be cut where a prompt is long) or
      "picture".
    of: knowledge base and rank of the passage that it belongs to, or None.
  """

  text: str
  source: str
  of: tuple[str, int] | None = None


@dataclasses.dataclass(frozen=True)
class PassageTokens:
  """At most so many tokens of passages in an answer prompt; 0 for all.

  Attributes:
    text, image, table: of each kind of knowledge base; of texts alone, since
      the sizes of pictures have bounds of their own.
  """

  text: int = 0
  image: int = 0
  table: int = 0


@dataclasses.dataclass(frozen=True)
class Conversation:
  """One prompt: a system turn, a user turn with its pictures, a reply begun.

  Between the system turn and the user's stand `examples`, of ours: what was
  asked, and what was replied.
  """

  kind: str  # One of records.KINDS.
  system: str
  user: tuple[Segment, ...]
  said: tuple[Segment, ...] = ()  # What the response goes on from.
  examples: tuple[tuple[str, str], ...] = ()

  @property
  def pictures(self) -> tuple[str, ...]:
    """The paths of the pictures, in their order."""
    return tuple(s.text for s in self.user if s.source == "picture")


# '<' (or a fullwidth twin, after NFKC) where a tag or a control token starts.
_LOOK_ALIKE = re.compile(
  r"<(?=\||\s{0,4}(?:/\s{0,4})?(?:think|sub-question|ret|answer|search|"
  r"information|image|video|tool_call|tool_response)\b)",
  re.IGNORECASE,
)

_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))


def neutralise(text: str) -> str:
  """Untrusted text in which no tag or control token can be read.

  A '<' that would start one becomes '‹' (U+2039), for all to see.  Text with
  no such '<', also after NFKC and without invisible characters, is unchanged.
  """
  if text.isascii() and "<" not in text:
    return text
  folded = unicodedata.normalize("NFKC", text).translate(_INVISIBLE)
  neutral = _LOOK_ALIKE.sub("\u2039", folded)
  return text if neutral == folded else neutral
