"""The parts of a prompt: segments of trusted templates and untrusted text."""

import dataclasses
import re
import unicodedata

from r1router_jax.common.schema import Count


@dataclasses.dataclass(frozen=True)
class Segment:
  """A piece of a user turn.

  Attributes:
    text: the piece itself, or the path of an image.
    source: "template" (written by this package, may hold control tokens),
      "question" (untrusted), "passage" (untrusted, and cut first if a prompt
      is too long) or "image".
    passage_ref: knowledge base and rank of the passage that the piece belongs
      to, or None.
  """

  text: str
  source: str
  passage_ref: tuple[str, int] | None = None


@dataclasses.dataclass(frozen=True)
class PassageTokens:
  """The largest number of passage tokens in an answer prompt; 0 is no limit.

  Only tokens of texts count: the sizes of images have bounds of their own.

  Attributes:
    text: limit for all passages of the text knowledge base together.
    image: the same for the captions of the image knowledge base.
    table: the same for the table knowledge base.
  """

  text: Count = 0
  image: Count = 0
  table: Count = 0


@dataclasses.dataclass(frozen=True)
class Conversation:
  """One prompt: a system turn, a user turn with images, the start of a reply.

  Attributes:
    kind: one of `records.KINDS`.
    system: the system turn.
    user: the pieces of the user turn.
    reply_prefix: text that the reply starts with and the response continues.
    examples: few-shot turns after the system turn, pairs of a user turn and
      its reply; trusted text.
  """

  kind: str
  system: str
  user: tuple[Segment, ...]
  reply_prefix: tuple[Segment, ...] = ()
  examples: tuple[tuple[str, str], ...] = ()

  @property
  def images(self) -> tuple[str, ...]:
    """The paths of the images, in their order."""
    return tuple(s.text for s in self.user if s.source == "image")

  def replace_images(self, text: str) -> "Conversation":
    """Return the prompt with a trusted text in the place of each image."""
    user = tuple(
      dataclasses.replace(segment, text=text, source="template")
      if segment.source == "image"
      else segment
      for segment in self.user
    )
    return dataclasses.replace(self, user=user)


# A '<' (or a fullwidth twin, after NFKC) that starts a tag or control token.
_LOOK_ALIKE = re.compile(
  r"<(?=\||\s{0,4}(?:/\s{0,4})?(?:think|sub-question|ret|answer|search|"
  r"information|image|video|tool_call|tool_response)\b)",
  re.IGNORECASE,
)

# Characters without width that could split a tag unseen.
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))


def escape_control_tags(text: str) -> str:
  """Return untrusted text in which nothing reads as a tag or control token.

  A '<' that would start one becomes '‹' (U+2039), for all to see.  Text
  without such a '<', also after NFKC and without invisible characters, is
  returned unchanged.
  """
  # Most text takes this short cut; NFKC is slow.
  if text.isascii() and "<" not in text:
    return text
  # Look-alikes count as tags, too: NFKC maps fullwidth brackets to '<'.
  folded = unicodedata.normalize("NFKC", text).translate(_INVISIBLE)
  neutral = _LOOK_ALIKE.sub("\u2039", folded)
  return text if neutral == folded else neutral
