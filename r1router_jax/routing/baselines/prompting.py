"""Parts that baselines share: their interface, prompts and parsers.

A baseline searches and writes by turns, then concludes:

  question -> passages -> response -> passages -> .. -> conclusion

All responses are written by the policy that is compared, over the same
knowledge bases, with the same `max_steps` searches.  A baseline knows no
routes: it asks all the knowledge bases that it has.

A tiny policy understands three prompts (style "compact") and nothing else, so
each baseline has a second wording: long instructions become a plan step, an
answer step or a final step.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

from r1router_jax.common.records import (
  KBS,
  Answer,
  Malformed,
  Passage,
  Plan,
  Question,
  Round,
  Step,
)
from r1router_jax.policy.config import PromptOptions
from r1router_jax.protocol import format, prompts
from r1router_jax.protocol.messages import Conversation, Segment
from r1router_jax.routing.answering_methods import STOP, AnsweringMethod
from r1router_jax.routing.episode import Episode
from r1router_jax.routing.policy_requests import Parsed, PendingPrompt

COMPACT = "compact"  # The style of a policy that knows three prompts alone.

_ANSWER = re.compile(r"(?is)<answer>(.*?)(?:</answer>|\Z)")
_THOUGHT = re.compile(r"(?is)<think>.*?(?:</think>|\Z)")
_TAG = re.compile(r"</?[a-z][a-z-]*>", re.IGNORECASE)
_OPENING = re.compile(r"(?i)\A(so )?(the )?(final )?answer( is)?:\s*")

Rounds = Sequence[Round]  # Those that a question has so far.


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchAgent(AnsweringMethod):
  """A baseline.

  Its steps are not reported to learn from, since they have no gold.

  Attributes:
    initial_kbs: knowledge bases that are asked the question itself, before the
      policy is asked anything.
    iterative: whether the policy is asked for searches.
    summarize: whether an answer step reads the passages; later prompts then
      show its answer instead of the passages.
  """

  initial_kbs: tuple[str, ...] = ()
  iterative: bool = True
  summarize: bool = False

  def build_prompt(self, step: Step, rounds: Rounds) -> Conversation:
    """Return the prompt of a plan step or of the final step."""
    raise NotImplementedError

  def build_compact_prompt(self, step: Step, rounds: Rounds) -> Conversation:
    """Return the same for tiny policies."""
    return compact_prompt(step.kind, step.question, rounds)

  def parse_turn(self, question: Question, text: str) -> Parsed:
    """Parse the response to a plan; one without routes ends the searches."""
    raise NotImplementedError

  def parse_compact_turn(self, question: Question, text: str) -> Parsed:
    """Parse the response of a tiny policy to a plan."""
    return self.parse_turn(question, text)

  def fixed_plan(self, question: Question, n: int) -> Plan | None:
    """Search with the question at first; stop if that is the only search."""
    if n == 0 and self.initial_kbs:
      return make_search(question.text, self.initial_kbs)
    return None if self.iterative else STOP

  def step_prompt(
    self, config: PromptOptions, episode: Episode, step: Step
  ) -> PendingPrompt | None:
    """Return the prompt of a step; R1-Router's if passages are summarised."""
    if step.kind == "answer":
      if not self.summarize:
        return None
      prompt = config.build_prompt(step)
      return PendingPrompt(episode, prompt, format.parse_answer)
    build, parse = self.build_prompt, self.parse_turn
    if config.style == COMPACT:
      build, parse = self.build_compact_prompt, self.parse_compact_turn
    parse = functools.partial(parse, step.question)
    if step.kind == "final":
      parse = extract_answer
    prompt = config.mark_images(build(step, episode.rounds))
    return PendingPrompt(episode, prompt, parse)


def make_search(
  sub_question: str, kbs: Sequence[str] = KBS, thought: str = ""
) -> Plan:
  """Return the plan that asks each of some knowledge bases the same."""
  # One line, as a search box has it.
  words = " ".join(sub_question.split())
  return Plan(thought, words[: format.MAX_SUB_QUESTION], tuple(kbs))


# ---- Parsers.


def extract_answer(text: str) -> Answer | Malformed:
  """Return the answer that a response gives, in whatever form.

  A policy that was never trained for a format is not judged by it.
  """
  words = _OPENING.sub("", strip_tags(text))
  if not words:
    return Malformed(text, "there is no answer in it")
  return Answer(text[: format.MAX_ANSWER], words[: format.MAX_ANSWER])


def strip_tags(text: str) -> str:
  """Return the text in the last tags of an answer, else all but thoughts."""
  # A policy may correct itself: the last answer counts.
  tagged = _ANSWER.findall(text)
  words = tagged[-1] if tagged else _THOUGHT.sub(" ", text)
  return " ".join(_TAG.sub(" ", words).split())


# ---- Prompts for policies that read instructions.


def make_prompt(
  kind: str,
  system: str,
  user: str,
  question: Question,
  *texts: str,
  passages: Sequence[Passage] = (),
  reply_prefix: Sequence[Segment] = (),
) -> Conversation:
  """Return a prompt of passages, then the question, then its image.

  Args:
    kind: kind of the step, one of `records.KINDS`; names its faults.
    system: the system turn.
    user: template with a `{}` for the question and for each of `texts`.
    question: the question.
    *texts: untrusted texts.
    passages: passages to show.
    reply_prefix: text that the reply starts with.
  """
  turn = prompts.render_passages(passages, style="full")
  turn += prompts.fill_template(user, question.text, *texts)
  # At the end, as in style "full".
  if question.image:
    turn.append(Segment(question.image, "image"))
  return Conversation(kind, system, tuple(turn), tuple(reply_prefix))


def found_passages(rounds: Rounds) -> list[Passage]:
  """Return the passages of all rounds, each once."""
  # Later searches may find the same passage again.
  passages = [passage for done in rounds for passage in done.passages]
  return list({(each.id, each.text): each for each in passages}.values())


def round_texts(rounds: Rounds) -> list[tuple[str, str]]:
  """Return the sub-question and the answer of each round."""
  return [(done.plan.sub_question, done.answer.text) for done in rounds]


def compact_prompt(
  kind: str, question: Question, rounds: Rounds = (), **fields: Any
) -> Conversation:
  """Return R1-Router's prompt of a step after some rounds, for tiny policies.

  Further fields of the step may be given.
  """
  step = Step("", kind, question, tuple(round_texts(rounds)), **fields)
  return prompts.step_conversation(step, style=COMPACT)
