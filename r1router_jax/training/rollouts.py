"""Groups of responses with rewards: where the batches of Step-GRPO come from.

  offline  each step of a gold trajectory is a prompt of its own, with the gold
           history and passages (as in the paper)
  online   the policy walks the routing loop itself, with live retrieval; at
           each step G responses form the group, and one goes on

Online, golds align by position: the plan of round n is compared with the gold
hop n, or should stop where there is none; so is the answer of round n, unless
there is no hop n; the final answer has the question's gold.  What was retrieved
is part of prompts alone, and so nothing of it is ever trained on.

Axes:  B groups   G responses per group   T response tokens
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float

from r1router_jax.common.records import Question, Response, Step
from r1router_jax.generation import group_decode, token_sampling
from r1router_jax.inputs.processor import Encoded, pad_responses
from r1router_jax.parallel import multihost
from r1router_jax.policy.policy import Policy
from r1router_jax.protocol import format
from r1router_jax.retrieval.retriever import KnowledgeBase
from r1router_jax.rewards import step_reward
from r1router_jax.routing import device_loop
from r1router_jax.training.batch import Batch


@dataclasses.dataclass(frozen=True)
class Groups:
  """Responses to steps.

  Attributes:
    steps: with their golds.
    prompts: as the policy read them.
    drawn: leaves [B, G, T], or [B, G].
    texts: of all responses, B G of them.
    parts: their rewards, likewise.
    judging: seconds that these took.
  """

  steps: list[Step]
  prompts: list[Encoded]
  drawn: group_decode.Drawn
  texts: list[str]
  parts: step_reward.Parts
  judging: float = 0.0

  @property
  def reward(self) -> Float[np.ndarray, "B G"]:
    return self.parts.total.reshape(len(self.steps), -1)

  @property
  def teach(self) -> Bool[np.ndarray, " B"]:
    """Whose rewards differ."""
    return np.ptp(self.reward, axis=1) > 0


def judged(
  steps: Sequence[Step],
  prompts: Sequence[Encoded],
  drawn: group_decode.Drawn,
  texts: Sequence[str],
  reward: step_reward.Reward,
) -> Groups:
  """Responses with their rewards."""
  members, start = drawn.mask.shape[1], time.perf_counter()
  parts = reward.parts([step for step in steps for _ in range(members)], texts)
  return Groups(
    list(steps),
    list(prompts),
    drawn,
    list(texts),
    parts,
    time.perf_counter() - start,
  )


def joined(groups: Sequence[Groups]) -> Groups:
  """All of them as one."""
  concatenate = lambda *arrays: np.concatenate(arrays)
  together = lambda name: [x for g in groups for x in getattr(g, name)]
  return Groups(
    together("steps"),
    together("prompts"),
    jax.tree.map(concatenate, *[g.drawn for g in groups]),
    together("texts"),
    step_reward.Parts(
      *map(concatenate, *[vars(g.parts).values() for g in groups])
    ),
  )


def offline(
  policy: Policy,
  steps: Sequence[Step],
  prompts: Sequence[Encoded],
  key: jax.Array,
  members: int,
  method: token_sampling.SamplingParams,
  reward: step_reward.Reward,
) -> Groups:
  """G responses to each gold step."""
  drawn = policy.draw(prompts, key, members, method)
  texts = [each.text for group in policy.read(drawn) for each in group]
  return judged(steps, prompts, drawn, texts, reward)


def online(
  policy: Policy,
  kbs: Mapping[str, KnowledgeBase],
  questions: Sequence[Question],
  k: int | Mapping[str, int],
  key: jax.Array,
  members: int,
  method: token_sampling.SamplingParams,
  reward: step_reward.Reward,
  loop: str = "host",
) -> Groups:
  """G responses to each step of the policy's own trajectories.

  Args:
    policy: writes all of it.
    kbs, k: see `router.route`.
    questions: with their gold hops.
    key: of all samples.
    members: G.
    method: how tokens are drawn.
    reward: of the responses.
    loop: a key of `fused.LOOPS`.

  Raises:
    ValueError: where no question has a step that could be judged.
  """
  seen: list[tuple[Step, Sequence[Response]]] = []
  device_loop.LOOPS[loop](
    policy,
    kbs,
    questions,
    key,
    k=k,
    method=method,
    members=members,
    keep=lambda step, group: seen.append((step, group)),
  )
  # In an order that is the same whoever drives the loop.
  seen.sort(key=lambda pair: (pair[0].id, pair[0].kind))
  known = [
    (gold, group)
    for step, group in seen
    if (gold := with_gold(step)) is not None
  ]
  if not known:
    raise ValueError(
      f"None of {len(questions)} questions led to a step with a gold: their "
      "pictures cannot be read, or their prompts are too long."
    )
  # An update takes the first that teach: not of the first round alone.
  order = np.asarray(jax.random.permutation(key, len(known)))
  steps, groups = zip(*(known[i] for i in order), strict=True)
  flat = [response for group in groups for response in group]
  tokens, mask = pad_responses(
    [response.tokens for response in flat],
    policy.settings.response_tokens[-1],
    policy.packer.tokenizer.pad,
  )
  logp = np.zeros(tokens.shape, np.float32)
  logp[mask] = np.concatenate([response.logp for response in flat])
  shaped = lambda a: a.reshape(len(steps), members, -1)
  prompts = [
    policy.packer.encode(policy.settings.conversation(step)) for step in steps
  ]
  return judged(
    steps,
    prompts,
    group_decode.Drawn(
      *map(shaped, (tokens, logp, mask)), np.zeros((len(steps), members), bool)
    ),
    [response.text for response in flat],
    reward,
  )


def with_gold(step: Step) -> Step | None:
  """A step of the routing loop with its gold; None where it has none."""
  n, hops = len(step.history), step.question.hops
  hop = hops[n] if n < len(hops) else None
  if step.kind == "final":
    return dataclasses.replace(step, answers=step.question.answers)
  if step.kind == "answer":
    return hop and dataclasses.replace(step, answers=hop.answers)
  if hop is None:
    return dataclasses.replace(step, sub_question=format.NONE, routes=("none",))
  return dataclasses.replace(
    step, sub_question=hop.sub_question, routes=hop.routes
  )


def learn_from(
  policy: Policy,
  groups: Groups,
  advantage: Float[np.ndarray, "B G"],
  *,
  rows: int,
  parts: int,
  minibatches: int,
  size: Callable[[Bool[np.ndarray, "B G T"]], Float[np.ndarray, " B"]],
  all_teach: bool,
) -> list[Batch]:
  """Batches of groups that teach, as many on each share of this host as fit.

  The loss remains a mean over all groups: its denominator, spread over the rows
  of the batches, counts those left out in the proportion of those that teach.

  Args:
    policy: whose prompts they are.
    groups: of responses.
    advantage: of each response; a group of zeros teaches nothing.
    rows: per batch and share.
    parts: shares of this host.
    minibatches: how many batches.
    size: what each group adds to the denominator.
    all_teach: whether all groups do, as under a penalty.
  """
  drawn, sizes = groups.drawn, size(groups.drawn.mask)
  teach = np.flatnonzero(advantage.any(axis=1) | all_teach)
  kept = teach[: parts * rows * minibatches]
  share = sizes[kept].sum() / sizes[teach].sum() if len(teach) else 1
  count = np.full(
    (parts, rows),
    sizes.sum() * share / (parts * rows * minibatches),
    np.float32,
  )
  longest = policy.settings.response_length(
    *multihost.most([int(drawn.mask[kept].sum(-1).max(initial=0))])
  )

  def batch(chosen):
    def shared(array):
      padded = np.zeros((parts * rows, *array.shape[1:]), array.dtype)
      padded[: len(chosen)] = array[chosen]
      return padded.reshape(parts, rows, *array.shape[1:])

    tokens, mask, logp = (
      shared(a[..., :longest]) for a in (drawn.tokens, drawn.mask, drawn.logp)
    )
    packed = policy.packer.pack(
      [groups.prompts[i] for i in chosen] or groups.prompts[:1],
      parts,
      rows,
      multihost.most,
    )
    return Batch(packed, tokens, mask, shared(advantage), logp, count)

  return [batch(kept[j::minibatches]) for j in range(minibatches)]
