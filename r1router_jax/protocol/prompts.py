"""Build the prompts of the routing loop.

A plan step reads the question with the rounds so far and asks for the next
sub-question; an answer step reads one sub-question with its passages; the final
step reads the question with all rounds.  The form of the responses stands in
`format.py`.  Only generated text is ever parsed, so a tag in a passage is never
obeyed.

Two styles word the prompts, see `templates.py`: "full", the interface of the
published weights, and "compact", for a tiny policy.

R1-Router's plans name one route, and its prompts show tables in one line and no
image of a passage.  Options change that: plans may name several routes with
commas between them, and an answer prompt may show images of passages beside
their captions, and tables with each cell behind the name of its column.

Sources: arxiv.org/abs/2505.22095 (R1-Router).
"""

import dataclasses
from collections.abc import Sequence

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS, Malformed, Passage, Step
from r1router_jax.protocol.messages import (
  Conversation,
  Segment,
  escape_control_tags,
)
from r1router_jax.protocol.tables import label_cells
from r1router_jax.protocol.templates import STYLES, Style

# Characters of a failed response that the prompt for its repair repeats.
MAX_FAILED_TEXT = 600


def step_conversation(
  step: Step,
  *,
  style: str,
  max_routes: int = 1,
  passage_images: int = 0,
  labels_cells: bool = False,
) -> Conversation:
  """Return the prompt of a step of any kind, by a key of `templates.STYLES`.

  A plan may name `max_routes` routes.  An answer prompt shows images of
  `passage_images` passages, see `render_passages`, and tables with labelled
  cells, see `tables.label_cells`, if `labels_cells`.
  """
  if labels_cells:
    step = _label_tables(step)
  templates, image = _get_style(style), step.question.image
  if step.kind == "answer":
    user = _answer_segments(step, style, passage_images)
    image = image if templates.answer_image else ""
  else:
    user = _question_segments(step, templates)
  if step.kind == "final":
    user += fill_template(templates.final, step.question.text)
  images = [Segment(image, "image")] if image else []
  user = images + user if templates.image_first else user + images
  system = templates.system[step.kind]
  if step.kind == "plan" and max_routes > 1:
    # Not `%`, since the text may hold other percent signs.
    system = templates.multi_route_system.replace("%d", str(max_routes))
  return Conversation(step.kind, system, tuple(user))


def repair_prompt(
  prompt: Conversation, failed: Malformed, *, style: str
) -> Conversation | None:
  """Return the prompt again, with the failed response and its fault.

  Returns None if the style has no words for that.
  """
  text, template = failed.text[:MAX_FAILED_TEXT], _get_style(style).repair
  note = fill_template(template, text, failed.reason)
  user = (*prompt.user, *note)
  return dataclasses.replace(prompt, user=user) if note else None


def render_passages(
  passages: Sequence[Passage], *, style: str, max_images: int = 0
) -> list[Segment]:
  """Return passages as a prompt shows them, grouped by knowledge base.

  The first `max_images` of the image knowledge base with an image show it, too.
  """
  templates, segments, images_left = _get_style(style), [], max_images
  for kb in KBS:
    # Ranks count within a knowledge base: ter-0, ter-1, tir-0, ..
    of_kb = [passage for passage in passages if passage.kb == kb]
    for rank, passage in enumerate(of_kb):
      has_image = kb == "image" and bool(passage.image) and images_left > 0
      images_left -= has_image
      segments += _passage_segments(templates, passage, rank, has_image)
  return segments


def fill_template(template: str, *texts: str) -> list[Segment]:
  """Return segments of `template` with untrusted texts for its `{}`s."""
  pieces = template.split("{}")
  segments = [Segment(pieces[0], "template")]
  # A template may ask for fewer texts than there are: it then leaves them out.
  for text, piece in zip(texts, pieces[1:], strict=False):
    segments.append(Segment(escape_control_tags(text), "question"))
    segments.append(Segment(piece, "template"))
  return [segment for segment in segments if segment.text]


def _label_tables(step: Step) -> Step:
  passages = tuple(
    dataclasses.replace(passage, text=label_cells(passage.text))
    if passage.kb == "table"
    else passage
    for passage in step.passages
  )
  return dataclasses.replace(step, passages=passages)


def _get_style(name: str) -> Style:
  if name not in STYLES:
    raise UserError(f"unknown style {name!r}; known: {', '.join(STYLES)}")
  return STYLES[name]


def _answer_segments(step: Step, style: str, images: int) -> list[Segment]:
  """Return the passages of an answer step and its sub-question."""
  templates, sub_question = _get_style(style), step.sub_question
  # The published weights were trained on lower-cased sub-questions.
  if templates.fold_case:
    sub_question = sub_question.lower()
  return [
    *fill_template(templates.passages, sub_question),
    *render_passages(step.passages, style=style, max_images=images),
    *fill_template(templates.asked, sub_question),
  ]


def _question_segments(step: Step, style: Style) -> list[Segment]:
  """Return the question followed by the rounds so far."""
  segments = fill_template(style.question, step.question.text)
  for number, (sub_question, answer) in enumerate(step.history, 1):
    if style.fold_case:
      sub_question, answer = sub_question.lower(), answer.lower()
    template = style.rounds.replace("%d", str(number))
    segments += fill_template(template, sub_question, answer)
  return segments


def _passage_segments(
  style: Style, passage: Passage, rank: int, has_image: bool
) -> list[Segment]:
  """Return a passage, with its image before or after its text by the style."""
  # Style "full" names knowledge base and rank in front of the passage.
  template = style.passage
  if style.tags:
    template %= (style.tags[passage.kb], rank)
  before, after = template.split("{}")
  content = [Segment(escape_control_tags(passage.text), "passage")]
  if has_image:
    image = Segment(passage.image, "image")
    content = [image, *content] if style.image_first else [*content, image]
  pieces = Segment(before, "template"), *content, Segment(after, "template")
  # Whoever shortens a prompt must know which pieces belong together.
  return [
    dataclasses.replace(piece, passage_ref=(passage.kb, rank))
    for piece in pieces
    if piece.text
  ]
