"""One loop for the baselines: search and write by turns, then conclude.

  question -> passages -> what is written -> passages -> .. -> conclusion

What a baseline writes at a turn, and how that is read, is its `Language`.  All
of it is written by the policy that is compared, over the same knowledge bases,
with the same `max_steps` searches.  A baseline knows no routes: whatever it
asks, it asks of all the knowledge bases that it has.

A tiny policy understands three prompts (style "compact") and nothing else, so
each language is spelt for it in these: what is written in many words for others
becomes a plan, an answer or a final step.
"""

import dataclasses
import functools
from collections.abc import Callable, Generator, Sequence

from r1router_jax.common.records import (
  Answer,
  Malformed,
  Passage,
  Plan,
  Question,
  Response,
  Round,
)
from r1router_jax.generation.token_sampling import SamplingParams
from r1router_jax.policy.interface import Responder
from r1router_jax.protocol import format
from r1router_jax.protocol.messages import Conversation
from r1router_jax.retrieval.retriever import Retrieve
from r1router_jax.routing import policy_requests
from r1router_jax.routing.baselines.prompting import answer_in, search
from r1router_jax.routing.episode import Walk
from r1router_jax.routing.policy_requests import (
  PHASES,
  TRIES,
  Keep,
  Phase,
  Prompt,
  Walker,
)
from r1router_jax.routing.router import of_plans

# (style, question, rounds so far) -> a prompt
Spell = Callable[[str, Question, Sequence[Round]], Conversation]


@dataclasses.dataclass(frozen=True)
class Language:
  """What a baseline writes.

  Attributes:
    conclude: the prompt for the answer to the question.
    first: knowledge bases that are asked the question itself, before anything
      is written.
    turn: the prompt for what to search next, or None where nothing is.
    read: (style, question, a response to a turn) -> a plan, the answer, or
      neither; a plan with the route "none" leads to the conclusion.
    condense: whether an answer step reads what was found, in the place of whose
      passages its answer then stands.
  """

  conclude: Spell
  first: tuple[str, ...] = ()
  turn: Spell | None = None
  read: Callable[[str, Question, str], Plan | Answer | Malformed] | None = None
  condense: bool = False


def loop(
  policy: Responder,
  questions: Sequence[Question],
  retrieve: Retrieve,
  *,
  max_steps: int,
  method: SamplingParams,
  keep: Keep,
  language: Language,
) -> Walker:
  """A baseline's way to answer questions; see `asking.Walker`.

  Args:
    policy, questions, retrieve, max_steps, method, keep: see `router.loop`;
      nothing is kept, since nothing has a gold.
    language: of the baseline.
  """
  walks, style = policy_requests.begun(policy, questions), policy.settings.style
  conclusion = lambda walk: Prompt(
    walk, language.conclude(style, walk.question, walk.rounds), answer_in
  )
  for n in range(max_steps):
    planned = yield from _plan(
      policy,
      language,
      [walk for walk in walks if walk.planning],
      n,
      method,
      keep,
    )
    found = of_plans(
      [plan for _, plan in planned],
      retrieve(
        [
          (kb, plan.sub_question, walk.question.image)
          for walk, plan in planned
          for kb in plan.routes
        ]
      ),
    )
    answers = [Answer("", "")] * len(planned)
    if language.condense:
      answers = yield from policy_requests.persist(
        policy,
        [
          _reading(policy, walk, plan, passages)
          for (walk, plan), passages in zip(planned, found, strict=True)
        ],
        PHASES * n + TRIES[0],
        method,
        keep,
      )
    for (walk, plan), passages, answer in zip(
      planned, found, answers, strict=True
    ):
      walk.rounds.append(Round(plan, passages, answer))
  left = [walk for walk in walks if walk.final is None]
  finals = yield from policy_requests.persist(
    policy, list(map(conclusion, left)), PHASES * max_steps, method, keep
  )
  for walk, final in zip(left, finals, strict=True):
    walk.final = final
  return [walk.trajectory() for walk in walks]


def _plan(
  policy: Responder,
  language: Language,
  walks: Sequence[Walk],
  n: int,
  method: SamplingParams,
  keep: Keep,
) -> Generator[Phase, list[list[Response]], list[tuple[Walk, Plan]]]:
  """What is searched next, for walks that go on; some have their answer."""
  style = policy.settings.style
  if n == 0 and language.first:
    plans = [search(walk.question.text, language.first) for walk in walks]
  elif language.turn:
    plans = yield from policy_requests.persist(
      policy,
      [
        Prompt(
          walk,
          language.turn(style, walk.question, walk.rounds),
          functools.partial(language.read, style, walk.question),
        )
        for walk in walks
      ],
      PHASES * n,
      method,
      keep,
    )
  else:  # All that it searches was searched.
    return []
  planned = []
  for walk, said in zip(walks, plans, strict=True):
    if isinstance(said, Answer):
      walk.final, walk.planning = said, False
    elif walk.goes_on(said):
      planned.append((walk, said))
  return planned


def _reading(
  policy: Responder, walk: Walk, plan: Plan, passages: tuple[Passage, ...]
) -> Prompt:
  step = walk.step("answer", sub_question=plan.sub_question, passages=passages)
  return Prompt(walk, policy.settings.conversation(step), format.parse_answer)
