"""Baselines that read what the question, and what was said, brings up.

direct       no search, the answer alone
cot          no search, a thought before the answer
rag_*        one search with the question, of one knowledge base or all
iter_retgen  searches with the question and the last answer, answers anew from
             what that found (arxiv.org/abs/2305.15294)
ircot        writes a sentence of reasoning, searches with it, keeps all that
             was found (arxiv.org/abs/2212.10509)
"""

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
from r1router_jax.protocol import prompts
from r1router_jax.protocol.messages import Conversation
from r1router_jax.routing.baselines.prompting import (
  COMPACT,
  answer_in,
  ask,
  search,
  unlike,
  words_in,
)
from r1router_jax.routing.baselines.search_loop import Language

_BRIEF = (
  "Answer the question in as few words as you can: a name, a number, "
  "yes or no, or a short phrase."
)

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

_DONE = re.compile(r"(?is)\banswer is:?\s*(.+)")

_END = re.compile(r"(?<=[.!?])\s")


def _no_search(system: str):
  def conclude(style, question, rounds):
    if style == COMPACT:
      return prompts.final_conversation(
        question.text, question.image, (), style=style
      )
    return ask("final", system, "Question: {}", question, texts=[question.text])

  return conclude


def _read(
  style: str, question: Question, passages: Sequence[Passage]
) -> Conversation:
  if style == COMPACT:
    return prompts.answer_conversation(
      question.text, passages, question.image, style=style
    )
  return ask(
    "final",
    _READ,
    "\nQuestion: {}",
    question,
    passages=passages,
    texts=[question.text],
  )


def _read_last(style, question, rounds):
  return _read(style, question, rounds[-1].passages if rounds else ())


def _read_all(style, question, rounds):
  return _read(
    style,
    question,
    unlike([passage for done in rounds for passage in done.passages]),
  )


def _more_of(style: str, question: Question, text: str) -> Plan | Malformed:
  """The question and its last answer, to search with."""
  said = answer_in(text)
  return (
    said
    if isinstance(said, Malformed)
    else search(f"{question.text} {said.text}")
  )


def _sentence(style, question, rounds):
  if style == COMPACT:
    return _read_all(style, question, rounds)
  found = unlike([passage for done in rounds for passage in done.passages])
  so_far = " ".join(done.plan.sub_question for done in rounds[1:])
  return ask(
    "plan",
    _SENTENCE,
    "\nQuestion: {}\nReasoning: {}",
    question,
    passages=found,
    texts=[question.text, so_far],
  )


def _thought(
  style: str, question: Question, text: str
) -> Plan | Answer | Malformed:
  """The sentence, to search with, or the answer that it comes to."""
  words = words_in(text)
  if done := _DONE.search(words):
    return Answer(words, done[1].rstrip("."))
  if not words:
    return Malformed(text, "there is no sentence in it")
  return search(_END.split(words)[0])


DIRECT = Language(_no_search(_DIRECT))

COT = Language(_no_search(_THINK))

ITER_RETGEN = Language(_read_last, KBS, _read_last, _more_of)

IRCOT = Language(_read_all, KBS, _sentence, _thought)


def rag(*kbs: str) -> Language:
  """Reads what some knowledge bases have on the question."""
  return Language(_read_last, kbs)
