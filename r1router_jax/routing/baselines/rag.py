"""Baselines that read passages on the question, or on earlier responses.

direct       no search, the answer alone
cot          no search, a thought before the answer
rag_*        one search with the question, of one knowledge base or all
iter_retgen  searches with the question and the last answer, answers anew from
             the passages (arxiv.org/abs/2305.15294)
ircot        writes a sentence of reasoning, searches with it, keeps all that
             was found (arxiv.org/abs/2212.10509)
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

from etils import epy

from r1router_jax.common.records import (
  KBS,
  Answer,
  Malformed,
  Passage,
  Question,
  Step,
)
from r1router_jax.protocol.messages import Conversation
from r1router_jax.routing.baselines.prompting import (
  Rounds,
  SearchAgent,
  compact_prompt,
  extract_answer,
  found_passages,
  make_prompt,
  make_search,
  strip_tags,
)
from r1router_jax.routing.policy_requests import Parsed

# Imported when used, since it takes most of a second.
with epy.lazy_imports():
  from nltk.tokenize import punkt

_BRIEF = (
  "Answer the question in as few words as you can: a name, a number, "
  "yes or no, or a short phrase."
)

# Tiny policies answer from the question alone by their final step.
_DIRECT = f"{_BRIEF}  Write the answer and nothing else."

_THINK = (
  f"{_BRIEF}  Think first, step by step.  Write\n<think>your thoughts"
  "</think>\n<answer>the answer</answer>"
)

_READ = (
  f"{_BRIEF}  Passages that were found for it come first; some may have "
  "nothing to do with it.  Write\n<think>what the passages say</think>\n"
  "<answer>the answer</answer>"
)

_SENTENCE = (
  "Passages come first, then a question and the reasoning so far.  Write the "
  "next sentence of the reasoning, one fact that a passage tells, and "
  "nothing else.  Where all is known that the question needs, write instead: "
  "So the answer is: (the answer in as few words as you can)."
)

# As the prompt asks for it, in any case and with or without a colon.
_CONCLUSION = re.compile(r"(?is)\banswer is:?\s*(.+)")

# Words whose period ends no sentence.
_ABBREVIATIONS = (
  "a.m. capt. co. col. corp. d.c. dr. e.g. etc. fig. gen. gov. i.e. inc. jr. "
  "lt. ltd. mr. mrs. ms. mt. no. p.m. ph.d. prof. rep. rev. sen. sgt. sr. st. "
  "u.k. u.n. u.s. vol. vs."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClosedBook(SearchAgent):
  """Answer without a search; `system` says how."""

  system: str
  iterative: bool = False

  def build_prompt(self, step: Step, rounds: Rounds) -> Conversation:
    """Return the question alone."""
    return make_prompt(step.kind, self.system, "Question: {}", step.question)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader(SearchAgent):
  """Answer from passages, at first those on the question itself."""

  initial_kbs: tuple[str, ...] = KBS
  iterative: bool = False

  def select_passages(self, rounds: Rounds) -> Sequence[Passage]:
    """Return the passages to show: those of the last search."""
    return rounds[-1].passages if rounds else ()

  def build_prompt(self, step: Step, rounds: Rounds) -> Conversation:
    """Return passages and question; any response is an answer."""
    passages, user = self.select_passages(rounds), "\nQuestion: {}"
    return make_prompt("final", _READ, user, step.question, passages=passages)

  def build_compact_prompt(self, step: Step, rounds: Rounds) -> Conversation:
    """Return an answer step whose sub-question is the question."""
    question, passages = step.question, tuple(self.select_passages(rounds))
    fields = dict(sub_question=question.text, passages=passages)
    return compact_prompt("answer", question, **fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IterRetgen(Reader):
  """Search with each answer; the last one counts."""

  iterative: bool = True

  def parse_turn(self, question: Question, text: str) -> Parsed:
    """Return a search with the question and its last answer."""
    answer = extract_answer(text)
    if isinstance(answer, Malformed):
      return answer
    return make_search(f"{question.text} {answer.text}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ircot(Reader):
  """Search with each sentence of the reasoning, and keep what was found."""

  iterative: bool = True

  def select_passages(self, rounds: Rounds) -> Sequence[Passage]:
    """Return the passages of all searches."""
    return found_passages(rounds)

  def build_prompt(self, step: Step, rounds: Rounds) -> Conversation:
    """Return the prompt for the next sentence, or at last for the answer."""
    if step.kind == "final":
      return super().build_prompt(step, rounds)
    # The first round searched with the question, which is no reasoning.
    reasoning = " ".join(done.plan.sub_question for done in rounds[1:])
    user, passages = "\nQuestion: {}\nReasoning: {}", found_passages(rounds)
    texts = step.question, reasoning
    return make_prompt("plan", _SENTENCE, user, *texts, passages=passages)

  def parse_turn(self, question: Question, text: str) -> Parsed:
    """Return a search with the sentence, or the answer that it comes to."""
    words = strip_tags(text)
    # The sentence may name the answer, which ends the reasoning.
    if conclusion := _CONCLUSION.search(words):
      return Answer(words, conclusion[1].rstrip("."))
    if not words:
      return Malformed(text, "there is no sentence in it")
    # Only the first sentence is searched, as in the original.
    start, end = next(_sentence_splitter().span_tokenize(words))
    # Chinese and Japanese sentences have no space between them.
    return make_search(re.split("(?<=[。！？])", words[start:end])[0])


@functools.cache
def _sentence_splitter() -> "punkt.PunktSentenceTokenizer":
  parameters = punkt.PunktParameters()
  # NLTK spells them without the last period.
  parameters.abbrev_types |= {word[:-1] for word in _ABBREVIATIONS.split()}
  return punkt.PunktSentenceTokenizer(parameters)


DIRECT, COT = ClosedBook(system=_DIRECT), ClosedBook(system=_THINK)
