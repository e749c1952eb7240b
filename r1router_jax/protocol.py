"""The language of the policy: prompts, tags and parser, side by side.

A plan step reads the question with the rounds so far and writes

  <think>..</think><sub-question>..</sub-question><ret>Table Retriever</ret>

an answer step reads one sub-question with its passages, the final step the
question with all rounds; both write `<think>..</think><answer>..</answer>`.
Only generated text is ever parsed, so a tag in a passage is never obeyed.

Two styles spell the prompts, see `prompts.py`: "full", the interface of the
published weights, and "compact", for a tiny policy.

Sources: arxiv.org/abs/2505.22095 (R1-Router).
"""

import dataclasses
import re
import unicodedata
from collections.abc import Sequence

from r1router_jax.prompts import STYLES, Style
from r1router_jax.records import KBS, Answer, Malformed, Passage, Plan, Step

ROUTE_NAMES = {
    "text": "Text Retriever",
    "image": "Text Image Retriever",
    "table": "Table Retriever",
    "none": "None",
}
NONE = "None"  # The sub-question of a plan that asks nothing more.
PLAN_TAGS = ("think", "sub-question", "ret")
ANSWER_TAGS = ("think", "answer")
MAX_SUB_QUESTION = 512  # In characters; the rest is cut, as in a search box.
MAX_ANSWER = 2048  # In characters.

History = Sequence[tuple[str, str]]  # (sub-question, answer) of each round.


@dataclasses.dataclass(frozen=True)
class Segment:
  """A piece of a user turn.

  Attributes:
    text: the piece; of a picture, its path.
    source: "template" (ours: may hold control tokens), "question" (untrusted),
      "passage" (untrusted, and the first to be cut where a prompt is long) or
      "picture".
  """

  text: str
  source: str


@dataclasses.dataclass(frozen=True)
class Conversation:
  """One prompt: a system turn and a user turn, pictures among its text."""

  kind: str  # One of records.KINDS.
  system: str
  user: tuple[Segment, ...]

  @property
  def pictures(self) -> tuple[str, ...]:
    """The paths of the pictures, in their order."""
    return tuple(s.text for s in self.user if s.source == "picture")


# '<' (or a fullwidth twin, after NFKC) where a tag or a control token starts.
_LOOK_ALIKE = re.compile(
    r"<(?=\||\s{0,4}(?:/\s{0,4})?(?:think|sub-question|ret|answer|image|video|"
    r"tool_call|tool_response)\b)", re.IGNORECASE)
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
_TAG = re.compile(r"</?(?:think|sub-question|ret|answer)>", re.IGNORECASE)
_ROUTES = {name.lower(): route for route, name in ROUTE_NAMES.items()}


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


def plan_conversation(
    question: str, image: str, history: History, *, style: str
) -> Conversation:
  """The prompt that asks for the next sub-question and its route."""
  spelt = _style(style)
  user = _question(spelt, question, history)
  return _conversation("plan", spelt, user, image)


def answer_conversation(
    sub_question: str, passages: Sequence[Passage], image: str, *, style: str
) -> Conversation:
  """The prompt that asks for a sub-question's answer, read off passages."""
  spelt = _style(style)
  asked = sub_question.lower() if spelt.fold_case else sub_question
  user = _fill(spelt.passages, "question", asked)
  for kb in KBS:
    found = [passage for passage in passages if passage.kb == kb]
    for rank, passage in enumerate(found):
      template = spelt.passage
      if spelt.tags:
        template %= (spelt.tags[kb], rank)
      user += _fill(template, "passage", passage.text)
  user += _fill(spelt.asked, "question", asked)
  return _conversation(
      "answer", spelt, user, image if spelt.answer_image else "")


def final_conversation(
    question: str, image: str, history: History, *, style: str
) -> Conversation:
  """The prompt that asks for the answer to the question itself."""
  spelt = _style(style)
  user = _question(spelt, question, history)
  user += _fill(spelt.final, "question", question)
  return _conversation("final", spelt, user, image)


def step_conversation(step: Step, *, style: str) -> Conversation:
  """The prompt of a gold step."""
  question = step.question
  if step.kind == "answer":
    return answer_conversation(
        step.sub_question, step.passages, question.image, style=style)
  ask = {"plan": plan_conversation, "final": final_conversation}[step.kind]
  return ask(question.text, question.image, step.history, style=style)


def render_plan(plan: Plan) -> str:
  """The text a policy should write for `plan`."""
  route = ROUTE_NAMES[plan.route]
  return _render(PLAN_TAGS, (plan.thought, plan.sub_question, route))


def render_answer(answer: Answer) -> str:
  """The text a policy should write for `answer`."""
  return _render(ANSWER_TAGS, (answer.thought, answer.text))


def parse_plan(text: str) -> Plan | Malformed:
  """Reads the response to a plan step."""
  parts = _parse(text, PLAN_TAGS)
  if isinstance(parts, str):
    return Malformed(text, parts)
  thought, sub_question, name = parts
  route = _ROUTES.get(name.lower())
  if route is None:
    several = "several routes" if "," in name else "unknown route"
    known = ", ".join(ROUTE_NAMES.values())
    return Malformed(text, f"{several} {name[:60]!r}; write one of: {known}")
  if not sub_question:
    return Malformed(text, "the sub-question is empty")
  stops = sub_question.lower() == NONE.lower()
  if stops != (route == "none"):
    return Malformed(
        text, f"sub-question {sub_question[:60]!r} goes with route "
        f"{ROUTE_NAMES[route]!r}; both are None, or neither")
  return Plan(
      thought, NONE if stops else sub_question[:MAX_SUB_QUESTION], route)


def parse_answer(text: str) -> Answer | Malformed:
  """Reads the response to an answer or final step."""
  parts = _parse(text, ANSWER_TAGS)
  if isinstance(parts, str):
    return Malformed(text, parts)
  thought, answer = parts
  if not answer:
    return Malformed(text, "the answer is empty")
  return Answer(thought, answer[:MAX_ANSWER])


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
  user = _fill(style.question, "question", question)
  for number, (asked, answer) in enumerate(history, 1):
    if style.fold_case:
      asked, answer = asked.lower(), answer.lower()
    template = style.rounds.replace("%d", str(number))
    user += _fill(template, "question", asked, answer)
  return user


def _fill(template: str, source: str, *texts: str) -> list[Segment]:
  """Segments of `template` with untrusted texts at its `{}`s, in order."""
  pieces = template.split("{}")
  segments = [Segment(pieces[0], "template")]
  for text, piece in zip(texts, pieces[1:], strict=False):
    segments.append(Segment(neutralise(text), source))
    segments.append(Segment(piece, "template"))
  return [segment for segment in segments if segment.text]


def _render(tags: Sequence[str], texts: Sequence[str]) -> str:
  return "".join(
      f"<{tag}>{neutralise(text)}</{tag}>"
      for tag, text in zip(tags, texts, strict=True))


def _parse(text: str, tags: Sequence[str]) -> list[str] | str:
  """What stands between each pair of tags, or the reason why it cannot be.

  White space is trimmed and runs of it become one space, so that no answer
  can pretend to be the next line of a prompt.
  """
  wanted = [form.format(tag) for tag in tags for form in ("<{}>", "</{}>")]
  found = [tag.lower() for tag in _TAG.findall(text)]
  if found != wanted:
    shown = " ".join(found[:8]) or "none"
    return f"tags are {shown}; wanted {' '.join(wanted)}"
  pieces = [" ".join(piece.split()) for piece in _TAG.split(text)]
  if any(pieces[::2]):
    return "text stands outside the tags"
  return pieces[1::2]
