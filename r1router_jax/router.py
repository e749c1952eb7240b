"""The routing loop: questions to trajectories, all questions at once.

  plan -> passages -> answer -> plan -> .. -> final answer

An answer step sees its sub-question and passages alone, plan and final steps
the question with all sub-questions and answers, as in R1-Router.

What a policy writes can be wrong.  Nothing of it stops the loop, and all of it
is listed in `Trajectory.faults`, as "<kind>: <reason>":

  plan      not of the protocol: drawn once more, at temperature 1, since a
            greedy policy would repeat itself
  stuck     the second try was no plan either: on to the final answer
  repeated  the same sub-question was put to the same knowledge bases before,
            which can bring nothing new: on to the final answer
  answer    not of the protocol: its words without tags go into the history
  final     not of the protocol: stays Malformed, and scores 0
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
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from r1router_jax import protocol
from r1router_jax.data.trajectories import MAX_HOPS
from r1router_jax.drawing import GREEDY, Method
from r1router_jax.inputs.images import BadImage
from r1router_jax.inputs.tokenizer import PromptTooLong
from r1router_jax.planners import Planner
from r1router_jax.records import (
  Answer,
  Malformed,
  Passage,
  Plan,
  Question,
  Response,
  Round,
  Step,
  Trajectory,
)
from r1router_jax.retrieval import knowledge_base
from r1router_jax.retrieval.knowledge_base import KnowledgeBase, Retrieve
from r1router_jax.walk import Walk


class Phase(NamedTuple):
  """What the loop asks of the policy at one time.

  Attributes:
    number: of the phase, 3 to a round; names the key of its samples.
    prompts: one or more.
    method: how tokens of responses are drawn.
  """

  number: int
  prompts: list[protocol.Conversation]
  method: Method


# Yields what it asks, is sent a group of responses to each prompt.
Walker = Generator[Phase, list[list[Response]], list[Trajectory]]
Keep = Callable[[Step, Sequence[Response]], None]


@runtime_checkable
class Responder(Protocol):
  """What the loop needs of a policy; `Policy` and `chat.ChatPolicy` have it.

  Attributes:
    settings: with `routes` and `conversation`, as of `settings.Settings`.
    packer: with `encode`, which says whether a prompt can be read.
  """

  settings: Any
  packer: Any

  def respond(
      self, conversations: Sequence[protocol.Conversation], key: jax.Array,
      n: int = 1, method: Method = GREEDY,
  ) -> list[list[Response]]:
    """`n` responses to each conversation, none dependent on another."""


def route(
    policy: Responder,
    kbs: Mapping[str, KnowledgeBase],
    questions: Sequence[Question],
    key: jax.Array,
    *,
    planner: Planner | None = None,
    max_steps: int = MAX_HOPS,
    k: int | Mapping[str, int] = 1,
    method: Method = GREEDY,
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
    planner: who decides on routes; by default the policy.
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
  if in_flight > 1 and knowledge_base.together(kbs):
    raise ValueError(knowledge_base.ONE_LOOP)
  keys, turn = phase_keys(key, max_steps), threading.Lock()

  def drive(part):
    kept = []
    walker = loop(
        policy, part, knowledge_base.retriever(kbs, k), planner=planner,
        max_steps=max_steps, method=method,
        keep=lambda *step: kept.append(step))
    groups = None
    while True:
      try:
        phase = walker.send(groups)
      except StopIteration as end:
        return end.value, kept
      with turn:
        groups = policy.respond(
            phase.prompts, keys[phase.number], members, phase.method)

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
  """A key per phase: plan, second try and answer of each round, final."""
  fold, keys = jax.random.fold_in, []
  for n in range(max_steps):
    plan, answer = jax.random.split(fold(key, n))
    keys += [fold(plan, 0), fold(plan, 1), answer]
  return jnp.stack([*keys, fold(key, max_steps)])


def loop(
    policy: Responder, questions: Sequence[Question], retrieve: Retrieve, *,
    planner: Planner | None, max_steps: int, method: Method, keep: Keep,
) -> Walker:
  """Yields prompts, is sent responses, returns trajectories; see `route`."""
  for question in questions:
    if not question.text.strip():
      raise ValueError(f"Question {question.id!r} is empty; give it a text.")
  walks = [Walk(question) for question in questions]
  planner = planner or Planner()
  ask = functools.partial(_ask, policy, keep)
  for walk in walks:  # A baseline would search with a broken picture.
    _fits(policy, walk, walk.step("plan"))
  for n in range(max_steps):
    planned = yield from _plan(
        ask, planner, [w for w in walks if w.planning], n, method)
    # Also where nobody asks: hosts may search together.
    found = retrieve([(kb, plan.sub_question, walk.question.image)
                      for walk, plan in planned for kb in plan.routes])
    found = _of_plans([plan for _, plan in planned], found)
    answers = yield from ask(
        [walk for walk, _ in planned],
        [walk.step("answer", sub_question=plan.sub_question, passages=passages)
         for (walk, plan), passages in zip(planned, found, strict=True)],
        3 * n + 2, method)
    for (walk, plan), passages, answer in zip(
        planned, found, answers, strict=True):
      walk.rounds.append(Round(plan, passages, answer))
  finals = yield from ask(
      walks, [walk.step("final") for walk in walks], 3 * max_steps, method)
  for walk, final in zip(walks, finals, strict=True):
    walk.final = final
  return [walk.trajectory() for walk in walks]


def _of_plans(
    plans: Sequence[Plan], found: Sequence[tuple[Passage, ...]]
) -> list[tuple[Passage, ...]]:
  """What was found for each route of each plan, as that of each plan."""
  left = iter(found)
  return [tuple(itertools.chain(*itertools.islice(left, len(plan.routes))))
          for plan in plans]


def _plan(
    ask: Callable[..., Generator], planner: Planner, walks: Sequence[Walk],
    n: int, method: Method,
) -> Generator[Phase, list[list[Response]], list[tuple[Walk, Plan]]]:
  """The plans of round `n`, for walks that go on."""
  plans = [planner.fixed(walk.question, n) for walk in walks]
  left = [i for i, plan in enumerate(plans) if plan is None]
  for attempt, way in enumerate((method, Method())):
    asked = [walks[i] for i in left]
    found = yield from ask(
        asked, [walk.step("plan") for walk in asked], 3 * n + attempt, way)
    for i, plan in zip(left, found, strict=True):
      plans[i] = plan if isinstance(plan, Malformed) else planner.redirect(
          walks[i].question, n, plan)
    left = [i for i in left
            if isinstance(plans[i], Malformed) and walks[i].planning]
  for i in left:
    walks[i].fault("stuck", "no plan in two tries")
  for walk, plan in zip(walks, plans, strict=True):
    if not isinstance(plan, Plan) or plan.route == "none":
      walk.planning = False
    elif walk.repeats(plan):
      walk.fault("repeated", plan.sub_question)
  return [(walk, plan) for walk, plan in zip(walks, plans, strict=True)
          if walk.planning]


def _ask(
    policy: Responder, keep: Keep, walks: Sequence[Walk], steps: Sequence[Step],
    number: int, method: Method,
) -> Generator[
    Phase, list[list[Response]], list[Plan | Answer | Malformed]]:
  """The parsed responses; their tokens and faults are added to the walks."""
  results = [_fits(policy, *pair) for pair in zip(walks, steps, strict=True)]
  good = [i for i, unfit in enumerate(results) if unfit is None]
  prompts = [policy.settings.conversation(steps[i]) for i in good]
  groups = (yield Phase(number, prompts, method)) if good else []
  for i, group in zip(good, groups, strict=True):
    keep(steps[i], group)
    kind = steps[i].kind
    parsed = [protocol.parse(kind, response.text, policy.settings.routes)
              for response in group]
    chosen = next((m for m, one in enumerate(parsed)
                   if not isinstance(one, Malformed)), 0)
    results[i] = parsed[chosen]
    walks[i].tokens += len(group[chosen].tokens)
    if isinstance(results[i], Malformed):
      walks[i].fault(kind, results[i].reason)
  return results


def _fits(policy: Responder, walk: Walk, step: Step) -> Malformed | None:
  """None where the policy can read the prompt; else why not, a fault.

  What passages lost on the way is added to the walk.
  """
  try:
    prompt = policy.packer.encode(policy.settings.conversation(step))
  except (BadImage, PromptTooLong) as error:
    walk.fault("input", str(error))
    return Malformed("", str(error))
  walk.cut += prompt.cut
  for reason in prompt.unread:
    walk.fault("picture", reason)
  return None
