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
from collections.abc import Callable, Sequence
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
from r1router_jax.routing.policy_requests import PendingPrompt

COMPACT = "compact"  # The style of a policy that knows three prompts alone.

_ANSWER = re.compile(r"(?is)<answer>(.*?)(?:</answer>|\Z)")
_THOUGHT = re.compile(r"(?is)<think>.*?(?:</think>|\Z)")
_TAG = re.compile(r"</?[a-z][a-z-]*>", re.IGNORECASE)
_OPENING = re.compile(r"(?i)\A(so )?(the )?(final )?answer( is)?:\s*")

Rounds = Sequence[Round]  # Those that a question has so far.

# (question, rounds so far) -> a prompt
BuildPrompt = Callable[[Question, Rounds], Conversation]

# (question, response) -> a plan, the answer to the question, or neither
ParseTurn = Callable[[Question, str], Plan | Answer | Malformed]


@dataclasses.dataclass(frozen=True)
class Wording:
  """The prompts of a baseline for policies of one style.

  Attributes:
    final_prompt: builds the prompt for the answer to the question.
    next_prompt: builds the prompt for the next search, or None if there is
      none but the first.
    parse: parses a response to it; a plan without routes leads to the final
      prompt.
  """

  final_prompt: BuildPrompt
  next_prompt: BuildPrompt | None = None
  parse: ParseTurn | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchAgent(AnsweringMethod):
  """A baseline.

  Its steps are not reported to learn from, since they have no gold.

  Attributes:
    full: its wording for all policies but tiny ones.
    compact: its wording for tiny policies.
    initial_kbs: knowledge bases that are asked the question itself, before the
      policy is asked anything.
    summarize: whether an answer step reads the passages; later prompts then
      show its answer instead of the passages.
  """

  full: Wording
  compact: Wording
  initial_kbs: tuple[str, ...] = ()
  summarize: bool = False

  def _wording(self, config: PromptOptions) -> Wording:
    return self.compact if config.style == COMPACT else self.full

  def fixed_plan(self, question: Question, n: int) -> Plan | None:
    """Search with the question at first; stop if there is no next prompt."""
    # The first search needs no response of the policy.
    if n == 0 and self.initial_kbs:
      return make_search(question.text, self.initial_kbs)
    return STOP if self.full.next_prompt is None else None

  def step_prompt(
    self, config: PromptOptions, episode: Episode, step: Step
  ) -> PendingPrompt | None:
    """Return the prompt of a step; R1-Router's if passages are summarised."""
    context = step.question, episode.rounds
    if step.kind == "plan":
      parse = functools.partial(self._wording(config).parse, step.question)
      prompt = self._wording(config).next_prompt(*context)
      return PendingPrompt(episode, prompt, parse)
    if step.kind == "final":
      prompt = self._wording(config).final_prompt(*context)
      return PendingPrompt(episode, prompt, extract_answer)
    if not self.summarize:
      return None
    prompt = config.build_prompt(step)
    return PendingPrompt(episode, prompt, format.parse_answer)


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


def build_prompt(
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
