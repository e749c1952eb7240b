"""Baselines that read passages on the question, or on earlier responses.

direct       no search, the answer alone
cot          no search, a thought before the answer
rag_*        one search with the question, of one knowledge base or all
iter_retgen  searches with the question and the last answer, answers anew from
             the passages (arxiv.org/abs/2305.15294)
ircot        writes a sentence of reasoning, searches with it, keeps all that
             was found (arxiv.org/abs/2212.10509)
"""

import functools
import re
from collections.abc import Callable, Sequence

from r1router_jax.common.records import (
  KBS,
  Answer,
  Malformed,
  Passage,
  Plan,
  Question,
)
from r1router_jax.protocol.messages import Conversation
from r1router_jax.routing.baselines.prompting import (
  Rounds,
  SearchAgent,
  Wording,
  build_prompt,
  compact_prompt,
  extract_answer,
  found_passages,
  make_search,
  strip_tags,
)

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

_SENTENCE_END = re.compile(r"(?<=[.!?])\s")


def _closed_book_prompt(
  system: str, question: Question, rounds: Rounds
) -> Conversation:
  return build_prompt("final", system, "Question: {}", question)


def _last_passages(rounds: Rounds) -> Sequence[Passage]:
  return rounds[-1].passages if rounds else ()


def _reading_prompt(
  select: Callable, question: Question, rounds: Rounds
) -> Conversation:
  """Return the prompt to read the passages that are selected from rounds."""
  passages, template = select(rounds), "\nQuestion: {}"
  return build_prompt("final", _READ, template, question, passages=passages)


def _compact_reading_prompt(
  select: Callable, question: Question, rounds: Rounds
) -> Conversation:
  fields = dict(sub_question=question.text, passages=tuple(select(rounds)))
  return compact_prompt("answer", question, **fields)


_read_last = functools.partial(_reading_prompt, _last_passages)
_read_all = functools.partial(_reading_prompt, found_passages)
_compact_read_last = functools.partial(_compact_reading_prompt, _last_passages)
_compact_read_all = functools.partial(_compact_reading_prompt, found_passages)


def _search_with_answer(question: Question, text: str) -> Plan | Malformed:
  """Return a search with the question and its last answer (iter_retgen)."""
  answer = extract_answer(text)
  if isinstance(answer, Malformed):
    return answer
  return make_search(f"{question.text} {answer.text}")


def _next_sentence_prompt(question: Question, rounds: Rounds) -> Conversation:
  """Return the prompt for the next sentence of the reasoning (ircot)."""
  # The first round searched with the question, which is no reasoning.
  reasoning = " ".join(done.plan.sub_question for done in rounds[1:])
  return build_prompt(
    "plan",
    _SENTENCE,
    "\nQuestion: {}\nReasoning: {}",
    question,
    reasoning,
    passages=found_passages(rounds),
  )


def _parse_sentence(question: Question, text: str) -> Plan | Answer | Malformed:
  """Return a search with the sentence, or the answer that it comes to."""
  words = strip_tags(text)
  # The sentence may name the answer, which ends the reasoning.
  if conclusion := _CONCLUSION.search(words):
    return Answer(words, conclusion[1].rstrip("."))
  if not words:
    return Malformed(text, "there is no sentence in it")
  # Only the first sentence is searched, as in the original.
  return make_search(_SENTENCE_END.split(words)[0])


def _make_closed_book(system: str) -> SearchAgent:
  full = Wording(functools.partial(_closed_book_prompt, system))
  compact = Wording(functools.partial(compact_prompt, "final"))
  return SearchAgent(full=full, compact=compact)


DIRECT = _make_closed_book(_DIRECT)

COT = _make_closed_book(_THINK)

# The answer to each round's passages is both query and, at last, result.
ITER_RETGEN = SearchAgent(
  full=Wording(_read_last, _read_last, _search_with_answer),
  compact=Wording(_compact_read_last, _compact_read_last, _search_with_answer),
  initial_kbs=KBS,
)

IRCOT = SearchAgent(
  full=Wording(_read_all, _next_sentence_prompt, _parse_sentence),
  compact=Wording(_compact_read_all, _compact_read_all, _parse_sentence),
  initial_kbs=KBS,
)


def make_rag(*kbs: str) -> SearchAgent:
  """Return the baseline that reads what some knowledge bases have."""
  full, compact = Wording(_read_last), Wording(_compact_read_last)
  return SearchAgent(full=full, compact=compact, initial_kbs=kbs)
