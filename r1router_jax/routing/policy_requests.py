"""Requests of the routing loop to a policy: prompts out, responses in.

The loop is a generator: it yields a `GenerationRequest` and is sent a group of
responses to each prompt, so that one loop may be driven by the host or from
inside a jitted program.

A response that is not of the protocol is drawn once more, if it was greedy at
temperature 1, since it would be the same again; a plan that fails again is
asked for a last time with the reason why it failed (`templates.Style.repair`).
"""

import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, TypeVar

from r1router_jax.common import images
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import (
  Answer,
  Malformed,
  Plan,
  Question,
  Response,
  Step,
)
from r1router_jax.common.text import mend_text
from r1router_jax.generation.token_sampling import SamplingParams
from r1router_jax.inputs.tokenizer import PromptTooLong
from r1router_jax.policy.interface import PolicyInterface
from r1router_jax.protocol import prompts
from r1router_jax.protocol.messages import Conversation, Segment
from r1router_jax.routing.episode import Episode

PLAN_TRIES = 3

ANSWER_TRIES = 2  # Of an answer step and of the final step.

# Numbers of the requests of one round: tries for a plan, then for an answer.
REQUESTS_PER_ROUND = PLAN_TRIES + ANSWER_TRIES


class GenerationRequest(NamedTuple):
  """The prompts to which a loop needs responses at one time.

  Attributes:
    number: number of the request, `REQUESTS_PER_ROUND` to a round; selects the
      key of its samples.
    prompts: one or more prompts.
    members: member index of the episode of each prompt.
    sampling: how tokens of responses are drawn.
  """

  number: int
  prompts: list[Conversation]
  members: list[int]
  sampling: SamplingParams


Parsed = Plan | Answer | Malformed


class PendingPrompt(NamedTuple):
  """One prompt that a response is needed to.

  Attributes:
    episode: the episode that it belongs to.
    prompt: the prompt.
    parse: parses the text of a response.
    step: the step to report with the responses, or None to report nothing.
    is_repair: whether the prompt is that of a repair.
  """

  episode: Episode
  prompt: Conversation
  parse: Callable[[str], Parsed]
  step: Step | None = None
  is_repair: bool = False


Groups = list[list[Response]]  # Responses to each prompt.

# Yields requests, is sent the responses, and returns a result.
Result = TypeVar("Result")
RequestGenerator = Generator[GenerationRequest, Groups, Result]


class VisitedStep(NamedTuple):
  """A step that the policy was asked, with its responses.

  Attributes:
    step: the step, without gold.
    responses: the group of responses to it.
    prompt: the prompt that they respond to; that of a repair also shows the
      response that failed.
    member: member index of the episode.
    number: number of the request, see `GenerationRequest`.
    is_repair: whether the prompt is that of a repair.
  """

  step: Step
  responses: Sequence[Response]
  prompt: Conversation
  member: int
  number: int
  is_repair: bool


def start_episodes(
  policy: PolicyInterface, questions: Sequence[Question], count: int = 1
) -> list[Episode]:
  """Return `count` episodes per question, those of a question side by side.

  They are finished if the question's image cannot be decoded: not every prompt
  shows the image, those of a policy of texts never do, but knowledge bases are
  searched with it.

  Raises:
    UserError: if a question has no text.
  """
  replace, where = dataclasses.replace, "a question"
  questions = [replace(q, text=mend_text(q.text, where)) for q in questions]
  episodes = [Episode(q, member) for q in questions for member in range(count)]
  for episode in episodes:
    question = episode.question
    # An empty question would make an empty prompt and an empty search.
    if not question.text.strip():
      raise UserError(f"Question {question.id!r} is empty; give it a text.")
    if question.image:
      episode.final = _check_image(policy, episode)
  return episodes


def _check_image(policy: PolicyInterface, episode: Episode) -> Malformed | None:
  """Return None if the question's image can be decoded, else why it cannot."""
  image = episode.question.image
  # A prompt of the image alone shows it to a policy that sees.
  if not policy.config.image_marker:
    prompt = Conversation("final", "", (Segment(image, "image"),))
    return check_prompt(policy, episode, prompt)
  try:
    images.check_image(image)
  except images.BadImage as error:
    return _reject_input(episode, error)
  return None


def generate_and_parse(
  policy: PolicyInterface,
  pending: Sequence[PendingPrompt],
  number: int,
  sampling: SamplingParams,
  visited_steps: list[VisitedStep],
) -> RequestGenerator[list[Parsed]]:
  """Generate a group per prompt; return each group's first parseable response.

  Tokens and faults are added to the episodes.  If no response of a group can be
  parsed, its first one is returned as `Malformed`.
  """
  # 1. Leave out prompts that the policy cannot read.
  results = [check_prompt(policy, p.episode, p.prompt) for p in pending]
  readable = [i for i, rejection in enumerate(results) if rejection is None]
  groups, asked = [], [pending[i].prompt for i in readable]
  if readable:
    members = [pending[i].episode.member for i in readable]
    groups = yield GenerationRequest(number, asked, members, sampling)
  # 2. Parse the responses to the others.
  for i, group in zip(readable, groups, strict=True):
    episode, prompt, parse, step, is_repair = pending[i]
    if step is not None:
      of = episode.member, number, is_repair
      visited_steps.append(VisitedStep(step, group, prompt, *of))
    # The first response that can be parsed counts, so the choice does not
    # depend on rewards.
    parsed = [parse(response.text) for response in group]
    usable = [not isinstance(each, Malformed) for each in parsed]
    chosen = usable.index(True) if any(usable) else 0
    results[i] = parsed[chosen]
    # Other members of the group were drawn to learn from, not to answer.
    episode.tokens += len(group[chosen].tokens)
    if isinstance(results[i], Malformed):
      episode.record_fault(prompt.kind, results[i].reason)
  return results


def generate_with_retries(
  policy: PolicyInterface,
  pending: Sequence[PendingPrompt],
  number: int,
  sampling: SamplingParams,
  visited_steps: list[VisitedStep],
  *,
  repair: bool = False,
) -> RequestGenerator[list[Parsed]]:
  """Generate and parse, with further attempts for malformed responses.

  Requests of the attempts are numbered from `number` on.  The second attempt
  of a greedy policy samples at temperature 1.  With `repair`, a third one shows
  the policy its response and what is wrong with it.
  """
  results, due = [None] * len(pending), dict(enumerate(pending))
  for attempt in range(PLAN_TRIES if repair else ANSWER_TRIES):
    # The last attempt has another prompt, the others the same one.
    if attempt == 2:
      due = _repair_prompts(due, results, policy.config.style)
    # A greedy policy would only repeat itself.
    is_greedy = not sampling.temperature
    again = SamplingParams() if attempt == 1 and is_greedy else sampling
    each_due = [*due.values()], number + attempt, again
    found = yield from generate_and_parse(policy, *each_due, visited_steps)
    for i, result in zip(due, found, strict=True):
      results[i] = result
    # A prompt that was rejected would be rejected again.
    due = {
      i: prompt
      for i, prompt in due.items()
      if isinstance(results[i], Malformed)
      and not prompt.episode.prompt_was_rejected(results[i].reason)
    }
  return results


def _repair_prompts(
  pending: dict[int, PendingPrompt], results: Sequence[Parsed], style: str
) -> dict[int, PendingPrompt]:
  """Return the prompts that show the policy its error, if the style has any."""
  repairs = {}
  for i, each in pending.items():
    prompt = prompts.repair_prompt(each.prompt, results[i], style=style)
    if prompt is not None:
      repairs[i] = each._replace(prompt=prompt, is_repair=True)
  return repairs


def check_prompt(
  policy: PolicyInterface, episode: Episode, prompt: Conversation
) -> Malformed | None:
  """Return None if the policy can read the prompt, else why it cannot.

  Faults, and tokens cut off passages, are added to the episode.
  """
  try:
    encoded = policy.processor.encode(prompt)
  except (images.BadImage, PromptTooLong) as error:
    return _reject_input(episode, error)
  episode.truncated_tokens += encoded.truncated_tokens
  for reason in encoded.unread_images:
    # The kind is "picture" in files of predictions, also of older versions.
    episode.record_fault("picture", reason)
  return None


def _reject_input(episode: Episode, error: UserError) -> Malformed:
  """Note that the policy cannot read an input, and return why."""
  episode.record_fault("input", str(error))
  return Malformed("", str(error))
