"""The reward of a whole trajectory: how good is its final answer, at what cost?

  reward = w well_formed + (1 - w) answer - c searches - d tokens

  answer       em, f1   the final answer by the default rules
               recall   by the rule of the paper's metric, "F1-Recall"
               judge    the verdict of a language model (`llm_judge`)
               in [0, 1]; 0 if the final answer is malformed
  well_formed  1 if no response broke the protocol, else 0
  searches     knowledge bases that were searched: one per round and route
  tokens       tokens of all responses

A reply of the judge without a verdict counts as wrong, and "unjudged", which
has no weight, is the share of these.  All verdicts are kept in a file, so that
a run that is resumed gets those that it got before; two runs of their own files
get the same if the judge says the same.

A user's own reward is a function of (questions, trajectories) to rewards [n],
or to named parts of them, {name: [n]}, that are added; a config names it
"module:function".

Axes:  n trajectories
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from etils import epath
from jaxtyping import Float

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Trajectory
from r1router_jax.metrics.trajectories import score_trajectories
from r1router_jax.rewards.llm_judge import Judge
from r1router_jax.rewards.user_function import check_numbers, import_function

# The column of `metrics.trajectories` that is the answer's part of a reward.
ANSWER_COLUMNS = {"em": "default_exact", "f1": "default_f1", "recall": "recall"}


@dataclasses.dataclass(frozen=True)
class TrajectoryRewards:
  """Rewards of trajectories, as parts of them with the weight of each part."""

  parts: dict[str, Float[np.ndarray, " n"]]  # As they are, not weighted.
  weights: dict[str, float]

  @property
  def total(self) -> Float[np.ndarray, " n"]:
    """Return the reward of each trajectory: the weighted sum of its parts."""
    return sum(self.weights[name] * part for name, part in self.parts.items())

  def means(self) -> dict[str, float]:
    """Return the means of the rewards, "total", and of each part."""
    columns = {"total": self.total} | self.parts
    return {name: float(column.mean()) for name, column in columns.items()}


class AnswerReward:
  """Scores trajectories by their final answers, format and costs.

  `name` is a key of `ANSWER_COLUMNS`, or "judge" with a judge.  The weights are
  those of the module's docstring, by part; `max_steps` is that of the routing
  loop.
  """

  def __init__(
    self,
    name: str,
    weights: Mapping[str, float],
    max_steps: int,
    judge: Judge | None = None,
  ):
    self._name, self._judge = name, judge
    self._weights, self._max_steps = dict(weights), max_steps

  def score(self, trajectories: Sequence[Trajectory]) -> TrajectoryRewards:
    """Return the rewards; raise UserError for a question without an answer."""
    for question in (each.question for each in trajectories):
      if not (question.answers or question.interval):
        raise UserError(
          f"question {question.id} has no answer to reward by: give one, or "
          "leave it out"
        )
    columns = score_trajectories(trajectories, max_steps=self._max_steps)
    parts = dict(
      well_formed=columns["format"],
      searches=columns["retrievals"],
      tokens=columns["tokens"],
    )
    if self._judge is None:
      parts["answer"] = columns[ANSWER_COLUMNS[self._name]]
    else:
      verdicts = self._judge.judge_trajectories(trajectories)
      parts["answer"] = np.nan_to_num(verdicts)
      parts["unjudged"] = np.isnan(verdicts).astype(np.float64)
    return TrajectoryRewards(
      parts, {name: self._weights[name] for name in parts}
    )


class UserTrajectoryReward:
  """Scores trajectories by a function of the user's, "module:function"."""

  def __init__(self, name: str):
    self._name, self._reward = name, import_function(name)
    self._names = None  # Of the parts.

  def score(self, trajectories: Sequence[Trajectory]) -> TrajectoryRewards:
    """Return the rewards, in the function's parts or as the part "own"."""
    questions = [each.question for each in trajectories]
    found = self._reward(questions, trajectories)
    if not isinstance(found, Mapping):
      found = {"own": found}
    what = f"The reward {self._name}"
    # The names stand in logs, where "total" is the sum.
    is_name = {isinstance(x, str) and x.isidentifier() for x in found}
    if is_name != {True} or "total" in found:
      raise UserError(
        f"{what} gave the parts {[*found]!r:.80}; wanted one or more, with "
        "names of letters, digits and _, other than 'total'."
      )
    # Rewards of several calls are put together.
    self._names = self._names or {*found}
    if {*found} != self._names:
      raise UserError(
        f"{what} gave the parts {[*found]!r:.80}, and before "
        f"{[*self._names]!r:.80}: return the same ones at each call."
      )
    parts = {
      name: check_numbers(f"{what}, part {name!r},", values, len(trajectories))
      for name, values in found.items()
    }
    return TrajectoryRewards(parts, dict.fromkeys(parts, 1.0))


TrajectoryReward = AnswerReward | UserTrajectoryReward


def make_trajectory_reward(
  name: str,
  *,
  format_weight: float,
  search_cost: float,
  token_cost: float,
  max_steps: int,
  judge: str = "",
  judge_cache: epath.PathLike = "",
) -> TrajectoryReward:
  """Return the reward of a run: em, f1, recall, judge or the user's function.

  Args:
    name: a key of `ANSWER_COLUMNS`, "judge", or "module:function", which has
      no format weight and no costs.
    format_weight: w of the module's docstring.
    search_cost: c.
    token_cost: d.
    max_steps: rounds of the routing loop, at most.
    judge: the judge's address, see `llm_judge.Judge`; it is reached at once.
    judge_cache: file of the judge's verdicts; each process has its own.

  Raises:
    UserError, RemoteServiceError: if there is no such function, or no judge.
  """
  if ":" in name:
    return UserTrajectoryReward(name)
  weights = dict(
    answer=1 - format_weight,
    well_formed=format_weight,
    searches=-search_cost,
    tokens=-token_cost,
    unjudged=0.0,
  )
  if name != "judge":
    return AnswerReward(name, weights, max_steps)
  path = epath.Path(judge_cache)
  # Objects in a bucket cannot grow with each verdict.
  if "://" in str(path):
    raise UserError(
      f"The judge's verdicts cannot be kept at {path}: give a workdir on a "
      "disk, or another config.step_grpo.reward."
    )
  # Processes may share a folder, and two must not append to one file.
  if jax.process_index():
    path = path.with_stem(f"{path.stem}.{jax.process_index()}")
  asked = Judge(judge, path, keep_unreadable=True)
  asked.connect()
  return AnswerReward(name, weights, max_steps, asked)
