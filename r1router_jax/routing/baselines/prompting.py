"""What the prompts of baselines are made of, and how their answers are read."""

import re
from collections.abc import Sequence

from r1router_jax.common.records import (
  KBS,
  Answer,
  Malformed,
  Passage,
  Plan,
  Question,
)
from r1router_jax.protocol import format, prompts
from r1router_jax.protocol.messages import Conversation, Segment

COMPACT = "compact"  # The style of a policy that knows three prompts alone.


_ANSWER = re.compile(r"(?is)<answer>(.*?)(?:</answer>|\Z)")

_THOUGHT = re.compile(r"(?is)<think>.*?(?:</think>|\Z)")

_TAG = re.compile(r"</?[a-z][a-z-]*>", re.IGNORECASE)

_OPENING = re.compile(r"(?i)\A(so )?(the )?(final )?answer( is)?:\s*")


def search(
  sub_question: str, kbs: Sequence[str] = KBS, thought: str = ""
) -> Plan:
  """Asks all of some knowledge bases the same."""
  return Plan(
    thought,
    " ".join(sub_question.split())[: format.MAX_SUB_QUESTION],
    kbs[0],
    tuple(kbs[1:]),
  )


def answer_in(text: str) -> Answer | Malformed:
  """The answer that a response gives, in whatever form: a policy that was
  never trained for a format is not judged by it.
  """
  words = _OPENING.sub("", words_in(text))
  if not words:
    return Malformed(text, "there is no answer in it")
  return Answer(text[: format.MAX_ANSWER], words[: format.MAX_ANSWER])


def words_in(text: str) -> str:
  """What stands between the last tags of an answer, else all but thoughts."""
  tagged = _ANSWER.findall(text)
  words = tagged[-1] if tagged else _THOUGHT.sub(" ", text)
  return " ".join(_TAG.sub(" ", words).split())


def ask(
  kind: str,
  system: str,
  user: str,
  question: Question,
  *,
  passages: Sequence[Passage] = (),
  texts: Sequence[str] = (),
  said: Sequence[Segment] = (),
) -> Conversation:
  """A prompt in many words: passages, then `user` with `texts` at its `{}`s."""
  return prompts.other_conversation(
    kind,
    system,
    [*prompts.shown(passages, style="full"), *prompts.fill(user, *texts)],
    question.image,
    style="full",
    said=said,
  )


def unlike(passages: Sequence[Passage]) -> list[Passage]:
  """Each passage once."""
  return list({(each.id, each.text): each for each in passages}.values())
