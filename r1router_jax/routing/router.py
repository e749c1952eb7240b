"""The routing loop: questions to trajectories, all questions at once.

  plan -> passages -> answer -> plan -> .. -> final answer

A policy can write what cannot be used.  None of it stops the loop, and all of
it is listed in `Trajectory.faults`, as "<kind>: <reason>":

  plan      not of the protocol: asked again, see policy_requests.py
  stuck     no try was a plan: on to the final answer
  route     there is no such knowledge base: another one is searched, texts
            before tables before images
  repeated  the same sub-question was put to the same knowledge bases before,
            which can bring nothing new: on to the final answer, or, with the
            option `searches_elsewhere`, to one that was not asked yet (`route`)
  answer    not of the protocol: asked again; if no try was, the words of the
            last without their tags go into the history
  final     not of the protocol: asked again; if no try was it stays Malformed,
            and scores 0
  input     the image cannot be read, or the prompt is too long: the step is
            left out, and other questions are not affected
  picture   the image of a passage cannot be read: its text is shown without

Step-GRPO on the policy's own trajectories samples a group of responses at each
step, reports all of them to `RolloutOptions.on_step`, and continues with the
first that is of the protocol.  To learn from whole trajectories, several are
walked for each question: `RolloutOptions.trajectories`.  Where their prompts
are equal, these are read once.

Sources: arxiv.org/abs/2505.22095 (R1-Router).
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import (
  KBS,
  MAX_HOPS,
  Answer,
  Passage,
  Plan,
  Question,
  Round,
  RoundPart,
  Trajectory,
)
from r1router_jax.generation.token_sampling import GREEDY, SamplingParams
from r1router_jax.policy.interface import PolicyInterface
from r1router_jax.retrieval import retriever
from r1router_jax.retrieval.knowledge_base import KnowledgeBase
from r1router_jax.routing.answering_methods import AnsweringMethod, R1Router
from r1router_jax.routing.episode import Episode
from r1router_jax.routing.policy_requests import (
  ANSWER_TRIES,
  PLAN_TRIES,
  REQUESTS_PER_ROUND,
  Parsed,
  PendingPrompt,
  RequestGenerator,
  VisitedStep,
  generate_with_retries,
  start_episodes,
)

OnStep = Callable[[VisitedStep], None]

# Called with a question and the next part of its round.
OnPart = Callable[[Question, RoundPart], None]


@dataclasses.dataclass(frozen=True)
class RolloutOptions:
  """Options of the routing loop, whatever drives it.

  Attributes:
    method: the way to answer; by default R1-Router's.
    max_steps: largest number of rounds before the final answer.
    k: number of passages that a round reads from each knowledge base, or that
      number by kind.
    sampling: how tokens of responses are drawn.
    group_size: number of responses to each step of a trajectory.
    trajectories: number of trajectories to each question; more than one leaves
      `group_size` at 1.
    on_step: is called with each step that the policy was asked.
    on_part: is called at once with each plan that is carried out, then with the
      passages found, then with the answer of the round.
  """

  method: AnsweringMethod = R1Router()
  max_steps: int = MAX_HOPS
  k: int | Mapping[str, int] = 1
  sampling: SamplingParams = GREEDY
  group_size: int = 1
  trajectories: int = 1
  on_step: OnStep | None = None
  on_part: OnPart | None = None


DEFAULT_OPTIONS = RolloutOptions()


def run_routing(
  policy: PolicyInterface,
  kbs: Mapping[str, KnowledgeBase],
  questions: Sequence[Question],
  key: jax.Array,
  options: RolloutOptions = DEFAULT_OPTIONS,
  *,
  in_flight: int = 1,
) -> list[Trajectory]:
  """Run the routing loop, driven by the host.

  Knowledge bases are given by kind; some may be missing.  The trajectories of a
  question stand side by side, in the order of the questions; none depends on
  another.  Of `in_flight` parts of the questions one generates while others
  search; this is for knowledge bases that take longer than generation.

  Raises:
    UserError: if a question has no text, if the method cannot ask the policy,
      or if parts of the questions would search while other hosts do not.
  """
  # Shards on several hosts are searched in step, which threads would break.
  if in_flight > 1 and retriever.is_collective(kbs):
    raise UserError(retriever.COLLECTIVE_ERROR)
  # Neighbouring questions go to different loops, so that parts are alike.
  retrieve = retriever.make_retriever(kbs, options.k)
  loops = [
    RoutingLoop(policy, questions[i::in_flight], retrieve, options, tuple(kbs))
    for i in range(in_flight)
  ]
  # A loop waits for its own searches alone: threads let the others generate.
  keys, device_lock = request_keys(key, options.max_steps), threading.Lock()
  drive = functools.partial(_drive_loop, keys, device_lock)
  if in_flight == 1:
    parts = [drive(loops[0])]
  else:
    with concurrent.futures.ThreadPoolExecutor(in_flight) as threads:
      parts = list(threads.map(drive, loops))
  return merge_parts(parts, loops)


def _drive_loop(
  keys: jax.Array,
  device_lock: contextlib.AbstractContextManager,
  loop: "RoutingLoop",
) -> list[Trajectory]:
  """Answer the requests of one loop until it ends."""
  options, generator, groups = loop.options, loop.run(), None
  # Trajectories of one question are the members of a group.
  siblings = options.trajectories
  while True:
    try:
      request = generator.send(groups)
    except StopIteration as end:
      return end.value
    # Loops of other threads search meanwhile, but only one may generate.
    with device_lock:
      groups = loop.policy.generate(
        request.prompts,
        keys[request.number],
        siblings if siblings > 1 else options.group_size,
        request.sampling,
        options.method.stop,
        members=request.members if siblings > 1 else None,
      )


def merge_parts(
  parts: Sequence[Sequence[Trajectory]], loops: Sequence["RoutingLoop"]
) -> list[Trajectory]:
  """Return trajectories in the order of the questions, and report all steps.

  Each of the parts is of one loop, which has every len(loops)-th question.
  """
  # Parts are reported one after the other, so `on_step` needs no lock.
  of_question = [None] * sum(len(loop.questions) for loop in loops)
  for i, (part, loop) in enumerate(zip(parts, loops, strict=True)):
    count = loop.options.trajectories
    starts = range(0, len(part), count)
    of_question[i :: len(parts)] = [part[at : at + count] for at in starts]
    for visited in loop.visited_steps:
      if loop.options.on_step is not None:
        loop.options.on_step(visited)
  return [*itertools.chain(*of_question)]


def request_keys(key: jax.Array, max_steps: int) -> jax.Array:
  """Return a key per request: each round's tries, then the final answer's."""
  fold, keys = jax.random.fold_in, []
  for n in range(max_steps):
    plan, answer = jax.random.split(fold(key, n))
    keys += [fold(plan, attempt) for attempt in range(PLAN_TRIES)]
    # The first try has the unfolded key, as in older versions.
    keys += [answer, *(fold(answer, i) for i in range(1, ANSWER_TRIES))]
  # The final answer is numbered like a further round.
  final = fold(key, max_steps)
  keys += [final, *(fold(final, i) for i in range(1, ANSWER_TRIES))]
  return jnp.stack(keys)


@dataclasses.dataclass
class RoutingLoop:
  """The routing loop over some questions, as a generator of requests.

  Attributes:
    policy: the policy that is asked; the loop itself only reads its config and
      checks prompts.
    questions: the questions to answer.
    retrieve: returns the passages of (knowledge base, sub-question, image).
    options: method, sampling and limits.
    kinds: the kinds of knowledge base that there are.
    visited_steps: each step that the policy was asked, with its responses.

  """

  policy: PolicyInterface
  questions: Sequence[Question]
  retrieve: retriever.RetrieveFn
  options: RolloutOptions = DEFAULT_OPTIONS
  kinds: Sequence[str] = KBS

  def __post_init__(self):
    self._method = self.options.method
    # Steps are collected here and reported at the end, in one thread.
    self.visited_steps: list[VisitedStep] = []
    self._episodes: list[Episode] = []

  def run(self) -> RequestGenerator[list[Trajectory]]:
    """Yield requests, and return the trajectories, question by question.

    Raises:
      UserError: if a question has no text.
    """
    self._episodes = start_episodes(
      self.policy, self.questions, self.options.trajectories
    )
    for n in range(self.options.max_steps):
      planned = yield from self._plan(n)
      episodes = [episode for episode, _ in planned]
      self._report(episodes, [plan for _, plan in planned])
      # Also without any plan: hosts may have to search together.
      passages = self._search(planned)
      self._report(episodes, passages)
      yield from self._answer(n, planned, passages)
      self._report(episodes, [e.rounds[-1].answer for e in episodes])
    yield from self._conclude()
    return [episode.to_trajectory() for episode in self._episodes]

  def _report(self, episodes: Sequence[Episode], parts: Sequence[Any]) -> None:
    """Report a part of the present round of each episode."""
    if self.options.on_part is not None:
      for episode, part in zip(episodes, parts, strict=True):
        self.options.on_part(episode.question, part)

  def _plan(self, n: int) -> RequestGenerator[list[tuple[Episode, Plan]]]:
    """Return the plans of round `n` to carry out, with their episodes."""
    episodes = [episode for episode in self._episodes if episode.planning]
    # 1. Ask the policy, unless the method decides alone.
    plans = [self._method.fixed_plan(e.question, n) for e in episodes]
    asked = [i for i, plan in enumerate(plans) if plan is None]
    pending = [self._prompt(episodes[i], "plan") for i in asked]
    results = yield from self._generate(
      pending, REQUESTS_PER_ROUND * n, repair=self._method.repairs_plans
    )
    # 2. The method may change the policy's plans.
    for i, result in zip(asked, results, strict=True):
      # Malformed responses, and plans to stop, stay as they are.
      if isinstance(result, Plan) and result.routes:
        result = self._method.redirect_plan(episodes[i].question, n, result)
      plans[i] = result
    # 3. Keep the plans to carry out.
    planned = []
    for episode, plan in zip(episodes, plans, strict=True):
      # A baseline may answer in place of a plan; the episode then ends.
      if isinstance(plan, Answer):
        episode.final, episode.planning = plan, False
        continue
      if isinstance(plan, Plan):
        plan = self._replace_missing(episode, plan)
        if self.policy.config.searches_elsewhere:
          plan = episode.redirect_repeat(plan, self.kinds)
      if episode.accept_plan(plan):
        planned.append((episode, plan))
    return planned

  def _replace_missing(self, episode: Episode, plan: Plan) -> Plan:
    """Return a plan with routes to knowledge bases that there are."""
    routes = []
    for kind in plan.routes:
      searched = retriever.substitute_kind(kind, self.kinds)
      if searched != kind:
        fault = (
          f"no {kind} knowledge base, {searched or 'nothing'} was searched"
        )
        episode.record_fault("route", fault)
      routes += [searched] if searched else []
    # A substitute may be among the routes already.
    return dataclasses.replace(plan, routes=tuple(dict.fromkeys(routes)))

  def _search(
    self, planned: Sequence[tuple[Episode, Plan]]
  ) -> list[tuple[Passage, ...]]:
    """Return the passages of each plan, of all its routes in their order."""
    # One request for each route of each plan, all in one call, so that
    # knowledge bases search side by side.
    requests = [
      (kb, plan.sub_question, episode.question.image)
      for episode, plan in planned
      for kb in plan.routes
    ]
    found = iter(self.retrieve(requests))
    # Each plan takes as many results as it has routes.
    return [
      tuple(itertools.chain(*itertools.islice(found, len(plan.routes))))
      for _, plan in planned
    ]

  def _answer(
    self,
    n: int,
    planned: Sequence[tuple[Episode, Plan]],
    passages: Sequence[tuple[Passage, ...]],
  ) -> RequestGenerator[None]:
    """Have the passages of round `n` read, and add the round to its episode."""
    pending = [
      self._prompt(episode, "answer", plan.sub_question, found)
      for (episode, plan), found in zip(planned, passages, strict=True)
    ]
    # A method that shows passages in later prompts has no answer of the round.
    answers = [Answer("", "")] * len(pending)
    if None not in pending:
      number = REQUESTS_PER_ROUND * n + PLAN_TRIES
      answers = yield from self._generate(pending, number)
    rounds = zip(planned, passages, answers, strict=True)
    for (episode, plan), found, answer in rounds:
      episode.rounds.append(Round(plan, found, answer))

  def _conclude(self) -> RequestGenerator[None]:
    """Ask for the final answers that are missing."""
    episodes = [e for e in self._episodes if e.final is None]
    pending = [self._prompt(episode, "final") for episode in episodes]
    number = REQUESTS_PER_ROUND * self.options.max_steps
    finals = yield from self._generate(pending, number)
    for episode, final in zip(episodes, finals, strict=True):
      episode.final = final

  def _prompt(self, episode: Episode, *step: Any) -> PendingPrompt | None:
    """Return the method's prompt of a step, see `Episode.next_step`."""
    next_step, config = episode.next_step(*step), self.policy.config
    return self._method.step_prompt(config, episode, next_step)

  def _generate(
    self, pending: Sequence[PendingPrompt], number: int, repair: bool = False
  ) -> RequestGenerator[list[Parsed]]:
    task = self.policy, pending, number, self.options.sampling
    return generate_with_retries(*task, self.visited_steps, repair=repair)
