"""Requests of the routing loop to a policy: prompts out, responses in.

The loop is a generator, a `RoutingGenerator`: it yields a `GenerationRequest`
and is sent a group of responses to each prompt, so that one loop may be driven
by the host or from inside a jitted program.

A response that is not of the protocol is drawn once more, at temperature 1,
since a greedy policy would repeat itself; a plan that fails again is asked for
a last time with the reason why it failed (see `templates.Style.repair`).
"""

import functools
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

from r1router_jax.common.errors import UserError
from r1router_jax.common.images import BadImage
from r1router_jax.common.records import (
  Answer,
  Malformed,
  Plan,
  Question,
  Response,
  Step,
  Trajectory,
)
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
    sampling: how tokens of responses are drawn.
  """

  number: int
  prompts: list[Conversation]
  sampling: SamplingParams


Parsed = Plan | Answer | Malformed


class PendingPrompt(NamedTuple):
  """One prompt that a response is needed to.

  Attributes:
    episode: the episode that it belongs to.
    prompt: the prompt.
    parse: parses the text of a response.
    step: the step to report with the responses, or None to report nothing.
  """

  episode: Episode
  prompt: Conversation
  parse: Callable[[str], Parsed]
  step: Step | None = None


Groups = list[list[Response]]  # Responses to each prompt.

# Yield requests, are sent the responses.
RoutingGenerator = Generator[GenerationRequest, Groups, list[Trajectory]]
ParsedGenerator = Generator[GenerationRequest, Groups, list[Parsed]]

# Is called with each step that the policy was asked, and its responses.
OnStep = Callable[[Step, Sequence[Response]], None]


def start_episodes(
  policy: PolicyInterface, questions: Sequence[Question]
) -> list[Episode]:
  """Return an episode per question, finished if its image cannot be decoded.

  Not every prompt shows the image, but knowledge bases are searched with it.

  Raises:
    UserError: if a question has no text.
  """
  # 1. An empty question would make an empty prompt and an empty search.
  for question in questions:
    if not question.text.strip():
      raise UserError(f"Question {question.id!r} is empty; give it a text.")
  # 2. A prompt of the image alone shows whether it can be decoded.
  episodes = [Episode(question) for question in questions]
  for episode in episodes:
    if image := episode.question.image:
      image_only = Conversation("final", "", (Segment(image, "image"),))
      episode.final = check_prompt(policy, episode, image_only)
  return episodes


def generate_and_parse(
  policy: PolicyInterface,
  pending: Sequence[PendingPrompt],
  number: int,
  sampling: SamplingParams,
  on_step: OnStep,
) -> ParsedGenerator:
  """Generate a group per prompt; return each group's first parseable response.

  Tokens and faults are added to the episodes.  If no response of a group can be
  parsed, its first one is returned as `Malformed`.
  """
  # 1. Leave out prompts that the policy cannot read.
  results = [check_prompt(policy, p.episode, p.prompt) for p in pending]
  readable = [i for i, rejection in enumerate(results) if rejection is None]
  groups, readable_prompts = [], [pending[i].prompt for i in readable]
  if readable:
    groups = yield GenerationRequest(number, readable_prompts, sampling)
  # 2. Parse the responses to the others.
  for i, group in zip(readable, groups, strict=True):
    episode, prompt, parse, step = pending[i]
    if step is not None:
      on_step(step, group)
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
  on_step: OnStep,
  *,
  repair: bool = False,
) -> ParsedGenerator:
  """Generate and parse, with further attempts for malformed responses.

  Requests of the attempts are numbered from `number` on.  The second attempt
  samples at temperature 1.  With `repair`, a third one shows the policy its
  response and what is wrong with it, which is no step for `on_step`.
  """
  ask = functools.partial(generate_and_parse, policy, on_step=on_step)
  results = yield from ask(pending, number, sampling)
  for attempt in (1, 2) if repair else (1,):
    # A prompt that was rejected would be rejected again.
    retries = {
      i: pending[i]
      for i, result in enumerate(results)
      if isinstance(result, Malformed)
      and not pending[i].episode.prompt_was_rejected(result.reason)
    }
    # The last attempt has another prompt, the others the same one.
    if attempt == 2:
      retries = _repair_prompts(retries, results, policy.config.style)
    again = SamplingParams() if attempt == 1 else sampling
    retried = yield from ask([*retries.values()], number + attempt, again)
    for i, result in zip(retries, retried, strict=True):
      results[i] = result
  return results


def _repair_prompts(
  pending: dict[int, PendingPrompt], results: Sequence[Parsed], style: str
) -> dict[int, PendingPrompt]:
  """Return the prompts that show the policy its error, if the style has any."""
  repairs = {}
  for i, each in pending.items():
    prompt = prompts.repair_prompt(each.prompt, results[i], style=style)
    if prompt is not None:
      repairs[i] = each._replace(prompt=prompt, step=None)
  return repairs


def check_prompt(
  policy: PolicyInterface, episode: Episode, prompt: Conversation
) -> Malformed | None:
  """Return None if the policy can read the prompt, else why it cannot.

  Faults, and tokens cut off passages, are added to the episode.
  """
  try:
    encoded = policy.processor.encode(prompt)
  except (BadImage, PromptTooLong) as error:
    episode.record_fault("input", str(error))
    return Malformed("", str(error))
  episode.truncated_tokens += encoded.truncated_tokens
  for reason in encoded.unread_images:
    # The kind is "picture" in files of predictions, also of older versions.
    episode.record_fault("picture", reason)
  return None
