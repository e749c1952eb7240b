"""The language of the policy: prompts, tags and parser, side by side.

A plan step reads the question with the rounds so far and writes

  <think>..</think><sub-question>..</sub-question><ret>Table Retriever</ret>

an answer step reads one sub-question with its passages, the final step the
question with all rounds; both write `<think>..</think><answer>..</answer>`.
Only generated text is ever parsed, so a tag in a passage is never obeyed.

Two styles spell the prompts, see `prompts.py`: "full", the interface of the
published weights, and "compact", for a tiny policy.

R1-Router's plans name one route, and its prompts show no picture of a passage.
Both are options here: up to so many routes, with commas between their names,
and the pictures of so many passages, each beside its passage's text.

Sources: arxiv.org/abs/2505.22095 (R1-Router).
"""

import dataclasses
from collections.abc import Sequence

from r1router_jax.common.records import KBS, Malformed, Passage, Step
from r1router_jax.protocol.messages import Conversation, Segment, neutralise
from r1router_jax.protocol.templates import STYLES, Style

MAX_SHOWN = 600  # Characters of a failed response in the prompt that mends it.


History = Sequence[tuple[str, str]]  # (sub-question, answer) of each round.


def plan_conversation(
  question: str, image: str, history: History, *, style: str, routes: int = 1
) -> Conversation:
  """The prompt that asks for the next sub-question and its routes."""
  spelt = _style(style)
  user = _question(spelt, question, history)
  prompt = _conversation("plan", spelt, user, image)
  return (
    prompt
    if routes == 1
    else dataclasses.replace(
      prompt, system=spelt.several.replace("%d", str(routes))
    )
  )


def answer_conversation(
  sub_question: str,
  passages: Sequence[Passage],
  image: str,
  *,
  style: str,
  passage_pictures: int = 0,
) -> Conversation:
  """The prompt that asks for a sub-question's answer, read off passages.

  Of the image knowledge base's passages the first `passage_pictures` that have
  a picture show it.
  """
  spelt = _style(style)
  asked = sub_question.lower() if spelt.fold_case else sub_question
  user = fill(spelt.passages, asked)
  user += shown(passages, style=style, pictures=passage_pictures)
  user += fill(spelt.asked, asked)
  return _conversation(
    "answer", spelt, user, image if spelt.answer_image else ""
  )


def shown(
  passages: Sequence[Passage], *, style: str, pictures: int = 0
) -> list[Segment]:
  """Passages as a prompt shows them, those of a knowledge base together."""
  spelt, segments = _style(style), []
  for kb in KBS:
    found = [passage for passage in passages if passage.kb == kb]
    for rank, passage in enumerate(found):
      pictured = kb == "image" and bool(passage.image) and pictures > 0
      pictures -= pictured
      segments += _passage(spelt, passage, rank, pictured)
  return segments


def final_conversation(
  question: str, image: str, history: History, *, style: str
) -> Conversation:
  """The prompt that asks for the answer to the question itself."""
  spelt = _style(style)
  user = _question(spelt, question, history)
  user += fill(spelt.final, question)
  return _conversation("final", spelt, user, image)


def repaired(
  prompt: Conversation, failed: Malformed, *, style: str
) -> Conversation | None:
  """The prompt once more, with what was wrong with the response to it.

  None where the style has no words for that.
  """
  spelt = _style(style)
  note = fill(spelt.repair, failed.text[:MAX_SHOWN], failed.reason)
  if not note:
    return None
  return dataclasses.replace(prompt, user=(*prompt.user, *note))


def other_conversation(
  kind: str,
  system: str,
  user: Sequence[Segment],
  image: str,
  *,
  style: str,
  said: Sequence[Segment] = (),
) -> Conversation:
  """A prompt that is not R1-Router's, its picture where the style has it."""
  spelt = dataclasses.replace(_style(style), system={kind: system})
  prompt = _conversation(kind, spelt, [*user], image)
  return dataclasses.replace(prompt, said=tuple(said))


def step_conversation(
  step: Step, *, style: str, routes: int = 1, passage_pictures: int = 0
) -> Conversation:
  """The prompt of a step."""
  question = step.question
  if step.kind == "answer":
    return answer_conversation(
      step.sub_question,
      step.passages,
      question.image,
      style=style,
      passage_pictures=passage_pictures,
    )
  asked = question.text, question.image, step.history
  if step.kind == "plan":
    return plan_conversation(*asked, style=style, routes=routes)
  return final_conversation(*asked, style=style)


def fill(template: str, *texts: str) -> list[Segment]:
  """Segments of `template` with untrusted texts at its `{}`s, in order."""
  pieces = template.split("{}")
  segments = [Segment(pieces[0], "template")]
  for text, piece in zip(texts, pieces[1:], strict=False):
    segments.append(Segment(neutralise(text), "question"))
    segments.append(Segment(piece, "template"))
  return [segment for segment in segments if segment.text]


def _style(name: str) -> Style:
  if name not in STYLES:
    raise ValueError(f"unknown style {name!r}; known: {', '.join(STYLES)}")
  return STYLES[name]


def _conversation(
  kind: str, style: Style, user: list[Segment], image: str
) -> Conversation:
  """The prompt, its picture before or after the text as the style has it."""
  picture = [Segment(image, "picture")] if image else []
  user = picture + user if style.image_first else user + picture
  return Conversation(kind, style.system[kind], tuple(user))


def _question(style: Style, question: str, history: History) -> list[Segment]:
  user = fill(style.question, question)
  for number, (asked, answer) in enumerate(history, 1):
    if style.fold_case:
      asked, answer = asked.lower(), answer.lower()
    template = style.rounds.replace("%d", str(number))
    user += fill(template, asked, answer)
  return user


def _passage(
  style: Style, passage: Passage, rank: int, shown: bool
) -> list[Segment]:
  """A passage, its picture before or after its text as the style has it."""
  template = style.passage
  if style.tags:
    template %= (style.tags[passage.kb], rank)
  before, after = template.split("{}")
  inside = [Segment(neutralise(passage.text), "passage")]
  if shown:
    inside.insert(not style.image_first, Segment(passage.image, "picture"))
  pieces = Segment(before, "template"), *inside, Segment(after, "template")
  return [
    dataclasses.replace(piece, of=(passage.kb, rank))
    for piece in pieces
    if piece.text
  ]
