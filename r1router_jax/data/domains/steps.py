"""Gold steps of the grammar's questions, with passages as searches find them.

An answer step reads one to three passages: those whose words are most like the
sub-question, the gold one mostly among them.  Where it is not, the right answer
is "unknown".  Some rounds of a history searched the wrong knowledge base first:
the answer was "unknown", and the next plan asks another one.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import (
  MAX_HOPS,
  Answer,
  Hop,
  Passage,
  Plan,
  Query,
  Question,
  Step,
)
from r1router_jax.data.domains import quoting
from r1router_jax.data.domains.documents import Documents, write_documents
from r1router_jax.data.domains.domain import make_domain, pick, sample
from r1router_jax.data.domains.lexicon import Lexicon, load_lexicon
from r1router_jax.data.domains.questions import UNKNOWN, QuestionMaker, Trace
from r1router_jax.data.domains.references import TracedHop
from r1router_jax.data.domains.stories import tell_story
from r1router_jax.protocol import format, thoughts
from r1router_jax.retrieval.index.bm25 import Bm25Index

QUESTIONS_PER_DOMAIN = 12

# The half of the words that each split has; no two splits share a domain.
SPLITS = dict(train="train", val="train", test="test")

# Stories are the documents of every second domain, several of them together.
_STORY_EVERY, _STORIES = 2, 4
_SHOWN = 0.5  # Share of their questions with a picture that are asked.

# Probability that a round before looked where a fact is usually told, if it is
# not told there; in stories only texts are usual.
_USUAL_FIRST, _TEXT_FIRST = 0.8, 0.25
_GOLD_MISSED = 0.05  # Probability that no passage found tells the answer.
_MAX_CHARACTERS = 1000  # Of all passages that a step reads.

# Numbers of passages that a step reads.
_COUNTS = dict(text=(1, 2, 2, 3), image=(1, 2, 3), table=(1, 1, 2))


def make_steps(split: str, count: int, seed: int) -> Iterator[list[Step]]:
  """Yield the gold steps of `count` questions of a split, one list for each.

  The questions' pictures are named, but not drawn: a policy that sees cannot
  read steps with one, and learns from what `make_domains` writes.  A split that
  is not there raises UserError.
  """
  if split not in SPLITS:
    raise UserError(
      f"The grammar has no split {split!r}: take one of {', '.join(SPLITS)}."
    )
  lexicon, place = load_lexicon(SPLITS[split]), list(SPLITS).index(split)
  for number in range(-(-count // QUESTIONS_PER_DOMAIN)):
    rng = np.random.default_rng((seed, place, number))
    prefix = f"{split}/{seed}/{number}"
    wanted = min(QUESTIONS_PER_DOMAIN, count - QUESTIONS_PER_DOMAIN * number)
    if lexicon.stories and number % _STORY_EVERY == _STORY_EVERY - 1:
      documents, traces = _tell_stories(lexicon, prefix, wanted, rng)
    else:
      domain = make_domain(lexicon, rng)
      documents = write_documents(lexicon, domain, prefix, rng)
      make_question = QuestionMaker(lexicon, domain, documents, rng)
      ids = (f"domains/{prefix}/{n}" for n in range(wanted))
      traces = map(make_question, ids)
    finder = PassageFinder(documents, rng)
    for trace in traces:
      yield _trace_steps(trace, finder, rng)


def _tell_stories(
  lexicon: Lexicon, prefix: str, wanted: int, rng: np.random.Generator
) -> tuple[Documents, list[Trace]]:
  """Return the documents of some stories, and questions about them."""
  passages, traces = dict(text=[], image=[], table=[]), []
  for n, story in enumerate(sample(rng, lexicon.stories, _STORIES)):
    told, asked = tell_story(story, lexicon, f"{prefix}/{n}", rng)
    for kb, some in told.passages.items():
      passages[kb] += some
    traces += [one for one in asked if not one.picture or rng.random() < _SHOWN]
  traces = [
    dataclasses.replace(
      trace,
      question=dataclasses.replace(trace.question, id=f"domains/{prefix}/{n}"),
    )
    for n, trace in enumerate(sample(rng, traces, wanted))
  ]
  return Documents(passages, {}, {}, {}), traces


class PassageFinder:
  """Finds passages of a domain whose words are like a sub-question's."""

  def __init__(self, documents: Documents, rng: np.random.Generator):
    self._documents, self._rng = documents, rng
    self._by_id = {p.id: p for ps in documents.passages.values() for p in ps}

  @functools.cached_property
  def _indices(self) -> dict[str, Bm25Index]:
    return {
      kb: Bm25Index.from_texts([passage.text for passage in passages])
      for kb, passages in self._documents.passages.items()
      if passages
    }

  def find(
    self, kb: str, asked: str, evidence: Sequence[str], has_picture: bool
  ) -> tuple[Passage, ...]:
    """Return passages of one knowledge base, best first.

    Of the evidence, if there is any, one is mostly among them.
    """
    rng = self._rng
    count = pick(rng, _COUNTS[kb])
    passages = self._documents.passages[kb]
    if not passages:
      return ()
    own = [name for name in evidence if self._by_id[name].kb == kb]
    # A picture finds what looks like it, whatever the sub-question says: only
    # the first place tells what it shows.
    if has_picture and own:
      others = [p for p in passages if p.id not in own]
      return self._by_id[own[0]], *sample(rng, others, count - 1)
    _, rows = self._indices[kb].search([Query(asked)], count)
    found = [passages[row] for row in rows[0].tolist() if row >= 0]
    if own and rng.random() < _GOLD_MISSED:
      found = [p for p in found if p.id not in own]
    elif own and not any(p.id in own for p in found):
      gold = self._by_id[pick(rng, own)]
      # Searches put what is right at the top mostly.
      place = 0 if rng.random() < 0.6 else int(rng.integers(count))
      found = [*found[:place], gold, *found[place:]][:count]
    # Long prompts lose their ends: what tells nothing goes first.
    while sum(len(p.text) for p in found) > _MAX_CHARACTERS and len(found) > 1:
      others = [p for p in found if p.id not in own]
      found.remove(others[-1] if others else found[-1])
    return tuple(found)


class _StepWriter:
  """Writes the steps of one question, with their responses, and its history."""

  def __init__(self, question: Question):
    self.steps: list[Step] = []
    self._question = question
    self._history: tuple[tuple[str, str], ...] = ()

  @property
  def rounds_left(self) -> int:
    """Return how many rounds the question may still take."""
    return MAX_HOPS - len(self._history)

  def add_plan(self, plan: Plan, routes: tuple[str, ...]) -> None:
    """Add a plan; `routes` are all that are right."""
    response = format.render_plan(plan)
    self._add("plan", plan.sub_question, response, routes=routes)

  def add_round(
    self,
    asked: str,
    found: tuple[Passage, ...],
    answers: tuple[str, ...],
    thought: str,
    known: str,
  ) -> None:
    """Add the answer of a round, whose passages are `found`.

    The history goes on with the answer `known`.
    """
    self._add_answer("answer", asked, answers, thought, passages=found)
    self._history += ((asked, known),)

  def add_final(self, thought: str) -> None:
    """Add the final answer."""
    self._add_answer("final", "", self._question.answers, thought)

  def _add_answer(
    self, kind: str, asked: str, answers: tuple[str, ...], thought: str, **of
  ) -> None:
    response = format.render_answer(Answer(thought, answers[0]))
    self._add(kind, asked, response, answers=answers, **of)

  def _add(self, kind: str, asked: str, response: str, **of) -> None:
    step_id = f"{self._question.id}/{len(self.steps)}"
    given = step_id, kind, self._question, self._history, asked
    self.steps.append(Step(*given, response=response, **of))


def _trace_steps(
  trace: Trace, finder: PassageFinder, rng: np.random.Generator
) -> list[Step]:
  """Return the steps of a question's trajectory, with their responses."""
  question = dataclasses.replace(trace.question, image=trace.picture)
  writer = _StepWriter(question)
  for i, traced in enumerate(trace.hops):
    hop, asked = traced.hop, traced.hop.sub_question
    usual, is_known = traced.usual_home or "text", bool(traced.usual_home)
    route = usual if usual in hop.routes else hop.routes[0]
    # 1. A round before that looked where such facts are usually told.  A policy
    # learns to look there first, and elsewhere after an "unknown".
    is_told = route == usual or route == "image" or not hop.evidence
    spare = writer.rounds_left - (len(trace.hops) - i)
    share = _USUAL_FIRST if is_known else _TEXT_FIRST
    misses = not is_told and bool(spare) and rng.random() < share
    if misses:
      if is_known:
        plan = Plan(thoughts.PLAN[usual], asked, (usual,))
        writer.add_plan(plan, (usual, *hop.routes))
      found = finder.find(usual, asked, (), False)
      writer.add_round(asked, found, UNKNOWN, thoughts.MISSED, UNKNOWN[0])

    # 2. The plan of the hop, unless nobody could know where it looks.
    if is_told or misses or not is_known:
      thought = traced.plan_thought or thoughts.PLAN[route]
      writer.add_plan(Plan(thought, asked, (route,)), hop.routes)

    # 3. Its answer; the history goes on as if the gold had been read.
    has_picture = route == "image" and bool(trace.picture)
    found = finder.find(route, asked, hop.evidence, has_picture)
    writer.add_round(asked, found, *_reading(traced, found), hop.answers[0])

  # 4. The plan that stops, and the final answer.
  is_unknown = question.answers == UNKNOWN
  if writer.rounds_left:
    thought = thoughts.GIVE_UP if is_unknown else thoughts.PLAN["none"]
    writer.add_plan(Plan(thought, format.NONE, ()), ("none",))
  usual = thoughts.GIVE_UP if is_unknown else thoughts.READ
  writer.add_final(trace.final_thought or usual)
  return writer.steps


def _reading(
  traced: TracedHop, found: Sequence[Passage]
) -> tuple[tuple[str, ...], str]:
  """Return the answers that passages give to a hop, and the thought."""
  hop = traced.hop
  gold = [passage for passage in found if passage.id in hop.evidence]
  if not gold:
    return UNKNOWN, thoughts.MISSED
  if traced.answer_thought:
    return hop.answers, traced.answer_thought
  # The form that a passage has is the one to copy.
  for answer in hop.answers:
    for passage in gold:
      if quoting.has_words(passage.text, answer):
        rest = [other for other in hop.answers if other != answer]
        return (answer, *rest), _read_thought(passage, hop, answer)
  return hop.answers, thoughts.READ


def _read_thought(passage: Passage, hop: Hop, answer: str) -> str:
  """Return the thought before an answer that a passage tells."""
  told = ""
  if passage.kb == "table":
    told = quoting.quote_cell(passage.text, hop.sub_question, answer)
  return told or thoughts.READ
