"""Step-GRPO: group-relative policy optimisation of single routing steps.

An iteration draws groups of responses with the policy as it is (`rollouts.py`),
rewards them (`rewards.py`), and makes of those that teach the batches of one or
more updates, whose loss is that of `objective.py`.

Source: arxiv.org/abs/2505.22095 (Step-GRPO).
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from r1router_jax.common.records import Question, Step
from r1router_jax.generation import token_sampling
from r1router_jax.parallel import mesh, multihost
from r1router_jax.parallel.strategy import Driver
from r1router_jax.policy.policy import Policy
from r1router_jax.retrieval.retriever import KnowledgeBase, together
from r1router_jax.rewards import step_reward
from r1router_jax.routing import device_loop
from r1router_jax.training import flops, grpo_loss, throughput
from r1router_jax.training import rollouts as rollouts_lib
from r1router_jax.training.batch import Batch, Prompts, generator

ROLLOUTS = ("offline", "online")


class StepGrpo:
  """Batches and loss of Step-GRPO; an `Algorithm` of `train`.

  Args:
    policy: what is trained.
    driver: on which devices.
    kbs, passages: what online rollouts search, and read per answer step.
    rows: prompts that each part of the rollout's mesh has per iteration.
    total_steps: iterations of the run.
    seed: of everything drawn.
    rollouts: one of `ROLLOUTS`.
    loop: a key of `fused.LOOPS`, online.
    group_size: G, responses per step; advantages compare these.
    learn_rows: steps per update and share, at most, that are learnt from.
    minibatches: updates per iteration.
    refill: how often more is drawn, at most, where too few groups teach.
    temperature: of sampling.
    normalise: see `objective.advantages`.
    loss: the rest of an `objective.Objective`.
    reward, search_cost: see `rewards.make`.
    rename: probability that a step's entities have other names, offline.

  Attributes:
    examples: of this host per iteration.
    updates: per iteration.
    penalised: whether the loss needs a reference policy.
    online: whether examples are questions, not steps.
  """

  def __init__(
    self,
    policy: Policy,
    driver: Driver,
    *,
    kbs: Mapping[str, KnowledgeBase],
    passages: int | Mapping[str, int],
    rows: int,
    total_steps: int,
    seed: int,
    rollouts: str,
    loop: str,
    group_size: int,
    learn_rows: int,
    minibatches: int,
    refill: int,
    temperature: float,
    normalise: str,
    loss: Mapping,
    reward: str,
    search_cost: float,
    rename: float,
  ):
    if group_size < 2:
      raise ValueError(
        f"config.step_grpo.group_size is {group_size}: an advantage compares "
        "at least two responses."
      )
    for name, value, known in (
      ("rollouts", rollouts, ROLLOUTS),
      ("loop", loop, device_loop.LOOPS),
      ("normalise", normalise, grpo_loss.NORMS),
    ):
      if value not in known:
        raise ValueError(
          f"config.step_grpo.{name} is {value!r}: take one of "
          f"{', '.join(known)}."
        )
    if rollouts == "online" and not kbs:
      raise ValueError(
        "Online rollouts search: name the folder of built "
        "knowledge bases, config.data.kb."
      )
    self.examples = rows * mesh.here(driver.rollout).shape[mesh.DATA]
    self.updates, self._refill, self._group = minibatches, refill, group_size
    self._policy, self._total, self._seed = policy, total_steps, seed
    self._kbs, self._passages = kbs, passages
    self.online, self._loop = rollouts == "online", loop
    self._fit = dict(
      rows=learn_rows, parts=driver.parts, minibatches=minibatches
    )
    self._prompts, self._rename = Prompts(policy, renames=rename > 0), rename
    self._normalise, self._method = (
      normalise,
      token_sampling.SamplingParams(temperature),
    )
    self._objective = grpo_loss.Objective(
      temperature, policy.settings.response_tokens[-1], **loss
    )
    self.penalised = self._objective.kl_coef != 0
    self._reward = step_reward.make(reward, policy.settings.routes, search_cost)

  def make_batches(
    self,
    params: dict,
    examples: Callable[[int], Sequence[Step] | Sequence[Question]],
    index: int,
  ) -> tuple[list[Batch], throughput.Account]:
    """The batches of iteration `index`, and what to report.

    Args:
      params: of the policy as it is.
      examples: those of an iteration; beyond the last one, for refills.
      index: of the iteration.
    """
    policy = dataclasses.replace(self._policy, params=params)
    wanted = self._fit["parts"] * self._fit["rows"] * self.updates
    drawn, start = [], time.perf_counter()
    for extra in range(self._refill + 1):
      at = index + extra * self._total
      drawn.append(self._draw(policy, examples(at), at))
      enough = sum(np.sum(groups.teach) for groups in drawn) >= wanted
      # Hosts that search together draw together.
      if multihost.agreed(enough) if together(self._kbs) else enough:
        break
    judging = sum(groups.judging for groups in drawn)
    seconds = dict(
      rollout=time.perf_counter() - start - judging, reward=judging
    )
    groups, model = rollouts_lib.joined(drawn), policy.settings.model
    advantage = grpo_loss.advantages(groups.reward, self._normalise)
    batches = rollouts_lib.learn_from(
      policy,
      groups,
      advantage,
      **self._fit,
      size=self._objective.size,
      all_teach=self._objective.penalises,
    )
    return batches, throughput.Account(
      _report(groups) | {"refills": float(len(drawn) - 1)},
      throughput.sampled(model, groups.prompts, groups.drawn.mask).taught(
        throughput.learnt(model, batch, flops.TRAIN + self.penalised)
        for batch in batches
      ),
      seconds,
      throughput.shown(groups.steps, groups.texts, groups.reward, advantage),
    )

  def _draw(
    self, policy: Policy, examples: Sequence, index: int
  ) -> rollouts_lib.Groups:
    key = jax.random.fold_in(jax.random.key(self._seed), index)
    how = key, self._group, self._method, self._reward
    if self.online:
      return rollouts_lib.online(
        policy, self._kbs, examples, self._passages, *how, self._loop
      )
    steps, prompts = zip(
      *(
        self._prompts(step, self._rename, generator(self._seed, index, step.id))
        for step in examples
      ),
      strict=True,
    )
    return rollouts_lib.offline(policy, steps, prompts, *how)

  def loss(
    self,
    params: dict,
    reference: dict | None,
    batch: Batch,
    allowed: Bool[Array, " V"],
  ) -> tuple[Float[Array, ""], Float[Array, ""], dict]:
    """See `objective.loss`."""
    return grpo_loss.loss(
      self._policy.model, self._objective, params, reference, batch, allowed
    )


def _report(groups: rollouts_lib.Groups) -> dict[str, float]:
  """What responses say about the policy that drew them."""
  kinds, reward = np.array([s.kind for s in groups.steps]), groups.reward
  means = groups.parts.means()
  report = {f"reward/{name}": mean for name, mean in means.items()}
  report |= {
    f"reward/{kind}": float(reward[kinds == kind].mean())
    for kind in dict.fromkeys(kinds.tolist())
  }
  return report | {
    "reward/std_in_group": float(reward.std(axis=1).mean()),
    "groups": float(len(groups.steps)),
    "equal_groups": float(np.mean(~groups.teach)),
    "response_tokens": float(groups.drawn.mask.sum(-1).mean()),
    "cut_tokens": float(np.mean([prompt.cut for prompt in groups.prompts])),
    # As long as there is room.
    "truncated": float(groups.drawn.mask.all(-1).mean()),
  }
