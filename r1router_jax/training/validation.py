"""Scores a policy, while it learns, on what it does not learn from.

A run with knowledge bases walks: the policy answers held-out questions, from
the first plan to the final answer, by the routing loop, greedily and with live
retrieval.  Of the answers, and of the way to them, these are the scalars,
means over the questions (see `metrics.trajectories`):

  validation/f1, exact    F1 and exact match of the answers (default rules)
  validation/recall       F1-Recall of the answers, as the paper measures it
  validation/route        share of plan positions with an accepted route, over
                          questions whose gold trace is known
  validation/routes/KIND  share of all choices that plans make: a knowledge
                          base, or to stop
  validation/retrievals   searches of a question
  validation/tokens       tokens written to a question
  validation/well_formed  share of questions all of whose responses are of the
                          protocol
  validation/faults       faults of a question, of any kind

A run without knowledge bases scores greedy responses to held-out gold steps:
validation/total is their mean reward, beside the components of it.

One of the scalars tells which state of the policy is the best so far; `train`
keeps that state in <workdir>/best.  Each validation has the same questions and
the same random key, and changes nothing of the run, but for what the knowledge
bases remember and count of searches.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from r1router_jax.common.records import KBS, Question, Step, Trajectory
from r1router_jax.metrics import trajectories
from r1router_jax.parallel import multihost
from r1router_jax.policy.policy import Policy
from r1router_jax.retrieval.knowledge_base import KnowledgeBase
from r1router_jax.rewards import step_reward
from r1router_jax.routing.router import RolloutOptions


@dataclasses.dataclass
class BestScore:
  """The best score of a run so far, by one scalar of its validations."""

  scalar: str
  score: float = -1.0  # A score is at least 0.
  iteration: int = 0  # After which the score was reached; 0 if unknown.

  @classmethod
  def from_metadata(cls, scalar: str, saved: Mapping[str, Any]) -> "BestScore":
    """Return what a checkpoint's metadata says, or nothing so far.

    Scores of another scalar say nothing about this one.
    """
    # Older versions had one scalar, and did not keep the iteration.
    if (
      saved.get("best_by", "validation/total") != scalar or "best" not in saved
    ):
      return cls(scalar)
    return cls(scalar, saved["best"], saved.get("best_at", 0))

  def to_metadata(self) -> dict[str, Any]:
    """Return what a checkpoint keeps, as JSON holds it."""
    return dict(best=self.score, best_by=self.scalar, best_at=self.iteration)

  def improve(self, scores: Mapping[str, float], iteration: int) -> bool:
    """Take new scores over if they are better, and return whether they are."""
    # Of equal states the earlier one stays.
    is_better = scores[self.scalar] > self.score
    if is_better:
      self.score, self.iteration = scores[self.scalar], iteration
    return is_better

  def describe(self) -> str:
    """Name the scalar, the score and the iteration; "" if there is none."""
    at = f" after iteration {self.iteration}" if self.iteration else ""
    return f"{self.scalar} {self.score:.3g}{at}" if self.score >= 0 else ""


class StepValidator:
  """Scores parameters of a policy, not its own, on held-out gold steps."""

  def __init__(
    self, policy: Policy, steps: list[Step], reward: step_reward.Reward
  ):
    self._policy, self._steps, self._reward = policy, steps, reward
    # Prompts are encoded once, for all validations.
    self._prompts = [
      policy.processor.encode(policy.config.build_prompt(step))
      for step in steps
    ]

  def score_params(self, params: dict) -> dict[str, float]:
    """Return the means of the rewards and of their components, by metric."""
    policy = dataclasses.replace(self._policy, params=params)
    # Greedy, so the key has no effect.
    sampled = policy.sample(self._prompts, jax.random.key(0), 1)
    texts = [response.text for (response,) in policy.decode(sampled)]
    means = self._reward.score(self._steps, texts).means()
    return {f"validation/{name}": mean for name, mean in means.items()}


class WalkValidator:
  """Scores parameters of a policy, not its own, on held-out questions.

  Each host answers its share of the questions; all get the scores of all.  The
  function `drive_loop` is one of `device_loop.ROUTING_LOOPS`.
  """

  def __init__(
    self,
    policy: Policy,
    kbs: Mapping[str, KnowledgeBase],
    questions: Sequence[Question],
    options: RolloutOptions,
    drive_loop: Callable[..., list[Trajectory]],
    seed: int,
  ):
    self._policy, self._kbs, self._options = policy, kbs, options
    share = slice(jax.process_index(), None, jax.process_count())
    self._questions = questions[share]
    self._drive_loop, self._seed = drive_loop, seed

  def score_params(self, params: dict) -> dict[str, float]:
    """Return the scalars that the module's docstring lists, by metric."""
    policy = dataclasses.replace(self._policy, params=params)
    # The key draws further tries of responses that break the protocol.
    key, task = jax.random.key(self._seed), (self._kbs, self._questions)
    walked = self._drive_loop(policy, *task, key, self._options)
    columns = _walk_columns(walked, self._options.max_steps)
    # Means over all hosts, each of those numbers that are there.
    numbers = list(map(trajectories.drop_nan, columns.values()))
    sums = multihost.sum_over_hosts([float(x.sum()) for x in numbers])
    counts = multihost.sum_over_hosts([float(len(x)) for x in numbers])
    return {
      f"validation/{name}": total / count
      for name, total, count in zip(columns, sums, counts, strict=True)
      if count
    }


def _walk_columns(
  walked: Sequence[Trajectory], max_steps: int
) -> dict[str, np.ndarray]:
  """Return a number per question, or per choice of its plans, by metric."""
  scores = trajectories.score_trajectories(walked, max_steps=max_steps)
  scores |= dict(f1=scores["default_f1"], exact=scores["default_exact"])
  scores["well_formed"] = scores["format"]
  scores["faults"] = np.array([len(each.faults) for each in walked], float)
  names = "f1 exact recall route retrievals tokens well_formed faults".split()
  columns = {name: scores[name] for name in names}
  # A plan may choose several knowledge bases.
  choices = [
    kind
    for each in walked
    for routes in trajectories.chosen_routes(each, max_steps)
    for kind in routes
  ]
  for name, kind in dict(zip(KBS, KBS, strict=True), stop="none").items():
    columns[f"routes/{name}"] = np.array([float(c == kind) for c in choices])
  return columns
