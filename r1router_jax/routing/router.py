"""The routing loop: questions to trajectories, all questions at once.

  plan -> passages -> answer -> plan -> .. -> final answer

An answer step sees its sub-question and passages alone, plan and final steps
the question with all sub-questions and answers, as in R1-Router.

What a policy writes can be wrong.  Nothing of it stops the loop, and all of it
is listed in `Trajectory.faults`, as "<kind>: <reason>":

  plan      not of the protocol: asked again, see asking.py
  stuck     no try was a plan: on to the final answer
  repeated  the same sub-question was put to the same knowledge bases before,
            which can bring nothing new: on to the final answer
  answer    not of the protocol: asked again; if no try was, the words of the
            last without their tags go into the history
  final     not of the protocol: asked again; if no try was it stays Malformed,
            and scores 0
  input     the picture cannot be read, or the prompt is too long: the step is
            left out, and the question's neighbours never notice
  picture   that of a passage cannot be read: its text is shown without

Step-GRPO on the policy's own trajectories draws a group of responses at each
step, hands all of them to `keep`, and goes on with the first that is of the
protocol.

`loop` is a generator, which yields prompts and is sent responses; `route` draws
these, for parts of the questions in turn.

Sources: arxiv.org/abs/2505.22095 (R1-Router).
"""

import concurrent.futures
import functools
import itertools
import threading
from collections.abc import Callable, Generator, Mapping, Sequence

import jax
import jax.numpy as jnp

from r1router_jax.common.records import (
  MAX_HOPS,
  Malformed,
  Passage,
  Plan,
  Question,
  Response,
  Round,
  Step,
  Trajectory,
)
from r1router_jax.generation.token_sampling import GREEDY, SamplingParams
from r1router_jax.policy.interface import Responder
from r1router_jax.protocol import format
from r1router_jax.protocol.messages import Conversation
from r1router_jax.retrieval import retriever
from r1router_jax.retrieval.retriever import KnowledgeBase, Retrieve
from r1router_jax.routing import policy_requests
from r1router_jax.routing.episode import Walk
from r1router_jax.routing.policy_requests import (
  PHASES,
  TRIES,
  Keep,
  Phase,
  Walker,
)
from r1router_jax.routing.route_policies import Planner


def route(
  policy: Responder,
  kbs: Mapping[str, KnowledgeBase],
  questions: Sequence[Question],
  key: jax.Array,
  *,
  method: policy_requests.Approach | None = None,
  max_steps: int = MAX_HOPS,
  k: int | Mapping[str, int] = 1,
  sampling: SamplingParams = GREEDY,
  members: int = 1,
  keep: Keep = lambda *of: None,
  in_flight: int = 1,
) -> list[Trajectory]:
  """The trajectory of each question; none depends on its neighbours.

  Args:
    policy: writes plans and answers, in its own style and by its options.
    kbs: the three knowledge bases, by kind.
    questions: to answer.
    key: of all samples.
    by: the way to answer; by default R1-Router's, `loop`.
    max_steps: rounds before the final answer, at most.
    k: passages that a round reads, of each kind or of all alike.
    method: how tokens of responses are drawn.
    members: responses to each step.
    keep: is handed each step that the policy was asked, without golds, with its
      responses.
    in_flight: parts of the questions, of which one draws while others search;
      worth it where searching takes longer than a part's drawing.

  Raises:
    ValueError: where a question has no text, or parts of the questions would
      search when other hosts do not.
  """
  if in_flight > 1 and retriever.together(kbs):
    raise ValueError(retriever.ONE_LOOP)
  method = method or policy_requests.Approach(loop)
  keys, turn = phase_keys(key, max_steps), threading.Lock()

  def drive(part):
    kept = []
    walker = method.loop(
      policy,
      part,
      retriever.retriever(kbs, k),
      max_steps=max_steps,
      method=sampling,
      keep=lambda *step: kept.append(step),
    )
    groups = None
    while True:
      try:
        phase = walker.send(groups)
      except StopIteration as end:
        return end.value, kept
      with turn:
        groups = policy.generate(
          phase.prompts, keys[phase.number], members, phase.method, method.stop
        )

  parts = [questions[i::in_flight] for i in range(in_flight)]
  if in_flight == 1:
    done = [drive(questions)]
  else:
    with concurrent.futures.ThreadPoolExecutor(in_flight) as threads:
      done = list(threads.map(drive, parts))
  found = [None] * len(questions)
  for i, (trajectories, kept) in enumerate(done):
    found[i::in_flight] = trajectories
    for step in kept:
      keep(*step)
  return found


def phase_keys(key: jax.Array, max_steps: int) -> jax.Array:
  """A key per phase: of each round the tries for a plan, then those for an
  answer, and at last those for the final answer.
  """
  fold, keys = jax.random.fold_in, []
  for n in range(max_steps):
    plan, answer = jax.random.split(fold(key, n))
    keys += [fold(plan, attempt) for attempt in range(TRIES[0])]
    keys += [answer, fold(answer, 1)]
  final = fold(key, max_steps)
  return jnp.stack([*keys, final, fold(final, 1)])


def loop(
  policy: Responder,
  questions: Sequence[Question],
  retrieve: Retrieve,
  *,
  max_steps: int,
  method: SamplingParams,
  keep: Keep,
  planner: Planner | None = None,
  spell: Callable[[Step], Conversation] | None = None,
) -> Walker:
  """R1-Router's way to answer questions; see `asking.Walker`.

  Args:
    policy: that is asked.
    questions: to answer.
    retrieve: (knowledge base, sub-question, picture) triples to passages.
    max_steps, method, keep: see `route`.
    planner: who decides on routes; by default the policy.
    spell: the prompt of a step; by default the policy's own.
  """
  walks = policy_requests.begun(policy, questions)
  planner, known = planner or Planner(), policy.settings
  spell = spell or known.conversation
  plan_of = functools.partial(format.parse_plan, routes=known.routes)

  def prompt(walk, kind, **of):
    step = walk.step(kind, **of)
    return policy_requests.Prompt(
      walk,
      spell(step),
      plan_of if kind == "plan" else format.parse_answer,
      step,
    )

  for n in range(max_steps):
    planned = yield from _plan(
      policy, planner, [w for w in walks if w.planning], n, method, keep, prompt
    )
    # Also where nobody asks: hosts may search together.
    found = retrieve(
      [
        (kb, plan.sub_question, walk.question.image)
        for walk, plan in planned
        for kb in plan.routes
      ]
    )
    found = of_plans([plan for _, plan in planned], found)
    answers = yield from policy_requests.persist(
      policy,
      [
        prompt(
          walk, "answer", sub_question=plan.sub_question, passages=passages
        )
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
    policy,
    [prompt(walk, "final") for walk in left],
    PHASES * max_steps,
    method,
    keep,
  )
  for walk, final in zip(left, finals, strict=True):
    walk.final = final
  return [walk.trajectory() for walk in walks]


def of_plans(
  plans: Sequence[Plan], found: Sequence[tuple[Passage, ...]]
) -> list[tuple[Passage, ...]]:
  """What was found for each route of each plan, as that of each plan."""
  left = iter(found)
  return [
    tuple(itertools.chain(*itertools.islice(left, len(plan.routes))))
    for plan in plans
  ]


def _plan(
  policy: Responder,
  planner: Planner,
  walks: Sequence[Walk],
  n: int,
  method: SamplingParams,
  keep: Keep,
  prompt: Callable[..., policy_requests.Prompt],
) -> Generator[Phase, list[list[Response]], list[tuple[Walk, Plan]]]:
  """The plans of round `n`, for walks that go on."""
  plans = [planner.fixed(walk.question, n) for walk in walks]
  left = [i for i, plan in enumerate(plans) if plan is None]
  found = yield from policy_requests.persist(
    policy,
    [prompt(walks[i], "plan") for i in left],
    PHASES * n,
    method,
    keep,
    mend=True,
  )
  for i, plan in zip(left, found, strict=True):
    plans[i] = (
      plan
      if isinstance(plan, Malformed)
      else planner.redirect(walks[i].question, n, plan)
    )
  return [
    (walk, plan)
    for walk, plan in zip(walks, plans, strict=True)
    if walk.goes_on(plan)
  ]
