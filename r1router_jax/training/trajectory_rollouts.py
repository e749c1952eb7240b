"""Rollouts of whole trajectories: one reward for all steps of each.

G trajectories answer the same question, with live retrieval, and each has one
reward R (`rewards.trajectory_reward`).  An advantage is given

  trajectory  by R among the G trajectories, to every token of every step
  gigpo       by R, and at each step by what follows among those that are at the
              same state:  A = A(R) + w A(F)

  F_t = sum_{k >= t} gamma^(k - t) r_k

is the return that follows step t.  Each step has its share of the reward: r_k
are the costs of its tokens and searches, and at the last step also the rest of
R, so that all r_k add up to R.

A *state* is what a response answers to: a question, the rounds so far, and a
prompt.  The routing loop builds each prompt anew, so that no token is encoded
again, and retrieved text is part of prompts alone.  A group of a batch is a
state, with the response of trajectory g as its member g; members that are not
at this state are padding.  So a prompt that trajectories share is read once.

Axes:  Q questions   G trajectories of a question   B states   T response tokens
Sources: arxiv.org/abs/2503.09516 (Search-R1: one reward for all steps),
  arxiv.org/abs/2505.10978 (GiGPO: groups at equal anchor states).
"""

import collections
import dataclasses
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Question, Trajectory
from r1router_jax.generation import group_decode
from r1router_jax.inputs.processor import EncodedPrompt
from r1router_jax.policy.policy import Policy
from r1router_jax.retrieval.retriever import KnowledgeBase
from r1router_jax.rewards.trajectory_reward import (
  TrajectoryReward,
  TrajectoryRewards,
)
from r1router_jax.routing import device_loop
from r1router_jax.routing.policy_requests import REQUESTS_PER_ROUND, VisitedStep
from r1router_jax.routing.router import RolloutOptions
from r1router_jax.training.advantages import (
  Credit,
  find_truncated,
  group_advantages,
  penalise_truncated,
  reward_advantages,
)


@dataclasses.dataclass(frozen=True)
class TrajectoryGroups:
  """Trajectories with their rewards, and the states that they went through."""

  trajectories: list[Trajectory]  # Q * G, those of a question side by side.
  rewards: TrajectoryRewards  # In the same order.
  questions: Int[np.ndarray, " B"]  # Index of each state's question.
  prompts: list[EncodedPrompt]  # B, as the policy read them.
  sampled: group_decode.SampledResponses  # Leaves [B, G, T], or [B, G].
  positions: Int[np.ndarray, "B G"]  # Of a response in its trajectory.
  # Searches that a response led to: it is a plan that was carried out.
  searches: Int[np.ndarray, "B G"]
  reward_seconds: float = 0.0  # Spent on computing the rewards.

  @classmethod
  def concat(cls, rollouts: Sequence["TrajectoryGroups"]) -> "TrajectoryGroups":
    """Concatenate the trajectories of several rollouts."""

    def concat(*arrays):
      return np.concatenate(arrays)

    # Questions are numbered on from one rollout to the next.
    firsts = np.cumsum([0, *(len(each.reward) for each in rollouts)])
    questions = [
      each.questions + first
      for each, first in zip(rollouts, firsts, strict=False)
    ]
    parts = [each.rewards.parts for each in rollouts]
    return cls(
      [one for each in rollouts for one in each.trajectories],
      TrajectoryRewards(
        jax.tree.map(concat, *parts), rollouts[0].rewards.weights
      ),
      concat(*questions),
      [prompt for each in rollouts for prompt in each.prompts],
      jax.tree.map(concat, *[each.sampled for each in rollouts]),
      concat(*[each.positions for each in rollouts]),
      concat(*[each.searches for each in rollouts]),
      sum(each.reward_seconds for each in rollouts),
    )

  @property
  def present(self) -> Bool[np.ndarray, "B G"]:
    """Return which trajectories gave a response at a state."""
    return self.sampled.mask.any(-1)

  @property
  def reward(self) -> Float[np.ndarray, "Q G"]:
    """Return the reward of each trajectory."""
    return self.rewards.total.reshape(-1, self.positions.shape[1])

  @property
  def has_signal(self) -> Bool[np.ndarray, " Q"]:
    """Return True for questions whose trajectories have unequal rewards."""
    return np.ptp(self.reward, axis=1) > 0

  def advantages(self, credit: Credit) -> Float[np.ndarray, "B G"]:
    """Return the advantage of each response; 0 where there is none."""
    # 1. Of whole trajectories.  One is truncated if any of its responses is.
    sampled, present = self.sampled, self.present
    reward, weights = self.reward, self.rewards.weights
    state, member = np.nonzero(
      find_truncated(sampled.tokens, sampled.mask, credit.end_ids)
    )
    truncated = np.zeros(reward.shape, bool)
    truncated[self.questions[state], member] = True
    parts = {
      name: part.reshape(reward.shape)
      for name, part in self.rewards.parts.items()
    }
    advantage = reward_advantages(credit, reward, parts, weights, truncated)
    advantage = advantage[self.questions] * present

    # 2. Of what follows each response, among those at its state.
    if credit.state_weight:
      if credit.truncated == "penalise":
        reward = penalise_truncated(reward, truncated)
      returns = self.returns(reward, credit.discount)
      of_states = group_advantages(returns, credit.norm, present)
      advantage += np.float32(credit.state_weight) * of_states
    return advantage

  def returns(
    self, reward: Float[np.ndarray, "Q G"], discount: float
  ) -> Float[np.ndarray, "B G"]:
    """Return what follows each response: F of the module's docstring."""
    # 1. The costs of each response; a user's own reward has none.
    weights, lengths = self.rewards.weights, self.sampled.mask.sum(-1)
    costs = weights.get("searches", 0.0) * self.searches
    costs = costs + weights.get("tokens", 0.0) * lengths
    # 2. By question, trajectory and position.  The last response gets the rest.
    state, member = np.nonzero(self.present)
    at = self.questions[state], member, self.positions[state, member]
    length = self.positions.max(initial=0) + 1
    follows = np.zeros((*reward.shape, length))
    follows[at] = costs[state, member]
    rest, last = reward - follows.sum(-1), np.zeros(reward.shape, int)
    np.maximum.at(last, at[:2], at[2])
    follows[(*np.indices(last.shape), last)] += rest
    # 3. Add up from the end.
    for k in reversed(range(length - 1)):
      follows[..., k] += discount * follows[..., k + 1]
    returns = np.zeros(self.positions.shape)
    returns[state, member] = follows[at]
    return returns

  def metrics(self) -> dict[str, float]:
    """Return the scalars that the trajectories give to the log."""
    means = self.rewards.means()
    metrics = {f"reward/{name}": mean for name, mean in means.items()}
    # Whether there is anything to learn from: a policy that is never right is
    # never told what is.
    if "answer" in self.rewards.parts:
      right = self.rewards.parts["answer"].reshape(self.reward.shape) == 1
      metrics["solved_groups"] = float(right.any(axis=1).mean())
    responses = self.present.sum()
    return metrics | {
      "steps": float(responses / self.reward.size),
      "trajectories_per_state": float(responses / len(self.prompts)),
    }

  def samples(
    self, advantage: Float[np.ndarray, "B G"]
  ) -> list[dict[str, Any]]:
    """Return the trajectories of one question, as JSON holds them."""
    # The first with a signal shows more than one whose rewards are all equal.
    number = int(np.argmax(self.has_signal))
    size = self.reward.shape[1]
    shown = self.trajectories[number * size : (number + 1) * size]
    # Each with the advantage of its first response.
    state, member = np.nonzero(
      self.present & (self.questions == number)[:, None] & (self.positions == 0)
    )
    first = np.zeros(size)
    first[member] = advantage[state, member]
    question = shown[0].question
    sample = dict(
      id=question.id,
      kind="trajectory",
      question=question.text,
      history=[],
      sub_question="",
      gold=list(question.answers),
      responses=list(map(_summarize, shown)),
      rewards=self.reward[number].tolist(),
      advantages=first.tolist(),
    )
    return [sample]


def _summarize(trajectory: Trajectory) -> str:
  """Return a trajectory in a line: each round, and the final answer."""
  rounds = [
    f"{done.plan.sub_question} [{', '.join(done.plan.routes)}] "
    f"{done.answer.text}"
    for done in trajectory.rounds
  ]
  return "; ".join([*rounds, f"final: {trajectory.final.text}"])


def sample_trajectories(
  policy: Policy,
  kbs: Mapping[str, KnowledgeBase],
  questions: Sequence[Question],
  key: jax.Array,
  options: RolloutOptions,
  reward: TrajectoryReward,
  routing_loop: str = "host",
) -> TrajectoryGroups:
  """Walk and reward `options.trajectories` trajectories to each question.

  `routing_loop` is a key of `device_loop.ROUTING_LOOPS`.

  Raises:
    UserError: if the policy could be asked nothing.
  """
  # 1. Run the routing loop and keep each response.
  visited: list[VisitedStep] = []
  options = dataclasses.replace(options, on_step=visited.append)
  walk = device_loop.ROUTING_LOOPS[routing_loop]
  trajectories = walk(policy, kbs, questions, key, options)
  if not visited:
    raise UserError(
      f"The policy could be asked none of {len(questions)} questions: their "
      "images cannot be read, or their prompts are too long."
    )

  # 2. Reward the trajectories.
  start = time.perf_counter()
  rewards = reward.score(trajectories)
  seconds = time.perf_counter() - start

  # 3. Put responses at equal states together.
  arrays = _group_by_state(policy, questions, trajectories, visited)
  return TrajectoryGroups(trajectories, rewards, *arrays, seconds)


def _group_by_state(
  policy: Policy,
  questions: Sequence[Question],
  trajectories: Sequence[Trajectory],
  visited: Sequence[VisitedStep],
) -> tuple:
  """Return the fields of `TrajectoryGroups` that responses make up."""
  # 1. Sorted, because each routing loop visits steps in an order of its own.
  size = len(trajectories) // len(questions)
  first = {question.id: n * size for n, question in enumerate(questions)}
  of_trajectory = sorted(
    (
      (first[visit.step.question.id] + visit.member, visit) for visit in visited
    ),
    key=lambda pair: (pair[0] // size, pair[1].number, pair[0]),
  )

  # 2. States.  A retry responds to the same prompt once more, and is a state of
  # its own.
  states: dict[Hashable, int] = {}
  places = []
  for index, visit in of_trajectory:
    key = index // size, visit.number, visit.step.history, visit.prompt
    state = states.setdefault(key, len(states))
    places.append((state, visit.member))
  prompts = [policy.processor.encode(prompt) for *_, prompt in states]
  numbers = np.array([number for number, *_ in states])

  # 3. Responses, each at its place.
  shape = len(states), size, policy.config.response_tokens[-1]
  sampled = group_decode.empty_responses(*shape)
  positions, searches = np.zeros((2, *shape[:2]), int)
  steps_so_far, plans = collections.Counter(), {}
  for place, (index, visit) in zip(places, of_trajectory, strict=True):
    (response,) = visit.responses
    room = *place, slice(len(response.tokens))
    sampled.tokens[room], sampled.logp[room] = response.tokens, response.logp
    sampled.mask[room] = True
    positions[place] = steps_so_far[index]
    steps_so_far[index] += 1
    # Of several tries for a plan the last one counts.
    if visit.step.kind == "plan":
      plans[index, visit.number // REQUESTS_PER_ROUND] = place

  # 4. The searches that follow a plan.
  for (index, number), place in plans.items():
    rounds = trajectories[index].rounds
    if number < len(rounds):
      searches[place] = len(rounds[number].plan.routes)
  return numbers, prompts, sampled, positions, searches
