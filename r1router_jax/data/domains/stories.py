"""Stories: passages and tables written by hand, told anew with other names.

The sentences of `documents.py` state one fact each; people write otherwise.  A
story has two or three passages, its tables, captions of pictures that nobody
has drawn, and questions with their hops; its slots are filled with invented
names and numbers.  Several stories, told side by side, are the documents of a
domain.  They stand in `files/domains/<half>/`, in `stories_*.toml`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Hop, Passage, Question
from r1router_jax.data.domains.documents import Documents
from r1router_jax.data.domains.domain import pick
from r1router_jax.data.domains.lexicon import Lexicon, Story, StoryQuestion
from r1router_jax.data.domains.names import NameMaker
from r1router_jax.data.domains.questions import UNKNOWN, Trace
from r1router_jax.data.domains.quoting import count_shared_words, has_words
from r1router_jax.data.domains.references import TracedHop
from r1router_jax.retrieval.corpora import open_wikitable

# Patterns of names, by the word that a slot is declared with.
_NAMES = {
  "person": ("{full_name}",),
  "first": ("{first}",),
  "surname": ("{root}",),
  "place": ("{root}", "{root}", "{adjective} {root}"),
  "organisation": ("{root} {noun} Company", "{root} Society", "{root} & Sons"),
  "thing": ("{adjective} {noun}",),
  "creature": ("{noun}", "{first}"),
}


def tell_story(
  story: Story, lexicon: Lexicon, prefix: str, rng: np.random.Generator
) -> tuple[Documents, Iterator[Trace]]:
  """Return a story's documents with new names, and its questions.

  Ids of passages begin with `prefix`; questions have no ids yet.
  """
  names = NameMaker(lexicon.phrases, rng)
  values = {
    name: _draw_value(story.title, name, declared, names, rng)
    for name, declared in story.slots.items()
  }

  def fill(text: str) -> str:
    return text.format_map(values)

  title = fill(story.title)
  texts = [f"{title}. {fill(text)}" for text in story.texts]
  tables = [
    open_wikitable.flatten_table(
      dict(
        title=fill(table.title),
        header=[*map(fill, table.header)],
        rows=[[*map(fill, row)] for row in table.rows],
      )
    )
    for table in story.tables
  ]
  passages = {
    kb: [Passage(f"{prefix}/{kb}/{n}", kb, x) for n, x in enumerate(written)]
    for kb, written in (
      ("text", texts),
      ("table", tables),
      ("image", [*map(fill, story.captions)]),
    )
  }
  documents = Documents(passages, {}, {}, {})
  given = [values[n] for n, kind in story.slots.items() if kind in _NAMES]
  traces = (
    _make_trace(question, values, passages)
    for question in map(_keep_words, story.questions)
    if not _names_unknown(question, values, given)
  )
  return documents, traces


def _keep_words(question: StoryQuestion) -> StoryQuestion:
  """Return a question, with itself as its sub-question if it has one hop.

  One of several sentences keeps the sub-question that was written for it.
  """
  (route, _, answer), *more = question.hops
  if more or ". " in question.ask or "! " in question.ask:
    return question
  hop = route, question.ask, answer
  return msgspec.structs.replace(question, hops=(hop,))


def _names_unknown(
  question: StoryQuestion, values: Mapping[str, str], names: Sequence[str]
) -> bool:
  """Return whether a sub-question has a name that nothing before it tells."""
  known = question.ask.format_map(values)
  for _, asked, answer in question.hops:
    asked = asked.format_map(values)
    if any(name in asked and name not in known for name in names):
      return True
    known += " " + answer.format_map(values)
  return False


def _draw_value(
  title: str,
  slot: str,
  declared: str,
  names: NameMaker,
  rng: np.random.Generator,
) -> str:
  """Return a value of a slot: a name, a number, a year or one of some words."""
  word, _, rest = declared.partition(" ")
  if declared in _NAMES:
    return names.fill(pick(rng, _NAMES[declared]))
  if word == "of:":
    return pick(rng, [choice.strip() for choice in rest.split(";")])
  ends = re.fullmatch(r"(?:number|year) (\d+) (\d+)", declared)
  if not ends:
    raise UserError(
      f"The story {title!r} declares its slot {slot} as {declared!r}: take one "
      f"of {', '.join(_NAMES)}, or words such as 'of: red; blue', 'number 2 9' "
      "or 'year 1700 1900'."
    )
  return str(int(rng.integers(int(ends[1]), int(ends[2]) + 1)))


def _make_trace(
  question: StoryQuestion,
  values: Mapping[str, str],
  passages: Mapping[str, list[Passage]],
) -> Trace:
  hops = []
  for route, asked, answer in question.hops:
    asked, answers = asked.format_map(values), _split_forms(answer, values)
    evidence = ()
    if answers == UNKNOWN[:1]:
      answers = UNKNOWN
    else:
      evidence = _find_evidence(asked, answers, passages[route])
    hops.append(TracedHop(Hop(asked, (route,), answers, evidence)))
  answers, thought = hops[-1].hop.answers, ""
  if question.answer:
    answers = _split_forms(question.answer, values)
    thought = "; ".join(hop.hop.answers[0] for hop in hops)
  filled = Question(
    "",
    question.ask.format_map(values),
    answers,
    family="_".join(["story", *(hop.hop.routes[0] for hop in hops)]),
    hops=tuple(hop.hop for hop in hops),
  )
  picture = ""
  if question.picture:
    picture = passages["image"][question.picture - 1].id
  return Trace(filled, tuple(hops), thought, picture)


def _split_forms(answer: str, values: Mapping[str, str]) -> tuple[str, ...]:
  return tuple(answer.format_map(values).split("|"))


def _find_evidence(
  asked: str, answers: Sequence[str], passages: Sequence[Passage]
) -> tuple[str, ...]:
  """Return the passage with an answer that is most like the sub-question."""
  holding = [
    passage
    for passage in passages
    if any(has_words(passage.text, answer) for answer in answers)
  ]
  best = max(
    holding, key=lambda x: count_shared_words(x.text, asked), default=None
  )
  return (best.id,) if best else ()
