"""MultimodalQA's questions, with gold hops, as rows of this project's own form.

  MMQA_train.jsonl.gz, MMQA_dev.jsonl.gz    questions, one in each line
  MMQA_texts.jsonl.gz, MMQA_tables.jsonl.gz, MMQA_images.jsonl.gz
                                            `retrieval.corpora.multimodalqa`

A question has a type, such as Compose(TextQ,TableQ), the answers of the
questions that it is made of (`intermediate_answers`), and a sentence by a
grammar that shows these questions in braces:

  when did {the [Title](s) in the [Filmography] of [Ben Piazza] when the [Role]
  was [Bob Whitewood]}, come out

Hops are made of them by type; the route of a hop is the modality of its answer,
which is the `doc_part` of the documents that it points to:

  TextQ, TableQ, ImageQ, ImageListQ   the question itself; the type is the route
  Compose(B,A)                        A, in braces; then B, with A's answer in
                                      place of the braces
  Intersect(A,B)                      A and B, on both sides of "and was the"
  Compare(..)                         what stands in braces; then the table

A hop whose question the sentence does not show in this way, or whose question
has no such sentence, asks the question itself; its route and answers hold.
The answers of a question, and those of a hop, are one list of members, of which
none may be missing.  The documents that a hop's answer points to are its
evidence: the ids of passages, or of what was cut into passages ("id#0").

Source: github.com/allenai/multimodalqa.
"""

import os
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from r1router_jax.common.records import KBS

_FILE_NAME = re.compile(r"(MMQA|MultiModalQA)_\w+\.jsonl(\.gz|\.bz2)?")
_Text = Annotated[str, Meta(pattern=r"\S")]
_SINGLE = dict(TextQ="text", TableQ="table", ImageQ="image", ImageListQ="image")
_INNER = re.compile(r"\{([^{}]*)\}")  # Braces with none inside.
_SIDES = re.compile(r",? and was the ")  # What both sides of Intersect share.


class _Document(msgspec.Struct):
  doc_id: _Text


class _Answer(msgspec.Struct):
  answer: _Text | int | float
  modality: Literal[KBS]
  text_instances: list[_Document] = []
  image_instances: list[_Document] = []

  @property
  def documents(self) -> list[str]:
    """The ids of the texts or images that hold the answer."""
    found = [*self.text_instances, *self.image_instances]
    return [document.doc_id for document in found]


_Answers = Annotated[list[_Answer], Meta(min_length=1)]
_TYPES = r"^((TextQ|TableQ|ImageQ|ImageListQ)$|(Compose|Compare|Intersect)\()"
_Type = Annotated[str, Meta(pattern=_TYPES)]


class _Metadata(msgspec.Struct):
  type: _Type
  intermediate_answers: list[_Answers] = []
  pseudo_language_question: str | None = None
  table_id: str | None = None


class Row(msgspec.Struct):
  """A line of the questions for training or development.

  Those for testing have no answers.
  """

  qid: _Text
  question: _Text
  answers: _Answers
  metadata: _Metadata

  def __post_init__(self):
    kind, count = self._kind, len(self.metadata.intermediate_answers)
    wanted = dict(Compose=1, Intersect=2, Compare=2).get(kind, count)
    if count != wanted:
      raise ValueError(f"{kind} has {count} intermediate_answers, not {wanted}")

  @property
  def _kind(self) -> str:
    return self.metadata.type.partition("(")[0]

  def to_own(self) -> dict[str, Any]:
    """Return the row in the form of `question_files`."""
    return dict(
      id=self.qid,
      question=self.question,
      answers=[[each.answer for each in self.answers]],
      family=self.metadata.type,
      hops=self._make_hops(),
    )

  def _make_hops(self) -> list[dict[str, Any]]:
    found = self.metadata.intermediate_answers
    # 1. The questions in the sentence, and what of it is left for the table.
    kind, sentence = self._kind, self.metadata.pseudo_language_question or ""
    if kind in _SINGLE:
      hop = self._make_hop(self.question, self.answers, _SINGLE[kind])
      return [hop]
    if kind == "Intersect":
      sides = _SIDES.split(sentence)
      asked = [sides[0], f"what was the {sides[-1]}"] if len(sides) == 2 else []
    else:
      if kind == "Compare":
        found = _compared_answers(sentence, found)
      asked = _questions_in_braces(sentence)
    if len(asked) != len(found):
      asked = [self.question] * len(found)
    # 2. The hops of these questions.
    pairs = zip(asked, found, strict=True)
    hops = [self._make_hop(_tidy(text), answers) for text, answers in pairs]
    if kind == "Intersect":
      return hops
    # 3. The last one, which knows their answers.
    texts = [hop["answers"][0] for hop in hops]
    filled = _fill_braces(sentence, texts) or self.question
    return [*hops, self._make_hop(filled, self.answers)]

  def _make_hop(
    self, text: str, answers: list[_Answer], route: str = ""
  ) -> dict[str, Any]:
    """Return a hop, whose route is by default the modality of its answers."""
    route, table = route or answers[0].modality, self.metadata.table_id
    documents = [name for each in answers for name in each.documents]
    evidence = [table] if route == "table" and table else documents
    joined = _join([each.answer for each in answers])
    hop = dict(sub_question=text or self.question, routes=[route])
    return hop | dict(answers=[joined], evidence=[*dict.fromkeys(evidence)])


def is_question_file(path: str) -> bool:
  """Return whether a path has the name of a file of such questions."""
  name = os.path.basename(path)
  is_corpus = re.search("_(texts|tables|images)", name)
  return bool(_FILE_NAME.fullmatch(name)) and not is_corpus


def join_answers(own: dict[str, Any]) -> dict[str, Any]:
  """Return a row of `Row.to_own` whose answer is a text, and no list."""
  return own | dict(answers=[_join(members) for members in own["answers"]])


def _join(members: list[str | int | float]) -> str:
  return ", ".join(map(str, members))


def _compared_answers(
  sentence: str, found: list[list[_Answer]]
) -> list[list[_Answer]]:
  """Return the answers to the questions in braces, in their order there.

  A comparison names one thing itself, which is in the table, or asks for both:
  one of an image, whose columns stand in brackets, and one of a text.
  """
  hidden = [some for some in found if some[0].modality != "table"]
  if len(hidden) < 2:
    return hidden
  first = next(iter(_INNER.findall(sentence)), "")
  wanted = "image" if "[" in first else "text"
  return sorted(hidden, key=lambda some: some[0].modality != wanted)


def _questions_in_braces(sentence: str) -> list[str]:
  """Return what stands in innermost braces, each a question by itself."""
  asked = []
  for match in _INNER.finditer(sentence):
    text = match[1].strip()
    # "when the [City] {has an arch}" asks which city has one.
    if column := re.search(r"\[([^][]*)\]\s*$", sentence[: match.start()]):
      text = f"Which {column[1]} {text}"
    elif text.startswith("the ["):
      text = f"What is {text}"
    elif text.startswith("["):
      text = f"Which {text}"
    asked.append(text)
  return asked


def _fill_braces(sentence: str, answers: list[str]) -> str:
  """Return the sentence with answers in place of its innermost braces."""
  if len(_INNER.findall(sentence)) != len(answers):
    return ""
  left = iter(answers)
  # "when the [City] {has an arch}" becomes "when the City is Rome".
  sentence = re.sub(r"\]\s*\{", "] is {", sentence.replace("},", "}"))
  return _tidy(_INNER.sub(lambda _: next(left), sentence))


def _tidy(text: str) -> str:
  """Return a part of a sentence without its marks, as a question."""
  text = re.sub(r"\(s\)|[][{}]", "", text)
  text = re.sub(r"\s+([,?:])", r"\1", " ".join(text.split()))
  text = text.rstrip(" ,?:")
  return f"{text[:1].upper()}{text[1:]}?" if text else ""
