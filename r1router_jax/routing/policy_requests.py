"""What a loop over questions asks of a policy: prompts out, responses in.

A loop is a generator, a `Walker`: it yields a `Phase` of prompts and is sent a
group of responses to each, so that one loop may be driven by the host or from
inside a jitted program.

A response that is not of the protocol is drawn once more, at temperature 1,
since a greedy policy would repeat itself; a plan that fails again is asked for
a last time with the reason why it failed (see `prompts.Style.repair`).
"""

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

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
from r1router_jax.policy.interface import Responder
from r1router_jax.protocol import format
from r1router_jax.protocol import prompts as prompts_lib
from r1router_jax.protocol.messages import Conversation, Segment
from r1router_jax.routing.episode import Walk

TRIES = (3, 2)  # For a plan; for an answer.

PHASES = sum(TRIES)  # Of a round; the last step has as many as an answer.


class Phase(NamedTuple):
  """What a loop asks of the policy at one time.

  Attributes:
    number: of the phase, `PHASES` to a round; names the key of its samples.
    prompts: one or more.
    method: how tokens of responses are drawn.
  """

  number: int
  prompts: list[Conversation]
  method: SamplingParams


class Prompt(NamedTuple):
  """What is asked about a question.

  Attributes:
    walk: where the question is.
    prompt: to respond to.
    read: a response's text to what it says.
    step: what is kept with the responses, if they are.
  """

  walk: Walk
  prompt: Conversation
  read: Callable[[str], Plan | Answer | Malformed]
  step: Step | None = None


# Yields what it asks, is sent a group of responses to each prompt.
Walker = Generator[Phase, list[list[Response]], list[Trajectory]]

Read = Generator[Phase, list[list[Response]], list[Plan | Answer | Malformed]]

Keep = Callable[[Step, Sequence[Response]], None]

# (policy, questions, retrieve, max_steps=, method=, keep=) -> Walker
Loop = Callable[..., Walker]


class Approach(NamedTuple):
  """A way to answer questions: R1-Router's, or a baseline's.

  Attributes:
    loop: that walks them.
    stop: texts that end a response, beside the end token.
  """

  loop: Loop
  stop: tuple[str, ...] = ()


def begun(policy: Responder, questions: Sequence[Question]) -> list[Walk]:
  """A walk for each question, at its end where its picture cannot be read.

  Not every prompt shows the picture, and what it is searched with must be good.

  Raises:
    ValueError: where a question has no text.
  """
  for question in questions:
    if not question.text.strip():
      raise ValueError(f"Question {question.id!r} is empty; give it a text.")
  walks = [Walk(question) for question in questions]
  for walk in walks:
    if image := walk.question.image:
      alone = Conversation("final", "", (Segment(image, "picture"),))
      walk.final = fits(policy, Prompt(walk, alone, format.parse_answer))
  return walks


def ask(
  policy: Responder,
  prompts: Sequence[Prompt],
  number: int,
  method: SamplingParams,
  keep: Keep,
) -> Read:
  """What is said to each prompt; tokens and faults are added to the walks.

  Of a group of responses the first that can be read counts.
  """
  results = [fits(policy, each) for each in prompts]
  good = [i for i, unfit in enumerate(results) if unfit is None]
  groups = (
    (yield Phase(number, [prompts[i].prompt for i in good], method))
    if good
    else []
  )
  for i, group in zip(good, groups, strict=True):
    walk, prompt, read, step = prompts[i]
    if step is not None:
      keep(step, group)
    said = [read(response.text) for response in group]
    chosen = next(
      (m for m, one in enumerate(said) if not isinstance(one, Malformed)), 0
    )
    results[i] = said[chosen]
    walk.tokens += len(group[chosen].tokens)
    if isinstance(results[i], Malformed):
      walk.fault(prompt.kind, results[i].reason)
  return results


def persist(
  policy: Responder,
  prompts: Sequence[Prompt],
  number: int,
  method: SamplingParams,
  keep: Keep,
  *,
  mend: bool = False,
) -> Read:
  """As `ask`, with further tries for what cannot be read; with `mend` the last
  of them says why.
  """
  found = yield from ask(policy, prompts, number, method, keep)
  style = policy.settings.style
  for attempt in (1, 2) if mend else (1,):
    left = {
      i: prompts[i]
      for i, one in enumerate(found)
      if isinstance(one, Malformed) and not prompts[i].walk.unfit(one.reason)
    }
    if attempt == 2:
      left = {
        i: each._replace(prompt=again, step=None)
        for i, each in left.items()
        if (again := prompts_lib.repaired(each.prompt, found[i], style=style))
        is not None
      }
    results = yield from ask(
      policy,
      [*left.values()],
      number + attempt,
      SamplingParams() if attempt == 1 else method,
      keep,
    )
    for i, one in zip(left, results, strict=True):
      found[i] = one
  return found


def fits(policy: Responder, asked: Prompt) -> Malformed | None:
  """None where the policy can read the prompt; else why not, a fault.

  What passages lost on the way is added to the walk.
  """
  walk = asked.walk
  try:
    prompt = policy.packer.encode(asked.prompt)
  except (BadImage, PromptTooLong) as error:
    walk.fault("input", str(error))
    return Malformed("", str(error))
  walk.cut += prompt.cut
  for reason in prompt.unread:
    walk.fault("picture", reason)
  return None
